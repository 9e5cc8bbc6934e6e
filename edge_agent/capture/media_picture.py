"""From PyAV's container to a stream to decode, and from its pictures to pixels, untouched where luma is enough."""

import re
from functools import lru_cache
from typing import Any, Tuple

import numpy as np

from edge_agent.core.frame import FULL_RANGE, Levels
from edge_agent.core.types import Array
from edge_agent.errors import SourceError

# Planar or semi-planar formats whose first plane is luma: yuv420p, yuvj422p, yuv420p10le, gray12le, nv12, ...
_LUMA_FIRST = re.compile(r"(?:(?P<yuv>yuv[aj]?4\d\dp|nv12|nv16|nv21|nv24|nv42)|gray)(?:(?P<bits>\d+)le)?")
_MPEG_RANGE, _JPEG_RANGE = 1, 2  # AVCOL_RANGE_*; 0 is unspecified


def video_of(container: Any) -> Any:
    """The video stream of an `av.container.InputContainer`, to be decoded in the caller's thread alone.

    More threads would take the cores that inference needs, and delay a live picture by as many frames.

    Raises:
        SourceError: There is none that can be decoded; the message says why, and leaves the address to the caller.
    """
    if not container.streams.video:
        raise SourceError("there is no video in it")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise SourceError("FFmpeg has no decoder for its video")
    stream.codec_context.thread_count = 1
    return stream


def gray_of(picture: Any) -> Tuple[Array, Levels]:
    """The luma of an `av.VideoFrame`.

    Returns:
        (H, W) uint8 or uint16, a strided view of the decoder's buffer that keeps it alive, and how its values become
        8-bit gray: YUV is limited range unless the stream says otherwise (as FFmpeg reads it), gray is full range.
    """
    bits, limited = _luma_of(picture.format.name)
    plane = picture.planes[0] if bits else None
    if plane is None or plane.line_size <= 0:
        picture = picture.reformat(format="gray")  # swscale gives full range
        bits, limited = _luma_of("gray")
        plane = picture.planes[0]
    values = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16)
    per_row = plane.line_size // values.itemsize
    pixels = values[: picture.height * per_row].reshape(picture.height, per_row)[:, : picture.width]
    range_ = int(picture.color_range)
    unit = 1 << (bits - 8)
    if range_ == _MPEG_RANGE or (range_ != _JPEG_RANGE and limited):
        return pixels, Levels(16.0 * unit, 255.0 / 219.0 / unit)
    return pixels, Levels(0.0, 1.0 / unit)


@lru_cache(maxsize=16)
def _luma_of(name: str) -> Tuple[int, bool]:
    """(bits of luma, whether of limited range unless the stream says otherwise) of a format; (0, False): no luma."""
    known = _LUMA_FIRST.fullmatch(name)
    if known is None:
        return 0, False
    return int(known["bits"] or 8), bool(known["yuv"]) and not known["yuv"].startswith("yuvj")


def rgb_of(picture: Any) -> Tuple[Array, Levels]:
    """(H, W, 3 RGB) uint8, full range, converted by FFmpeg; owns its pixels."""
    return np.asarray(picture.to_ndarray(format="rgb24")), FULL_RANGE
