"""Decoding with PyAV: choice of the stream, damaged frames, and pixels without a copy where luma is enough."""

import re
from functools import lru_cache
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

import av
import numpy as np

from edge_agent.capture.pixels import SampleDepth
from edge_agent.core.camera.damage import PredictionDamage
from edge_agent.core.frame import FULL_RANGE, Levels
from edge_agent.core.types import Array
from edge_agent.errors import SourceError

# Planar or semi-planar formats whose first plane is luma: yuv420p, yuvj422p, yuv420p10le, gray12le, nv12, ...
_LUMA_FIRST = re.compile(r"(?:(?P<yuv>yuv[aj]?4\d\dp|nv12|nv16|nv21|nv24|nv42)|gray)(?:(?P<bits>\d+)le)?")
_INTRA = frozenset({"mjpeg", "mjpegb", "jpeg2000", "png"})
VIDEO_CODECS = frozenset(
    {"h264", "hevc", "mjpeg", "mpeg4", "mpeg2video", "mpeg1video", "h263", "h263p", "flv", "vp8", "vp9", "av1"}
    | {"libdav1d", "libvpx", "libvpx-vp9", "jpeg2000"}
)
"""FFmpeg's decoders that network cameras may use; a stream of any other is refused."""

MAX_PIXELS = 1 << 25
"""A little more than 7680x4320. A small file can claim a size of gigabytes, which a decoder would allocate."""
_SIXTEEN_BITS = Levels(0.0, 1.0 / 256.0)
_MPEG_RANGE, _JPEG_RANGE = 1, 2  # AVCOL_RANGE_*; 0 is unspecified


def video_stream(container: Any) -> Any:
    """The first video stream of an `av.container.InputContainer`, set to decode in the calling thread.

    More threads would use the cores that inference needs, and delay a live frame by as many frames.

    Raises:
        SourceError: The container has no video that FFmpeg can decode, or its frames are too large. The message does
            not name the address.
    """
    if not container.streams.video:
        raise SourceError("there is no video in it")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise SourceError("FFmpeg has no decoder for its video")
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise SourceError(f"its video has {stream.codec_context.width}x{stream.codec_context.height} px, too many")
    stream.codec_context.thread_count = 1
    return stream


class Decoded(NamedTuple):
    """An `av.VideoFrame`, None where a packet gave none, and whether it is damaged."""

    frame: Optional[Any]
    damaged: bool


class PacketDecoder:
    """Decodes the packets of one stream, and marks what the decoder concealed. Used by one thread.

    FFmpeg conceals missing data. In a predicted codec it flags most of these frames as corrupt; in MJPEG none, so there
    errors are made strict. Bytes before or after the end marker, a missing marker or missing tables are no damage.

    Args:
        stream: Of `video_stream`.
        live: Whether frames come out without waiting for later ones.
    """

    def __init__(self, stream: Any, live: bool = False) -> None:
        intra = stream.codec_context.name in _INTRA
        stream.codec_context.options = _decoder_options(intra, live)
        self._stream = stream
        self._damage = PredictionDamage(intra)
        self.errors = 0

    def skip_unreferenced(self, skip: bool) -> None:
        """Set whether frames that no other frame needs are left out."""
        self._stream.codec_context.skip_frame = "NONREF" if skip else "DEFAULT"

    def decode(self, packet: Any, t: float) -> Iterator[Decoded]:
        """The frames of one packet at monotonic `t`; a packet that cannot be decoded is one damaged frame."""
        try:
            frames = packet.decode()
        except av.FFmpegError:
            self.errors += 1
            yield Decoded(None, self._damage.observe(True, False, t))
            return
        for frame in frames:
            flagged = bool(frame.is_corrupt or packet.is_corrupt)
            yield Decoded(frame, self._damage.observe(flagged, bool(frame.key_frame), t))


class JpegDecoder:
    """Decodes single JPEGs strictly: one of which data is missing is an undecodable frame. Used by one thread."""

    def __init__(self) -> None:
        self._context = av.CodecContext.create("mjpeg", "r")
        self._context.options = _decoder_options(True, live=True)
        self._context.thread_count = 1
        self.errors = 0

    def decode(self, data: bytes) -> Decoded:
        """The frame of one JPEG file; none, and damaged, where it cannot be decoded."""
        try:
            frames = self._context.decode(av.Packet(data)) if data else []
        except (av.FFmpegError, ValueError):
            frames = []
        if not frames:
            self.errors += 1
            return Decoded(None, True)
        return Decoded(frames[-1], bool(frames[-1].is_corrupt))


def _decoder_options(intra: bool, live: bool) -> Dict[str, str]:
    options = {"max_pixels": str(MAX_PIXELS)}
    if live:
        options["flags"] = "low_delay"
    if intra:
        options["err_detect"] = "explode"
    return options


class PixelReader:
    """Callable: the upright pixels of an `av.VideoFrame` of one stream, and their levels.

    Args:
        color: Return RGB instead of luma.
    """

    def __init__(self, color: bool) -> None:
        self._color = color
        self._depth = SampleDepth(16)
        self._turn: Optional[Callable[[Array], Array]] = None
        self._turn_size: Optional[Tuple[int, int]] = None

    def __call__(self, frame: Any) -> Tuple[Array, Levels]:
        """The pixels and levels of `gray_pixels` or `rgb_pixels`; values of 10 to 14 bits in 16 are recognised."""
        # Once per size: a frame whose side data was read refers to itself, and stays until the garbage collector runs.
        if self._turn_size != (frame.width, frame.height):
            self._turn_size = frame.width, frame.height
            self._turn = _turn_of(frame)
        turn = self._turn
        if self._color and not frame.format.name.startswith("gray"):
            pixels, levels = rgb_pixels(frame)
        else:
            pixels, levels = gray_pixels(frame)
            if pixels.dtype == np.uint16 and levels == _SIXTEEN_BITS:
                levels = self._depth.observe(pixels)
            if self._color:
                pixels, levels = np.repeat(levels.to_gray8(pixels)[..., np.newaxis], 3, axis=2), FULL_RANGE
        return turn(pixels) if turn is not None else pixels, levels


def _turn_of(frame: Any) -> Optional[Callable[[Array], Array]]:
    """The rotation and reflection by the frame's display matrix; None when it is upright."""
    if not len(frame.side_data):
        return None
    found = frame.side_data.get("DISPLAYMATRIX")
    return None if found is None else turn_by(bytes(found))


@lru_cache(maxsize=16)
def turn_by(matrix: bytes) -> Optional[Callable[[Array], Array]]:
    """The rotation and reflection in steps of 90 degrees that is nearest to a display matrix; None for none.

    Args:
        matrix: 9 native int32: a point (x, y) of the decoded frame is shown at (a x + c y, b x + d y).
    """
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    swap = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if swap else (a, d)
    step_x, step_y = -1 if across < 0 else 1, -1 if down < 0 else 1
    if not swap and step_x == step_y == 1:
        return None

    def turn(pixels: Array) -> Array:
        turned = pixels.swapaxes(0, 1) if swap else pixels
        return np.ascontiguousarray(turned[::step_y, ::step_x])  # OpenCV takes no negative strides

    return turn


def gray_pixels(frame: Any) -> Tuple[Array, Levels]:
    """The luma of an `av.VideoFrame`.

    Returns:
        (H, W) uint8 or uint16, a strided view of the decoder's buffer that keeps the buffer alive, and the levels
        that convert it to 8-bit gray. YUV is limited range unless the stream sets a range (FFmpeg's rule); gray is
        full range.
    """
    if frame.format.name.startswith("gray") and frame.format.name.endswith("be"):
        frame = frame.reformat(format=f"{frame.format.name[:-2]}le")
    bits, limited = _luma_of(frame.format.name)
    plane = frame.planes[0] if bits else None
    if plane is None or plane.line_size <= 0:
        frame = frame.reformat(format="gray")  # swscale gives full range
        bits, limited = _luma_of("gray")
        plane = frame.planes[0]
    values = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16)
    per_row = plane.line_size // values.itemsize
    pixels = values[: frame.height * per_row].reshape(frame.height, per_row)[:, : frame.width]
    range_ = int(frame.color_range)
    unit = 1 << (bits - 8)
    if range_ == _MPEG_RANGE or (range_ != _JPEG_RANGE and limited):
        return pixels, Levels(16.0 * unit, 255.0 / 219.0 / unit)
    return pixels, Levels(0.0, 1.0 / unit)


@lru_cache(maxsize=16)
def _luma_of(format_name: str) -> Tuple[int, bool]:
    """(bits of luma, whether the range is limited by default) of a pixel format; (0, False) without a luma plane."""
    known = _LUMA_FIRST.fullmatch(format_name)
    if known is None:
        return 0, False
    return int(known["bits"] or 8), bool(known["yuv"]) and not known["yuv"].startswith("yuvj")


def rgb_pixels(frame: Any) -> Tuple[Array, Levels]:
    """An `av.VideoFrame` as (H, W, 3 RGB) uint8, full range, converted by FFmpeg; owns its pixels."""
    return np.asarray(frame.to_ndarray(format="rgb24")), FULL_RANGE
