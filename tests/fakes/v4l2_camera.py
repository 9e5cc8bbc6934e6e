"""A camera and its driver's queue, as `tests.fakes.kernel` serves it: formats, controls, frames, faults."""

import errno
import mmap
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from edge_agent.capture.v4l2 import abi

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
    """A call that a real kernel accepts but that causes harm later."""


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
class CommandQueue:
    """One control of a camera."""

    id: int
    name: str
    value: int
    minimum: int = 0
    maximum: int = 255
    type: int = abi.CTRL_TYPE_INTEGER
    flags: int = 0
    inactive_while: Optional[Callable[["FakeCamera"], bool]] = None
    step: int = 1

    def __post_init__(self) -> None:
        self.default = self.value


@dataclass
class Buffer:
    """One buffer of the driver's queue: "dequeued", "queued" or "done"."""

    length: int
    state: str = "dequeued"
    mapping: Optional[mmap.mmap] = None
    userptr: int = 0
    bytesused: int = 0
    sequence: int = 0
    flags: int = 0
    timestamp_s: float = 0.0


@dataclass
class FakeCamera:
    """A camera and its driver. The faults are those that vivid can inject, and some of USB cameras.

    Attributes:
        formats: By name, the discrete sizes.
        rates: Frames per second by (format, width, height), where it is not `fps`.
        pitch_align: Rows are padded to a multiple of this.
        quantization: What the driver states; YUV pixels equal `scene` for each value.
        device_caps: What the node can do; a UVC camera's second node has only CAP_META_CAPTURE.
        io_modes: V4L2_MEMORY_* that the driver offers (uvcvideo both, mainline tegra-video no USERPTR).
        orphans: Since Linux 5.0, REQBUFS(0) works while buffers are mapped.
        error_flags: Number of next frames with V4L2_BUF_FLAG_ERROR.
        short_frames: Number of next frames that are half filled.
        dropped_frames: Number of next frames that the driver drops.
        stalled: No frame comes, and no error.
        fatal: The stream is broken (EIO) until STREAMOFF.
        timestamp_flag: Flag for the clock of the timestamps.
        clock: Gives the timestamps.
        gone_errno: What calls on an unplugged camera fail with (uvcvideo ENODEV, vivid EINVAL).
        payload: The driver's bytes, instead of the encoded scene.
        sequence_step: 0 for a driver that does not count.
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
    controls: List[CommandQueue] = field(default_factory=list)
    capabilities: int = abi.CAP_VIDEO_CAPTURE | abi.CAP_META_CAPTURE | abi.CAP_STREAMING | abi.CAP_DEVICE_CAPS
    device_caps: int = abi.CAP_VIDEO_CAPTURE | abi.CAP_STREAMING
    pitch_align: int = 1
    colorspace: int = abi.COLORSPACE_SRGB
    quantization: int = abi.QUANTIZATION_DEFAULT
    most_buffers: int = 32
    io_modes: Tuple[int, ...] = (abi.MEMORY_MMAP, abi.MEMORY_USERPTR)
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
    owner: Any = None
    memory: int = abi.MEMORY_MMAP
    pages: Callable[[int, int], Optional[np.ndarray]] = lambda address, nbytes: None
    buffers: List[Buffer] = field(default_factory=list)
    order: List[int] = field(default_factory=list)
    failures: Dict[str, List[int]] = field(default_factory=dict)

    def appear(self) -> None:
        """Power on: the driver's setup of a new camera."""
        self.plugged, self.sequence, self.fatal = True, 0, False
        self.format = next(iter(self.formats), "")
        self.size = self.formats[self.format][0] if self.formats else (0, 0)
        for control in self.controls:
            control.value = control.default
        self.free_buffers()

    def free_buffers(self) -> None:
        """As REQBUFS(0) does."""
        self.buffers, self.owner, self.streaming = [], None, False
        self.order.clear()

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

    def scene_image(self, sequence: int) -> np.ndarray:
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
        data = self.payload or encode(self.scene_image(sequence), self.format, self.pitch)
        buffer.flags = self.timestamp_flag
        if self.short_frames:
            self.short_frames -= 1
            data = data[: len(data) // 2]
        if self.error_flags:
            self.error_flags -= 1
            buffer.flags |= abi.BUF_FLAG_ERROR
        if buffer.userptr:
            pages = self.pages(buffer.userptr, len(data))
            if pages is None:
                raise Misuse("the driver wrote into memory that was freed while it was queued")
            pages[:] = np.frombuffer(data, np.uint8)
        elif buffer.mapping is not None and not buffer.mapping.closed:
            buffer.mapping[: len(data)] = data
        buffer.bytesused, buffer.sequence, buffer.timestamp_s = len(data), sequence, self.clock()
        buffer.state = "done"
        return True
