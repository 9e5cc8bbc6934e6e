"""A kernel with V4L2 cameras, at the level of system calls, strict about what the documentation says.

`FakeKernel` implements `edge_agent.capture.v4l2_kernel.Kernel`. Under its root it keeps /dev nodes, /dev/v4l links
and /sys entries as udev would, so numbers, links and identities behave as they do when cameras come and go. What
breaks the rules as a real driver would refuse it gets its errno; what a real kernel would let pass, to somebody's
later harm (a call that blocks for ever, a buffer queued after munmap), raises `Misuse`, which no product code catches.

`history` lists the calls that changed something, as text: tests read as accounts.
"""

import ctypes
import errno
import mmap
import os
import select
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np

from edge_agent.capture import v4l2_abi as abi

FOURCC = {
    "GREY": abi.PIX_FMT_GREY,
    "Y10": abi.PIX_FMT_Y10,
    "Y12": abi.PIX_FMT_Y12,
    "Y16": abi.PIX_FMT_Y16,
    "Y16_BE": abi.PIX_FMT_Y16_BE,
    "NV12": abi.PIX_FMT_NV12,
    "YUYV": abi.PIX_FMT_YUYV,
    "UYVY": abi.PIX_FMT_UYVY,
    "MJPG": abi.PIX_FMT_MJPEG,
    "H264": abi.fourcc("H264"),
}
NAMES = {code: name for name, code in FOURCC.items()}
BYTES_PER_PIXEL = {"Y10": 2, "Y12": 2, "Y16": 2, "Y16_BE": 2, "YUYV": 2, "UYVY": 2, "MJPG": 0, "H264": 0}
PADDING = 0xA5


class Misuse(AssertionError):
    """A call that a real kernel would take and that would do harm later."""


def encode(scene: np.ndarray, name: str, pitch_bytes: int, chroma: Tuple[int, int] = (128, 128)) -> bytes:
    """A gray scene as a sensor would put it into a buffer; rows padded by a value that no scene has by accident.

    Args:
        scene: (H, W) uint8.
        name: Of the pixel format.
        pitch_bytes: Bytes from row to row; 0 for no padding.
        chroma: Cb and Cr of the YUV formats.
    """
    height, width = scene.shape
    wide = scene.astype(np.uint16)
    if name == "MJPG":
        import cv2

        return cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    if name in ("Y10", "Y12"):
        shift = int(name[1:]) - 8
        rows = ((wide << shift) | (wide >> (8 - shift))).astype("<u2")
    elif name in ("Y16", "Y16_BE"):
        rows = (wide * 257).astype("<u2" if name == "Y16" else ">u2")
    elif name in ("YUYV", "UYVY"):
        pairs = np.empty((height, width, 2), np.uint8)
        luma = 0 if name == "YUYV" else 1
        pairs[..., luma] = scene
        pairs[:, 0::2, 1 - luma], pairs[:, 1::2, 1 - luma] = chroma
        rows = pairs
    elif name == "NV12":
        colors = np.tile(np.array(chroma, np.uint8), (height // 2, width // 2))
        rows = np.concatenate((scene, colors))
    else:
        rows = scene
    packed = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    padded = np.full((len(rows), max(pitch_bytes, packed.shape[1])), PADDING, np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.tobytes()


def moving_gradient(sequence: int, width: int, height: int) -> np.ndarray:
    """Every frame differs from its neighbours in every pixel."""
    y, x = np.mgrid[0:height, 0:width]
    return (x + 2 * y + 23 * sequence).astype(np.uint8)


@dataclass
class Control:
    """One control of a camera."""

    id: int
    name: str
    value: int
    minimum: int = 0
    maximum: int = 255
    type: int = abi.CTRL_TYPE_INTEGER
    flags: int = 0
    inactive_while: Optional[Callable[["FakeCamera"], bool]] = None


@dataclass
class Buffer:
    """One buffer of the driver's queue: "dequeued", "queued" or "done"."""

    length: int
    state: str = "dequeued"
    mapping: Optional["_Mapping"] = None
    bytesused: int = 0
    sequence: int = 0
    flags: int = 0
    timestamp_s: float = 0.0


@dataclass
class FakeCamera:
    """A camera and its driver. The faults are those that vivid can inject, and a few that USB cameras have.

    Attributes:
        formats: By name, the discrete sizes.
        rates: Frames per second by (format, width, height), where it is not `fps`.
        pitch_align: Rows are padded to a multiple of this.
        quantization: What the driver states; YUV pixels are what `scene` says, whatever is stated.
        inactive_nodes: "metadata" nodes are modelled by `device_caps`.
        orphans: Since Linux 5.0, REQBUFS(0) works while buffers are mapped.
        error_flags: So many coming frames carry V4L2_BUF_FLAG_ERROR.
        short_frames: So many coming frames are only half filled.
        dropped_frames: So many coming frames are lost in the driver.
        stalled: No frame comes, and no error.
        fatal: The stream is broken (EIO) until STREAMOFF.
        timestamp_flag: Which clock the driver says its timestamps are on.
        clock: Gives the timestamps.
    """

    card: str = "IR Camera: IR Camera"
    driver: str = "uvcvideo"
    bus_info: str = "usb-0000:00:14.0-1"
    serial: str = "SN001"
    usb_id: Optional[Tuple[str, str]] = ("1bcf", "2c99")
    interface: str = "00"
    formats: Dict[str, List[Tuple[int, int]]] = field(default_factory=lambda: {"GREY": [(64, 48)]})
    fps: float = 30.0
    rates: Dict[Tuple[str, int, int], float] = field(default_factory=dict)
    has_rate: bool = True
    controls: List[Control] = field(default_factory=list)
    capabilities: int = abi.CAP_VIDEO_CAPTURE | abi.CAP_META_CAPTURE | abi.CAP_STREAMING | abi.CAP_DEVICE_CAPS
    device_caps: int = abi.CAP_VIDEO_CAPTURE | abi.CAP_STREAMING
    pitch_align: int = 1
    colorspace: int = abi.COLORSPACE_SRGB
    quantization: int = abi.QUANTIZATION_DEFAULT
    most_buffers: int = 32
    orphans: bool = True
    scene: Callable[[int, int, int], np.ndarray] = moving_gradient
    error_flags: int = 0
    short_frames: int = 0
    dropped_frames: int = 0
    stalled: bool = False
    fatal: bool = False
    gone_errno: int = errno.ENODEV
    timestamp_flag: int = abi.BUF_FLAG_TIMESTAMP_MONOTONIC
    clock: Callable[[], float] = time.monotonic
    payload: Optional[bytes] = None
    sequence: int = 0
    sequence_step: int = 1
    plugged: bool = False
    format: str = ""
    size: Tuple[int, int] = (0, 0)
    interval: abi.Fract = field(default_factory=lambda: abi.Fract(1, 30))
    streaming: bool = False
    owner: Optional["_File"] = None
    buffers: List[Buffer] = field(default_factory=list)
    order: List[int] = field(default_factory=list)
    failures: Dict[str, List[int]] = field(default_factory=dict)

    def fail_next(self, call: str, number: int = errno.EINVAL, times: int = 1) -> None:
        """The next such call fails, so many times ("open", "mmap", or an ioctl's name)."""
        self.failures.setdefault(call, []).extend([number] * times)

    @property
    def pitch(self) -> int:
        """Bytes per row."""
        row = self.size[0] * BYTES_PER_PIXEL.get(self.format, 1)
        return -(-row // self.pitch_align) * self.pitch_align

    @property
    def sizeimage(self) -> int:
        """Bytes that a buffer must hold."""
        width, height = self.size
        if BYTES_PER_PIXEL.get(self.format, 1) == 0:
            return width * height * 2 + 4096
        return self.pitch * (height * 3 // 2 if self.format == "NV12" else height)

    def picture(self, sequence: int) -> np.ndarray:
        """(H, W) uint8: what the sensor saw at that frame."""
        return self.scene(sequence, *self.size)

    def capture(self) -> bool:
        """One frame period passes; False when the application gets nothing from it."""
        if not self.streaming or self.stalled or self.fatal or not self.plugged:
            return False
        sequence, self.sequence = self.sequence, (self.sequence + self.sequence_step) & 0xFFFFFFFF
        queued = [index for index in self.order if self.buffers[index].state == "queued"]
        if self.dropped_frames:
            self.dropped_frames -= 1
            return False
        if not queued:
            return False
        buffer = self.buffers[queued[0]]
        data = self.payload or encode(self.picture(sequence), self.format, self.pitch)
        buffer.flags = self.timestamp_flag
        if self.short_frames:
            self.short_frames -= 1
            data = data[: len(data) // 2]
        if self.error_flags:
            self.error_flags -= 1
            buffer.flags |= abi.BUF_FLAG_ERROR
        if buffer.mapping is not None and not buffer.mapping.closed:
            buffer.mapping[: len(data)] = data
        buffer.bytesused, buffer.sequence, buffer.timestamp_s = len(data), sequence, self.clock()
        buffer.state = "done"
        return True


class _Mapping(mmap.mmap):
    """A mapped buffer; real memory, so that numpy's and Python's own rules hold for it."""

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
    mappings: "weakref.WeakSet[_Mapping]" = field(default_factory=weakref.WeakSet)

    @property
    def alive(self) -> bool:
        return not self.closed or any(not mapping.closed for mapping in self.mappings)


class FakeKernel:
    """See the module's docstring.

    Args:
        root: An empty folder; becomes the `root` of the source under test.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.history: List[str] = []
        self._nodes: Dict[str, FakeCamera] = {}
        self._files: Dict[int, _File] = {}
        self._all_files: List[_File] = []
        self._next_fd = 100
        for folder in ("dev/v4l/by-id", "dev/v4l/by-path", "sys/class/video4linux"):
            (root / folder).mkdir(parents=True)

    # What happens to cameras.

    def plug(self, camera: FakeCamera, number: Optional[int] = None, links: bool = True) -> str:
        """The camera appears under the lowest number that nobody uses any more; returns its node."""
        if number is None:
            number = 0
            while self._is_busy(self.node(number)):
                number += 1
        node = self.node(number)
        if self._is_busy(node):
            raise ValueError(f"{node} is in use")
        camera.plugged, camera.sequence = True, 0
        camera.format = next(iter(camera.formats), "")
        camera.size = camera.formats[camera.format][0] if camera.formats else (0, 0)
        self._nodes[node] = camera
        Path(node).touch()
        self._describe(camera, f"video{number}")
        if links:
            for link in self._links(camera):
                link.symlink_to(f"../../video{number}")
        self.history.append(f"plug video{number}")
        return node

    def unplug(self, camera: FakeCamera) -> None:
        """The camera is pulled out: nodes and links vanish, whoever has it open gets errors."""
        node = next(path for path, each in self._nodes.items() if each is camera)
        camera.plugged = False
        del self._nodes[node]
        Path(node).unlink()
        entry = self.root / "sys/class/video4linux" / Path(node).name
        (entry / "device").unlink()
        (entry / "index").unlink()
        entry.rmdir()
        for link in self._links(camera):
            if link.is_symlink():
                link.unlink()
        self.history.append(f"unplug {Path(node).name}")

    def node(self, number: int) -> str:
        """The path of /dev/videoN."""
        return str(self.root / "dev" / f"video{number}")

    def by_id(self, camera: FakeCamera) -> str:
        """The camera's link that is named after its model and serial number."""
        return str(self._links(camera)[0])

    @property
    def open_descriptors(self) -> int:
        """How many there are now."""
        return len(self._files)

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
                self._free(camera)

    def mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        file = self._file(fd)
        camera = file.camera
        self._maybe_fail(camera, "mmap")
        index = offset // mmap.PAGESIZE
        if offset % mmap.PAGESIZE or index >= len(camera.buffers) or length != camera.buffers[index].length:
            raise _os_error(errno.EINVAL)
        mapping = _Mapping(-1, length)
        mapping.on_close = lambda: self.history.append(f"munmap {index}")
        mapping[:] = bytes([PADDING]) * length
        camera.buffers[index].mapping = mapping
        file.mappings.add(mapping)
        self.history.append(f"mmap {index}")
        return mapping

    def poll(self, fd: int, timeout_s: float) -> int:
        camera = self._file(fd).camera
        if not camera.plugged:
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
        if not camera.plugged:
            raise _os_error(camera.gone_errno)
        self._maybe_fail(camera, name)
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
        sizes = camera.formats.get(camera.format, [(0, 0)])
        camera.size = min(sizes, key=lambda size: abs(size[0] - wanted[0]) + abs(size[1] - wanted[1]))
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
        wanted = argument.id & ~abi.CTRL_FLAG_NEXT_CTRL
        if argument.id & abi.CTRL_FLAG_NEXT_CTRL:
            found = [each for each in sorted(camera.controls, key=lambda each: each.id) if each.id > wanted]
        else:
            found = [each for each in camera.controls if each.id == wanted]
        if not found:
            raise _os_error(errno.EINVAL)
        control = found[0]
        argument.id, argument.type, argument.flags = control.id, control.type, control.flags
        argument.name = control.name.encode()
        argument.minimum, argument.maximum, argument.step = control.minimum, control.maximum, 1
        argument.default_value = control.value

    def _s_ext_ctrls(self, _file: _File, camera: FakeCamera, argument: abi.ExtControls) -> None:
        for entry in argument.controls[: argument.count]:
            control = next((each for each in camera.controls if each.id == entry.id), None)
            if control is None:
                raise _os_error(errno.EINVAL)
            if control.inactive_while is not None and control.inactive_while(camera):
                raise _os_error(errno.EACCES)
            wide = control.type == abi.CTRL_TYPE_INTEGER64
            value = entry.value.value64 if wide else entry.value.value
            control.value = min(max(value, control.minimum), control.maximum)
            if control.type == abi.CTRL_TYPE_INTEGER:
                control.value -= control.value % 2 if control.name.startswith("Even") else 0
            if wide:
                entry.value.value64 = control.value
            else:
                entry.value.value = control.value
            self.history.append(f"set {control.name}={control.value}")

    def _reqbufs(self, file: _File, camera: FakeCamera, argument: abi.RequestBuffers) -> None:
        _check_type(argument.type)
        if argument.memory != abi.MEMORY_MMAP:
            raise _os_error(errno.EINVAL)
        if camera.owner not in (None, file) and camera.owner.alive:
            raise _os_error(errno.EBUSY)
        if camera.streaming:
            raise _os_error(errno.EBUSY)
        mapped = any(buffer.mapping is not None and not buffer.mapping.closed for buffer in camera.buffers)
        if mapped and not camera.orphans:
            raise _os_error(errno.EBUSY)
        self._free(camera)
        argument.count = min(argument.count, camera.most_buffers)
        argument.capabilities = abi.BUF_CAP_SUPPORTS_MMAP | (
            abi.BUF_CAP_SUPPORTS_ORPHANED_BUFS if camera.orphans else 0
        )
        length = -(-camera.sizeimage // mmap.PAGESIZE) * mmap.PAGESIZE
        camera.buffers = [Buffer(length) for _ in range(argument.count)]
        camera.owner = file if argument.count else None
        self.history.append(f"REQBUFS {argument.count}")

    def _querybuf(self, _file: _File, camera: FakeCamera, argument: abi.Buffer) -> None:
        buffer = self._buffer(camera, argument)
        argument.length = buffer.length
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
        buffer.state = "queued"
        camera.order.append(argument.index)
        self.history.append(f"QBUF {argument.index}")

    def _dqbuf(self, file: _File, camera: FakeCamera, argument: abi.Buffer) -> None:
        _check_type(argument.type)
        if argument.memory != abi.MEMORY_MMAP or not camera.streaming:
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
        argument.flags, argument.sequence = buffer.flags | abi.BUF_FLAG_MAPPED, buffer.sequence
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

    def _file(self, fd: int) -> _File:
        if fd not in self._files:
            raise Misuse(f"descriptor {fd} is not open")
        return self._files[fd]

    def _buffer(self, camera: FakeCamera, argument: abi.Buffer) -> Buffer:
        _check_type(argument.type)
        if argument.memory != abi.MEMORY_MMAP or argument.reserved2 or argument.request_fd:
            raise _os_error(errno.EINVAL)
        if argument.index >= len(camera.buffers):
            raise _os_error(errno.EINVAL)
        return camera.buffers[argument.index]

    @staticmethod
    def _maybe_fail(camera: FakeCamera, call: str) -> None:
        if camera.failures.get(call):
            raise _os_error(camera.failures[call].pop(0))

    @staticmethod
    def _free(camera: FakeCamera) -> None:
        camera.buffers, camera.owner, camera.streaming = [], None, False
        camera.order.clear()

    def _is_busy(self, node: str) -> bool:
        return node in self._nodes or any(file.alive and file.path == node for file in self._all_files)

    def _links(self, camera: FakeCamera) -> List[Path]:
        model = camera.card.split(":")[0].replace(" ", "_")
        v4l = self.root / "dev/v4l"
        return [
            v4l / "by-id" / f"usb-{model}_{camera.serial}-video-index{int(camera.interface)}",
            v4l / "by-path" / f"pci-{camera.bus_info}:1.{int(camera.interface)}-video-index0",
        ]

    def _describe(self, camera: FakeCamera, name: str) -> None:
        device = self.root / "sys/devices" / f"{camera.bus_info}-{camera.serial}"
        interface = device / f"1-1:1.{int(camera.interface)}"
        interface.mkdir(parents=True, exist_ok=True)
        if camera.usb_id is not None:
            (interface / "bInterfaceNumber").write_text(camera.interface + "\n", encoding="ascii")
            (device / "idVendor").write_text(camera.usb_id[0] + "\n", encoding="ascii")
            (device / "idProduct").write_text(camera.usb_id[1] + "\n", encoding="ascii")
            if camera.serial:
                (device / "serial").write_text(camera.serial + "\n", encoding="ascii")
        entry = self.root / "sys/class/video4linux" / name
        entry.mkdir()
        (entry / "device").symlink_to(interface)
        (entry / "index").write_text("0\n", encoding="ascii")


def _check_type(value: int) -> None:
    if value != abi.BUF_TYPE_VIDEO_CAPTURE:
        raise _os_error(errno.EINVAL)


def _os_error(number: int, path: Optional[str] = None) -> OSError:
    return OSError(number, os.strerror(number), path)
