"""A driver's raw buffer as a picture: a zero-copy gray view where the format allows it, else a decoded copy."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import numpy as np

from edge_agent.core.frame import FULL_RANGE, LIMITED_RANGE, Levels
from edge_agent.core.types import Array
from edge_agent.errors import MissingPackage


@dataclass(frozen=True)
class PixelFormat:
    """One pixel format that we can read.

    Attributes:
        name: As settings and logs say it.
        layout: "mono8", "mono16", "yuyv", "uyvy", "nv12" or "jpeg".
        bits: Significant bits of a mono16 sample, as the format's definition says; 8 for all others.
        big_endian: Of mono16.
    """

    name: str
    layout: str
    bits: int = 8
    big_endian: bool = False

    @property
    def is_color(self) -> bool:
        """True when it carries colour."""
        return self.layout not in ("mono8", "mono16")

    @property
    def is_encoded(self) -> bool:
        """True when a codec stands between sensor and picture."""
        return self.layout == "jpeg"


FORMATS: Dict[str, PixelFormat] = {
    each.name: each
    for each in (
        PixelFormat("GREY", "mono8"),
        PixelFormat("Y10", "mono16", 10),
        PixelFormat("Y12", "mono16", 12),
        PixelFormat("Y16", "mono16", 16),
        PixelFormat("Y16_BE", "mono16", 16, big_endian=True),
        PixelFormat("NV12", "nv12"),
        PixelFormat("YUYV", "yuyv"),
        PixelFormat("UYVY", "uyvy"),
        PixelFormat("MJPG", "jpeg"),
    )
}

# Of so many samples one may be damaged.
_FEW = 500

_BYTES_PER_PIXEL = {"mono8": 1, "mono16": 2, "nv12": 1, "yuyv": 2, "uyvy": 2, "jpeg": 0}


@dataclass(frozen=True)
class ImageLayout:
    """How the driver lays a picture out in a buffer, as negotiated.

    Attributes:
        format: What the bytes mean.
        width: px.
        height: px.
        pitch_bytes: From one row to the next; at least a row's bytes (see `make`).
        full_range: Whether Y of a YUV format spans 0..255 rather than 16..235.
    """

    format: PixelFormat
    width: int
    height: int
    pitch_bytes: int
    full_range: bool

    @classmethod
    def make(cls, format: PixelFormat, width: int, height: int, pitch_bytes: int, full_range: bool) -> "ImageLayout":
        """With the pitch of unpadded rows where a driver reports less than that (some report 0)."""
        row_bytes = width * _BYTES_PER_PIXEL[format.layout]
        return cls(format, width, height, max(pitch_bytes, row_bytes), full_range)

    @property
    def least_bytes(self) -> int:
        """Bytes below which a buffer cannot hold the picture; the last row's padding may be missing."""
        if self.format.is_encoded:
            return 1
        rows = self.height + (self.height + 1) // 2 if self.format.layout == "nv12" else self.height
        return self.pitch_bytes * (rows - 1) + self.width * _BYTES_PER_PIXEL[self.format.layout]


class Decoder:
    """Turns one stream's buffers into pictures. Owned by the capture thread.

    Args:
        layout: As negotiated with the driver.
        color: Deliver RGB where the format has colour.

    Raises:
        MissingPackage: The format needs OpenCV, which is not installed.
    """

    def __init__(self, layout: ImageLayout, color: bool = False) -> None:
        self.layout = layout
        self._color = color and layout.format.is_color
        self._depth = SampleDepth(layout.format.bits)
        self._cv2: Any = _cv2(layout.format.name) if self._color or layout.format.is_encoded else None

    @property
    def borrows(self) -> bool:
        """True when pictures are views of the buffer; False when they own their pixels."""
        return self._cv2 is None and not self.layout.format.big_endian

    def decode(self, memory: Array) -> Optional[Tuple[Array, Levels]]:
        """The picture in a buffer, and how its values become 8-bit gray.

        Args:
            memory: (N,) uint8, the bytes that the driver filled, at least `layout.least_bytes`.

        Returns:
            (H, W) uint8 or uint16, or (H, W, 3 RGB) uint8; a view of `memory` when `borrows`. None when the
            buffer's JPEG cannot be decoded.
        """
        layout = self.layout
        if layout.format.is_encoded:
            picture = self._jpeg(memory)
            return None if picture is None else (picture, FULL_RANGE)
        if layout.format.layout == "mono8":
            return _plane(memory, layout), FULL_RANGE
        if layout.format.layout == "mono16":
            samples = _plane(memory, layout, ">u2" if layout.format.big_endian else "<u2")
            if layout.format.big_endian:
                samples = samples.astype(np.uint16)
            return samples, self._depth.observe(samples)
        if self._color:
            return self._rgb(memory), FULL_RANGE
        luma = _plane(memory, layout, offset=1 if layout.format.layout == "uyvy" else 0)
        return luma, FULL_RANGE if layout.full_range else LIMITED_RANGE

    def _jpeg(self, memory: Array) -> Optional[Array]:
        cv2 = self._cv2
        flags = (cv2.IMREAD_COLOR if self._color else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            picture = cv2.imdecode(memory, flags)
        except cv2.error:  # a damaged header may name a size that OpenCV refuses, or has no memory for
            return None
        if picture is None or picture.shape[:2] != (self.layout.height, self.layout.width):
            return None
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if self._color else picture)

    def _rgb(self, memory: Array) -> Array:
        """(H, W, 3) RGB, owned. OpenCV's conversions (BT.601) expect limited range."""
        cv2, layout = self._cv2, self.layout
        if layout.format.layout == "nv12":
            rows = layout.height * 3 // 2
            planes = np.ndarray((rows, layout.width), np.uint8, memory, strides=(layout.pitch_bytes, 1))
            if layout.full_range:
                luma, chroma = planes[: layout.height], planes[layout.height :]
                planes = np.concatenate((_LIMITED_LUMA[luma], _LIMITED_CHROMA[chroma]))
            return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_NV12))
        shape, strides = (layout.height, layout.width, 2), (layout.pitch_bytes, 2, 1)
        pairs = np.ndarray(shape, np.uint8, memory, strides=strides)
        y_first = layout.format.layout == "yuyv"
        if layout.full_range:
            y, c = (0, 1) if y_first else (1, 0)
            full, pairs = pairs, np.empty(shape, np.uint8)
            pairs[..., y] = _LIMITED_LUMA[full[..., y]]
            pairs[..., c] = _LIMITED_CHROMA[full[..., c]]
        return np.asarray(cv2.cvtColor(pairs, cv2.COLOR_YUV2RGB_YUY2 if y_first else cv2.COLOR_YUV2RGB_UYVY))


class SampleDepth:
    """Which bits of 16-bit samples are the picture, learnt from the samples themselves.

    V4L2 defines Y10 and Y12 as right-justified, yet Tegra's VI delivers them left-justified; Y16 is defined as 16
    bits, yet many 10-bit sensors deliver it right-justified. No ioctl tells, but the OR of the samples does: a bit
    above the defined ones proves left-justified, a bit in the lowest ones suggests right-justified. What has been
    seen counts from then on, so a dark start is corrected by the first brighter frame; but only in more than a few
    samples, for one damaged sample would make all that follows 64 times darker.

    Args:
        bits: Significant bits that the format's definition says.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._seen = 0

    def observe(self, samples: Array) -> Levels:
        """How these and the following samples become 8-bit gray.

        Args:
            samples: (H, W) uint16; every 8th of every 8th row is looked at.
        """
        some = samples[::8, ::8]
        new = int(np.bitwise_or.reduce(some, axis=None)) & ~self._seen
        for bit in (1 << number for number in range(16) if new >> number & 1):
            if np.count_nonzero(some & bit) >= max(1, some.size // _FEW):
                self._seen |= bit
        return Levels(0.0, 1.0 / (1 << (self._depth() - 8)))

    def _depth(self) -> int:
        seen = self._seen
        if self._bits == 16:
            if seen and seen & 0x0F == 0:  # left-justified, however dark
                return 16
            return min(16, max(10, (seen.bit_length() + 1) // 2 * 2)) if seen else 16
        if seen >> self._bits:
            return 16
        unused = (1 << (16 - self._bits)) - 1
        return 16 if seen and not seen & unused else self._bits


def _limits(scale: float, offset: float, centre: float) -> Array:
    return np.asarray(np.clip(np.rint((np.arange(256) - centre) * scale + offset), 0, 255), np.uint8)


# ITU-R BT.601 quantisation: full-range values to limited range.
_LIMITED_LUMA = _limits(219.0 / 255.0, 16.0, 0.0)
_LIMITED_CHROMA = _limits(224.0 / 255.0, 128.0, 128.0)


def _plane(memory: Array, layout: ImageLayout, dtype: str = "u1", offset: int = 0) -> Array:
    """(H, W) view of one sample per pixel, the first at `offset` bytes."""
    strides = (layout.pitch_bytes, _BYTES_PER_PIXEL[layout.format.layout])
    view: Array = np.ndarray((layout.height, layout.width), np.dtype(dtype), memory, offset, strides)
    return view


def _cv2(format_name: str) -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"pixel format {format_name} in this mode needs OpenCV, which is not installed",
            "pip install opencv-python-headless, on a Jetson apt install python3-opencv, or take another pixel_format",
        ) from error
    return cv2
