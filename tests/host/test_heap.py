"""What the C library keeps of freed memory goes back to the system."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
from edge_agent.host.heap import trim
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
