"""Implements `core.ports.BufferPool` on one GPU: memory that cameras and the GPU share."""

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
"""From Xavier on, an integrated GPU is coherent with the CPU's caches and maps memory that CUDA did not allocate."""


class CudaBufferPool:
    """A `core.ports.BufferPool` for the context's thread only. Closing the context frees all buffers."""

    def __init__(self, context: CudaContext) -> None:
        self._context = context
        self._library: Optional[DriverLibrary] = None

    def modes(self) -> Sequence[str]:
        # A GPU with its own memory reads the host's over the bus, each byte at most once.
        if not self._context.integrated:
            return ("userptr", "copied")
        return ("userptr", "registered", "copied") if int(self._context.sm) >= _COHERENT_SM else ()

    def allocate(self, count: int, nbytes: int) -> List[MappedBuffer]:
        # Ordinary pages, registered with the GPU: CUDA's own memory is a mapping without pages, which no camera driver
        # accepts since Linux 6.2, nor since the end of 2022 in older branches.
        whole = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        return self.register([np.frombuffer(mmap.mmap(-1, whole), np.uint8) for _ in range(count)])

    def register(self, arrays: Sequence[Array]) -> List[MappedBuffer]:
        self._library = self._library or DriverLibrary()
        with ExitStack() as on_failure:
            buffers: List[MappedBuffer] = []
            for array in arrays:
                buffer = RegisteredBuffer(self._context, self._library, array)
                on_failure.callback(buffer.free)
                buffers.append(buffer)
            on_failure.pop_all()
        return buffers

    def free(self, buffers: Sequence[MappedBuffer], then: Callable[[], None]) -> None:
        if self._context.busy:
            self._context.wait_before_free()
        for buffer in buffers:
            try:
                if isinstance(buffer, RegisteredBuffer):
                    buffer.free()
            except EngineError as error:  # the GPU has failed; its memory is freed with the process
                _log.warning("freeing a camera's buffer: %s", error)
        then()
