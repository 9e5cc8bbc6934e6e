"""Choice of the buffer memory of a camera: the best mode that both its driver and the GPU accept."""

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

_BUFFERS_BY_MODE: Dict[str, Callable[[BufferPool], StreamBuffers]] = {
    UserptrBuffers.mode: UserptrBuffers,
    RegisteredBuffers.mode: RegisteredBuffers,
    CopiedBuffers.mode: CopiedBuffers,
}
_CPU = MmapBuffers.mode

# Errors by which drivers reject memory: no USERPTR (REQBUFS), unsuitable pages (QBUF: frame_vector.c, vb2_dma_contig),
# or no memory left. Other errors have other causes.
_REJECTED = (errno.EINVAL, errno.EFAULT, errno.ENOMEM, errno.EOPNOTSUPP, errno.EIO)

_DEVICE_FORMATS = {"mono8": "gray8", "mono16": "gray16", "nv12": "nv12", "yuyv": "yuyv", "uyvy": "uyvy"}


class MemoryChoice:
    """Tries the capture modes from best to worst and keeps the result for later opens. Used by the capture thread only.

    Args:
        uri: For messages.
        pool: Memory for the GPU; None when no GPU reads frames.
    """

    def __init__(self, uri: str, pool: Optional[BufferPool]) -> None:
        self._uri, self._pool = uri, pool
        self._modes: List[str] = []

    def query_modes(self) -> None:
        """Query the modes of the GPU. Waits for the engine, so it is called before the device is opened."""
        if not self._modes:
            offered = () if self._pool is None else self._pool.modes()
            self._modes = [*offered, _CPU]

    def start(self, device: Device, count: int, for_gpu: bool) -> Stream:
        """Start a stream in the best mode that works; call `query_modes` first.

        Args:
            device: Open, with its format set.
            count: Number of buffers to request.
            for_gpu: False when the CPU decodes the frames into its own memory.

        Raises:
            OSError: The driver rejected the stream; all memory is freed.
            SourceError: The GPU's thread does not answer; all memory is freed.
        """
        modes = self._modes if for_gpu else [_CPU]
        rejected: List[Tuple[str, str]] = []
        while True:
            stream = Stream(device, self._buffers(modes[0]), count)
            try:
                stream.start()
            except (OSError, EngineError, SourceError) as error:
                stream.stop()
                if modes[0] == _CPU or not _is_rejection(error):
                    raise
                rejected.append((modes[0], _describe(error)))
                modes = modes[1:]
                continue
            # Only a started stream proves that the memory was the cause, not the camera.
            for mode, reason in rejected:
                log.warning("%s: capture mode %s is rejected: %s", self._uri, mode, reason)
            self._modes = modes if for_gpu else self._modes
            return stream

    def note_end(self, mode: str, delivered: bool) -> None:
        """Record the end of a stream. After a stream without a frame, the next open tries another mode."""
        if not delivered and len(self._modes) > 1 and mode == self._modes[0]:
            self._modes.append(self._modes.pop(0))
            log.info("%s: no frame in capture mode %s; the next open uses %s", self._uri, mode, self._modes[0])

    def _buffers(self, mode: str) -> StreamBuffers:
        return MmapBuffers() if self._pool is None or mode == _CPU else _BUFFERS_BY_MODE[mode](self._pool)


def device_view(layout: ImageLayout, pointer: Optional[int]) -> Optional[DeviceView]:
    """The GPU's view of a buffer; None when the GPU cannot access the buffer."""
    if pointer is None:
        return None
    return DeviceView(pointer, layout.pitch_bytes, _DEVICE_FORMATS[layout.format.layout])


def _describe(error: Union[OSError, EdgeAgentError]) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _is_rejection(error: Union[OSError, EdgeAgentError]) -> bool:
    return error.errno in _REJECTED if isinstance(error, OSError) else isinstance(error, EngineError)
