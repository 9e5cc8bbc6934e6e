"""A V4L2 stream: the driver's buffers are lent as frames and queued again after their release."""

import errno
import os
import select
import threading
from collections import deque
from typing import Deque, NamedTuple, Optional

from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.buffers import StreamBuffers
from edge_agent.capture.v4l2.kernel import Device
from edge_agent.core.types import Array

_POLL_FAULT = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Filled(NamedTuple):
    """A buffer that the driver has filled; the application owns it until it is queued again.

    Attributes:
        number: Index of the buffer.
        memory: (bytesused,) uint8 view of the buffer.
        sequence: The driver's frame counter, 32 bits.
        timestamp_s: Seconds on the monotonic clock, or None when the driver uses another clock.
        is_error: The driver reports possibly corrupt data.
    """

    number: int
    memory: Array
    sequence: int
    timestamp_s: Optional[float]
    is_error: bool


class Stream:
    """One set of buffers, from REQBUFS to their end. Frames of an old stream do not affect a newer one.

    Used by the capture thread, except `give_back`. After `stop`, the memory is freed once no buffer is lent.

    Args:
        device: Open, with its format set.
        buffers: Memory of the buffers.
        count: Number of buffers to request; the driver may grant more or fewer.
    """

    def __init__(self, device: Device, buffers: StreamBuffers, count: int) -> None:
        self._device = device
        self._buffers = buffers
        self._wanted = count
        self._count = 0
        self._returned: Deque[int] = deque()
        self._lock = threading.Lock()
        self._lent = 0
        self._stopped = False

    @property
    def count(self) -> int:
        """Number of buffers that the driver granted."""
        return self._count

    @property
    def mode(self) -> str:
        """The `mode` of `core.ports.Source`."""
        return self._buffers.mode

    def pointer(self, filled: Filled) -> Optional[int]:
        """Device pointer of a filled buffer, valid while it is lent; None when the GPU cannot access it."""
        return self._buffers.pointer(filled.number, filled.memory.size)

    def start(self) -> None:
        """Allocate and queue all buffers, and start streaming. After an error, `stop` must still be called.

        Raises:
            OSError: The driver rejected the stream.
            EngineError, SourceError: The GPU lacks the memory, or does not answer.
        """
        self._count = self._request(self._wanted)
        if self._count == 0:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "REQBUFS")
        self._buffers.allocate(self._device, self._count)
        for index in range(self._count):
            self.queue(index)
        self._device.ioctl(abi.STREAMON, abi.BufType(abi.BUF_TYPE_VIDEO_CAPTURE))

    def queue_returned(self) -> None:
        """Queue the buffers that `give_back` has returned."""
        while self._returned:
            self.queue(self._returned.popleft())

    def queue(self, index: int) -> None:
        """Queue a buffer for the driver to fill."""
        buffer = self._buffer(index)
        self._buffers.describe(buffer)
        self._device.ioctl(abi.QBUF, buffer)

    def take(self, timeout_s: float) -> Optional[Filled]:
        """The oldest filled buffer, or None when none is filled within `timeout_s`.

        Raises:
            OSError: The stream has failed, or the device does not exist any more.
        """
        events = self._device.kernel.poll(self._device.fd, timeout_s)
        if not events:
            return None
        buffer = self._buffer(0)
        try:
            self._device.ioctl(abi.DQBUF, buffer)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            if events & _POLL_FAULT:
                raise OSError(errno.EIO, "the driver reports an error on the stream") from error
            return None
        is_monotonic = buffer.flags & abi.BUF_FLAG_TIMESTAMP_MASK == abi.BUF_FLAG_TIMESTAMP_MONOTONIC
        return Filled(
            number=buffer.index,
            memory=self._buffers.arrays[buffer.index][: buffer.bytesused],
            sequence=buffer.sequence,
            timestamp_s=buffer.timestamp.tv_sec + buffer.timestamp.tv_usec / 1e6 if is_monotonic else None,
            is_error=bool(buffer.flags & abi.BUF_FLAG_ERROR),
        )

    def lend(self) -> bool:
        """Count one buffer as lent; False when fewer than two would be left for the driver: copy the frame."""
        with self._lock:
            if self._lent >= self._count - 2:
                return False
            self._lent += 1
            return True

    def give_back(self, index: int) -> None:
        """Return a lent buffer; the capture thread queues it at its next read. Any thread, once per loan."""
        with self._lock:
            self._lent -= 1
            self._returned.append(index)
            is_unused = self._stopped and self._lent == 0
        if is_unused:
            self._buffers.free()

    def stop(self) -> None:
        """Stop streaming and free the driver's buffers, in any state. The device stays open.

        Buffers that are still lent keep their memory. Since Linux 5.0 the driver releases them at once; older ones are
        busy until the buffers are returned.
        """
        self._try(abi.STREAMOFF, abi.BufType(abi.BUF_TYPE_VIDEO_CAPTURE))
        is_userptr = self._buffers.memory == abi.MEMORY_USERPTR
        if is_userptr:  # the driver must unpin the pages before they are freed
            self._try(abi.REQBUFS, self._request_for(0))
        with self._lock:
            self._stopped = True
            is_unused = self._lent == 0
        if is_unused:
            self._buffers.free()
        if not is_userptr:
            self._try(abi.REQBUFS, self._request_for(0))

    def _request(self, count: int) -> int:
        request = self._request_for(count)
        self._device.ioctl(abi.REQBUFS, request)
        return int(request.count)

    def _request_for(self, count: int) -> abi.RequestBuffers:
        return abi.RequestBuffers(count=count, type=abi.BUF_TYPE_VIDEO_CAPTURE, memory=self._buffers.memory)

    def _buffer(self, index: int) -> abi.Buffer:
        return abi.Buffer(index=index, type=abi.BUF_TYPE_VIDEO_CAPTURE, memory=self._buffers.memory)

    def _try(self, code: int, argument: abi.Argument) -> None:
        try:
            self._device.ioctl(code, argument)
        except OSError:  # the device has already failed or gone
            return
