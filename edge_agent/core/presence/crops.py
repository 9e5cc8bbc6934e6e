"""How good a face's picture is, and the crop that is kept of it."""

import math
from dataclasses import dataclass
from typing import Literal, Tuple

import numpy as np

from edge_agent.core.frame import Image, Levels
from edge_agent.core.params import param
from edge_agent.core.types import Array, Box, Crop, FrameInfo, Quality

Privacy = Literal["off", "pixelate", "full"]

_BLOCKS = 8
"""Across the longer side of a crop: a face is then about five blocks wide, and nobody's in particular."""


def obscure(pixels: Array, privacy: Privacy) -> Array:
    """The whole crop, bystanders in its margin too, as coarse blocks ("pixelate") or as one flat gray ("full").

    Args:
        pixels: (H, W) or (H, W, 3) uint8; handed back as it is when `privacy` is "off".
        privacy: How much is hidden.

    Returns:
        The same shape, each block the mean of what it hides; contiguous, own memory.
    """
    if privacy == "off":
        return pixels
    height, width = pixels.shape[:2]
    side = max(height, width) if privacy == "full" else max(1, -(-max(height, width) // _BLOCKS))
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=0), columns, axis=1)
    heights, widths = np.diff(np.append(rows, height)), np.diff(np.append(columns, width))
    areas = np.outer(heights, widths)
    means = np.rint(sums / (areas if pixels.ndim == 2 else areas[:, :, None])).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(means, heights, axis=0), widths, axis=1))


# ITU-R BT.601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Sharpness is judged on a face reduced to about this many px, so that it says the same of near and far faces, and
# costs the same.
_JUDGED_PX = 64

# Values at which size, and sharpness, earn half of their part of the score.
_HALF_SIZE_PX = 40.0
_HALF_SHARPNESS = 100.0

# A face cut off by the frame's edge is worth this much of what it would be.
_EDGE_FACTOR = 0.25
_EDGE_PX = 1.0

_CLEARLY = 1.2


@dataclass(frozen=True)
class CropParams:
    """Pictures of faces: whether they are taken, how large, how good."""

    enabled: bool = param(
        True, "Take and publish one picture of each appearance; off: no picture leaves the agent", restart=True
    )
    margin: float = param(0.25, "Widens the crop on each side, as a part of the face's size", ge=0, le=2)
    max_side_px: int = param(
        320, "Longer side of the crop at most, px; larger shows more, and costs more", ge=32, le=4096
    )
    jpeg_quality: int = param(85, "JPEG quality of the crop; lower is smaller and coarser", ge=1, le=100)
    max_bytes: int = param(200_000, "Size of the JPEG at most, bytes; quality is lowered to meet it", ge=2_000)
    min_face_px: int = param(24, "Faces whose shorter side is below this many px are not worth a crop", ge=1, le=4096)
    min_quality: float = param(
        0.05, "Faces of a lower quality score (0..1) are not worth a crop; 0 takes what there is", ge=0, le=1
    )
    privacy: Privacy = param(
        "off",
        "How much of a crop is hidden before it leaves the frame: nothing, all but coarse blocks (pixelate), or all "
        "but its mean brightness (full); unless off, snapshots are refused",
        restart=True,
    )
    image: bool = param(
        False,
        "Also keep each camera's newest crop retained at the broker, for Home Assistant's image; cleared when its time "
        "is over. On MQTT 3.1.1, where it would stay if the agent died, it is sent but not retained",
        restart=True,
    )
    image_ttl_s: float = param(300.0, "Seconds after which that image is cleared", ge=5, le=86400, restart=True)


def assess(picture: Image, xyxy: Array, confidence: float) -> Quality:
    """Judge a face, in about 0.1 ms whatever its size.

    The score is the product of four parts, each 0..1: size `s / (s + 40 px)`, sharpness `v / (v + 100)`, exposure
    (1 between a quarter and three quarters of full scale, falling to 0 at black and white), and confidence; it is
    quartered where the frame's edge may cut the face off.

    Args:
        picture: The upright full frame.
        xyxy: (4,) face box in px of `picture`: left, top, right, bottom; may reach beyond it.
        confidence: The detector's score; above 1 (a "sum" score) counts as 1.
    """
    height, width = picture.pixels.shape[:2]
    left, top, right, bottom = (float(v) for v in xyxy)
    edge = min(left, top) <= _EDGE_PX or right >= width - _EDGE_PX or bottom >= height - _EDGE_PX
    face_px = max(0, int(min(right - left, bottom - top)))
    x0, y0, x1, y1 = _pixels_of((left, top, right, bottom), width, height)
    gray = _judged(picture.pixels[y0:y1, x0:x1], picture.levels)
    exposure = float(gray.mean()) / 255.0
    sharpness = laplacian_variance(gray)
    score = (
        face_px / (face_px + _HALF_SIZE_PX)
        * sharpness / (sharpness + _HALF_SHARPNESS)
        * min(1.0, 4.0 * exposure, 4.0 * (1.0 - exposure))
        * min(1.0, max(0.0, confidence))
        * (_EDGE_FACTOR if edge else 1.0)
    )  # fmt: skip
    return Quality(score, sharpness, face_px, exposure, edge)


def acceptable(quality: Quality, params: CropParams) -> bool:
    """Whether a crop of this quality is worth publishing."""
    return quality.face_px >= params.min_face_px and quality.score >= params.min_quality


def better(new: Quality, old: Quality, by: float = 1.0) -> bool:
    """Whether `new` scores more than `by` times what `old` does."""
    return new.score > old.score * by


def clearly_better(new: Quality, old: Quality) -> bool:
    """Whether `new` is worth the cost of replacing `old`: at least a fifth better."""
    return better(new, old, _CLEARLY)


def cut(picture: Image, xyxy: Array, params: CropParams, quality: Quality, info: FrameInfo) -> Crop:
    """Copy a face out of the upright full frame, with its margin, as 8 bits, at most `max_side_px` on a side.

    Shrinking averages whole k x k blocks; up to k - 1 px at the right and below are left out for it, and the crop's
    box says exactly what is shown.

    Args:
        picture: The upright full frame; only read.
        xyxy: (4,) face box in px of `picture`: left, top, right, bottom; may reach beyond it.
        params: Margin and size.
        quality: Of this face.
        info: Of this frame.
    """
    height, width = picture.pixels.shape[:2]
    left, top, right, bottom = (float(v) for v in xyxy)
    margin_x, margin_y = (right - left) * params.margin, (bottom - top) * params.margin
    wide = (left - margin_x, top - margin_y, right + margin_x, bottom + margin_y)
    x0, y0, x1, y1 = _pixels_of(wide, width, height)
    factor = -(-max(x1 - x0, y1 - y0) // params.max_side_px)
    factor = min(factor, x1 - x0, y1 - y0)
    x1 -= (x1 - x0) % factor
    y1 -= (y1 - y0) % factor
    pixels = _shrunk(picture.pixels[y0:y1, x0:x1], factor)
    # `to_gray8` hands back its argument where nothing changes: a crop has to own its pixels.
    gray = np.array(picture.levels.to_gray8(pixels), order="C")
    box = Box(round(x0 / width, 4), round(y0 / height, 4), round(x1 / width, 4), round(y1 / height, 4))
    return Crop(obscure(gray, params.privacy), box, quality, info)


def laplacian_variance(gray: Array) -> float:
    """Variance of the 4-neighbour Laplacian of a (H, W) float32 picture, gray levels squared; 0 where it is tiny.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000 (measure LAPV).
    """
    if min(gray.shape) < 3:
        return 0.0
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4.0 * gray[1:-1, 1:-1]
    return float(laplacian.var())


def _pixels_of(xyxy: Tuple[float, float, float, float], width: int, height: int) -> Tuple[int, int, int, int]:
    """The pixels that a box touches inside the picture, at least one: left, top, right, bottom."""
    x0 = min(max(0, math.floor(xyxy[0])), width - 1)
    y0 = min(max(0, math.floor(xyxy[1])), height - 1)
    x1 = max(x0 + 1, min(width, math.ceil(xyxy[2])))
    y1 = max(y0 + 1, min(height, math.ceil(xyxy[3])))
    return x0, y0, x1, y1


def _judged(pixels: Array, levels: Levels) -> Array:
    """(h, w) float32 gray 0..255: k x k blocks reduced to the mean of four taps each, k chosen for the size."""
    k = max(1, min(pixels.shape[:2]) // _JUDGED_PX)
    if k > 1:
        near, far = k // 4, (3 * k) // 4
        rows, columns = pixels.shape[0] // k * k, pixels.shape[1] // k * k
        taps = [pixels[y:rows:k, x:columns:k].astype(np.float32) for y in (near, far) for x in (near, far)]
        reduced = (taps[0] + taps[1] + taps[2] + taps[3]) * np.float32(0.25)
    else:
        reduced = pixels.astype(np.float32)
    if reduced.ndim == 3:
        reduced = reduced @ _LUMA
    return np.asarray(np.clip((reduced - np.float32(levels.offset)) * np.float32(levels.gain), 0, 255))


def _shrunk(pixels: Array, factor: int) -> Array:
    """Means of factor x factor blocks, rounded, in the dtype given; sides are multiples of `factor`."""
    if factor == 1:
        return pixels
    total = np.zeros((pixels.shape[0] // factor, pixels.shape[1] // factor, *pixels.shape[2:]), np.float32)
    # One strided slice per place in the block: three times as fast as a mean over a five-dimensional view.
    for y in range(factor):
        for x in range(factor):
            total += pixels[y::factor, x::factor]
    return np.asarray(np.rint(total / np.float32(factor * factor)).astype(pixels.dtype))
