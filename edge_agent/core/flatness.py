"""Is a camera covered? A picture without structure, told from a dim or low-contrast room.

The picture is reduced to means m of 16 x 20 blocks, and each is compared with what its neighbours in the row foretell
by a cubic through them (and likewise in the column):

    r[i] = m[i] - (4 (m[i-1] + m[i+1]) - (m[i-2] + m[i+2])) / 6        (a sixth of the fourth difference)

A hand on the lens is out of focus: whatever its glow, shade or gradient, it is smooth over blocks and cancels, while
anything in focus has edges and leaves half of their height. What noise leaves is measured in the same picture, finer:
a block is 4 x 4 cells, and if s is the deviation of the cells' r (1.48 times the median of |r|, so that the few cells
with edges do not count), that of the blocks' r is s / 4. That holds for white noise and for codecs' blocks alike. The
largest of some 600 stays below five deviations but once in 3,000 pictures. So a picture is flat when

    max |r| <= sqrt(floor^2 + (5 s / 4)^2)       gray levels

The floor stands for what is neither noise nor scene: rounding and fixed patterns in raw pixels, and in encoded ones
quantisation, which freezes noise into patterns. Measured at 640 x 480: the average of eight uniform or glowing
pictures (noise 3, as JPEG of quality 50 to 90 or H.264 of CRF 23 to 28) leaves at most 0.72; that of 78 real pictures,
dimmed until their brightest percent is at 8 of 255, at least 1.1.

The means are also averaged over about 8 successive flat pictures, which lowers s by 2.8: a static room that hides in
the noise of one picture shows in eight. Saturated cells are left out, for where a glow is clipped it bends.
"""

import math
from typing import Optional

import numpy as np

from edge_agent.core.frame import Levels
from edge_agent.core.types import Array

_ROWS, _COLUMNS = 16, 20
_CELLS = 4
_DEVIATIONS = 5.0
_FLOOR_RAW = 0.4
_FLOOR_ENCODED = 0.75
_AVERAGED = 8

# Structure is clear, and ends a cover (hysteresis), when it exceeds the limit so many times.
_CLEAR = 1.5

# About so many pixels are looked at, evenly spread.
_SAMPLED_PX = 65536

_SATURATED = 240

# Deviation of a normal distribution by its median absolute deviation.
_BY_MEDIAN = 1.4826


class Flatness:
    """Whether successive pictures are flat. Used by one thread.

    Args:
        encoded: Whether the pictures come out of a codec.
    """

    def __init__(self, encoded: bool) -> None:
        self._floor = _FLOOR_ENCODED if encoded else _FLOOR_RAW
        self._mean: Optional[Array] = None
        self._count = 0

    def observe(self, plane: Array, levels: Levels, covered: bool) -> bool:
        """True when the picture, and the average of the flat ones before it, show no structure.

        Args:
            plane: (H, W) uint8 or uint16, raw; may be a strided view. A picture under 80 x 64 px is not flat.
            levels: How it becomes 8-bit.
            covered: Whether the camera counts as covered now, so that clear structure is asked for to leave that.
        """
        if plane.shape[0] < _ROWS * _CELLS or plane.shape[1] < _COLUMNS * _CELLS:
            return False
        step = max(1, math.isqrt(plane.size // _SAMPLED_PX))
        cells = cell_means(levels.to_gray8(plane[::step, ::step]))
        means = cells.reshape(_ROWS, _CELLS, _COLUMNS, _CELLS).mean(axis=(1, 3))
        deviation = _BY_MEDIAN * float(np.median(_roughness(cells))) / _CELLS
        excess = self._excess(means, deviation)
        if excess > _CLEAR:
            self._mean, self._count = None, 0
            return False
        self._count = min(self._count + 1, _AVERAGED)
        self._mean = means if self._mean is None else self._mean + (means - self._mean) / self._count
        averaged_excess = self._excess(self._mean, deviation / math.sqrt(self._count))
        return max(excess, averaged_excess) <= (_CLEAR if covered else 1.0)

    def _excess(self, means: Array, deviation: float) -> float:
        """Structure as a multiple of what noise explains."""
        return float(_roughness(means).max()) / math.hypot(self._floor, _DEVIATIONS * deviation)


def cell_means(gray: Array) -> Array:
    """(64, 80) float64 means of a (H, W) uint8 picture's cells, NaN where saturated; they differ by one px in size."""
    height, width = gray.shape
    rows = np.arange(_ROWS * _CELLS) * height // (_ROWS * _CELLS)
    columns = np.arange(_COLUMNS * _CELLS) * width // (_COLUMNS * _CELLS)
    sums = np.add.reduceat(np.add.reduceat(gray, rows, axis=0, dtype=np.uint32), columns, axis=1)
    means = sums / np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    return np.where(means < _SATURATED, means, np.nan)


def _roughness(means: Array) -> Array:
    """All |r| (see above) along rows and columns, as (N,), those that touch a NaN left out; one 0 when all do."""
    both = np.concatenate([_residuals(means).ravel(), _residuals(means.T).ravel()])
    known = np.abs(both[~np.isnan(both)])
    return known if known.size else np.zeros(1)


def _residuals(m: Array) -> Array:
    return np.asarray(m[2:-2] - (4.0 * (m[1:-3] + m[3:-1]) - (m[:-4] + m[4:])) / 6.0)
