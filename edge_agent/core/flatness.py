"""Is a camera covered? A picture without structure, told from a dim or low-contrast room.

The picture is reduced to means m of 16 x 20 blocks, and each is compared with what its neighbours in the row foretell
by a cubic through them (and likewise in the column):

    r[i] = m[i] - (4 (m[i-1] + m[i+1]) - (m[i-2] + m[i+2])) / 6        (a sixth of the fourth difference)

A hand on the lens is out of focus: whatever its glow, shade or gradient, it is smooth over blocks and cancels, while
anything in focus has edges and leaves half of their height. With pixel noise s and n pixels per block, r has the
deviation 1.39 s / sqrt(n) (1.39 = sqrt(70) / 6); the largest of some 600 stays below five deviations but once in
3,000 pictures. So a picture is flat when

    max |r| <= 0.3 + 7 s / sqrt(n)       gray levels; 0.3 for rounding, JPEG staircases and fixed patterns.

The means are also averaged over up to 8 successive flat pictures, which lowers n's term by 2.8: a static room that
hides in the noise of one picture shows in eight. Saturated blocks are left out, for where a glow is clipped it bends.
"""

import math
from typing import Optional

import numpy as np

from edge_agent.core.frame import Levels
from edge_agent.core.types import Array

_ROWS, _COLUMNS = 16, 20
_FLOOR = 0.3
_DEVIATIONS = 7.0
_AVERAGED = 8

# Structure must exceed the limit this much to end a cover: hysteresis.
_LEAVING = 1.5

# About so many pixels are looked at, evenly spread, for the means; a quarter of it for the noise.
_SAMPLED_PX = 65536

_SATURATED = 240


class Flatness:
    """Whether successive pictures are flat. Used by one thread."""

    def __init__(self) -> None:
        self._mean: Optional[Array] = None
        self._count = 0

    def observe(self, plane: Array, levels: Levels, covered: bool) -> bool:
        """True when the picture, and the average of the flat ones before it, show no structure.

        Args:
            plane: (H, W) uint8 or uint16, raw; may be a strided view. A picture too small for the blocks is not flat.
            levels: How it becomes 8-bit.
            covered: Whether the camera counts as covered now, so that clear structure is asked for to leave that.
        """
        if plane.shape[0] < 2 * _ROWS or plane.shape[1] < 2 * _COLUMNS:
            return False
        step = max(1, math.isqrt(plane.size // _SAMPLED_PX))
        sparse = levels.to_gray8(plane[::step, ::step])
        means = block_means(sparse)
        deviation = noise(plane, levels) / math.sqrt(sparse.size / means.size)
        factor = _LEAVING if covered else 1.0
        flat = roughness(means) <= factor * _limit(deviation)
        if flat:
            self._count = min(self._count + 1, _AVERAGED)
            self._mean = means if self._mean is None else self._mean + (means - self._mean) / self._count
            flat = roughness(self._mean) <= factor * _limit(deviation / math.sqrt(self._count))
        if not flat:
            self._mean, self._count = None, 0
        return flat


def block_means(gray: Array) -> Array:
    """(16, 20) float64 means of a (H, W) uint8 picture's blocks, which differ by at most one px in size."""
    height, width = gray.shape
    rows = np.arange(_ROWS) * height // _ROWS
    columns = np.arange(_COLUMNS) * width // _COLUMNS
    sums = np.add.reduceat(np.add.reduceat(gray, rows, axis=0, dtype=np.uint32), columns, axis=1)
    sizes = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    return np.asarray(sums / sizes)


def roughness(means: Array) -> float:
    """Largest |r| (see above) of (16, 20) block means along rows and columns, gray levels; saturated ones left out."""
    usable = np.where(means < _SATURATED, means, np.nan)
    residuals = np.concatenate([_residuals(usable).ravel(), _residuals(usable.T).ravel()])
    return float(np.nanmax(np.abs(residuals), initial=0.0))


def noise(plane: Array, levels: Levels) -> float:
    """Deviation of the pixel noise, gray levels: mean |difference| of horizontal neighbours, times sqrt(pi) / 2.

    Edges raise it a little; being few beside the pixels of surfaces, they raise a picture's roughness far more.
    """
    step = max(2, math.isqrt(4 * plane.size // _SAMPLED_PX))
    right = levels.to_gray8(plane[::step, 1::step])
    left = levels.to_gray8(plane[::step, ::step])[:, : right.shape[1]]
    usable = left < _SATURATED
    differences = np.abs(left[usable].astype(np.int16) - right[usable])
    return float(differences.mean()) * math.sqrt(math.pi) / 2.0 if differences.size else 0.0


def _residuals(means: Array) -> Array:
    return np.asarray(means[2:-2] - (4.0 * (means[1:-3] + means[3:-1]) - (means[:-4] + means[4:])) / 6.0)


def _limit(deviation: float) -> float:
    return _FLOOR + _DEVIATIONS * deviation
