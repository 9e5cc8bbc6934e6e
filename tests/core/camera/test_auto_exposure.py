"""Automatic exposure on a simulated sensor: linear in exposure and gain, with a pedestal, noise, and saturation."""

from typing import List, Optional, Tuple

import numpy as np
import pytest

from edge_agent.core.camera.auto_exposure import SETTLE, WINDOW, AutoExposure, ExposureParams, Scale, Setting
from edge_agent.core.camera.visibility import VisibilityMonitor, VisibilityParams, brightness
from edge_agent.core.frame import FULL_RANGE
from edge_agent.core.types import Sight

EXPOSURE, GAIN = Scale(1, 1000), Scale(16, 248)
STEP = SETTLE + WINDOW
TARGET = 100.0


class Room:
    """What a sensor sees: a background and a face, at so many levels per unit of exposure and gain of 1.

    Args:
        light: Of the background.
        face: Of the face, which fills a part of the image.
        strobe: Lit and dark frames, in turn; dark ones see only `ambient` times the light.
        delay: A new setting shows after so many frames.
    """

    def __init__(self, light, face=None, part=0.05, strobe=(1, 0), ambient=0.0, delay=2, seed=1) -> None:
        self.light, self.strobe, self.ambient = light, strobe, ambient
        self._rng = np.random.default_rng(seed)
        self._scene = np.ones((48, 64))
        self._scene[: int(48 * part)] = 1.0 if face is None else face / light
        self._settings: List[Setting] = []
        self._delay, self._number = delay, 0

    def shoot(self, setting: Setting) -> Tuple[np.ndarray, bool]:
        self._settings = [*self._settings, setting][-1 - self._delay :]
        at = self._settings[0]
        lit = self._number % sum(self.strobe) < self.strobe[0]
        self._number += 1
        light = self.light * (1.0 if lit else self.ambient)
        raw = self._scene * light * at.exposure * (at.gain or 16) / 16.0 + 4.0
        return (raw + self._rng.normal(0, 1.5, raw.shape)).clip(0, 255).astype(np.uint8), lit


def run(room: Room, automatic: AutoExposure, frames: int) -> Tuple[List[Setting], List[float]]:
    """Return every change, and the mean of every lit frame."""
    changes, means = [], []
    for _ in range(frames):
        image, lit = room.shoot(automatic.setting)
        changed = automatic.observe(float(image.mean()), brightness(image))
        if changed is not None:
            changes.append(changed)
        if lit:
            means.append(float(image.mean()))
    return changes, means


def automatic_from(exposure: int, gain: Optional[int] = 16, **params) -> AutoExposure:
    scale = None if gain is None else GAIN
    return AutoExposure(ExposureParams(TARGET, **params), EXPOSURE, scale, Setting(exposure, gain))


def assert_right(means: List[float]) -> None:
    assert 0.85 * TARGET <= np.mean(means[-WINDOW:]) <= 1.15 * TARGET, means[-WINDOW:]


@pytest.mark.parametrize(("start", "light"), [(1, 0.5), (1000, 0.5), (1, 3.0), (1000, 3.0), (200, 0.5)])
@pytest.mark.parametrize("strobe", [(1, 0), (1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("ambient", [0.0, 0.2])
def test_it_converges_from_dark_and_from_saturated_also_under_a_strobe(start, light, strobe, ambient) -> None:
    room = Room(light, strobe=strobe, ambient=ambient)
    automatic = automatic_from(start)
    _, means = run(room, automatic, 16 * STEP)
    assert_right(means)
    assert automatic.setting.gain == 16, "exposure was enough"
    later, means = run(room, automatic, 20 * STEP)
    assert later == [], "it oscillates"
    assert_right(means)


def test_dark_frames_do_not_count() -> None:
    """The mean over all frames would be half of this, and burn the lit ones."""
    strobed, steady = automatic_from(100), automatic_from(100)
    run(Room(0.5, strobe=(1, 1)), strobed, 16 * STEP)
    run(Room(0.5), steady, 16 * STEP)
    assert strobed.setting.exposure == pytest.approx(steady.setting.exposure, rel=0.15)


def test_exposure_comes_first_then_gain_and_back() -> None:
    automatic = automatic_from(10, exposure_max=200, gain_max=128)
    room = Room(0.1)
    changes, means = run(room, automatic, 20 * STEP)
    first = next(number for number, setting in enumerate(changes) if setting.gain != 16)
    assert all(setting.exposure == 200 for setting in changes[first:])
    assert 16 < automatic.setting.gain <= 128
    assert_right(means)
    room.light = 4.0
    changes, means = run(room, automatic, 20 * STEP)
    first = next(number for number, setting in enumerate(changes) if setting.exposure != 200)
    assert all(setting.gain == 16 for setting in changes[first:])
    assert_right(means)


def test_in_the_dark_it_stops_at_the_limits() -> None:
    automatic = automatic_from(10, exposure_max=200, gain_max=64)
    run(Room(0.0001), automatic, 30 * STEP)
    assert automatic.setting == Setting(200, 64)
    assert run(Room(0.0001), automatic, 4 * STEP)[0] == []


def test_limits_of_the_driver_hold_and_steps_are_met() -> None:
    automatic = AutoExposure(ExposureParams(exposure_max=5000), Scale(10, 103, 10), None, Setting(7, None))
    assert automatic.setting == Setting(10, None)
    changes, _ = run(Room(0.001), automatic, 10 * STEP)
    assert all((setting.exposure - 10) % 10 == 0 for setting in changes)
    assert automatic.setting == Setting(100, None)


def test_a_step_is_bounded_and_waits_until_the_last_one_is_visible() -> None:
    automatic = automatic_from(10)
    frames = [automatic.observe(0.0, brightness(np.zeros((8, 8), np.uint8))) for _ in range(3 * STEP)]
    assert [number for number, changed in enumerate(frames) if changed] == [STEP - 1, 2 * STEP - 1, 3 * STEP - 1]
    assert [changed.exposure for changed in frames if changed] == [20, 40, 80]


def test_a_lit_face_in_a_dark_room_does_not_saturate() -> None:
    automatic = automatic_from(500)
    room = Room(0.01, face=1.0, part=0.15)
    run(room, automatic, 20 * STEP)
    image, _ = room.shoot(automatic.setting)
    assert 150 < np.median(image[:6]) <= 240
    assert image.mean() < TARGET


def test_a_gain_from_zero_and_a_coarse_control_settle() -> None:
    for exposure, gain in ((Scale(1, 6), Scale(0, 100)), (Scale(1, 4), Scale(0, 8))):
        automatic = AutoExposure(ExposureParams(), exposure, gain, Setting(1, 0))
        room = Room(4.0)
        run(room, automatic, 30 * STEP)
        assert run(room, automatic, 20 * STEP)[0] == [], "it oscillates between two coarse values"


def test_changing_light_is_followed() -> None:
    automatic, room = automatic_from(100), Room(1.0)
    for light in (1.0, 0.2, 5.0, 0.3):
        room.light = light
        assert_right(run(room, automatic, 16 * STEP)[1])


@pytest.mark.parametrize("strobe", [(1, 0), (1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize(("start", "light"), [(1000, 0.5), (60, 0.5)])
def test_a_camera_never_counts_as_blind_while_its_exposure_is_found(strobe, start, light) -> None:
    """Each step moves both clusters of a strobe; a VisibilityMonitor observes the same frames."""
    room, automatic = Room(light, face=1.6 * light, part=0.3, strobe=strobe), automatic_from(start)
    monitor = VisibilityMonitor(VisibilityParams(), "sensor")
    sights = []
    for number in range(16 * STEP):
        image, _ = room.shoot(automatic.setting)
        sights.append(monitor.observe(image, FULL_RANGE, number / 30).sight)
        automatic.observe(float(image.mean()), brightness(image))
    begun = sights.index(Sight.OK)
    assert begun < 8 * STEP, "a flat, burnt image may count as covered until then"
    assert set(sights[begun:]) == {Sight.OK}


def test_light_that_comes_and_goes_for_hours_is_still_followed() -> None:
    """Every step reverses the last correction: the damping must not wear the control out."""
    automatic, room = automatic_from(200), Room(0.5)
    run(room, automatic, 12 * STEP)
    means = []
    for _ in range(8):
        for light in (0.5, 0.7, 0.9, 0.7):
            room.light = light
            means += run(room, automatic, 8 * STEP)[1][-WINDOW:]
    assert min(means) >= 0.8 * TARGET and max(means) <= 1.2 * TARGET


def test_exposure_and_gain_can_leave_zero():
    """Multiplying zero has no effect, and drivers report zero for both."""
    room = Room(0.5)
    automatic = AutoExposure(ExposureParams(TARGET), Scale(0, 1000, 10), None, Setting(0, None))
    _, means = run(room, automatic, 16 * STEP)
    assert_right(means)
    dim = AutoExposure(ExposureParams(TARGET, exposure_max=100), Scale(0, 1000), Scale(0, 480), Setting(100, 0))
    changes, _ = run(Room(0.1), dim, 2 * STEP)
    assert changes and changes[0] == Setting(100, 30)
