"""Which frames must be looked at while nobody is there: all that show a change, and now and then one that does not.

A picture is compared with the last one that was looked at, so that changes which are slow add up. About 65,000 evenly
spread pixels a and b of the two are taken together in cells of 4 x 4, and of each cell the mean absolute difference is

    m = mean |a - b|        gray levels

A cell is 1.3 % of the picture's width: less than a face that any detector here finds, so one that comes fills cells.
Noise has the same mean everywhere, and so has a lamp that flickers or a sun that sets: the lower quartile q of all m
tells how much. White noise of deviation s makes m = 1.13 s (a difference of two has s sqrt 2, and its mean modulus is
0.8 of that), with a deviation of 0.21 s. A picture has changed when

    max m > 4 + 2 q   or   q > 12        gray levels

which white noise reaches by chance less than once in a million pictures up to s = 10. A larger q is a light that was
switched, or a camera so noisy that none of its pictures counts as still: on any doubt all of them are looked at.
"""

import math
from dataclasses import dataclass
from typing import Optional

import numpy as np

from edge_agent.core.frame import Image
from edge_agent.core.params import param
from edge_agent.core.types import Array

_SAMPLED_PX = 65536
_CELL = 4
_FLOOR = 4.0
_NOISE_FACTOR = 2.0
_MAX_NOISE = 12.0


@dataclass(frozen=True)
class IdleParams:
    """How much is looked at while nobody is there and all is still; the frame that shows a change always is."""

    fps: float = param(
        2.0,
        "Pictures a second that are looked at while nobody is there and the picture is still; less saves more, but a "
        "face too faint to count as a change waits longer. 0 looks at every picture, as does publishing detections",
        ge=0,
        le=1000,
    )
    after_s: float = param(
        2.0,
        "Seconds without a face or a change after which that begins; raise it against faces that need a few looks",
        ge=0,
        le=3600,
    )


class IdleGate:
    """Decides frame by frame for one camera. Used by one thread.

    Args:
        params: May be replaced at any time, followed by `wake`.
    """

    def __init__(self, params: IdleParams) -> None:
        self.params = params
        self._looked_at: Optional[Array] = None
        self._quiet_t: Optional[float] = None
        self._looked_t = -math.inf

    def due(self, picture: Image, t: float) -> bool:
        """Whether the picture of time `t` must be looked at; it is only read. About 0.1 ms, or nothing while awake."""
        if self.params.fps <= 0 or self._quiet_t is None:
            return True
        if self._looked_at is None or changed(self._looked_at, sample(picture)):
            self._quiet_t = t
            return True
        idle = t - self._quiet_t >= self.params.after_s
        # Also when time has stepped back.
        return not idle or not 0.0 <= t - self._looked_t < 1.0 / self.params.fps

    def looked(self, picture: Image, t: float, nobody: bool) -> None:
        """The picture was looked at; `nobody` when it is certain that no face is there, nor may be."""
        if self.params.fps <= 0 or not nobody:
            self.wake()
            return
        self._looked_at = sample(picture)
        self._looked_t = t
        if self._quiet_t is None:
            self._quiet_t = t

    def wake(self) -> None:
        """Look at every picture until nothing has happened for a while."""
        self._quiet_t = None


def sample(picture: Image) -> Array:
    """(h, w) uint8 copy of about 65,000 evenly spread pixels; of colour the green ones."""
    plane = picture.pixels if picture.pixels.ndim == 2 else picture.pixels[:, :, 1]
    step = max(1, math.isqrt(plane.size // _SAMPLED_PX))
    return np.array(picture.levels.to_gray8(plane[::step, ::step]))


def changed(before: Array, now: Array) -> bool:
    """Whether two samples differ by more than noise and the light as a whole explain (see above).

    Args:
        before: (h, w) uint8.
        now: Likewise; of another size, or smaller than a cell, it counts as changed.
    """
    if before.shape != now.shape or min(now.shape) < _CELL:
        return True
    difference = np.maximum(before, now)
    difference -= np.minimum(before, now)
    means = _cell_sums(difference) / float(_CELL**2)
    noise = float(np.partition(means, means.size // 4)[means.size // 4])
    return noise > _MAX_NOISE or bool(means.max() > _FLOOR + _NOISE_FACTOR * noise)


def _cell_sums(pixels: Array) -> Array:
    """(N,) uint16 sums of whole cells; at the right and lower edge the last whole cell overlaps its neighbour."""
    rows = _starts(pixels.shape[0])
    columns = _starts(pixels.shape[1])
    bands = pixels[rows].astype(np.uint16)
    for offset in range(1, _CELL):
        bands += pixels[rows + offset]
    return np.asarray(sum(bands[:, columns + offset] for offset in range(_CELL))).ravel()


def _starts(size: int) -> Array:
    """Where cells begin along one side, the last one ending with it."""
    return np.append(np.arange(0, size - _CELL, _CELL), size - _CELL)
