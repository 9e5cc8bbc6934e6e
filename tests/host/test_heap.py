"""Freed heap memory returns to the system; objects excluded from garbage collection stay excluded."""

import gc
import platform
import subprocess
import sys

import pytest

from edge_agent.host.process import exempt_from_gc

PROGRAM = """
import ctypes
from edge_agent.host.process import trim
from edge_agent.host.process import rss_bytes

ctypes.CDLL(None).mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD: allocate all blocks on the heap
blocks = [bytearray(1 << 16) for _ in range(1000)]
last = bytearray(1 << 16)  # keeps the end of the heap in use
del blocks
before = rss_bytes()
trim()
print(before - rss_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc: other C libraries do not retain memory")
def test_trim_returns_freed_memory() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30)
    assert int(done.stdout) > 30e6, "of 65 MB"


def test_objects_of_the_block_are_excluded_and_later_objects_are_not() -> None:
    try:
        with pytest.raises(ValueError), exempt_from_gc():
            assert not gc.isenabled()
            kept = [[number] for number in range(1000)]
            raise ValueError
        assert gc.isenabled(), "also after an exception"
        later = [[]]
        assert any(item is later for item in gc.get_objects()) and gc.get_freeze_count() >= len(kept)
        assert not any(item is kept for item in gc.get_objects())
    finally:
        gc.unfreeze()
