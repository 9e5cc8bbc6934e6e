"""What the C library keeps of freed memory goes back to the system; what stays is not searched for garbage."""

import gc
import platform
import subprocess
import sys

import pytest

from edge_agent.host.process import made_to_stay

PROGRAM = """
import ctypes
from edge_agent.host.process import trim
from edge_agent.host.process import rss_bytes

ctypes.CDLL(None).mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD: all of it comes from the heap
blocks = [bytearray(1 << 16) for _ in range(1000)]
last = bytearray(1 << 16)  # holds the heap's end
del blocks
before = rss_bytes()
trim()
print(before - rss_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc: others keep nothing back")
def test_freed_memory_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30)
    assert int(done.stdout) > 30e6, "of 65 MB"


def test_what_is_made_to_stay_is_left_alone_and_later_garbage_is_not() -> None:
    try:
        with pytest.raises(ValueError), made_to_stay():
            assert not gc.isenabled()
            kept = [[number] for number in range(1000)]
            raise ValueError
        assert gc.isenabled(), "also after a fault"
        later = [[]]
        assert any(item is later for item in gc.get_objects()) and gc.get_freeze_count() >= len(kept)
        assert not any(item is kept for item in gc.get_objects())
    finally:
        gc.unfreeze()
