"""`core.ports.BufferPool` on one GPU: page-locked memory for cameras, and cameras' memory shown to the GPU."""

import ctypes
import logging
import mmap
import weakref
from contextlib import ExitStack
from typing import Callable, List, Optional, Sequence

import numpy as np

from edge_agent.core.ports import MappedBuffer
from edge_agent.core.types import Array
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.context import CudaContext, PinnedBuffer
from edge_agent.inference.cuda.register import DriverLibrary, RegisteredBuffer

_log = logging.getLogger(__name__)

_COHERENT_SM = 72
"""From Xavier on, an integrated GPU sees what others wrote into the CPU's cache. Before, a driver that fills pinned
memory through the cache may leave the GPU stale lines."""


class LentBuffer:
    """Page-locked memory that cannot be freed under somebody who still looks at it.

    Attributes:
        array: (N,) uint8.
        pointer: The same memory for the GPU.
    """

    def __init__(self, pinned: PinnedBuffer) -> None:
        owner = (ctypes.c_uint8 * pinned.nbytes).from_address(pinned.array.ctypes.data)
        self._views = weakref.ref(owner)  # lives as long as any view of `array`
        self._pinned = pinned
        self.array: Array = np.frombuffer(memoryview(owner), np.uint8)
        self.pointer = pinned.pointer

    def free(self) -> bool:
        """Give it back; False when that has to be tried again, because there is still a view of it."""
        self.__dict__.pop("array", None)
        if self._views() is not None:
            return False
        self._pinned.free()
        return True


class CudaBufferPool:
    """See `core.ports.BufferPool`; for the context's thread only, which answers at once.

    What is still out when the context closes is freed by it.

    Args:
        context: The GPU.
    """

    def __init__(self, context: CudaContext) -> None:
        self._context = context
        self._library: Optional[DriverLibrary] = None
        self._looked_at: List[LentBuffer] = []

    def modes(self) -> Sequence[str]:
        """See `BufferPool`. A GPU with its own memory reads the host's over the bus, each byte once or less."""
        if not self._context.integrated:
            return ("userptr", "copied")
        return ("userptr", "registered", "copied") if int(self._context.sm) >= _COHERENT_SM else ("copied",)

    def allocate(self, count: int, nbytes: int) -> List[MappedBuffer]:
        """See `BufferPool`."""
        self._free_unseen()
        whole = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        with ExitStack() as failing:
            made: List[MappedBuffer] = []
            for _ in range(count):
                pinned = self._context.pinned(whole)
                failing.callback(pinned.free)
                made.append(LentBuffer(pinned))
            failing.pop_all()
        return made

    def register(self, arrays: Sequence[Array]) -> List[MappedBuffer]:
        """See `BufferPool`."""
        self._library = self._library or DriverLibrary()
        with ExitStack() as failing:
            made: List[MappedBuffer] = []
            for array in arrays:
                buffer = RegisteredBuffer(self._context, self._library, array)
                failing.callback(buffer.free)
                made.append(buffer)
            failing.pop_all()
        return made

    def free(self, buffers: Sequence[MappedBuffer], then: Callable[[], None]) -> None:
        """See `BufferPool`."""
        if self._context.busy:
            self._context.settle()
        for buffer in buffers:
            self._free(buffer)
        self._free_unseen()
        then()

    def _free(self, buffer: MappedBuffer) -> None:
        try:
            if isinstance(buffer, LentBuffer):
                if not buffer.free():
                    self._looked_at.append(buffer)
            elif isinstance(buffer, RegisteredBuffer):
                buffer.free()
        except EngineError as error:  # the GPU has failed; its memory goes with the process
            _log.warning("a camera's buffer: %s", error)

    def _free_unseen(self) -> None:
        waiting, self._looked_at = self._looked_at, []
        for buffer in waiting:
            self._free(buffer)
