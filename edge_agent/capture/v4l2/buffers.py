"""Memory for the buffers of a stream: the driver's or the GPU's, and its device pointers."""

import mmap
from typing import List, Optional, Protocol, Sequence

import numpy as np

from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.kernel import Device
from edge_agent.core.ports import BufferPool, MappedBuffer
from edge_agent.core.types import Array

_TAIL_BYTES = 256  # the GPU may read whole vectors beyond the last pixel


class StreamBuffers(Protocol):
    """Buffer memory, allocated before streaming and freed after the last frame is released.

    Attributes:
        mode: The `mode` of `core.ports.Source`.
        memory: V4L2_MEMORY_* value for REQBUFS.
        arrays: One (N,) uint8 array per buffer, read-only.
    """

    mode: str
    memory: int
    arrays: List[Array]

    def allocate(self, device: Device, count: int) -> None:
        """Allocate memory for buffers 0..count-1, which the driver has granted.

        Raises:
            OSError: The driver rejected it.
            EngineError: The GPU rejected it.
            SourceError: The GPU's thread does not answer.
        """

    def describe(self, buffer: abi.Buffer) -> None:
        """Set the address of buffer `buffer.index` in `buffer`, for QBUF."""

    def pointer(self, number: int, nbytes: int) -> Optional[int]:
        """Device pointer of a filled buffer, valid until it is queued again; None when the GPU cannot access it."""

    def free(self) -> None:
        """Free the memory without waiting. May be called from any thread."""


class MmapBuffers:
    """The driver's buffers, mapped for the CPU only."""

    mode = "cpu"
    memory = abi.MEMORY_MMAP

    def __init__(self) -> None:
        self.arrays: List[Array] = []
        self._mappings: List[mmap.mmap] = []

    def allocate(self, device: Device, count: int) -> None:
        for index in range(count):
            buffer = abi.Buffer(index=index, type=abi.BUF_TYPE_VIDEO_CAPTURE, memory=self.memory)
            device.ioctl(abi.QUERYBUF, buffer)
            mapping = device.kernel.mmap(device.fd, buffer.length, buffer.m.offset)
            self._mappings.append(mapping)
            # A memoryview, because numpy before 1.22 keeps no reference to the mapping itself.
            self.arrays.append(_read_only(np.frombuffer(memoryview(mapping), np.uint8)))

    def describe(self, buffer: abi.Buffer) -> None:
        """Do nothing: the driver identifies its own memory by the index."""

    def pointer(self, number: int, nbytes: int) -> Optional[int]:
        return None

    def free(self) -> None:
        """Unmap. A mapping stays while a view of it outlives its frame."""
        self.arrays.clear()
        while self._mappings:
            try:
                self._mappings.pop().close()
            except BufferError:
                continue


class RegisteredBuffers(MmapBuffers):
    """The driver's buffers, registered with the GPU without a copy."""

    mode = "registered"

    def __init__(self, pool: BufferPool) -> None:
        super().__init__()
        self._pool = pool
        self._registered: Sequence[MappedBuffer] = ()

    def allocate(self, device: Device, count: int) -> None:
        super().allocate(device, count)
        self._registered = self._pool.register(self.arrays)

    def pointer(self, number: int, nbytes: int) -> Optional[int]:
        return self._registered[number].pointer

    def free(self) -> None:
        """Unmap after the GPU has unregistered the memory."""
        registered, self._registered = self._registered, ()
        if registered:
            self._pool.free(registered, super().free)
        else:
            super().free()


class CopiedBuffers(MmapBuffers):
    """The driver's buffers, each with a copy for the GPU; the CPU reads the driver's buffer."""

    mode = "copied"

    def __init__(self, pool: BufferPool) -> None:
        super().__init__()
        self._pool = pool
        self._copies: Sequence[MappedBuffer] = ()

    def allocate(self, device: Device, count: int) -> None:
        super().allocate(device, count)
        self._copies = self._pool.allocate(count, max(array.size for array in self.arrays) + _TAIL_BYTES)

    def pointer(self, number: int, nbytes: int) -> Optional[int]:
        """Copy the buffer for the GPU, and return the copy's pointer."""
        copy = self._copies[number]
        np.copyto(copy.array[:nbytes], self.arrays[number][:nbytes])
        return copy.pointer

    def free(self) -> None:
        copies, self._copies = self._copies, ()
        if copies:
            self._pool.free(copies, _no_op)
        super().free()


class UserptrBuffers:
    """Memory from the pool, which the driver fills and the GPU reads."""

    mode = "userptr"
    memory = abi.MEMORY_USERPTR

    def __init__(self, pool: BufferPool) -> None:
        self.arrays: List[Array] = []
        self._pool = pool
        self._mapped: Sequence[MappedBuffer] = ()

    def allocate(self, device: Device, count: int) -> None:
        format = abi.Format(type=abi.BUF_TYPE_VIDEO_CAPTURE)
        device.ioctl(abi.G_FMT, format)
        self._mapped = self._pool.allocate(count, format.fmt.pix.sizeimage + _TAIL_BYTES)
        self.arrays.extend(_read_only(each.array.view()) for each in self._mapped)

    def describe(self, buffer: abi.Buffer) -> None:
        array = self.arrays[buffer.index]
        buffer.m.userptr, buffer.length = array.ctypes.data, array.size

    def pointer(self, number: int, nbytes: int) -> Optional[int]:
        return self._mapped[number].pointer

    def free(self) -> None:
        self.arrays.clear()
        mapped, self._mapped = self._mapped, ()
        if mapped:
            self._pool.free(mapped, _no_op)


def _no_op() -> None:
    return None


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
