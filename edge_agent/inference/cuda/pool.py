"""`core.ports.BufferPool` on one GPU: memory for cameras, and cameras' memory, locked and shown to the GPU."""

import logging
import mmap
from contextlib import ExitStack
from typing import Callable, List, Optional, Sequence

import numpy as np

from edge_agent.core.ports import MappedBuffer
from edge_agent.core.types import Array
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.register import DriverLibrary, RegisteredBuffer

_log = logging.getLogger(__name__)

_COHERENT_SM = 72
"""From Xavier on, an integrated GPU sees what lies in the CPU's cache, and takes memory that CUDA has not made."""


class CudaBufferPool:
    """See `core.ports.BufferPool`; for the context's thread only, which answers at once.

    What is still out when the context closes is let go by it.

    Args:
        context: The GPU.
    """

    def __init__(self, context: CudaContext) -> None:
        self._context = context
        self._library: Optional[DriverLibrary] = None

    def modes(self) -> Sequence[str]:
        """See `BufferPool`. A GPU with its own memory reads the host's over the bus, each byte once or less."""
        if not self._context.integrated:
            return ("userptr", "copied")
        return ("userptr", "registered", "copied") if int(self._context.sm) >= _COHERENT_SM else ()

    def allocate(self, count: int, nbytes: int) -> List[MappedBuffer]:
        """See `BufferPool`.

        Ordinary pages, shown to the GPU. CUDA's own memory is a mapping without pages, and such memory no driver of a
        camera takes since Linux 6.2, nor since the end of 2022 in older branches.
        """
        whole = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        return self.register([np.frombuffer(mmap.mmap(-1, whole), np.uint8) for _ in range(count)])

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
            try:
                if isinstance(buffer, RegisteredBuffer):
                    buffer.free()
            except EngineError as error:  # the GPU has failed; its memory goes with the process
                _log.warning("a camera's buffer: %s", error)
        then()
