"""One run of streaming: a driver's buffers, lent as frames and queued again when they come back."""

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
    """A buffer that the driver has filled; it is the application's until queued again.

    Attributes:
        number: Of the buffer.
        memory: (bytesused,) uint8 view of it.
        sequence: The driver's frame counter, 32 bits.
        timestamp_s: Seconds on the monotonic clock, or None where the driver uses another.
        is_error: The driver says that the data may be corrupt.
    """

    number: int
    memory: Array
    sequence: int
    timestamp_s: Optional[float]
    is_error: bool


class Stream:
    """One generation of buffers, from REQBUFS to their end. A frame of an old stream can't disturb a newer one.

    Used by the capture thread, except `give_back`. After `stop`, the memory is freed as soon as nothing is lent.

    Args:
        device: Open, with its format set.
        buffers: Where pictures go.
        count: Buffers to ask for; the driver may give more or fewer.
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
        """Buffers that the driver gave."""
        return self._count

    @property
    def mode(self) -> str:
        """How pictures reach the network (see `core.ports.Source`)."""
        return self._buffers.mode

    def pointer(self, filled: Filled) -> Optional[int]:
        """Where the GPU sees a filled buffer; None where it does not. Valid as long as the buffer is lent."""
        return self._buffers.show(filled.number, filled.memory.size)

    def start(self) -> None:
        """Allocate, queue all, and stream.

        Raises:
            OSError: As the driver says; call `stop` all the same.
            EngineError, SourceError: The GPU has no such memory, or does not answer; likewise.
        """
        self._count = self._request(self._wanted)
        if self._count == 0:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "REQBUFS")
        self._buffers.allocate(self._device, self._count)
        for index in range(self._count):
            self.queue(index)
        self._device.ioctl(abi.STREAMON, abi.BufType(abi.BUF_TYPE_VIDEO_CAPTURE))

    def queue_returned(self) -> None:
        """Queue what `give_back` has brought since."""
        while self._returned:
            self.queue(self._returned.popleft())

    def queue(self, index: int) -> None:
        """Give a buffer to the driver."""
        buffer = self._buffer(index)
        self._buffers.describe(buffer)
        self._device.ioctl(abi.QBUF, buffer)

    def take(self, timeout_s: float) -> Optional[Filled]:
        """The oldest filled buffer, or None when none comes in time.

        Raises:
            OSError: The stream is broken or the device gone.
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
        """Count one buffer as lent; False when two would no longer be left for the driver, so it must be copied."""
        with self._lock:
            if self._lent >= self._count - 2:
                return False
            self._lent += 1
            return True

    def give_back(self, index: int) -> None:
        """A lent buffer is free again; the capture thread queues it at its next read. Any thread, once per loan."""
        with self._lock:
            self._lent -= 1
            self._returned.append(index)
            is_last = self._stopped and self._lent == 0
        if is_last:
            self._buffers.free()

    def stop(self) -> None:
        """End streaming and let the driver's buffers go, whatever state it is in. The device stays open.

        Buffers that are still lent keep their memory (since Linux 5.0 the driver does without them at once; before,
        it is busy until they come back).
        """
        self._try(abi.STREAMOFF, abi.BufType(abi.BUF_TYPE_VIDEO_CAPTURE))
        ours = self._buffers.memory == abi.MEMORY_USERPTR
        if ours:  # the driver unpins our pages before they are freed
            self._try(abi.REQBUFS, self._request_for(0))
        with self._lock:
            self._stopped = True
            is_last = self._lent == 0
        if is_last:
            self._buffers.free()
        if not ours:
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
        except OSError:  # gone or broken already: that is why it is stopped
            return
