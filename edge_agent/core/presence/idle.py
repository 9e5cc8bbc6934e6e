"""Decides which frames are inferred while nobody is present: all that show a change, and a few that do not.

An image is compared with the last inferred one, so that slow changes add up. About 65,000 evenly
spread pixels a and b of the two form cells of 4 x 4, each with the mean absolute difference

    m = mean |a - b|        gray levels

A cell is 1.3 % of the image's width: smaller than any face that the detectors find, so a new face fills cells. Noise,
a flickering lamp and a sunset have the same mean everywhere: the lower quartile q of all m measures it. White noise of
deviation s makes m = 1.13 s (a difference of two has s sqrt 2, and its mean modulus is 0.8 of that), with a deviation
of 0.21 s. An image has changed when

    max m > 4 + 2 q   or   q > 12        gray levels

which white noise reaches by chance less than once in a million images up to s = 10. A larger q means that a light was
switched, or that the camera is too noisy for the comparison: in doubt every frame is inferred.
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
    """How many frames are inferred while nobody is present and nothing changes; a frame with a change always is."""

    fps: float = param(
        2.0,
        "Frames per second that are inferred while nobody is present and nothing changes; lower it to save power; a "
        "face too faint to count as a change is found later then. 0 infers every frame, as does publishing detections",
        ge=0,
        le=1000,
    )
    after_s: float = param(
        2.0,
        "Seconds without a face or a change after which idling starts; raise it for faces that are not found at once",
        ge=0,
        le=3600,
    )


class IdleGate:
    """Decides per frame of one camera whether it is inferred. Used by one thread.

    Args:
        params: May be replaced at any time, followed by `reset`.
    """

    def __init__(self, params: IdleParams) -> None:
        self.params = params
        self._reference: Optional[Array] = None
        self._quiet_t: Optional[float] = None
        self._inferred_t = -math.inf

    def should_infer(self, image: Image, t: float) -> bool:
        """Whether the image of time `t` must be inferred; read only. About 0.1 ms; free while faces are present."""
        if self.params.fps <= 0 or self._quiet_t is None:
            return True
        if self._reference is None or changed(self._reference, sample(image)):
            self._quiet_t = t
            return True
        idle = t - self._quiet_t >= self.params.after_s
        # A step back in time counts as due.
        return not idle or not 0.0 <= t - self._inferred_t < 1.0 / self.params.fps

    def inferred(self, image: Image, t: float, empty: bool) -> None:
        """The image was inferred; `empty` when certainly no face is present."""
        if self.params.fps <= 0 or not empty:
            self.reset()
            return
        self._reference = sample(image)
        self._inferred_t = t
        if self._quiet_t is None:
            self._quiet_t = t

    def reset(self) -> None:
        """Infer every frame until nothing has changed for a while."""
        self._quiet_t = None


def sample(image: Image) -> Array:
    """(h, w) uint8 copy of about 65,000 evenly spread pixels; of colour images the green channel."""
    plane = image.pixels if image.pixels.ndim == 2 else image.pixels[:, :, 1]
    step = max(1, math.isqrt(plane.size // _SAMPLED_PX))
    return np.array(image.levels.to_gray8(plane[::step, ::step]))


def changed(before: Array, now: Array) -> bool:
    """Whether two samples differ by more than noise and overall brightness explain (see the module docstring).

    Args:
        before: (h, w) uint8.
        now: (h, w) uint8; another size, or one smaller than a cell, counts as changed.
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
    """Start of each cell along one side; the last cell ends at the edge."""
    return np.append(np.arange(0, size - _CELL, _CELL), size - _CELL)
