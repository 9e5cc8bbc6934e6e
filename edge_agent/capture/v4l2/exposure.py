"""Auto exposure for V4L2 cameras without their own, through the exposure and gain controls."""

import logging
import math
from typing import Mapping, Optional, Sequence

from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.controls import control_name, list_controls, set_controls
from edge_agent.capture.v4l2.kernel import Device
from edge_agent.core.camera.auto_exposure import AutoExposure, ExposureParams, Scale, Setting
from edge_agent.core.camera.visibility import brightness
from edge_agent.core.frame import Levels
from edge_agent.core.types import Array

log = logging.getLogger(__name__)

_EXPOSURES = ("exposure", "exposure_time_absolute", "exposure_absolute")
_GAINS = ("analogue_gain", "gain")
_AUTOMATICS = ("auto_exposure", "exposure_auto")
_MANUAL = 1  # V4L2_EXPOSURE_MANUAL
_SAMPLED_PX = 4096


class ExposureControl:
    """Sets the controls at construction, then observes each frame and adjusts them.

    Used by the thread that owns the device.

    Args:
        device: Open.
        uri: For messages.
        exposure: Name of the exposure control.
        gain: Name of the gain control, or None.
        automatic: The control loop.
    """

    def __init__(self, device: Device, uri: str, exposure: str, gain: Optional[str], automatic: AutoExposure) -> None:
        self._device, self._uri, self._exposure, self._gain = device, uri, exposure, gain
        self._automatic = automatic
        self._apply(automatic.setting)

    def observe(self, pixels: Array, levels: Levels) -> None:
        """Observe a frame as captured; may set the controls.

        Raises:
            OSError: The device does not exist any more.
        """
        plane = pixels if pixels.ndim == 2 else pixels[:, :, 1]
        step = max(1, math.isqrt(plane.size // _SAMPLED_PX))
        gray = levels.to_gray8(plane[::step, ::step])
        changed = self._automatic.observe(float(gray.mean()), brightness(gray))
        if changed is not None:
            self._apply(changed)

    def _apply(self, setting: Setting) -> None:
        log.debug("%s: exposure %d, gain %s", self._uri, *setting)
        wanted = {self._exposure: setting.exposure}
        if self._gain is not None and setting.gain is not None:
            wanted[self._gain] = setting.gain
        set_controls(self._device, self._uri, wanted)


def start_exposure(
    device: Device, uri: str, params: Optional[ExposureParams], fixed: Mapping[str, int]
) -> Optional[ExposureControl]:
    """Start auto exposure from the values of `fixed`, or else the driver's defaults.

    The camera's own auto exposure is switched off.

    Args:
        device: Open, with its controls set.
        uri: For messages.
        params: None when auto exposure is off.
        fixed: Control values from the settings.

    Returns:
        None when auto exposure is off, or the camera has no exposure control (logged as a warning).
    """
    if params is None:
        return None
    known = list_controls(device)
    exposure, gain = _first(_EXPOSURES, known), _first(_GAINS, known)
    if exposure is None:
        log.warning("%s: auto_exposure: none of %s; the camera has: %s", uri, _EXPOSURES, ", ".join(known) or "none")
        return None
    own = _first(_AUTOMATICS, known)
    if own is not None:
        set_controls(device, uri, {own: _MANUAL})
    settings = {control_name(name): value for name, value in fixed.items()}
    start = Setting(_start(exposure, known, settings), None if gain is None else _start(gain, known, settings))
    scale = None if gain is None else _scale(known[gain])
    automatic = AutoExposure(params, _scale(known[exposure]), scale, start)
    return ExposureControl(device, uri, exposure, gain, automatic)


def _first(names: Sequence[str], known: Mapping[str, abi.QueryExtCtrl]) -> Optional[str]:
    return next((name for name in names if name in known), None)


def _start(name: str, known: Mapping[str, abi.QueryExtCtrl], fixed: Mapping[str, int]) -> int:
    return fixed.get(name, int(known[name].default_value))


def _scale(control: abi.QueryExtCtrl) -> Scale:
    return Scale(int(control.minimum), int(control.maximum), int(control.step))
