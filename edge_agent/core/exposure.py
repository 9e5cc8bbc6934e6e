"""From 10, 12 and 16 bits to gray: which bits hold the picture, and, if wanted, which part of the range it fills.

The model expects an ordinary 8-bit look, so a fixed shift is the rule; the stretch is for sensors without automatic
exposure, whose pictures fill a small and slowly changing part of the range.
"""

import math
from dataclasses import dataclass
from typing import Optional

import numpy as np

from edge_agent.core.frame import FULL_RANGE, Levels
from edge_agent.core.params import param
from edge_agent.core.types import Array

_SAMPLED_PX = 65536

# Frames whose bits are gathered before the judgement is final.
_FRAMES = 8


@dataclass(frozen=True)
class ExposureParams:
    """How raw values become 8 bits."""

    stretch: bool = param(
        False, "Stretch the picture's darkest to brightest percent over the full range; off: a fixed shift"
    )
    stretch_time_s: float = param(
        2.0, "Seconds in which the stretch follows a change of light by two thirds; less follows faster", gt=0, le=60
    )
    stretch_max_gain: float = param(
        8.0, "Largest factor of the stretch; more shows darker rooms, and their noise", ge=1, le=64
    )


class BitDepth:
    """Finds how values lie in their 16-bit words, from the bits that are ever set in the first frames.

    A driver may put 10 or 12 bits to the right (0..1023) or to the left (0..65472 in steps of 64) of the word, whatever
    its format name says. Bits set above the declared depth mean left; else right. When nothing but 16 is declared,
    empty low bits mean left, and the highest bit that is set tells a depth to the right.

    Args:
        declared: Bits that the format's name promises: 8, 10, 12, 14 or 16.
    """

    def __init__(self, declared: int) -> None:
        self._declared = declared
        self._seen = 0
        self._frames = 0

    def observe(self, pixels: Array) -> Levels:
        """The conversion, by all that was seen so far; it stands after a few frames that are not black.

        Args:
            pixels: (H, W) uint8 or uint16, raw.
        """
        if pixels.dtype == np.uint8:
            return FULL_RANGE
        if self._frames < _FRAMES:
            step = max(1, math.isqrt(pixels.size // _SAMPLED_PX))
            bits = int(np.bitwise_or.reduce(pixels[::step, ::step], axis=None))
            self._seen |= bits
            self._frames += 1 if bits >> 4 else 0
        return Levels(0.0, 2.0 ** (8 - self.depth))

    @property
    def depth(self) -> int:
        """Bits of the word that have to be kept so that the brightest value fits: 16 for left-justified pixels."""
        if self._declared < 16:
            return 16 if self._seen >> self._declared else self._declared
        if self._seen & 0xF == 0:
            return 16
        return max(10, 2 * math.ceil(self._seen.bit_length() / 2))


class Stretch:
    """Levels that follow the first and the 99th percentile, smoothed. For one camera, in one thread.

    The smoothing is exponential over time: limits move by 1 - exp(-dt / T) of the way. An `IlluminationMonitor` must
    be given the levels before the stretch: afterwards darkness looks like light.
    """

    def __init__(self, params: ExposureParams) -> None:
        self._params = params
        self._low = 0.0
        self._high = 255.0
        self._t: Optional[float] = None

    def observe(self, pixels: Array, levels: Levels, t: float) -> Levels:
        """The levels for this frame.

        Args:
            pixels: (H, W) uint8 or uint16, raw.
            levels: The fixed conversion.
            t: Monotonic seconds of the frame.
        """
        step = max(1, math.isqrt(16 * pixels.size // _SAMPLED_PX))
        gray = (pixels[::step, ::step].astype(np.float32) - levels.offset) * levels.gain
        low, high = (float(v) for v in np.percentile(gray, (1, 99)))
        share = 1.0 if self._t is None else 1.0 - math.exp(-max(0.0, t - self._t) / self._params.stretch_time_s)
        self._t = t
        self._low += share * (low - self._low)
        self._high += share * (high - self._high)
        gain = min(255.0 / max(self._high - self._low, 1e-6), self._params.stretch_max_gain)
        return Levels(levels.offset + self._low / levels.gain, levels.gain * gain)
