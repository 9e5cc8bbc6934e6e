"""One run of streaming: a driver's buffers, lent as frames and queued again when they come back."""

import errno
import mmap
import os
import select
import threading
from collections import deque
from typing import Deque, List, NamedTuple, Optional, Protocol

import numpy as np

from edge_agent.capture import v4l2_abi as abi
from edge_agent.capture.v4l2_kernel import Device
from edge_agent.core.types import Array

_POLL_FAULT = select.POLLERR | select.POLLHUP | select.POLLNVAL


class BufferPool(Protocol):
    """The memory behind a stream's buffers. Made before streaming, freed after the last frame has come back.

    Attributes:
        memory: V4L2_MEMORY_*, for REQBUFS.
        arrays: Per buffer, (N,) uint8, read-only.
    """

    memory: int
    arrays: List[Array]

    def allocate(self, device: Device, count: int) -> None:
        """Get memory for buffers 0..count-1, which the driver has agreed to."""

    def describe(self, buffer: abi.Buffer) -> None:
        """Say in `buffer`, for QBUF, where the memory of `buffer.index` is."""

    def free(self) -> None:
        """Give the memory back. May be called from any thread."""


class MmapPool:
    """The driver's own buffers, mapped."""

    memory = abi.MEMORY_MMAP

    def __init__(self) -> None:
        self.arrays: List[Array] = []
        self._mappings: List[mmap.mmap] = []

    def allocate(self, device: Device, count: int) -> None:
        """See `BufferPool`."""
        for index in range(count):
            buffer = abi.Buffer(index=index, type=abi.BUF_TYPE_VIDEO_CAPTURE, memory=self.memory)
            device.ioctl(abi.QUERYBUF, buffer)
            mapping = device.kernel.mmap(device.fd, buffer.length, buffer.m.offset)
            self._mappings.append(mapping)
            array = np.frombuffer(mapping, np.uint8)
            array.flags.writeable = False
            self.arrays.append(array)

    def describe(self, buffer: abi.Buffer) -> None:
        """See `BufferPool`; the driver knows its own memory by the index."""

    def free(self) -> None:
        """See `BufferPool`. A mapping with a view that outlives its frame stays until that view is gone."""
        self.arrays.clear()
        while self._mappings:
            try:
                self._mappings.pop().close()
            except BufferError:
                continue


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

    Used by the capture thread, except `give_back`. After `stop`, the pool is freed as soon as nothing is lent.

    Args:
        device: Open, with its format set.
        pool: Where pictures go.
        count: Buffers to ask for; the driver may give more or fewer.
    """

    def __init__(self, device: Device, pool: BufferPool, count: int) -> None:
        self._device = device
        self._pool = pool
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

    def start(self) -> None:
        """Allocate, queue all, and stream.

        Raises:
            OSError: As the driver says; call `stop` all the same.
        """
        self._count = self._request(self._wanted)
        if self._count == 0:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "REQBUFS")
        self._pool.allocate(self._device, self._count)
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
        self._pool.describe(buffer)
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
            memory=self._pool.arrays[buffer.index][: buffer.bytesused],
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
            self._pool.free()

    def stop(self) -> None:
        """End streaming and let the driver's buffers go, whatever state it is in. The device stays open.

        Buffers that are still lent keep their memory (since Linux 5.0 the driver does without them at once; before,
        it is busy until they come back).
        """
        self._try(abi.STREAMOFF, abi.BufType(abi.BUF_TYPE_VIDEO_CAPTURE))
        with self._lock:
            self._stopped = True
            is_last = self._lent == 0
        if is_last:
            self._pool.free()
        self._try(abi.REQBUFS, self._request_for(0))

    def _request(self, count: int) -> int:
        request = self._request_for(count)
        self._device.ioctl(abi.REQBUFS, request)
        return int(request.count)

    def _request_for(self, count: int) -> abi.RequestBuffers:
        return abi.RequestBuffers(count=count, type=abi.BUF_TYPE_VIDEO_CAPTURE, memory=self._pool.memory)

    def _buffer(self, index: int) -> abi.Buffer:
        return abi.Buffer(index=index, type=abi.BUF_TYPE_VIDEO_CAPTURE, memory=self._pool.memory)

    def _try(self, code: int, argument: abi.Argument) -> None:
        try:
            self._device.ioctl(code, argument)
        except OSError:  # gone or broken already: that is why it is stopped
            return
