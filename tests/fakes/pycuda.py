"""A fake of `pycuda.driver` without a GPU, which also checks what pycuda leaves undefined.

From the source of pycuda 2026.1 (src/cpp/cuda.hpp, src/wrapper/wrap_cudadrv.cpp):

- the context stack is per thread; a thread that ends with a context on it aborts the process (here: `aborts`);
- work needs a current context; memory freed or dropped without one warns and leaks (here: an error);
- work on a stream is done in order, when a thread waits for it; pointers are real addresses, looked up when the work
  is done: memory that was freed meanwhile, or that the GPU does not map, is an illegal access;
- after a failure of the work itself, every call fails in the same way, except freeing;
- a kernel's image is an ELF file: a shared library whose functions take (arguments, grid, block); see `kernel_twin`.
"""

import ctypes
import itertools
import struct
import tempfile
import threading
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Deque, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

import numpy as np

PAGE = 4096
Spans = Callable[[str, bytes], Iterable[Tuple[int, int]]]


class Misuse(AssertionError):
    """A use that crashes, leaks or gives wrong pixels on real hardware."""


class Error(Exception):
    """`pycuda.driver.Error`."""


class MemoryError(Error):
    """Out of memory."""


class LogicError(Error):
    """Anything else."""


class RuntimeError(Error):
    """No device, no code for it."""


class LaunchError(Error):
    """A kernel failed."""


class Launch(NamedTuple):
    """One kernel launch."""

    name: str
    grid: Tuple[int, ...]
    block: Tuple[int, ...]
    arguments: bytes


class _Stack:
    """A thread's contexts."""

    def __init__(self, aborts: List[str]) -> None:
        self.contexts: List[_Context] = []
        self._aborts = aborts
        self._thread = threading.current_thread().name

    def __del__(self) -> None:
        if self.contexts:
            self._aborts.append(f"thread {self._thread} ended with {len(self.contexts)} contexts on its stack")


class FakeCuda:
    """Stands in for the module `pycuda.driver`.

    Args:
        devices: Count of GPUs.
        capability: Their compute capability.
        integrated: Whether they share the host's memory.
        multiprocessors: Count per GPU.
        memory_bytes: Size of the memory that can be allocated.
        spans: The (address, length) pairs that a kernel touches, by its name and arguments.

    Attributes:
        fail: By API function ("cuMemAlloc"), or "work" for work on a stream: CUDA's error text that it fails with.
        launches: The newest launches.
        launched: Count of launches.
        opened: How often the primary context was retained.
        copied_bytes: Bytes copied to and from the GPU by memcpy.
        aborts: Threads that would have killed the process.
    """

    Error, MemoryError, LogicError, RuntimeError, LaunchError = (
        Error,
        MemoryError,
        LogicError,
        RuntimeError,
        LaunchError,
    )
    event_flags = SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1, DISABLE_TIMING=2)
    host_alloc_flags = SimpleNamespace(PORTABLE=1, DEVICEMAP=2, WRITECOMBINED=4)
    device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT=16, INTEGRATED=18, CAN_MAP_HOST_MEMORY=19)

    def __init__(
        self,
        devices: int = 1,
        capability: Tuple[int, int] = (8, 7),
        integrated: bool = True,
        multiprocessors: int = 16,
        memory_bytes: int = 1 << 30,
        spans: Optional[Spans] = None,
    ) -> None:
        self.devices, self.capability, self.integrated, self.memory_bytes = (
            devices,
            capability,
            integrated,
            memory_bytes,
        )
        self.multiprocessors = multiprocessors
        self.spans = spans
        self.fail: Dict[str, str] = {}
        self.launches: Deque[Launch] = deque(maxlen=64)
        self.launched = 0
        self.copied_bytes = 0
        self.aborts: List[str] = []
        self.misuses: List[str] = []
        self.event_flags_used: List[int] = []
        self.stream_flags_used: List[int] = []
        self.memory: Dict[int, np.ndarray] = {}
        self.own: Set[int] = set()  # the part that CUDA allocated
        self.objects = 0
        self.retained = 0
        self.opened = 0
        self.queues: Dict[int, Deque[Callable[[], None]]] = {}
        self.broken: Optional[str] = None
        self._initialised = False
        self._local = threading.local()
        self._handles = itertools.count(0x5EED0000, 0x40)

    # What the module offers.

    def init(self, flags: int = 0) -> None:
        self.check("cuInit")
        if not self.devices:
            raise RuntimeError("cuInit failed: no CUDA-capable device is detected")
        self._initialised = True

    def get_version(self) -> Tuple[int, int, int]:
        return (12, 6, 0)

    def get_driver_version(self) -> int:
        return 12060

    def Device(self, ordinal: int) -> "_Device":
        self.check("cuDeviceGet")
        if not self._initialised:
            raise LogicError("cuDeviceGet failed: initialization error")
        if ordinal >= self.devices:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")
        return _Device(self)

    def Stream(self, flags: int = 0) -> "_Stream":
        self.require_current("cuStreamCreate")
        self.stream_flags_used.append(flags)
        return _Stream(self, next(self._handles))

    def Event(self, flags: int = 0) -> "_Event":
        self.require_current("cuEventCreate")
        self.event_flags_used.append(flags)
        return _Event(self)

    def mem_alloc(self, nbytes: int) -> "_Allocation":
        self.require_current("cuMemAlloc")
        return _Allocation(self, self._reserve("cuMemAlloc", nbytes))

    def pagelocked_empty(self, shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
        self.require_current("cuMemHostAlloc")
        if not mem_flags & self.host_alloc_flags.DEVICEMAP:
            raise Misuse("page-locked memory that is not mapped: the GPU cannot see it")
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        allocation = _HostAllocation(self, self._reserve("cuMemHostAlloc", size, PAGE))
        flat = np.asarray(allocation)
        array = np.ndarray(shape, dtype, flat, order="C" if order == "C" else "F")
        return array.view(_Pagelocked).based_on(allocation)

    def module_from_buffer(self, buffer: bytes) -> "_Module":
        self.require_current("cuModuleLoadDataEx")
        return _Module(self, buffer)

    def memcpy_htod_async(self, dest: int, src: np.ndarray, stream: "_Stream") -> None:
        self._copy(int(dest), src.ctypes.data, src, stream)

    def memcpy_dtoh_async(self, dest: np.ndarray, src: int, stream: "_Stream") -> None:
        self._copy(dest.ctypes.data, int(src), dest, stream)

    def memcpy_dtod_async(self, dest: int, src: int, size: int, stream: "_Stream") -> None:
        self.require_current("cuMemcpyDtoDAsync")

        def copy() -> None:
            self.at(int(dest), size)[:] = self.at(int(src), size)

        self.queues[stream.handle].append(copy)

    def mem_get_info(self) -> Tuple[int, int]:
        self.require_current("cuMemGetInfo")
        return self.memory_bytes - self.allocated_bytes, self.memory_bytes

    # What tests and other fakes (TensorRT) use.

    def enqueue(self, stream_handle: int, work: Callable[[], None]) -> None:
        """Enqueue work of another library, by the stream's CUstream."""
        self.require_current("enqueue")
        if stream_handle not in self.queues:
            raise LogicError("cuLaunchKernel failed: invalid resource handle")
        self.queues[stream_handle].append(work)

    def at(self, pointer: int, nbytes: int) -> np.ndarray:
        """(nbytes,) uint8 view of memory that the GPU maps.

        Raises:
            LaunchError: The GPU does not map it.
        """
        for base, array in list(self.memory.items()):  # cameras iterate too, in their own threads
            if base <= pointer and pointer + nbytes <= base + array.nbytes:
                return array[pointer - base : pointer - base + nbytes]
        raise LaunchError("cuStreamSynchronize failed: an illegal memory access was encountered")

    def map(self, array: np.ndarray) -> int:
        """Map memory of another library for the GPU (a frame); returns its device pointer."""
        flat = np.lib.stride_tricks.as_strided(array.view(np.uint8).reshape(-1), (array.nbytes,), (1,))
        self.memory[array.ctypes.data] = flat
        return array.ctypes.data

    def unmap(self, array: np.ndarray) -> None:
        """Undo `map`."""
        del self.memory[array.ctypes.data]

    def pages(self, address: int, nbytes: int) -> Optional[np.ndarray]:
        """Memory that the GPU maps, for a camera's driver; None where it has no pages to pin, as CUDA's own."""
        try:
            return None if address in self.own else self.at(address, nbytes)
        except LaunchError:
            return None

    @property
    def allocated_bytes(self) -> int:
        return sum(array.nbytes for array in self.memory.values())

    def assert_clean(self) -> None:
        """Check that everything was freed, inside the context."""
        assert not self.aborts, self.aborts
        assert not self.misuses, self.misuses
        assert not self.memory, f"{len(self.memory)} allocations were never freed"
        if self.broken is None:  # else tracebacks of this fake's own frames hold them a little longer
            assert not self.queues and not self.objects, "streams, events or modules outlived the context"
        assert self.retained == 0, "the primary context was not released"
        assert not self.stack, "a context is still on this thread's stack"

    # Shared by the classes below.

    @property
    def stack(self) -> List["_Context"]:
        if not hasattr(self._local, "stack"):
            self._local.stack = _Stack(self.aborts)
        return self._local.stack.contexts

    def check(self, api: str) -> None:
        words = self.fail.get(api)
        if words is not None:
            raise _error_of(words)(f"{api} failed: {words}")

    def require_current(self, api: str) -> None:
        self.check(api)
        if self.broken is not None:  # a failed kernel makes every later call fail
            raise LaunchError(self.broken)
        if not self.stack:
            raise LogicError(f"{api} failed: invalid device context")

    def dropped(self, what: str, context: "_Context") -> None:
        """Record that an object was destroyed with its last reference; pycuda warns only while the context lives."""
        self.objects -= 1
        if not self.stack and context.valid:
            self.misuses.append(f"{what} in out-of-thread context could not be cleaned up")

    def drain(self, handle: int, count: Optional[int] = None) -> None:
        queue = self.queues[handle]
        try:
            self.check("work")
            for _ in range(len(queue) if count is None else count):
                queue.popleft()()
        except Error as error:
            self.broken = str(error)
            queue.clear()
            raise

    def _reserve(self, api: str, nbytes: int, alignment: int = 1) -> int:
        if nbytes <= 0:
            raise LogicError(f"{api} failed: invalid argument")
        if self.allocated_bytes + nbytes > self.memory_bytes:
            raise MemoryError(f"{api} failed: out of memory")
        array = np.full(nbytes + alignment, 0xA5, np.uint8)  # makes reads of uninitialised memory visible
        array = array[-array.ctypes.data % alignment :][:nbytes]
        self.memory[array.ctypes.data] = array
        self.own.add(array.ctypes.data)
        return array.ctypes.data

    def release(self, pointer: int) -> None:
        if not self.stack:
            raise Misuse("memory was freed while no context was current: pycuda warns and leaks it")
        self.own.discard(pointer)
        self.memory.pop(pointer)[:] = 0xDD

    def _copy(self, target: int, source: int, host: np.ndarray, stream: "_Stream") -> None:
        self.require_current("cuMemcpyAsync")
        if not host.flags.c_contiguous:
            raise ValueError("ndarray is not contiguous")
        nbytes = host.nbytes

        def copy() -> None:
            self.at(target, nbytes)[:] = self.at(source, nbytes)
            self.copied_bytes += nbytes

        self.queues[stream.handle].append(copy)


class _Device:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def name(self) -> str:
        return "Fake"

    def compute_capability(self) -> Tuple[int, int]:
        return self._cuda.capability

    def get_attribute(self, attribute: int) -> int:
        attributes = FakeCuda.device_attribute
        known = {
            attributes.INTEGRATED: int(self._cuda.integrated),
            attributes.MULTIPROCESSOR_COUNT: self._cuda.multiprocessors,
        }
        return known.get(attribute, 1)

    def retain_primary_context(self) -> "_Context":
        self._cuda.check("cuDevicePrimaryCtxRetain")
        self._cuda.retained += 1
        self._cuda.opened += 1
        return _Context(self._cuda)


class _Context:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self._thread = threading.get_ident()
        self.valid = True

    def push(self) -> None:
        if not self.valid:
            raise LogicError("cuCtxPushCurrent failed: invalid device context")
        self._cuda.check("cuCtxPushCurrent")
        self._cuda.stack.append(self)

    def pop(self) -> None:
        if not self._cuda.stack:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        self._cuda.stack.pop()

    def detach(self) -> None:
        if not self.valid:
            raise LogicError("context::detach failed: invalid device context - cannot detach from invalid context")
        if threading.get_ident() != self._thread:
            raise Misuse("a context was detached by another thread: pycuda leaks it silently")
        self.valid = False
        self._cuda.retained -= 1


class _Stream:
    def __init__(self, cuda: FakeCuda, handle: int) -> None:
        self._cuda, self.handle, self._context = cuda, handle, cuda.stack[-1]
        cuda.queues[handle] = deque()
        cuda.objects += 1

    def synchronize(self) -> None:
        self._cuda.require_current("cuStreamSynchronize")
        self._cuda.drain(self.handle)

    def __del__(self) -> None:
        if self._cuda.queues.pop(self.handle):
            self._cuda.misuses.append("a stream was destroyed with work on it")
        self._cuda.dropped("stream", self._context)


class _Event:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda, self._context = cuda, cuda.stack[-1]
        self._stream = 0
        self._reached = True
        cuda.objects += 1

    def record(self, stream: _Stream) -> "_Event":
        self._cuda.require_current("cuEventRecord")
        self._stream, self._reached = stream.handle, False
        self._cuda.queues[stream.handle].append(self._reach)
        return self

    def synchronize(self) -> "_Event":
        self._cuda.require_current("cuEventSynchronize")
        while not self._reached:
            self._cuda.drain(self._stream, 1)
        return self

    def _reach(self) -> None:
        self._reached = True

    def __del__(self) -> None:
        self._cuda.dropped("event", self._context)


class _Allocation:
    """DeviceAllocation."""

    def __init__(self, cuda: FakeCuda, pointer: int) -> None:
        self._cuda, self._pointer, self._valid = cuda, pointer, True

    def __int__(self) -> int:
        return self._pointer

    __index__ = __int__

    def free(self) -> None:
        if not self._valid:
            raise LogicError("device_allocation::free failed: invalid resource handle")
        self._cuda.release(self._pointer)
        self._valid = False

    def __del__(self) -> None:
        if self._valid:
            self._cuda.misuses.append("memory was dropped, not freed")


class _HostAllocation(_Allocation):
    """PagelockedHostAllocation."""

    __index__ = None  # type: ignore[assignment]

    def get_device_pointer(self) -> int:
        self._cuda.require_current("cuMemHostGetDevicePointer")
        return self._pointer

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._cuda.memory[self._pointer]


class _Pagelocked(np.ndarray):
    """An array whose `base` is its allocation, as pycuda makes them."""

    _allocation: Optional[_HostAllocation] = None

    def based_on(self, allocation: _HostAllocation) -> "_Pagelocked":
        self._allocation = allocation
        return self

    @property
    def base(self) -> Any:
        return self._allocation


class _Module:
    def __init__(self, cuda: FakeCuda, image: bytes) -> None:
        if not image.startswith(b"\x7fELF"):
            raise LogicError("cuModuleLoadDataEx failed: device kernel image is invalid - ")
        self._cuda, self._context = cuda, cuda.stack[-1]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.so"
            path.write_bytes(image)
            try:
                self._library = ctypes.CDLL(str(path))
            except OSError as error:
                raise RuntimeError(
                    "cuModuleLoadDataEx failed: no kernel image is available for execution on the device - "
                ) from error
        cuda.objects += 1

    def get_function(self, name: str) -> "_Function":
        if not hasattr(self._library, name):
            raise LogicError("cuModuleGetFunction failed: named symbol not found")
        return _Function(self._cuda, self, name, getattr(self._library, name))

    def __del__(self) -> None:
        if hasattr(self, "_library"):
            self._cuda.dropped("module", self._context)


class _Function:
    def __init__(self, cuda: FakeCuda, module: _Module, name: str, entry: Callable[..., None]) -> None:
        self._cuda, self._module, self._name, self._entry = cuda, module, name, entry
        self._format = ""

    def prepare(self, arg_types: Iterable[str]) -> "_Function":
        self._format = "".join(arg_types)
        return self

    def prepared_async_call(self, grid: Any, block: Any, stream: _Stream, *args: Any) -> None:
        self._cuda.require_current("cuLaunchKernel")
        arguments = struct.pack(self._format, *args)
        if len(grid) > 3 or len(block) > 3 or min(*grid, *block) < 1 or np.prod(block) > 1024:
            raise LogicError("cuLaunchKernel failed: invalid argument")
        if len(arguments) != struct.calcsize(self._format) or any(len(a) > len(arguments) for a in args):
            raise Misuse("the arguments are not as long as was prepared: struct pads or cuts them silently")
        launch = Launch(self._name, tuple(grid), tuple(block), arguments)
        self._cuda.launches.append(launch)
        self._cuda.launched += 1
        self._cuda.queues[stream.handle].append(lambda: self._run(launch))

    def _run(self, launch: Launch) -> None:
        for address, nbytes in self._cuda.spans(launch.name, launch.arguments) if self._cuda.spans else ():
            self._cuda.at(address, nbytes)
        sizes = [(ctypes.c_uint * 3)(*(*size, 1, 1, 1)[:3]) for size in (launch.grid, launch.block)]
        self._entry(ctypes.create_string_buffer(launch.arguments, len(launch.arguments)), *sizes)


def _error_of(words: str) -> type:
    if "out of memory" in words:
        return MemoryError
    if "no CUDA-capable device" in words or "no kernel image" in words:
        return RuntimeError
    return LaunchError if "launch" in words else LogicError
