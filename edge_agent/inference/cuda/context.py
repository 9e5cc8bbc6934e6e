"""A CUDA context for one thread: the primary context, one stream, and memory that is freed explicitly."""

import logging
import threading
from typing import Any, List, Optional, Protocol, Tuple

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.driver import Driver, engine_error, load_driver

_log = logging.getLogger(__name__)

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not synchronise with the default stream that other libraries use


class Resource(Protocol):
    """An object that must be freed before its context."""

    def free(self) -> None:
        """Idempotent."""


class CudaContext:
    """The primary context of one GPU, used and closed by the thread that created this object.

    The context is current only inside `with current()`: pycuda aborts the process when a thread ends with a context on
    its stack. All work is enqueued on one stream; `wait` sleeps until it is done.

    Args:
        driver: The module `pycuda.driver`.
        ordinal: Number of the GPU.

    Attributes:
        name: Name of the GPU.
        sm: Architecture, e.g. "87" for compute capability 8.7.
        cuda_version: Newest CUDA version that the driver runs, e.g. "12.6".
        stream_handle: The CUstream, for TensorRT's execute calls.
        multiprocessors: Count; boards of one name and architecture differ in it.
        integrated: True when the GPU shares the host's memory (Jetson) and reads page-locked memory in place.

    Raises:
        EngineError: No GPU, a driver that does not fit, or no memory.
    """

    def __init__(self, driver: Driver, ordinal: int = 0) -> None:
        self._driver = driver
        self._thread = threading.get_ident()
        self._resources: List[Resource] = []
        self._busy = False
        try:
            driver.init()
            device = driver.Device(ordinal)
            self.name = device.name()
            self.sm = "{}{}".format(*device.compute_capability())
            version = driver.get_driver_version()
            self.cuda_version = f"{version // 1000}.{version % 1000 // 10}"
            self.multiprocessors = device.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT)
            self.integrated = bool(device.get_attribute(driver.device_attribute.INTEGRATED))
            self._context: Optional[Any] = device.retain_primary_context()
        except driver.Error as error:
            raise engine_error(error, "opening the GPU") from error
        flags = driver.event_flags
        try:
            with self.current("making a stream"):
                self._stream = driver.Stream(_NON_BLOCKING)
                self.stream_handle = int(self._stream.handle)
                self._done = driver.Event(int(flags.BLOCKING_SYNC) | int(flags.DISABLE_TIMING))
        except EngineError:
            self._drop_stream()
            self._detach()
            raise

    @property
    def busy(self) -> bool:
        """True when work was enqueued through this object since the last `wait`."""
        return self._busy

    def current(self, doing: str = "working") -> "_Current":
        """Make the context current for a block; blocks nest. Calls of TensorRT must be inside such a block too.

        Args:
            doing: What the block does, for error messages.

        Raises:
            EngineError: CUDA failed inside the block, or the context is closed.
            RuntimeError: The calling thread is not the owner.
        """
        self._require_owner()
        if self._context is None:
            raise EngineError(f"CUDA: {doing}: used after it was closed")
        return _Current(self._driver, self._context, doing)

    def device_buffer(self, nbytes: int) -> "DeviceBuffer":
        """Uninitialised GPU memory of `nbytes`.

        Raises:
            EngineError: There is not enough memory.
        """
        with self.current(f"allocating {nbytes} bytes on the GPU"):
            return DeviceBuffer(self, self._driver.mem_alloc(nbytes), nbytes)

    def pinned(self, nbytes: int) -> "PinnedBuffer":
        """Uninitialised page-locked host memory of `nbytes`, mapped for the GPU.

        Raises:
            EngineError: There is not enough memory.
        """
        flags = int(self._driver.host_alloc_flags.DEVICEMAP)
        with self.current(f"allocating {nbytes} page-locked bytes"):
            array = self._driver.pagelocked_empty(nbytes, np.dtype(np.uint8), "C", flags)
            try:
                return PinnedBuffer(self, array)
            except self._driver.Error:
                array.base.free()
                raise

    def kernel(self, image: bytes, name: str, argument_bytes: int) -> "Kernel":
        """Load machine code and return one entry point, whose only argument is a struct of `argument_bytes`.

        Raises:
            EngineError: The image is damaged, or for another GPU.
        """
        with self.current(f"loading kernel {name}"):
            module = self._driver.module_from_buffer(image)
            function = module.get_function(name)
            function.prepare([f"{argument_bytes}s"])
            return Kernel(self, module, function)

    def launch(self, kernel: "Kernel", grid: Tuple[int, int], block: Tuple[int, int, int], arguments: bytes) -> None:
        """Enqueue a kernel.

        Raises:
            EngineError: The launch or earlier work failed.
        """
        with self.current("launching a kernel"):
            self._busy = True
            kernel.function.prepared_async_call(grid, block, self._stream, arguments)

    def upload(self, pointer: int, source: Array) -> None:
        """Enqueue a copy of `source`, contiguous and in page-locked memory, to the GPU's memory at `pointer`."""
        with self.current("copying to the GPU"):
            self._busy = True
            self._driver.memcpy_htod_async(pointer, source, self._stream)

    def download(self, target: Array, pointer: int) -> None:
        """Enqueue a copy from the GPU's memory at `pointer` to `target`, contiguous and in page-locked memory."""
        with self.current("copying from the GPU"):
            self._busy = True
            self._driver.memcpy_dtoh_async(target, pointer, self._stream)

    def wait(self) -> None:
        """Sleep until all work on the stream is done, including what other libraries enqueued.

        Raises:
            EngineError: Some of the work failed.
        """
        with self.current("waiting for the GPU"):
            self._done.record(self._stream)
            self._done.synchronize()
            self._busy = False

    def wait_before_free(self) -> None:
        """Wait, but only log a failure: memory must be freed in any case."""
        try:
            self.wait()
        except EngineError as error:
            _log.warning("waiting before memory is freed: %s", error)

    def track(self, resource: Resource) -> None:
        """Register `resource`, so that `close` frees it, before all that were registered earlier."""
        self._resources.append(resource)

    def untrack(self, resource: Resource) -> None:
        """Remove a resource that has been freed."""
        self._resources.remove(resource)

    def close(self) -> None:
        """Wait, free all resources, newest first, and release the context. Idempotent.

        Raises:
            RuntimeError: The calling thread is not the owner.
        """
        self._require_owner()
        if self._context is None:
            return
        try:
            with self.current("closing"):
                self.wait_before_free()
                while self._resources:
                    self._resources[-1].free()
                self._drop_stream()
        finally:
            self._detach()

    def _require_owner(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("a CUDA context was used by another thread than the one that created it")

    def _drop_stream(self) -> None:
        """Destroy the stream and its event, as far as they exist."""
        for name in ("_done", "_stream"):
            if hasattr(self, name):
                with self.current("closing"):  # pycuda destroys them with their last reference
                    delattr(self, name)

    def _detach(self) -> None:
        if self._context is not None:
            self._context.detach()
            self._context = None


class _Current:
    """Context manager of `CudaContext.current`.

    It is not a generator: in Python 3.12 and 3.13, `__exit__` of contextlib leaves an error that replaces another in a
    reference cycle. The frames of the failed call, and with them stream and events, would then live until the garbage
    collector runs, in any thread.
    """

    def __init__(self, driver: Driver, context: Any, doing: str) -> None:
        self._driver, self._context, self._doing = driver, context, doing

    def __enter__(self) -> None:
        try:
            self._context.push()
        except self._driver.Error as error:
            raise engine_error(error, self._doing) from error

    def __exit__(self, _kind: object, error: Optional[BaseException], _traceback: object) -> None:
        try:
            self._context.pop()
        except self._driver.Error as unbalanced:
            error = unbalanced
        if isinstance(error, self._driver.Error):
            raise engine_error(error, self._doing) from error


class DeviceBuffer:
    """GPU memory.

    Attributes:
        pointer: Device pointer.
        nbytes: Size.
    """

    def __init__(self, context: CudaContext, allocation: Any, nbytes: int) -> None:
        self._context = context
        self._allocation: Optional[Any] = allocation
        self.pointer = int(allocation)
        self.nbytes = nbytes
        context.track(self)

    def free(self) -> None:
        """Free the memory; no enqueued work may still use it. Idempotent."""
        if self._allocation is None:
            return
        with self._context.current("freeing memory"):
            self._allocation.free()
            self._allocation = None
            self._context.untrack(self)


class PinnedBuffer:
    """Page-locked host memory.

    Attributes:
        array: (nbytes,) uint8, for the CPU. It and all views of it are invalid after `free`.
        pointer: The same memory for the GPU.
        nbytes: Size.
    """

    def __init__(self, context: CudaContext, array: Array) -> None:
        allocation: Any = array.base
        self._context = context
        self._allocation: Optional[Any] = allocation
        self.array = array
        self.pointer = int(allocation.get_device_pointer())
        self.nbytes = array.nbytes
        context.track(self)

    def free(self) -> None:
        """Free the memory; no enqueued work and no view may still use it. Idempotent."""
        if self._allocation is None:
            return
        with self._context.current("freeing memory"):
            del self.array
            self._allocation.free()
            self._allocation = None
            self._context.untrack(self)


class Kernel:
    """An entry point of loaded machine code."""

    def __init__(self, context: CudaContext, module: Any, function: Any) -> None:
        self._context = context
        self._loaded = [(module, function)]
        context.track(self)

    @property
    def function(self) -> Any:
        """The pycuda function, for `CudaContext.launch`."""
        if not self._loaded:
            raise EngineError("CUDA: a kernel was used after it was freed")
        return self._loaded[0][1]

    def free(self) -> None:
        """Unload the machine code. Idempotent."""
        if self._loaded:
            with self._context.current("unloading a kernel"):
                self._loaded.clear()
                self._context.untrack(self)


def open_cuda(ordinal: int = 0) -> CudaContext:
    """Open a GPU through pycuda. Call it in the thread that will use and close the context.

    Raises:
        MissingPackage: pycuda or NVIDIA's driver is not installed.
        EngineError: No GPU, a driver that does not fit, or no memory.
    """
    return CudaContext(load_driver(), ordinal)
