"""How well a face could be found in an image: its contrast against its noise, whatever the sensor's levels are.

The image is reduced to about 640 px, where the network's input is twice as coarse. In bands of rows over its height:

    noise    median over blocks of 8 x 8 px of the RMS of r, where r = (the 3 x 3 kernel 1 -2 1 / -2 4 -2 / 1 -2 1) / 6,
             which has the deviation of white noise and cancels edges along rows and columns (Immerkaer, "Fast noise
             variance estimation", 1996)
    signal   standard deviation of the blocks' means, without the noise's share; or a quarter of the brightest tenth's
             level above a sensor's black level of up to 24, if that is more: a face before a plain wall would have it
    ratio    signal / sqrt(noise^2 + floor^2)

The floor is the deviation of rounding, 0.29 of a step; in encoded frames, whose codec removes noise and detail alike,
1.5 gray levels.
"""

import math
from typing import Optional, Tuple

import numpy as np

from edge_agent.core.frame import Levels
from edge_agent.core.types import Array

BLIND_BELOW = 1.0
"""CenterFace on adapted levels found .46 of the faces in images of a lower ratio, .80 of those from 1 to 1.5."""

FAINT_BELOW = 2.5
"""From this ratio on it found the faces that it finds in good light; from 1.5 to 2.5 it found .92."""

_HYSTERESIS = 1.15
_SAMPLED_PX = 40960
_REDUCED_PX = 640
_BLOCK = 8
_BLACK_LEVEL = 24.0
_FACE_CONTRAST = 0.25
_STEP = 1.0 / math.sqrt(12.0)
_FLOOR_ENCODED = 1.5


def signal_to_noise(plane: Array, levels: Levels, top: float, encoded: bool = False) -> float:
    """The ratio of the module's docstring; about 0.6 ms.

    Args:
        plane: (H, W) uint8 or uint16, raw; may be a strided view.
        levels: Conversion to 8-bit.
        top: Mean of the brightest tenth, gray levels.
        encoded: Whether the frame comes out of a codec.
    """
    noise, contrast = noise_and_contrast(plane, levels)
    signal = max(contrast, _FACE_CONTRAST * (top - _BLACK_LEVEL))
    return signal / math.hypot(noise, _FLOOR_ENCODED if encoded else _STEP * levels.gain)


def noise_and_contrast(plane: Array, levels: Levels) -> Tuple[float, float]:
    """(deviation of the noise, deviation of the blocks' means), gray levels; (0, inf) for an image under 32 px."""
    reduced = _bands(plane)
    if reduced is None:
        return 0.0, math.inf
    bands = reduced * np.float32(levels.gain)
    rows = bands[:, :-2] - 2.0 * bands[:, 1:-1] + bands[:, 2:]
    residual = (rows[:, :, :-2] - 2.0 * rows[:, :, 1:-1] + rows[:, :, 2:]) / np.float32(6.0)
    count, width = len(bands), (bands.shape[2] - 2) // _BLOCK
    shape = (count, _BLOCK, width, _BLOCK)
    power = np.square(residual[:, :, : width * _BLOCK]).reshape(shape).mean(axis=(1, 3))
    means = bands[:, 1:-1, 1 : 1 + width * _BLOCK].reshape(shape).mean(axis=(1, 3))
    variance = float(np.median(power))
    return math.sqrt(variance), math.sqrt(max(0.0, float(means.var()) - variance / _BLOCK**2))


def _bands(plane: Array) -> Optional[Array]:
    """(N, 10, w) float32: bands of whole rows, spread over the height, each value the mean of a square of px."""
    height, width = plane.shape
    factor = max(1, round(max(height, width) / _REDUCED_PX))
    rows = (_BLOCK + 2) * factor
    if height < rows or width < 4 * _BLOCK * factor:
        return None
    width -= width % factor
    count = max(1, min(height // rows, _SAMPLED_PX * factor // (_BLOCK * width)))
    starts = np.linspace(0, height - rows, count).astype(np.intp)
    bands = np.asarray(plane[starts[:, None] + np.arange(rows), :width], np.float32)
    if factor == 1:
        return bands
    return np.asarray(bands.reshape(count, _BLOCK + 2, factor, width // factor, factor).mean(axis=(2, 4)))


class FaintTimer:
    """Follows the ratio of one camera: faint, where absence proves nothing; blind, after a time, where no face shows.

    Args:
        after_s: Seconds below `BLIND_BELOW` after which the camera counts as dark.

    Attributes:
        faint: The latest image is so noisy that some faces are missed.
        blind: No face may be found.
        doubt: Blindness is suspected and not yet proven.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since_t: Optional[float] = None
        self.faint = self.blind = self.doubt = False

    def observe(self, ratio: float, t: float) -> None:
        """Take note of one image's ratio at monotonic `t`."""
        self.faint = ratio < FAINT_BELOW * (_HYSTERESIS if self.faint else 1.0)
        if ratio >= BLIND_BELOW * (_HYSTERESIS if self.blind else 1.0):
            self._since_t, self.blind, self.doubt = None, False, False
            return
        self._since_t = t if self._since_t is None else self._since_t
        self.blind = self.blind or t - self._since_t >= self._after_s
        self.doubt = not self.blind
