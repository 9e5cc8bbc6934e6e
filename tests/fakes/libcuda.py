"""`libcuda.so.1` as a real shared library that forwards calls to a `FakeCuda`, so that tests cover the C types.

glibc looks up a soname among the loaded libraries first, so the agent's `CDLL` finds this one.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

from tests.fakes.pycuda import PAGE, FakeCuda

_SOURCE = """
#include <stddef.h>
#include <stdint.h>
typedef int (*Register)(void *, size_t, unsigned);
typedef int (*Pointer)(uint64_t *, void *, unsigned);
typedef int (*Unregister)(void *);
static Register on_register;
static Pointer on_pointer;
static Unregister on_unregister;
void fake_connect(Register r, Pointer p, Unregister u) { on_register = r; on_pointer = p; on_unregister = u; }
int cuMemHostRegister_v2(void *p, size_t n, unsigned flags) { return on_register ? on_register(p, n, flags) : 3; }
int cuMemHostGetDevicePointer_v2(uint64_t *d, void *p, unsigned f) { return on_pointer ? on_pointer(d, p, f) : 3; }
int cuMemHostUnregister(void *p) { return on_unregister ? on_unregister(p) : 3; }
int cuGetErrorString(int code, const char **words)
{
    *words = code == 1 ? "invalid argument" : code == 2 ? "out of memory" : code == 3 ? "initialization error"
           : code == 201 ? "invalid device context" : code == 712 ? "part or all of the requested memory range is "
             "already mapped" : code == 713 ? "pointer does not correspond to a registered memory region"
           : code == 801 ? "operation not supported" : "unrecognized error code";
    return 0;
}
"""
_CODES = {"out of memory": 2, "operation not supported": 801}
_REGISTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
_POINTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_uint64), ctypes.c_void_p, ctypes.c_uint)
_UNREGISTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_DEVICE_MAP = 2


@functools.lru_cache(maxsize=None)
def _library() -> ctypes.CDLL:
    compiler = shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C compiler for the fake driver: apt-get install gcc")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cuda.c", Path(folder) / "libcuda.so.1"
        source.write_text(_SOURCE)
        flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libcuda.so.1"]
        subprocess.run([compiler, *flags, "-x", "c", "-o", str(target), str(source)], check=True)
        return ctypes.CDLL(str(target))


class FakeDriverLibrary:
    """Forwards the calls to `cuda` inside a `with` block.

    Attributes:
        registered: Device pointer by host address, of memory that is registered now.
        refuses: True for the addresses whose pages the driver cannot lock.
    """

    def __init__(self, cuda: FakeCuda) -> None:
        self.registered: Dict[int, int] = {}
        self.refuses: Callable[[int], bool] = lambda address: False
        self._cuda = cuda
        self._calls = (_REGISTER(self._register), _POINTER(self._pointer), _UNREGISTER(self._unregister))

    def __enter__(self) -> "FakeDriverLibrary":
        _library().fake_connect(*self._calls)
        return self

    def __exit__(self, *_: object) -> None:
        _library().fake_connect(None, None, None)

    def locked(self, address: int) -> bool:
        """For `FakeKernel.locked`."""
        return address in self.registered

    def _checked(self, name: str) -> int:
        words = self._cuda.fail.get(name)
        if words is not None:
            return _CODES[words]
        return 0 if self._cuda.stack else 201

    def _register(self, address: int, nbytes: int, flags: int) -> int:
        code = self._checked("cuMemHostRegister")
        if code:
            return code
        if self.refuses(address):
            return 801
        if flags != _DEVICE_MAP or address % PAGE or nbytes % PAGE or not nbytes:
            return 1
        if address in self.registered:
            return 712
        if self._cuda.allocated_bytes + nbytes > self._cuda.memory_bytes:
            return 2
        self.registered[address] = address
        owner = (ctypes.c_uint8 * nbytes).from_address(address)
        self._cuda.memory[address] = np.frombuffer(memoryview(owner), np.uint8)
        return 0

    def _pointer(self, found: Any, address: int, flags: int) -> int:
        code = self._checked("cuMemHostGetDevicePointer")
        if code == 0 and address not in self.registered:
            code = 1
        if code == 0:
            found[0] = self.registered[address]
        return code

    def _unregister(self, address: int) -> int:
        if not self._cuda.stack:
            return 201
        if address not in self.registered:
            return 713
        del self._cuda.memory[self.registered.pop(address)]
        if not _is_mapped(address):
            self._cuda.misuses.append("memory was unmapped while the GPU still mapped it")
        return 0


def _is_mapped(address: int) -> bool:
    spans = (line.split(None, 1)[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in spans)
