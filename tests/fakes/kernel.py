"""A fake kernel with V4L2 cameras, at the level of system calls and strict by the documentation.

`FakeKernel` implements `edge_agent.capture.v4l2.kernel.Kernel`. Under its root it keeps /dev nodes, /dev/v4l links
and /sys entries as udev does, so numbers, links and identities change as with replugged cameras. Calls that a
real driver rejects get its errno; calls that a real kernel accepts but that cause harm later (one that blocks for
ever, a buffer queued after munmap) raise `Misuse`, which no product code catches.

`history` lists the calls that changed state, as text.
"""

import ctypes
import errno
import itertools
import mmap
import os
import select
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Set

import numpy as np

from edge_agent.capture.v4l2 import abi
from tests.fakes.device_tree import DeviceTree
from tests.fakes.v4l2_camera import BYTES_PER_PIXEL, FOURCC, NAMES, PADDING, Buffer, FakeCamera, Misuse


class _Mapping(mmap.mmap):
    """A mapped buffer; real memory, so that the rules of numpy and Python apply."""

    on_close: Optional[Callable[[], None]] = None

    def close(self) -> None:
        super().close()
        if self.on_close is not None:
            self.on_close()
            self.on_close = None


@dataclass(eq=False)
class _File:
    """One open file: alive until its descriptor is closed and all its mappings are gone."""

    camera: FakeCamera
    path: str
    closed: bool = False
    gone: bool = False  # the camera was unplugged; this file never works again
    mappings: "weakref.WeakSet[_Mapping]" = field(default_factory=weakref.WeakSet)

    @property
    def alive(self) -> bool:
        return not self.closed or any(not mapping.closed for mapping in self.mappings)


class FakeKernel:
    """A kernel for `V4l2Source`, with the calls recorded.

    Args:
        root: An empty folder; becomes the `root` of the source under test.
        pages: The memory at (address, length), where a driver can pin the pages; None where it cannot.

    Attributes:
        addresses: Addresses that drivers received (USERPTR) or returned (MMAP) since the start.
        locked: Whether the pages at an address are still in use, so that they must not be unmapped.
    """

    def __init__(
        self, root: Path, pages: Callable[[int, int], Optional[np.ndarray]] = lambda address, nbytes: None
    ) -> None:
        self.history: List[str] = []
        self.addresses: Set[int] = set()
        self.locked: Callable[[int], bool] = lambda address: False
        self._pages = pages
        self._nodes: Dict[str, FakeCamera] = {}
        self._files: Dict[int, _File] = {}
        self._all_files: List[_File] = []
        self._next_fd = 100
        self.tree = DeviceTree(root)

    # What happens to cameras.

    def plug(self, camera: FakeCamera, number: Optional[int] = None, links: bool = True) -> str:
        """Connect a camera under the lowest unused number; returns its node."""
        if number is None:
            number = next(each for each in itertools.count() if not self._is_busy(self.node(each)))
        node = self.node(number)
        if self._is_busy(node):
            raise ValueError(f"{node} is in use")
        camera.appear()
        self._nodes[node] = camera
        self.tree.add(camera, number, links)
        self.history.append(f"plug video{number}")
        return node

    def unplug(self, camera: FakeCamera) -> None:
        """Disconnect a camera: its nodes and links vanish, and open files fail."""
        node = next(path for path, each in self._nodes.items() if each is camera)
        camera.plugged = False
        for file in self._all_files:
            file.gone = file.gone or file.camera is camera
        del self._nodes[node]
        self.tree.remove(camera, node)
        self.history.append(f"unplug {Path(node).name}")

    def node(self, number: int) -> str:
        """The path of /dev/videoN."""
        return self.tree.node(number)

    @property
    def open_descriptors(self) -> int:
        """How many there are now."""
        return len(self._files)

    def maps(self, address: int) -> bool:
        """Whether a driver's own buffer is mapped there."""
        return any(each.address == address for file in self._all_files for each in file.mappings if not each.closed)

    @property
    def mapped_buffers(self) -> int:
        """How many are mapped now."""
        return sum(not mapping.closed for file in self._all_files for mapping in file.mappings)

    def account(self) -> str:
        """The history as one line."""
        return ", ".join(self.history)

    # The system calls.

    def open(self, path: str) -> int:
        camera = self._nodes.get(path)
        if camera is None:
            raise _os_error(errno.ENOENT, path)
        self._maybe_fail(camera, "open")
        fd, self._next_fd = self._next_fd, self._next_fd + 1
        self._files[fd] = _File(camera, path)
        self._all_files.append(self._files[fd])
        self.history.append(f"open {Path(path).name}")
        return fd

    def close(self, fd: int) -> None:
        file = self._file(fd)
        camera = file.camera
        del self._files[fd]
        file.closed = True
        self.history.append("close")
        if camera.owner is file:
            if camera.streaming and camera.plugged and file.alive:
                raise Misuse("closed while streaming into mapped buffers: the driver goes on, and nobody can stop it")
            if not file.alive:
                camera.free_buffers()

    def mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        file = self._file(fd)
        camera = file.camera
        self._maybe_fail(camera, "mmap")
        index = offset // mmap.PAGESIZE
        if offset % mmap.PAGESIZE or index >= len(camera.buffers) or length != camera.buffers[index].length:
            raise _os_error(errno.EINVAL)
        mapping = _Mapping(-1, length)
        mapping[:] = bytes([PADDING]) * length
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        mapping.address = address
        self.addresses.add(address)
        mapping.on_close = lambda: self._unmapped(index, address)
        camera.buffers[index].mapping = mapping
        file.mappings.add(mapping)
        self.history.append(f"mmap {index}")
        return mapping

    def poll(self, fd: int, timeout_s: float) -> int:
        file = self._file(fd)
        camera = file.camera
        if file.gone:
            return select.POLLERR | select.POLLHUP
        if camera.fatal or not camera.streaming:
            return select.POLLERR
        if any(buffer.state == "done" for buffer in camera.buffers):
            return select.POLLIN
        if not any(buffer.state == "queued" for buffer in camera.buffers):
            raise Misuse("waiting for a frame with no buffer queued: none can ever come")
        deadline = time.monotonic() + timeout_s
        while not camera.capture():
            if camera.fatal or camera.stalled or time.monotonic() >= deadline:
                time.sleep(max(0.0, deadline - time.monotonic()))
                return 0
        return select.POLLIN

    def ioctl(self, fd: int, code: int, argument: ctypes.Structure) -> None:
        file = self._file(fd)
        camera = file.camera
        name = abi.IOCTL_NAMES[code]
        if ctypes.sizeof(argument) != code >> 16 & 0x3FFF:
            raise Misuse(f"{name}: the argument has {ctypes.sizeof(argument)} bytes")
        if file.gone:
            raise _os_error(camera.gone_errno)
        self._maybe_fail(camera, name)
        if camera.owner is not None and not camera.owner.alive:  # its last mapping has gone: the kernel lets go
            camera.free_buffers()
        getattr(self, f"_{name.lower()}")(file, camera, argument)

    # The ioctls.

    def _querycap(self, _file: _File, camera: FakeCamera, argument: abi.Capability) -> None:
        argument.driver = camera.driver.encode()
        argument.card = camera.card.encode()
        argument.bus_info = camera.bus_info.encode()
        argument.capabilities = camera.capabilities
        argument.device_caps = camera.device_caps

    def _enum_fmt(self, _file: _File, camera: FakeCamera, argument: abi.FmtDesc) -> None:
        _check_type(argument.type)
        names = list(camera.formats)
        if argument.index >= len(names):
            raise _os_error(errno.EINVAL)
        argument.pixelformat = FOURCC[names[argument.index]]

    def _enum_framesizes(self, _file: _File, camera: FakeCamera, argument: abi.FrmSizeEnum) -> None:
        sizes = camera.formats.get(NAMES.get(argument.pixel_format, ""), [])
        if argument.index >= len(sizes):
            raise _os_error(errno.EINVAL)
        argument.type = abi.FRMSIZE_TYPE_DISCRETE
        argument.size.discrete.width, argument.size.discrete.height = sizes[argument.index]

    def _enum_frameintervals(self, _file: _File, camera: FakeCamera, argument: abi.FrmIvalEnum) -> None:
        name = NAMES.get(argument.pixel_format, "")
        if argument.index or (argument.width, argument.height) not in camera.formats.get(name, []):
            raise _os_error(errno.EINVAL)
        argument.type = abi.FRMIVAL_TYPE_DISCRETE
        rate = camera.rates.get((name, argument.width, argument.height), camera.fps)
        argument.interval.discrete = abi.Fract(1000, round(rate * 1000))

    def _g_fmt(self, _file: _File, camera: FakeCamera, argument: abi.Format) -> None:
        _check_type(argument.type)
        pix = argument.fmt.pix
        pix.width, pix.height = camera.size
        pix.pixelformat = FOURCC.get(camera.format, 0)
        pix.field = abi.FIELD_NONE
        pix.bytesperline = camera.pitch if BYTES_PER_PIXEL.get(camera.format, 1) else 0
        pix.sizeimage = camera.sizeimage
        pix.priv = abi.PIX_FMT_PRIV_MAGIC
        pix.colorspace, pix.quantization = camera.colorspace, camera.quantization

    def _s_fmt(self, file: _File, camera: FakeCamera, argument: abi.Format) -> None:
        _check_type(argument.type)
        if camera.buffers:
            raise _os_error(errno.EBUSY)
        pix = argument.fmt.pix
        name = NAMES.get(pix.pixelformat, "")
        camera.format = name if name in camera.formats else next(iter(camera.formats), "")
        wanted = (pix.width, pix.height)
        camera.size = min(
            camera.formats.get(camera.format, [(0, 0)]),
            key=lambda size: abs(size[0] - wanted[0]) + abs(size[1] - wanted[1]),
        )
        self._g_fmt(file, camera, argument)
        self.history.append("S_FMT {} {}x{}".format(camera.format, *camera.size))

    def _g_parm(self, _file: _File, camera: FakeCamera, argument: abi.StreamParm) -> None:
        _check_type(argument.type)
        if not camera.has_rate:
            raise _os_error(errno.ENOTTY)
        argument.parm.capture.capability = abi.CAP_TIMEPERFRAME
        argument.parm.capture.timeperframe = camera.interval

    def _s_parm(self, file: _File, camera: FakeCamera, argument: abi.StreamParm) -> None:
        if camera.buffers:
            raise _os_error(errno.EBUSY)
        wanted = argument.parm.capture.timeperframe
        if wanted.numerator * camera.fps >= wanted.denominator:
            camera.interval = abi.Fract(wanted.numerator, wanted.denominator)
        else:
            camera.interval = abi.Fract(1, round(camera.fps))
        self._g_parm(file, camera, argument)
        self.history.append(f"S_PARM {camera.interval.numerator}/{camera.interval.denominator}")

    def _query_ext_ctrl(self, _file: _File, camera: FakeCamera, argument: abi.QueryExtCtrl) -> None:
        wanted, is_next = argument.id & ~abi.CTRL_FLAG_NEXT_CTRL, bool(argument.id & abi.CTRL_FLAG_NEXT_CTRL)
        found = [each for each in camera.controls if (each.id > wanted if is_next else each.id == wanted)]
        if not found:
            raise _os_error(errno.EINVAL)
        control = min(found, key=lambda each: each.id)
        argument.id, argument.type, argument.flags = control.id, control.type, control.flags
        argument.name = control.name.encode()
        argument.minimum, argument.maximum, argument.step = control.minimum, control.maximum, control.step
        argument.default_value = control.default

    def _s_ext_ctrls(self, _file: _File, camera: FakeCamera, argument: abi.ExtControls) -> None:
        for entry in argument.controls[: argument.count]:
            control = next((each for each in camera.controls if each.id == entry.id), None)
            if control is None:
                raise _os_error(errno.EINVAL)
            if control.inactive_while is not None and control.inactive_while(camera):
                raise _os_error(errno.EACCES)
            wide = control.type == abi.CTRL_TYPE_INTEGER64
            value = entry.value.value64 if wide else entry.value.value
            control.value = min(max(value - value % control.step, control.minimum), control.maximum)
            if wide:
                entry.value.value64 = control.value
            else:
                entry.value.value = control.value
            self.history.append(f"set {control.name}={control.value}")

    def _reqbufs(self, file: _File, camera: FakeCamera, argument: abi.RequestBuffers) -> None:
        _check_type(argument.type)
        if argument.memory not in camera.io_modes:
            raise _os_error(errno.EINVAL)
        if camera.owner not in (None, file):
            raise _os_error(errno.EBUSY)
        if camera.streaming:
            raise _os_error(errno.EBUSY)
        mapped = any(buffer.mapping is not None and not buffer.mapping.closed for buffer in camera.buffers)
        if mapped and not camera.orphans:
            raise _os_error(errno.EBUSY)
        camera.free_buffers()
        argument.count = min(argument.count, camera.most_buffers)
        argument.capabilities = abi.BUF_CAP_SUPPORTS_MMAP | (
            abi.BUF_CAP_SUPPORTS_ORPHANED_BUFS if camera.orphans else 0
        )
        if abi.MEMORY_USERPTR in camera.io_modes:
            argument.capabilities |= abi.BUF_CAP_SUPPORTS_USERPTR
        camera.memory, camera.pages = argument.memory, self._pages
        length = -(-camera.sizeimage // mmap.PAGESIZE) * mmap.PAGESIZE
        camera.buffers = [Buffer(length) for _ in range(argument.count)]
        camera.owner = file if argument.count else None
        kind = "USERPTR " if argument.memory == abi.MEMORY_USERPTR else ""
        self.history.append(f"REQBUFS {kind}{argument.count}")

    def _querybuf(self, _file: _File, camera: FakeCamera, argument: abi.Buffer) -> None:
        buffer = self._buffer(camera, argument)
        argument.length = buffer.length
        if camera.memory == abi.MEMORY_MMAP:
            argument.m.offset = argument.index * mmap.PAGESIZE

    def _qbuf(self, file: _File, camera: FakeCamera, argument: abi.Buffer) -> None:
        buffer = self._buffer(camera, argument)
        if camera.owner is not file:
            raise _os_error(errno.EBUSY)
        if buffer.state != "dequeued":
            raise _os_error(errno.EINVAL)
        if camera.fatal:
            raise _os_error(errno.EIO)
        if buffer.mapping is not None and buffer.mapping.closed:
            raise Misuse(f"buffer {argument.index} was queued after its munmap")
        if camera.memory == abi.MEMORY_USERPTR:
            self._pin(camera, buffer, argument)
        buffer.state = "queued"
        camera.order.append(argument.index)
        self.history.append(f"QBUF {argument.index}")

    def _dqbuf(self, file: _File, camera: FakeCamera, argument: abi.Buffer) -> None:
        _check_type(argument.type)
        if argument.memory != camera.memory or not camera.streaming:
            raise _os_error(errno.EINVAL)
        if camera.owner is not file:
            raise _os_error(errno.EBUSY)
        if camera.fatal:
            raise _os_error(errno.EIO)
        index = next((index for index in camera.order if camera.buffers[index].state == "done"), None)
        if index is None:
            raise _os_error(errno.EAGAIN)
        buffer = camera.buffers[index]
        camera.order.remove(index)
        buffer.state = "dequeued"
        argument.index, argument.bytesused, argument.length = index, buffer.bytesused, buffer.length
        argument.flags, argument.sequence = buffer.flags, buffer.sequence
        if camera.memory == abi.MEMORY_USERPTR:
            argument.m.userptr = buffer.userptr
        else:
            argument.flags |= abi.BUF_FLAG_MAPPED
        argument.field = abi.FIELD_NONE
        microseconds = int(buffer.timestamp_s * 1e6)
        argument.timestamp.tv_sec, argument.timestamp.tv_usec = divmod(microseconds, 1_000_000)
        self.history.append(f"DQBUF {index}")

    def _streamon(self, file: _File, camera: FakeCamera, argument: ctypes.c_int) -> None:
        _check_type(argument.value)
        if not camera.buffers:
            raise _os_error(errno.EINVAL)
        if camera.owner is not file:
            raise _os_error(errno.EBUSY)
        camera.streaming, camera.sequence = True, 0
        self.history.append("STREAMON")

    def _streamoff(self, file: _File, camera: FakeCamera, argument: ctypes.c_int) -> None:
        _check_type(argument.value)
        if camera.owner not in (None, file):
            raise _os_error(errno.EBUSY)
        camera.streaming = camera.fatal = False
        camera.order.clear()
        for buffer in camera.buffers:
            buffer.state = "dequeued"
        self.history.append("STREAMOFF")

    # Helpers.

    def _pin(self, camera: FakeCamera, buffer: Buffer, argument: abi.Buffer) -> None:
        """As vb2_dma_contig and vb2_vmalloc: aligned, long enough, and of pages that can be pinned."""
        if argument.m.userptr % 64 or argument.length % 64 or argument.length < camera.sizeimage:
            raise _os_error(errno.EINVAL)
        if self._pages(argument.m.userptr, argument.length) is None:
            raise _os_error(errno.EFAULT)
        buffer.userptr, buffer.length = argument.m.userptr, argument.length
        self.addresses.add(buffer.userptr)

    def _unmapped(self, index: int, address: int) -> None:
        if self.locked(address):
            raise Misuse(f"munmap {index} while the GPU still sees it")
        self.history.append(f"munmap {index}")

    def _file(self, fd: int) -> _File:
        if fd not in self._files:
            raise Misuse(f"descriptor {fd} is not open")
        return self._files[fd]

    def _buffer(self, camera: FakeCamera, argument: abi.Buffer) -> Buffer:
        _check_type(argument.type)
        if argument.memory != camera.memory or argument.reserved2 or argument.request_fd:
            raise _os_error(errno.EINVAL)
        if argument.index >= len(camera.buffers):
            raise _os_error(errno.EINVAL)
        return camera.buffers[argument.index]

    @staticmethod
    def _maybe_fail(camera: FakeCamera, call: str) -> None:
        if camera.failures.get(call):
            raise _os_error(camera.failures[call].pop(0))

    def _is_busy(self, node: str) -> bool:
        return node in self._nodes or any(file.alive and file.path == node for file in self._all_files)


def _check_type(value: int) -> None:
    if value != abi.BUF_TYPE_VIDEO_CAPTURE:
        raise _os_error(errno.EINVAL)


def _os_error(number: int, path: Optional[str] = None) -> OSError:
    return OSError(number, os.strerror(number), path)
