"""CUDA for one thread: the primary context, one stream, and memory with an explicit end."""

import logging
import threading
from typing import List, Optional, Protocol

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.driver import (
    Block,
    Context,
    DeviceAllocation,
    Driver,
    Function,
    Grid,
    HostAllocation,
    Module,
    engine_error,
    load_driver,
)

_log = logging.getLogger(__name__)

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream of other libraries


class Resource(Protocol):
    """Something of a context that must be freed before it."""

    def free(self) -> None:
        """Idempotent."""


class CudaContext:
    """One GPU, used and closed by the thread that made this.

    The context is current only inside `with current()`, so no thread can end with it on its stack, upon which pycuda
    would abort the process. All that is enqueued goes to one stream; `wait` sleeps until it is done.

    Args:
        driver: `pycuda.driver`; see `open_cuda`.
        ordinal: Which GPU.

    Attributes:
        name: Of the GPU.
        sm: Its architecture, e.g. "87" for compute capability 8.7.
        cuda_version: The newest CUDA that its driver runs, e.g. "12.6".
        stream_handle: The CUstream, for TensorRT's execute calls.
        multiprocessors: How many it has: boards of one name and architecture differ in it.
        integrated: True when it shares the host's memory (Jetson): then page-locked memory is read in place.

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
            self._context: Optional[Context] = device.retain_primary_context()
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
        """True when something was enqueued through this object since the last `wait`."""
        return self._busy

    def current(self, doing: str = "working") -> "_Current":
        """Make the context current for a block. Nests. TensorRT's calls belong inside such a block too.

        Args:
            doing: What the block does, for errors.

        Raises:
            EngineError: CUDA failed inside the block, or the context is closed.
            RuntimeError: Another thread than the owner came here.
        """
        self._require_owner()
        if self._context is None:
            raise EngineError(f"CUDA: {doing}: used after it was closed")
        return _Current(self._driver, self._context, doing)

    def device_buffer(self, nbytes: int) -> "DeviceBuffer":
        """Memory of the GPU, `nbytes` long, with anything in it.

        Raises:
            EngineError: There is not so much.
        """
        with self.current(f"allocating {nbytes} bytes on the GPU"):
            return DeviceBuffer(self, self._driver.mem_alloc(nbytes), nbytes)

    def pinned(self, nbytes: int) -> "PinnedBuffer":
        """Page-locked memory of the host, mapped for the GPU, `nbytes` long, with anything in it.

        Raises:
            EngineError: There is not so much.
        """
        flags = int(self._driver.host_alloc_flags.DEVICEMAP)
        with self.current(f"allocating {nbytes} page-locked bytes"):
            array = self._driver.pagelocked_empty(nbytes, np.dtype(np.uint8), "C", flags)
            try:
                return PinnedBuffer(self, array)
            except self._driver.Error:
                array.base.free()  # type: ignore[union-attr]
                raise

    def kernel(self, image: bytes, name: str, argument_bytes: int) -> "Kernel":
        """Load machine code and take one entry point, whose single argument is a struct of `argument_bytes`.

        Raises:
            EngineError: The image is damaged, or for another GPU.
        """
        with self.current(f"loading kernel {name}"):
            module = self._driver.module_from_buffer(image)
            function = module.get_function(name)
            function.prepare([f"{argument_bytes}s"])
            return Kernel(self, module, function)

    def launch(self, kernel: "Kernel", grid: Grid, block: Block, arguments: bytes) -> None:
        """Enqueue a kernel.

        Raises:
            EngineError: CUDA refused, or earlier work failed.
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
        """Sleep until all that was enqueued on the stream, by whomever, is done.

        Raises:
            EngineError: Some of it failed.
        """
        with self.current("waiting for the GPU"):
            self._done.record(self._stream)
            self._done.synchronize()
            self._busy = False

    def settle(self) -> None:
        """Wait before freeing. A failure is only logged: memory has to be freed all the same."""
        try:
            self.wait()
        except EngineError as error:
            _log.warning("at the end: %s", error)

    def adopt(self, resource: Resource) -> None:
        """Free `resource` at the latest when this is closed, before everything adopted earlier."""
        self._resources.append(resource)

    def disown(self, resource: Resource) -> None:
        """It has been freed."""
        self._resources.remove(resource)

    def close(self) -> None:
        """Wait, free everything, newest first, and let the context go. Idempotent.

        Raises:
            RuntimeError: Another thread than the owner came here.
        """
        self._require_owner()
        if self._context is None:
            return
        try:
            with self.current("closing"):
                self.settle()
                while self._resources:
                    self._resources[-1].free()
                self._drop_stream()
        finally:
            self._detach()

    def _require_owner(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("a CUDA context was used by another thread than the one that made it")

    def _drop_stream(self) -> None:
        """Destroy the stream and its event, as far as they were made."""
        for name in ("_done", "_stream"):
            if hasattr(self, name):
                with self.current("closing"):  # pycuda destroys them with their last reference, which must be in here
                    delattr(self, name)

    def _detach(self) -> None:
        if self._context is not None:
            self._context.detach()
            self._context = None


class _Current:
    """The block of `CudaContext.current`.

    Not a generator: contextlib's `__exit__` of Python 3.12 and 3.13 leaves an error that replaces another in a cycle.
    That would keep the frames of a failed call, with stream and events in them, until the garbage collector comes, in
    any thread.
    """

    def __init__(self, driver: Driver, context: Context, doing: str) -> None:
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
    """Memory of the GPU.

    Attributes:
        pointer: Device pointer.
        nbytes: Length.
    """

    def __init__(self, context: CudaContext, allocation: DeviceAllocation, nbytes: int) -> None:
        self._context = context
        self._allocation: Optional[DeviceAllocation] = allocation
        self.pointer = int(allocation)
        self.nbytes = nbytes
        context.adopt(self)

    def free(self) -> None:
        """Give it back; nothing enqueued may still use it. Idempotent."""
        if self._allocation is None:
            return
        with self._context.current("freeing memory"):
            self._allocation.free()
            self._allocation = None
            self._context.disown(self)


class PinnedBuffer:
    """Page-locked memory of the host.

    Attributes:
        array: (nbytes,) uint8, for the CPU. It and all views of it dangle after `free`.
        pointer: The same memory for the GPU.
        nbytes: Length.
    """

    def __init__(self, context: CudaContext, array: Array) -> None:
        allocation: HostAllocation = array.base  # type: ignore[assignment]
        self._context = context
        self._allocation: Optional[HostAllocation] = allocation
        self.array = array
        self.pointer = int(allocation.get_device_pointer())
        self.nbytes = array.nbytes
        context.adopt(self)

    def free(self) -> None:
        """Give it back; nothing enqueued and no view may still use it. Idempotent."""
        if self._allocation is None:
            return
        with self._context.current("freeing memory"):
            del self.array
            self._allocation.free()
            self._allocation = None
            self._context.disown(self)


class Kernel:
    """An entry point of loaded machine code."""

    def __init__(self, context: CudaContext, module: Module, function: Function) -> None:
        self._context = context
        self._loaded = [(module, function)]
        context.adopt(self)

    @property
    def function(self) -> Function:
        """For `CudaContext.launch`."""
        if not self._loaded:
            raise EngineError("CUDA: a kernel was used after it was freed")
        return self._loaded[0][1]

    def free(self) -> None:
        """Unload it. Idempotent."""
        if self._loaded:
            with self._context.current("unloading a kernel"):
                self._loaded.clear()
                self._context.disown(self)


def open_cuda(ordinal: int = 0) -> CudaContext:
    """The GPU, through pycuda. Call it in the thread that will use and close it.

    Raises:
        MissingPackage: pycuda or NVIDIA's driver is not installed.
        EngineError: No GPU, a driver that does not fit, or no memory.
    """
    return CudaContext(load_driver(), ordinal)
