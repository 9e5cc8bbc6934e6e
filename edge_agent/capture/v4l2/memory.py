"""Which memory a camera's pictures go to: the best that its driver and the GPU agree on, found by trying."""

import errno
import logging
from typing import Callable, Dict, List, Optional, Tuple, Union

from edge_agent.capture.pixels import ImageLayout
from edge_agent.capture.v4l2.buffers import CopiedBuffers, MmapBuffers, RegisteredBuffers, StreamBuffers, UserptrBuffers
from edge_agent.capture.v4l2.kernel import Device
from edge_agent.capture.v4l2.stream import Stream
from edge_agent.core.frame import DeviceView
from edge_agent.core.ports import BufferPool
from edge_agent.errors import EdgeAgentError, EngineError, SourceError

log = logging.getLogger(__name__)

_MAKE: Dict[str, Callable[[BufferPool], StreamBuffers]] = {
    UserptrBuffers.mode: UserptrBuffers,
    RegisteredBuffers.mode: RegisteredBuffers,
    CopiedBuffers.mode: CopiedBuffers,
}
_CPU = MmapBuffers.mode

# How drivers refuse memory: no USERPTR at all (REQBUFS), not these pages (QBUF: frame_vector.c, vb2_dma_contig), none
# left. Whatever else goes wrong is no matter of memory.
_REFUSALS = (errno.EINVAL, errno.EFAULT, errno.ENOMEM, errno.EOPNOTSUPP, errno.EIO)

_DEVICE_FORMATS = {"mono8": "gray8", "mono16": "gray16", "nv12": "nv12", "yuyv": "yuyv", "uyvy": "uyvy"}


class MemoryChoice:
    """Tries the ways from best to worst, and remembers for the next open what was refused. For the capture thread.

    Args:
        uri: For messages.
        pool: Memory for the GPU; None when no GPU reads pictures.
    """

    def __init__(self, uri: str, pool: Optional[BufferPool]) -> None:
        self._uri, self._pool = uri, pool
        self._modes: List[str] = []

    def ask(self) -> None:
        """Find out what the GPU offers, which waits until the engine is there; before the device is taken."""
        if not self._modes:
            offered = () if self._pool is None else self._pool.modes()
            self._modes = [*offered, _CPU]

    def start(self, device: Device, count: int, for_gpu: bool) -> Stream:
        """A stream that runs; `ask` first.

        Args:
            device: Open, with its format set.
            count: Buffers to ask for.
            for_gpu: False where pictures are decoded by the CPU, and so lie in its memory anyway.

        Raises:
            OSError: As the driver says; nothing is left behind.
            SourceError: The GPU's thread does not answer now; likewise.
        """
        modes = self._modes if for_gpu else [_CPU]
        refused: List[Tuple[str, str]] = []
        while True:
            stream = Stream(device, self._buffers(modes[0]), count)
            try:
                stream.start()
            except (OSError, EngineError, SourceError) as error:
                stream.stop()
                if modes[0] == _CPU or not _is_refusal(error):
                    raise
                refused.append((modes[0], _why(error)))
                modes = modes[1:]
                continue
            # Only now it is certain that it was the memory, and not the camera.
            for mode, why in refused:
                log.warning("%s: capture mode %s is refused: %s", self._uri, mode, why)
            self._modes = modes if for_gpu else self._modes
            return stream

    def note_end(self, mode: str, delivered: bool) -> None:
        """A stream has ended. One that never delivered may have the wrong memory: the next open tries another."""
        if not delivered and len(self._modes) > 1 and mode == self._modes[0]:
            self._modes.append(self._modes.pop(0))
            log.info("%s: no frame came in capture mode %s; the next is %s", self._uri, mode, self._modes[0])

    def _buffers(self, mode: str) -> StreamBuffers:
        return MmapBuffers() if self._pool is None or mode == _CPU else _MAKE[mode](self._pool)


def device_view(layout: ImageLayout, pointer: Optional[int]) -> Optional[DeviceView]:
    """A buffer's picture for the GPU; None where the GPU does not see the buffer."""
    if pointer is None:
        return None
    return DeviceView(pointer, layout.pitch_bytes, _DEVICE_FORMATS[layout.format.layout])


def _why(error: Union[OSError, EdgeAgentError]) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _is_refusal(error: Union[OSError, EdgeAgentError]) -> bool:
    return error.errno in _REFUSALS if isinstance(error, OSError) else isinstance(error, EngineError)
