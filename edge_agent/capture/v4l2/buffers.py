"""The memory behind a stream's buffers: the driver's own or the GPU's, and how the GPU sees it."""

import mmap
from typing import List, Optional, Protocol, Sequence

import numpy as np

from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.kernel import Device
from edge_agent.core.ports import BufferPool, MappedBuffer
from edge_agent.core.types import Array

_TAIL_BYTES = 256  # a GPU may read whole vectors, a little beyond the last pixel


class StreamBuffers(Protocol):
    """Made before streaming, freed after the last frame has come back.

    Attributes:
        mode: As `core.ports.Source` says it.
        memory: V4L2_MEMORY_*, for REQBUFS.
        arrays: Per buffer, (N,) uint8, read-only.
    """

    mode: str
    memory: int
    arrays: List[Array]

    def allocate(self, device: Device, count: int) -> None:
        """Get memory for buffers 0..count-1, which the driver has agreed to.

        Raises:
            OSError: The driver refuses.
            EngineError: The GPU does.
            SourceError: The GPU's thread does not answer now.
        """

    def describe(self, buffer: abi.Buffer) -> None:
        """Say in `buffer`, for QBUF, where the memory of `buffer.index` is."""

    def show(self, number: int, nbytes: int) -> Optional[int]:
        """Device pointer of a filled buffer, valid until it is queued again; None where the GPU does not see it."""

    def free(self) -> None:
        """Give the memory back. May be called from any thread, and never waits."""


class MmapBuffers:
    """The driver's own buffers, mapped; for the CPU alone."""

    mode = "cpu"
    memory = abi.MEMORY_MMAP

    def __init__(self) -> None:
        self.arrays: List[Array] = []
        self._mappings: List[mmap.mmap] = []

    def allocate(self, device: Device, count: int) -> None:
        """See `StreamBuffers`."""
        for index in range(count):
            buffer = abi.Buffer(index=index, type=abi.BUF_TYPE_VIDEO_CAPTURE, memory=self.memory)
            device.ioctl(abi.QUERYBUF, buffer)
            mapping = device.kernel.mmap(device.fd, buffer.length, buffer.m.offset)
            self._mappings.append(mapping)
            # A view of one's own: numpy before 1.22 keeps no hold on the mapping, which would go under the array.
            self.arrays.append(_read_only(np.frombuffer(memoryview(mapping), np.uint8)))

    def describe(self, buffer: abi.Buffer) -> None:
        """See `StreamBuffers`; the driver knows its own memory by the index."""

    def show(self, number: int, nbytes: int) -> Optional[int]:
        """See `StreamBuffers`."""
        return None

    def free(self) -> None:
        """See `StreamBuffers`. A mapping with a view that outlives its frame stays until that view is gone."""
        self.arrays.clear()
        while self._mappings:
            try:
                self._mappings.pop().close()
            except BufferError:
                continue


class RegisteredBuffers(MmapBuffers):
    """The driver's own buffers, shown to the GPU where they lie."""

    mode = "registered"

    def __init__(self, pool: BufferPool) -> None:
        super().__init__()
        self._pool = pool
        self._registered: Sequence[MappedBuffer] = ()

    def allocate(self, device: Device, count: int) -> None:
        """See `StreamBuffers`."""
        super().allocate(device, count)
        self._registered = self._pool.register(self.arrays)

    def show(self, number: int, nbytes: int) -> Optional[int]:
        """See `StreamBuffers`."""
        return self._registered[number].pointer

    def free(self) -> None:
        """See `StreamBuffers`; unmapped as soon as the GPU has let go, not before."""
        registered, self._registered = self._registered, ()
        if registered:
            self._pool.free(registered, super().free)
        else:
            super().free()


class CopiedBuffers(MmapBuffers):
    """The driver's own buffers, each with a twin for the GPU; the CPU reads the driver's."""

    mode = "copied"

    def __init__(self, pool: BufferPool) -> None:
        super().__init__()
        self._pool = pool
        self._twins: Sequence[MappedBuffer] = ()

    def allocate(self, device: Device, count: int) -> None:
        """See `StreamBuffers`."""
        super().allocate(device, count)
        self._twins = self._pool.allocate(count, max(array.size for array in self.arrays) + _TAIL_BYTES)

    def show(self, number: int, nbytes: int) -> Optional[int]:
        """See `StreamBuffers`; here the copy is made."""
        twin = self._twins[number]
        np.copyto(twin.array[:nbytes], self.arrays[number][:nbytes])
        return twin.pointer

    def free(self) -> None:
        """See `StreamBuffers`."""
        twins, self._twins = self._twins, ()
        if twins:
            self._pool.free(twins, _nothing)
        super().free()


class UserptrBuffers:
    """Memory of ours, which the driver fills and the GPU reads."""

    mode = "userptr"
    memory = abi.MEMORY_USERPTR

    def __init__(self, pool: BufferPool) -> None:
        self.arrays: List[Array] = []
        self._pool = pool
        self._mapped: Sequence[MappedBuffer] = ()

    def allocate(self, device: Device, count: int) -> None:
        """See `StreamBuffers`."""
        format = abi.Format(type=abi.BUF_TYPE_VIDEO_CAPTURE)
        device.ioctl(abi.G_FMT, format)
        self._mapped = self._pool.allocate(count, format.fmt.pix.sizeimage + _TAIL_BYTES)
        self.arrays.extend(_read_only(each.array.view()) for each in self._mapped)

    def describe(self, buffer: abi.Buffer) -> None:
        """See `StreamBuffers`."""
        array = self.arrays[buffer.index]
        buffer.m.userptr, buffer.length = array.ctypes.data, array.size

    def show(self, number: int, nbytes: int) -> Optional[int]:
        """See `StreamBuffers`."""
        return self._mapped[number].pointer

    def free(self) -> None:
        """See `StreamBuffers`."""
        self.arrays.clear()
        mapped, self._mapped = self._mapped, ()
        if mapped:
            self._pool.free(mapped, _nothing)


def _nothing() -> None:
    return None


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
