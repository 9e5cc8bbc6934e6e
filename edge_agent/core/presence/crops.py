"""Crops of faces: assessing a face's image quality, cutting the crop, obscuring it for privacy."""

import math
from dataclasses import dataclass
from typing import Literal, Tuple

import numpy as np

from edge_agent.core.frame import Image, Levels
from edge_agent.core.params import param
from edge_agent.core.types import Array, Box, Crop, FrameInfo, Quality

Privacy = Literal["off", "pixelate", "full"]

# ITU-R BT.601 luma.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Sharpness is measured on a face reduced to about this many px, so that near and far faces are comparable and cost the
# same.
_ASSESSED_PX = 64

# Size and sharpness at which their part of the score is one half.
_HALF_SIZE_PX = 40.0
_HALF_SHARPNESS = 100.0

# Factor for a face that the frame's edge may cut off.
_EDGE_FACTOR = 0.25
_EDGE_PX = 1.0

_CLEARLY_BETTER = 1.2


@dataclass(frozen=True)
class CropParams:
    """Crops of faces: whether they are taken, their size and quality."""

    enabled: bool = param(True, "Take and publish one crop per visit; off: no image leaves the agent", restart=True)
    margin: float = param(0.25, "Widens the crop on each side, as a fraction of the face's size", ge=0, le=2)
    max_side_px: int = param(
        320, "Longest side of the crop, px; raise it for more detail, lower it for smaller messages", ge=32, le=4096
    )
    jpeg_quality: int = param(85, "JPEG quality of the crop; lower it for smaller messages", ge=1, le=100)
    max_bytes: int = param(200_000, "Maximum size of the JPEG, bytes; the quality is lowered to meet it", ge=2_000)
    min_face_px: int = param(24, "Faces whose shorter side is below this many px get no crop", ge=1, le=4096)
    min_quality: float = param(
        0.05, "Faces with a lower quality score (0..1) get no crop; 0 accepts every quality", ge=0, le=1
    )
    privacy: Privacy = param(
        "off",
        "Obscures crops before they leave the frame: off, coarse blocks (pixelate), or one flat gray of the mean "
        "brightness (full); unless off, snapshots are refused",
        restart=True,
    )
    image: bool = param(
        False,
        "Also publish each camera's newest crop as a retained message, for Home Assistant's image entity; cleared "
        "after image_ttl_s. MQTT 3.1.1 has no message expiry, so there the image is not retained",
        restart=True,
    )
    image_ttl_s: float = param(300.0, "Seconds after which that image is cleared", ge=5, le=86400, restart=True)


def assess(image: Image, xyxy: Array, confidence: float) -> Quality:
    """Quality of a face; takes about 0.1 ms, independent of its size.

    The score is the product of four parts, each 0..1: size `s / (s + 40 px)`, sharpness `v / (v + 100)`, exposure
    (1 between a quarter and three quarters of full scale, falling to 0 at black and white), and confidence; it is
    quartered where the frame's edge may cut off the face.

    Args:
        image: The upright full frame.
        xyxy: (4,) face box in px of `image`: left, top, right, bottom; may exceed it.
        confidence: The detector's score; above 1 (a "sum" score) counts as 1.
    """
    height, width = image.pixels.shape[:2]
    left, top, right, bottom = (float(v) for v in xyxy)
    edge = min(left, top) <= _EDGE_PX or right >= width - _EDGE_PX or bottom >= height - _EDGE_PX
    face_px = max(0, int(min(right - left, bottom - top)))
    x0, y0, x1, y1 = _pixels_of((left, top, right, bottom), width, height)
    gray = _reduced_gray(image.pixels[y0:y1, x0:x1], image.levels)
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


def laplacian_variance(gray: Array) -> float:
    """Variance of the 4-neighbour Laplacian of a (H, W) float32 image, gray levels squared; 0 under 3 px a side.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000 (measure LAPV).
    """
    if min(gray.shape) < 3:
        return 0.0
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4.0 * gray[1:-1, 1:-1]
    return float(laplacian.var())


def _reduced_gray(pixels: Array, levels: Levels) -> Array:
    """(h, w) float32 gray 0..255, each k x k block reduced to the mean of four pixels; k depends on the size."""
    k = max(1, min(pixels.shape[:2]) // _ASSESSED_PX)
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


def acceptable(quality: Quality, params: CropParams) -> bool:
    """Whether this quality meets the minimum for a crop."""
    return quality.face_px >= params.min_face_px and quality.score >= params.min_quality


def better(new: Quality, old: Quality, by: float = 1.0) -> bool:
    """Whether the score of `new` exceeds `by` times that of `old`."""
    return new.score > old.score * by


def clearly_better(new: Quality, old: Quality) -> bool:
    """Whether the score of `new` exceeds that of `old` by more than a fifth."""
    return better(new, old, _CLEARLY_BETTER)


def cut(image: Image, xyxy: Array, params: CropParams, quality: Quality, info: FrameInfo) -> Crop:
    """Copy a face with its margin from the upright full frame, in 8 bits, at most `max_side_px` on a side.

    Downscaling averages whole k x k blocks and omits up to k - 1 px at the right and bottom; the crop's box is the area
    that remains.

    Args:
        image: The upright full frame; read only.
        xyxy: (4,) face box in px of `image`: left, top, right, bottom; may exceed it.
        params: Margin and size.
        quality: Quality of this face.
        info: Identity of this frame.
    """
    height, width = image.pixels.shape[:2]
    left, top, right, bottom = (float(v) for v in xyxy)
    margin_x, margin_y = (right - left) * params.margin, (bottom - top) * params.margin
    wide = (left - margin_x, top - margin_y, right + margin_x, bottom + margin_y)
    x0, y0, x1, y1 = _pixels_of(wide, width, height)
    factor = -(-max(x1 - x0, y1 - y0) // params.max_side_px)
    factor = min(factor, x1 - x0, y1 - y0)
    x1 -= (x1 - x0) % factor
    y1 -= (y1 - y0) % factor
    pixels = _downscaled(image.pixels[y0:y1, x0:x1], factor)
    # `to_gray8` may return its argument; a crop has to own its pixels.
    gray = np.array(image.levels.to_gray8(pixels), order="C")
    box = Box(round(x0 / width, 4), round(y0 / height, 4), round(x1 / width, 4), round(y1 / height, 4))
    return Crop(obscure(gray, params.privacy), box, quality, info)


def _pixels_of(xyxy: Tuple[float, float, float, float], width: int, height: int) -> Tuple[int, int, int, int]:
    """The pixels of the image that a box touches, at least one: left, top, right, bottom."""
    x0 = min(max(0, math.floor(xyxy[0])), width - 1)
    y0 = min(max(0, math.floor(xyxy[1])), height - 1)
    x1 = max(x0 + 1, min(width, math.ceil(xyxy[2])))
    y1 = max(y0 + 1, min(height, math.ceil(xyxy[3])))
    return x0, y0, x1, y1


def _downscaled(pixels: Array, factor: int) -> Array:
    """Rounded means of factor x factor blocks, same dtype; sides must be multiples of `factor`."""
    if factor == 1:
        return pixels
    total = np.zeros((pixels.shape[0] // factor, pixels.shape[1] // factor, *pixels.shape[2:]), np.float32)
    # One strided slice per position in the block: three times as fast as a mean over a five-dimensional view.
    for y in range(factor):
        for x in range(factor):
            total += pixels[y::factor, x::factor]
    return np.asarray(np.rint(total / np.float32(factor * factor)).astype(pixels.dtype))


_PRIVACY_BLOCKS = 8
"""Blocks along the longer side of a pixelated crop: a face is about five blocks wide then, and not identifiable."""


def obscure(pixels: Array, privacy: Privacy) -> Array:
    """Obscure the whole crop, with bystanders in its margin: coarse blocks ("pixelate") or one flat gray ("full").

    Args:
        pixels: (H, W) or (H, W, 3) uint8; returned unchanged when `privacy` is "off".
        privacy: What remains visible.

    Returns:
        The same shape, each block filled with its mean; contiguous, own memory.
    """
    if privacy == "off":
        return pixels
    height, width = pixels.shape[:2]
    side = max(height, width) if privacy == "full" else max(1, -(-max(height, width) // _PRIVACY_BLOCKS))
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=0), columns, axis=1)
    heights, widths = np.diff(np.append(rows, height)), np.diff(np.append(columns, width))
    areas = np.outer(heights, widths)
    means = np.rint(sums / (areas if pixels.ndim == 2 else areas[:, :, None])).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(means, heights, axis=0), widths, axis=1))
