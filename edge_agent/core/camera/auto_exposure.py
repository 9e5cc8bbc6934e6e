"""Automatic exposure in software, for mono CSI sensors, whose raw pixels bypass the ISP that would control it.

Gray levels are 8-bit. Of a window of frames, only the lit ones of a strobe count. The desired change of brightness is

    r = min(target / mean, HIGHLIGHT / top)

with the means over these frames of the whole image and of its brightest tenth: a face that an emitter lights well fills
a small part of a dark room and must not saturate. A sensor responds linearly to exposure time, so the exposure is
multiplied by r^d, bounded. The damping d is halved, down to a quarter, when a correction reverses the one before; it
returns to 1 when the light has changed.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Deque, NamedTuple, Optional, Tuple

from edge_agent.core.camera.visibility import Light, strobe_split

WINDOW = 12
SETTLE = 5
"""Frames ignored after a change: those exposed before it, and one in which a rolling shutter mixes both settings."""

_HIGHLIGHT = 205.0  # low enough that a saturated tenth lies outside the deadband
_DEADBAND = 0.12
_LARGEST_STEP = 2.0
_LEAST_LEVEL = 0.5
_LEAST_DAMPING = 0.25


@dataclass(frozen=True)
class ExposureParams:
    """Target and limits, from `CameraParams`.

    Attributes:
        target: Desired mean gray level.
        exposure_max: Longest exposure, in the driver's unit; None keeps the driver's limit.
        gain_max: Highest gain, likewise.
    """

    target: float = 100.0
    exposure_max: Optional[int] = None
    gain_max: Optional[int] = None


class Scale(NamedTuple):
    """Range of a control: `minimum` to `maximum` in steps of `step`."""

    minimum: int
    maximum: int
    step: int = 1

    def nearest(self, value: float) -> int:
        """The closest value that can be set."""
        step = max(1, self.step)
        highest = self.minimum + (self.maximum - self.minimum) // step * step
        return int(min(max(self.minimum + round((value - self.minimum) / step) * step, self.minimum), highest))

    def below(self, limit: Optional[int]) -> "Scale":
        """This range with `limit` as its maximum where that is lower; never empty."""
        return self if limit is None else self._replace(maximum=max(self.minimum, min(self.maximum, limit)))


class Setting(NamedTuple):
    """Values of both controls; gain is None where the camera has no such control."""

    exposure: int
    gain: Optional[int]


class AutoExposure:
    """Raises exposure first, then gain; lowers gain first, since gain adds noise.

    Args:
        params: Target and limits.
        exposure: The driver's range.
        gain: The driver's range; None where the camera has no such control.
        start: Current values.

    Attributes:
        setting: Values to set.
    """

    def __init__(self, params: ExposureParams, exposure: Scale, gain: Optional[Scale], start: Setting) -> None:
        self._target = params.target
        self._exposure = exposure.below(params.exposure_max)
        self._gain = gain if gain is None else gain.below(params.gain_max)
        self.setting = Setting(
            self._exposure.nearest(start.exposure),
            None if self._gain is None else self._gain.nearest(start.gain or self._gain.minimum),
        )
        self._window: Deque[Tuple[float, float]] = deque(maxlen=WINDOW)
        self._unsettled = SETTLE
        self._damping = 1.0
        self._direction = 0.0

    def observe(self, mean: float, light: Light) -> Optional[Setting]:
        """Measure one frame, lit or dark; return the setting to apply now, or None for no change.

        Args:
            mean: Mean of the frame, gray levels.
            light: Brightness of the frame.
        """
        if self._unsettled:
            self._unsettled -= 1
            return None
        self._window.append((mean, light.top))
        if len(self._window) < WINDOW:
            return None
        ratio = self._desired_ratio()
        self._window.clear()
        if abs(math.log(ratio)) <= _DEADBAND:
            return None
        changed = self._scaled_setting(self._damped(ratio))
        if changed == self.setting:
            return None
        self.setting, self._unsettled = changed, SETTLE
        return changed

    def _desired_ratio(self) -> float:
        """The desired change of brightness, r."""
        split = strobe_split([top for _, top in self._window])
        lit = [levels for levels in self._window if split is None or levels[1] >= split]
        mean = sum(mean for mean, _ in lit) / len(lit)
        top = sum(top for _, top in lit) / len(lit)
        return min(self._target / max(mean, _LEAST_LEVEL), _HIGHLIGHT / max(top, _LEAST_LEVEL))

    def _damped(self, ratio: float) -> float:
        direction = math.copysign(1.0, math.log(ratio))
        if direction == -self._direction:
            self._damping = max(_LEAST_DAMPING, self._damping / 2.0)
        elif not 1.0 / _LARGEST_STEP < ratio < _LARGEST_STEP:  # the light has changed
            self._damping = 1.0
        self._direction = direction
        return min(max(math.pow(ratio, self._damping), 1.0 / _LARGEST_STEP), _LARGEST_STEP)

    def _scaled_setting(self, factor: float) -> Setting:
        exposure, gain = self.setting
        if self._gain is None or gain is None:
            return Setting(_scaled(self._exposure, exposure, factor), None)
        if factor > 1.0:
            longer = _scaled(self._exposure, exposure, factor)
            return Setting(longer, gain) if longer > exposure else Setting(exposure, _scaled(self._gain, gain, factor))
        lower = _scaled(self._gain, gain, factor)
        return Setting(exposure, lower) if lower < gain else Setting(_scaled(self._exposure, exposure, factor), gain)


def _scaled(scale: Scale, value: int, factor: float) -> int:
    """The value times the factor; from zero upwards, a sixteenth of the range."""
    if value <= 0 and factor > 1.0:
        return scale.nearest(max(float(scale.step), (scale.maximum - scale.minimum) / 16.0))
    return scale.nearest(value * factor)
