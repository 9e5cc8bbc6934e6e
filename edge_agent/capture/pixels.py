"""Pixels from a driver's raw buffer: a zero-copy gray view where the format allows it, else a decoded copy."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import numpy as np

from edge_agent.core.frame import FULL_RANGE, LIMITED_RANGE, Levels
from edge_agent.core.types import Array
from edge_agent.errors import MissingPackage


@dataclass(frozen=True)
class PixelFormat:
    """A supported pixel format.

    Attributes:
        name: The name in settings and logs.
        layout: "mono8", "mono16", "yuyv", "uyvy", "nv12" or "jpeg".
        bits: Significant bits of a mono16 sample by the format's definition; 8 for the other layouts.
        big_endian: Byte order of mono16.
    """

    name: str
    layout: str
    bits: int = 8
    big_endian: bool = False

    @property
    def is_color(self) -> bool:
        """Whether the format has colour."""
        return self.layout not in ("mono8", "mono16")

    @property
    def is_encoded(self) -> bool:
        """Whether the frames are compressed."""
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

# A bit counts as used only when more than one sample in this many has it: single samples may be damaged.
_SAMPLES_PER_OUTLIER = 500

_BYTES_PER_PIXEL = {"mono8": 1, "mono16": 2, "nv12": 1, "yuyv": 2, "uyvy": 2, "jpeg": 0}


@dataclass(frozen=True)
class ImageLayout:
    """The negotiated layout of a frame in a buffer.

    Attributes:
        format: The pixel format.
        width: In px.
        height: In px.
        pitch_bytes: From the start of one row to the next; at least the bytes of a row (`make` ensures it).
        full_range: Whether Y of a YUV format spans 0..255, not 16..235.
    """

    format: PixelFormat
    width: int
    height: int
    pitch_bytes: int
    full_range: bool

    @classmethod
    def make(cls, format: PixelFormat, width: int, height: int, pitch_bytes: int, full_range: bool) -> "ImageLayout":
        """A layout whose pitch is at least that of unpadded rows; some drivers report 0."""
        row_bytes = width * _BYTES_PER_PIXEL[format.layout]
        return cls(format, width, height, max(pitch_bytes, row_bytes), full_range)

    @property
    def least_bytes(self) -> int:
        """The smallest buffer that holds a frame, in bytes; the last row's padding may be missing."""
        if self.format.is_encoded:
            return 1
        rows = self.height + (self.height + 1) // 2 if self.format.layout == "nv12" else self.height
        return self.pitch_bytes * (rows - 1) + self.width * _BYTES_PER_PIXEL[self.format.layout]


class Decoder:
    """Decodes the buffers of one stream. Used by the capture thread only.

    Args:
        layout: The layout negotiated with the driver.
        color: Return RGB where the format has colour.

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
        """Whether `decode` returns views of the buffer; otherwise the pixels are owned."""
        return self._cv2 is None and not self.layout.format.big_endian

    def decode(self, memory: Array) -> Optional[Tuple[Array, Levels]]:
        """The pixels in a buffer, and the levels that convert them to 8-bit gray.

        Args:
            memory: (N,) uint8, the bytes that the driver filled; N is at least `layout.least_bytes`.

        Returns:
            (H, W) uint8 or uint16, or (H, W, 3 RGB) uint8; a view of `memory` when `borrows`. None when the
            JPEG cannot be decoded, is cut off, or has another size; one that is padded to whole blocks is cropped.
        """
        layout = self.layout
        if layout.format.is_encoded:
            decoded = self._jpeg(memory)
            return None if decoded is None else (decoded, FULL_RANGE)
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
            decoded = cv2.imdecode(memory, flags)
        except cv2.error:  # a damaged header may give a size that OpenCV rejects or cannot allocate
            return None
        if decoded is None:
            return None
        height, width = self.layout.height, self.layout.width
        # Encoders code whole blocks: 1920x1088 for 1920x1080.
        if not (0 <= decoded.shape[0] - height < _JPEG_BLOCK_PX and 0 <= decoded.shape[1] - width < _JPEG_BLOCK_PX):
            return None
        decoded = np.ascontiguousarray(decoded[:height, :width])
        return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB) if self._color else decoded)

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


_JPEG_BLOCK_PX = 16


class SampleDepth:
    """Detects from the samples which bits of 16-bit samples are significant.

    V4L2 defines Y10 and Y12 as right-justified, but Tegra's VI delivers them left-justified; Y16 is defined as 16
    bits, but many 10-bit sensors deliver it right-justified. No ioctl reports this, so it is derived from the OR of
    the samples: a bit above the defined ones proves left-justified, a bit in the lowest ones suggests
    right-justified. Observed bits are kept, so the first brighter frame corrects a dark start. A bit counts only
    when several samples have it: otherwise one damaged sample would make all later frames 64 times darker.

    Args:
        bits: Significant bits by the format's definition.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._seen_bits = 0

    def observe(self, samples: Array) -> Levels:
        """The levels that convert these and later samples to 8-bit gray.

        Args:
            samples: (H, W) uint16; every 8th sample of every 8th row is examined.
        """
        some = samples[::8, ::8]
        new = int(np.bitwise_or.reduce(some, axis=None)) & ~self._seen_bits
        for bit in (1 << number for number in range(16) if new >> number & 1):
            if np.count_nonzero(some & bit) >= max(1, some.size // _SAMPLES_PER_OUTLIER):
                self._seen_bits |= bit
        return Levels(0.0, 1.0 / (1 << (self._depth() - 8)))

    def _depth(self) -> int:
        seen = self._seen_bits
        if self._bits == 16:
            if seen and seen & 0x0F == 0:  # left-justified, however dark
                return 16
            return min(16, max(10, (seen.bit_length() + 1) // 2 * 2)) if seen else 16
        if seen >> self._bits:
            return 16
        unused = (1 << (16 - self._bits)) - 1
        return 16 if seen and not seen & unused else self._bits


def _range_table(scale: float, offset: float, centre: float) -> Array:
    return np.asarray(np.clip(np.rint((np.arange(256) - centre) * scale + offset), 0, 255), np.uint8)


# ITU-R BT.601 quantisation: full-range values to limited range.
_LIMITED_LUMA = _range_table(219.0 / 255.0, 16.0, 0.0)
_LIMITED_CHROMA = _range_table(224.0 / 255.0, 128.0, 128.0)


def _plane(memory: Array, layout: ImageLayout, dtype: str = "u1", offset: int = 0) -> Array:
    """(H, W) view of one sample per pixel; the first sample is at byte `offset`."""
    strides = (layout.pitch_bytes, _BYTES_PER_PIXEL[layout.format.layout])
    view: Array = np.ndarray((layout.height, layout.width), np.dtype(dtype), memory, offset, strides)
    return view


def _cv2(format_name: str) -> Any:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"pixel format {format_name} in this mode needs OpenCV, which is not installed",
            "pip install opencv-python-headless, on a Jetson apt install python3-opencv, or use another pixel_format",
        ) from error
    return cv2
