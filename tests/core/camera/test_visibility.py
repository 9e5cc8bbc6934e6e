"""Strobed emitters, darkness, dead emitters, frozen and covered cameras; and scenes that resemble them."""

from typing import Callable, Dict, List, Tuple

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.camera.visibility import (
    FreezeDetector,
    Visibility,
    VisibilityMonitor,
    VisibilityParams,
    brightness,
    strobe_split,
)
from edge_agent.core.frame import FULL_RANGE, LIMITED_RANGE, Levels
from edge_agent.core.types import Sight

HEIGHT, WIDTH = 240, 320
RNG = np.random.default_rng(7)
GRAIN = RNG.normal(0, 1, (HEIGHT * 2, WIDTH * 2)).astype(np.float32)
Scene = Callable[[int], np.ndarray]


def room(peak: float = 220.0, contrast: float = 1.0) -> np.ndarray:
    """(H, W) float32: walls, furniture, a lamp; its 99th percentile is `peak`."""
    draw = np.random.default_rng(3)
    image = np.tile(np.linspace(60, 110, WIDTH, dtype=np.float32), (HEIGHT, 1))
    for _ in range(25):
        x, y = int(draw.integers(0, WIDTH)), int(draw.integers(0, HEIGHT))
        w, h = (int(v) for v in draw.integers(15, 90, 2))
        image[y : y + h, x : x + w] = draw.uniform(20, 200)
    image = cv2.GaussianBlur(image, (0, 0), 1.5)
    image = image.mean() + (image - image.mean()) * contrast
    return np.asarray(image * (peak / np.percentile(image, 99)))


def sensed(light: np.ndarray, frame: int, noise: float = 2.0) -> np.ndarray:
    """A sensor's image: uint8 with new noise in each frame."""
    y, x = frame * 37 % HEIGHT, frame * 53 % WIDTH
    return np.clip(np.rint(light + noise * GRAIN[y : y + HEIGHT, x : x + WIDTH]), 0, 255).astype(np.uint8)


def live(light: np.ndarray, noise: float = 2.0) -> Scene:
    return lambda frame: sensed(light, frame, noise)


def uniform(level: float) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), level, np.float32)


class Camera:
    """A monitor with its clock: plays scenes and records each result with its time."""

    def __init__(self, fps: float = 10.0, kind: str = "sensor", **params: float) -> None:
        self.monitor = VisibilityMonitor(VisibilityParams(**params), kind)
        self.fps = fps
        self.frame = 0
        self.results: List[Tuple[float, Visibility]] = []

    def play(self, scene: Scene, seconds: float, levels: Levels = FULL_RANGE) -> List[Tuple[float, Visibility]]:
        """The results of this scene, each with the seconds since its start."""
        played = []
        for index in range(round(seconds * self.fps)):
            visibility = self.monitor.observe(scene(self.frame), levels, self.frame / self.fps)
            played.append((index / self.fps, visibility))
            self.frame += 1
        self.results += played
        return played


def sights(played: List[Tuple[float, Visibility]]) -> Dict[Sight, float]:
    """When each sight was first reported."""
    first: Dict[Sight, float] = {}
    for t, visibility in played:
        first.setdefault(visibility.sight, t)
    return first


def longest_drop(played: List[Tuple[float, Visibility]]) -> int:
    """Most frames dropped in a row while the sight was OK without doubt."""
    longest = run = 0
    for _, visibility in played:
        run = run + 1 if visibility.sight.can_see and not visibility.doubt and not visibility.keep else 0
        longest = max(longest, run)
    return longest


# --- A live camera never counts as blind.


@pytest.mark.parametrize("fps", [5.0, 30.0])
@pytest.mark.parametrize("noise", [0.7, 2.0, 4.0])
@pytest.mark.parametrize(
    "light",
    [room(), room(32.0), room(130.0, contrast=0.06), room(250.0, contrast=0.5)],
    ids=["bright", "p99 32", "low contrast", "overexposed"],
)
def test_a_live_empty_room_stays_ok(light: np.ndarray, noise: float, fps: float) -> None:
    camera = Camera(fps)
    played = camera.play(live(light, noise), 12)
    assert set(sights(played)) == {Sight.OK}
    assert all(visibility.keep for _, visibility in played)


@pytest.mark.parametrize("fps", [5.0, 30.0])
@pytest.mark.parametrize(("peak", "noise"), [(4.0, 0.3), (8.0, 0.7), (16.0, 2.0)])
def test_a_dim_room_stays_ok_while_it_stands_out_of_the_noise(peak: float, noise: float, fps: float) -> None:
    camera = Camera(fps)
    played = camera.play(live(room(peak), noise), 12)
    assert set(sights(played)) == {Sight.OK}
    assert all(visibility.keep for _, visibility in played)


@pytest.mark.parametrize("fps", [5.0, 30.0])
@pytest.mark.parametrize(("peak", "noise"), [(8.0, 2.0), (8.0, 4.0), (16.0, 4.0)])
@pytest.mark.parametrize("levels", [FULL_RANGE, Levels(64.0, 1 / 16)], ids=["8 bit", "12 bit"])
def test_a_room_that_drowns_in_noise_is_dark(peak: float, noise: float, fps: float, levels: Levels) -> None:
    def raw(scene: Scene) -> Scene:
        dtype = np.uint8 if levels is FULL_RANGE else np.uint16
        return lambda frame: np.asarray(scene(frame) / levels.gain + levels.offset).astype(dtype)

    camera = Camera(fps)
    camera.play(raw(live(room())), 3, levels)
    played = camera.play(raw(live(room(peak), noise)), 10, levels)
    assert 1.0 <= sights(played)[Sight.DARK] < 2.5
    assert played[-1][1] == Visibility(False, Sight.DARK)
    assert not any(visibility.keep for t, visibility in played if t > max(0.3, 2 / fps))
    assert sights(camera.play(raw(live(room())), 2, levels))[Sight.OK] <= 0.4


def test_a_noisy_room_is_kept_in_doubt() -> None:
    """Faces that are found count; that none is found does not."""
    played = Camera().play(live(room(24.0), 3.0), 5)
    assert {visibility for _, visibility in played} == {Visibility(True, Sight.OK, faint=True)}


def test_a_room_below_the_noise_of_one_image_is_detected_in_eight() -> None:
    played = Camera().play(live(room(130.0, contrast=0.02), 5.0), 12)
    assert set(sights(played)) <= {Sight.STARTING, Sight.OK}
    assert all(visibility.keep for t, visibility in played if t > 3), "no frame is dropped"


def test_a_dim_room_whose_sparse_sample_repeats_is_not_frozen() -> None:
    still = sensed(room(16.0), 0)

    def scene(frame: int) -> np.ndarray:
        image = still.copy()
        image[1, 1 + frame % 2] ^= frame % 128 + 1  # between the sampled pixels
        return image

    assert set(sights(Camera().play(scene, 20))) == {Sight.OK}


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1), st.sampled_from([5.0, 30.0]), st.sampled_from(["L", "RGB"])
)
def test_one_pixel_that_changes_in_every_frame_is_not_frozen(y: int, x: int, fps: float, mode: str) -> None:
    still = sensed(room(), 0)
    image = np.dstack([still] * 3) if mode == "RGB" else still

    def scene(frame: int) -> np.ndarray:
        changed = image.copy()
        changed[y, x] = frame % 251
        return changed

    assert Sight.FROZEN not in sights(Camera(fps).play(scene, 7))


def test_encoded_streams_may_repeat_for_a_minute_and_stills_always() -> None:
    still = sensed(room(), 0)
    assert set(sights(Camera(2.0, "encoded").play(lambda _: still, 58))) == {Sight.OK}
    assert Sight.FROZEN in sights(Camera(2.0, "encoded").play(lambda _: still, 65))
    assert set(sights(Camera(2.0, "still").play(lambda _: still, 200))) == {Sight.OK}


def test_a_lamp_switched_off_is_no_strobe() -> None:
    camera = Camera(30.0)
    camera.play(live(room(200.0)), 2)
    played = camera.play(live(room(40.0)), 5)
    assert all(visibility == Visibility(True, Sight.OK) for _, visibility in played)
    assert not camera.monitor.strobed


# --- Strobes.

PATTERNS = {"1:1": "LD", "2:1": "LLD", "1:2": "LDD"}


def strobe(pattern: str, lit: np.ndarray, dark: np.ndarray, noise: float = 2.0) -> Scene:
    return lambda frame: sensed(lit if pattern[frame % len(pattern)] == "L" else dark, frame, noise)


@pytest.mark.parametrize("dark", [uniform(0.0), room(30.0), room(90.0)], ids=["black", "dim", "ambient"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("fps", [5.0, 30.0])
def test_dark_frames_of_a_strobe_are_dropped_and_lit_ones_kept(pattern: str, dark: np.ndarray, fps: float) -> None:
    camera = Camera(fps)
    camera.play(strobe(pattern, room(200.0), dark), 4)
    start = camera.frame
    played = camera.play(strobe(pattern, room(200.0), dark), 6)

    assert camera.monitor.strobed
    assert set(sights(camera.results)) <= {Sight.OK, Sight.STARTING}
    expected = [pattern[frame % len(pattern)] == "L" for frame in range(start, camera.frame)]
    assert [visibility.keep for _, visibility in played] == expected
    assert not any(visibility.doubt for _, visibility in played)


@pytest.mark.parametrize("dark", [uniform(0.0), room(30.0)], ids=["black", "dim"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_slow_strobe_is_not_darkness(pattern: str, dark: np.ndarray) -> None:
    played = Camera(1.0).play(strobe(pattern, room(200.0), dark), 40)
    assert set(sights(played)) == {Sight.OK}


def test_a_strobe_replaced_by_steady_light_is_reset() -> None:
    camera = Camera()
    camera.play(strobe("LD", room(200.0), room(30.0)), 5)
    played = camera.play(live(room(200.0)), 5)
    assert all(visibility.keep for _, visibility in played)
    assert not camera.monitor.strobed


def test_a_short_flicker_is_no_strobe() -> None:
    camera = Camera(30.0)
    camera.play(live(room(200.0)), 3)
    played = camera.play(strobe("LD", room(200.0), room(90.0)), 6 / 30)
    played += camera.play(live(room(200.0)), 1)
    assert all(visibility.keep for _, visibility in played) and not camera.monitor.strobed


def test_dark_frames_are_kept_when_dropping_is_off() -> None:
    camera = Camera(drop_dark_frames=False)
    assert all(visibility.keep for _, visibility in camera.play(strobe("LD", room(200.0), room(30.0)), 5))


def test_a_strobe_goes_on_when_the_ambient_light_changes() -> None:
    camera = Camera(5.0)
    camera.play(strobe("LD", room(200.0), room(90.0)), 6)
    played = camera.play(strobe("LD", room(110.0), room(6.0)), 10)
    assert set(sights(played)) == {Sight.OK}
    assert camera.monitor.strobed


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([100, 10] * 8, True),
        ([100, 100, 10] * 5, True),
        ([10, 10, 100] * 5, True),
        ([100, 66] * 8, False),  # less than 35 % apart
        ([14, 3] * 8, False),  # less than 12 levels apart
        ([100] * 8 + [10] * 8, False),
        ([100] * 7 + [10] + [100] * 8, False),
        ([100, 10, 100, 10, 100], False),  # too few values
        ([50] * 16, False),
    ],
)
def test_strobe_split(values: List[float], found: bool) -> None:
    split = strobe_split(values)
    assert (split is not None) == found
    if split is not None:
        assert min(values) < split < max(values)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0.0, 3.0, 8.0, 40.0, 70.0, 120.0, 250.0]), min_size=20, max_size=120))
def test_at_most_three_frames_in_a_row_are_dropped(lights: List[float]) -> None:
    small = room()[::3, ::4] / 220.0
    camera = Camera(20.0)
    grain = GRAIN[:80, :80]
    camera.play(lambda f: np.clip(small * lights[f] + np.roll(grain, f), 0, 255).astype(np.uint8), len(lights) / 20.0)
    assert longest_drop(camera.results) <= 3


# --- The four kinds of blindness, each detected within ten seconds and ended at once.


@pytest.mark.parametrize("fps", [5.0, 30.0])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_dark(fps: float, noise: float) -> None:
    camera = Camera(fps)
    camera.play(live(room()), 3)
    played = camera.play(live(uniform(0.0), noise), 10)
    assert set(sights(played)) == {Sight.OK, Sight.DARK}
    assert 1.0 <= sights(played)[Sight.DARK] < 2.0
    assert not any(visibility.keep for _, visibility in played if visibility.doubt or not visibility.sight.can_see)
    assert sights(camera.play(live(room()), 3))[Sight.OK] <= 1 / fps
    assert longest_drop(camera.results) <= 3


def test_a_sensor_with_a_black_level_is_dark_too_not_covered() -> None:
    camera = Camera()
    camera.play(live(room()), 3)
    assert set(sights(camera.play(live(uniform(14.0), 3.0), 10))) == {Sight.OK, Sight.DARK}


def test_a_short_blackout_is_not_darkness() -> None:
    camera = Camera(30.0)
    camera.play(live(room()), 3)
    assert set(sights(camera.play(live(uniform(0.0), 1.0), 1))) == {Sight.OK}
    assert camera.play(live(room()), 1)[0][1] == Visibility(True, Sight.OK)


@pytest.mark.parametrize("fps", [5.0, 30.0])
@pytest.mark.parametrize("blind", [uniform(0.0), uniform(14.0), uniform(120.0)], ids=["black", "dark", "covered"])
def test_until_blindness_is_proven_the_sight_is_in_doubt_and_no_frame_is_kept(blind: np.ndarray, fps: float) -> None:
    camera = Camera(fps)
    assert not any(visibility.doubt for _, visibility in camera.play(live(room()), 3))
    played = camera.play(live(blind, 1.0), 5)
    # Up to 0.2 s pass until the structure is examined, and three dark frames may be a strobe's.
    noticed = [visibility for t, visibility in played if t >= max(0.3, 4 / fps)]
    assert not any(visibility.keep for visibility in noticed)
    assert all(visibility.doubt == visibility.sight.can_see for visibility in noticed)
    assert not noticed[-1].sight.can_see
    recovered = [visibility for t, visibility in camera.play(live(room()), 2) if t >= 0.5]
    assert set(recovered) == {Visibility(True, Sight.OK)}


def test_one_bright_frame_does_not_end_a_darkness() -> None:
    camera = Camera(30.0)
    camera.play(live(uniform(0.0)), 3)
    played = camera.play(lambda f: sensed(room() if f == 120 else uniform(0.0), f), 3)
    assert set(sights(played)) == {Sight.DARK}


@pytest.mark.parametrize(("level", "sight"), [(0.0, Sight.DARK), (14.0, Sight.DARK), (120.0, Sight.COVERED)])
def test_a_camera_that_starts_blind_never_reports_ok(level: float, sight: Sight) -> None:
    played = Camera().play(live(uniform(level)), 5)
    assert list(sights(played)) == [Sight.STARTING, sight]
    assert not any(visibility.keep for _, visibility in played)


@pytest.mark.parametrize("dark", [uniform(0.0), uniform(14.0), room(30.0)], ids=["black", "black level", "dim"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("fps", [5.0, 30.0])
def test_a_dead_emitter(pattern: str, dark: np.ndarray, fps: float) -> None:
    camera = Camera(fps)
    camera.play(strobe(pattern, room(200.0), dark), 6)
    played = camera.play(live(dark), 10)
    assert set(sights(played)) == {Sight.OK, Sight.EMITTER}
    assert sights(played)[Sight.EMITTER] < 3.0

    again = camera.play(strobe(pattern, room(200.0), dark), 5)
    assert sights(again)[Sight.OK] <= 4 / fps
    assert set(sights(again[4:])) == {Sight.OK}
    assert longest_drop(camera.results) <= 3


def test_ambient_light_suffices_without_the_emitter() -> None:
    camera = Camera()
    camera.play(strobe("LD", room(220.0), room(110.0)), 6)
    assert set(sights(camera.play(live(room(110.0)), 10))) == {Sight.OK}
    assert not camera.monitor.strobed


@pytest.mark.parametrize("fps", [5.0, 30.0])
def test_frozen(fps: float) -> None:
    camera = Camera(fps)
    camera.play(live(room()), 3)
    still = sensed(room(), 0)
    played = camera.play(lambda _: still, 10)
    assert set(sights(played)) == {Sight.OK, Sight.FROZEN}
    assert 4.5 <= sights(played)[Sight.FROZEN] <= 6.0
    assert sights(camera.play(live(room()), 1))[Sight.OK] == 0.0


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_strobed_camera_that_alternates_two_stale_frames_is_frozen(pattern: str) -> None:
    camera = Camera()
    camera.play(strobe(pattern, room(200.0), room(30.0)), 5)
    lit, dark = sensed(room(200.0), 0), sensed(room(30.0), 1)
    assert Sight.FROZEN in sights(camera.play(lambda f: lit if pattern[f % len(pattern)] == "L" else dark, 10))


def test_freezing_can_be_turned_off() -> None:
    still = sensed(room(), 0)
    assert set(sights(Camera(frozen_after_s=0.0).play(lambda _: still, 20))) == {Sight.OK}


def glow(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.asarray(40 + 160 * np.exp(-((x / width - 0.4) ** 2 + (y / height - 0.5) ** 2) / 0.4), np.float32)


HANDS = {
    "bright": uniform(210.0),
    "saturated": uniform(300.0),
    "mid": uniform(110.0),
    "gradient": np.asarray(uniform(60.0) + np.linspace(0, 120, WIDTH, dtype=np.float32)),
    "clipped gradient": np.asarray(uniform(120.0) + np.linspace(0, 300, WIDTH, dtype=np.float32)),
    "glow": glow(WIDTH, HEIGHT),
}


@pytest.mark.parametrize("fps", [5.0, 30.0])
@pytest.mark.parametrize("noise", [0.7, 3.0, 8.0])
@pytest.mark.parametrize("hand", HANDS.values(), ids=HANDS)
def test_covered(hand: np.ndarray, noise: float, fps: float) -> None:
    camera = Camera(fps)
    camera.play(live(room()), 3)
    played = camera.play(live(hand, noise), 10)
    assert set(sights(played)) == {Sight.OK, Sight.COVERED}
    assert sights(played)[Sight.COVERED] < 4.0
    assert played[-1][1].sight is Sight.COVERED
    assert sights(camera.play(live(room()), 1))[Sight.OK] <= 0.4


@pytest.mark.parametrize("quality", [75, 90])
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_jpeg_hides_neither_a_cover_nor_a_dim_room(quality: int, noise: float) -> None:
    def coded(light: np.ndarray) -> Scene:
        def scene(frame: int) -> np.ndarray:
            data = cv2.imencode(".jpg", sensed(light, frame, noise), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))

        return scene

    assert Sight.COVERED in sights(Camera(kind="encoded").play(coded(glow(WIDTH, HEIGHT)), 10))
    assert set(sights(Camera(kind="encoded").play(coded(room(16.0)), 10))) == {Sight.OK}


def test_cover_can_be_turned_off_for_a_plain_wall() -> None:
    assert set(sights(Camera(covered_after_s=0.0).play(live(uniform(120.0)), 10))) == {Sight.OK}


def test_a_tiny_image_is_never_covered() -> None:
    played = Camera().play(lambda f: sensed(uniform(120.0), f)[:40, :60], 10)
    assert set(sights(played)) == {Sight.OK}


@pytest.mark.parametrize("level", [0.0, 14.0], ids=["black", "black level"])
def test_darkness_may_mean_nobody(level: float) -> None:
    def camera() -> Camera:
        made = Camera()
        made.monitor = VisibilityMonitor(VisibilityParams(), "sensor", "nobody")
        return made

    hall = camera()
    hall.play(live(room()), 3)
    played = hall.play(live(uniform(level)), 10)
    assert set(sights(played)) == {Sight.OK}
    assert all(visibility == Visibility(True, Sight.OK) for t, visibility in played if t > 2.0)
    assert Visibility(True, Sight.OK) in [visibility for t, visibility in hall.play(live(room()), 1) if t < 0.5]
    assert hall.results[-1][1] == Visibility(True, Sight.OK)
    assert camera().play(live(uniform(level)), 4)[-1][1] == Visibility(True, Sight.OK), "also from the start"
    assert camera().play(live(uniform(120.0)), 4)[-1][1].sight is Sight.COVERED
    assert camera().play(live(room(8.0), 4.0), 4)[-1][1].sight is Sight.DARK, "not black: somebody may be there"


# --- Measurements.


def test_brightness_reads_percentiles_and_the_brightest_tenth() -> None:
    gray = np.repeat(np.arange(100, dtype=np.uint8), 10).reshape(20, 50)
    light = brightness(gray)
    assert light.p99 == 98
    assert light.top == pytest.approx(np.arange(90, 100).mean())
    assert light.median == 49


@pytest.mark.parametrize(
    ("levels", "dtype"), [(Levels(0.0, 0.25), np.uint16), (Levels(64.0, 1 / 16), np.uint16), (LIMITED_RANGE, np.uint8)]
)
def test_raw_values_are_converted_by_their_levels(levels: Levels, dtype: type) -> None:
    def raw(scene: Scene) -> Scene:
        return lambda frame: np.rint(scene(frame) / levels.gain + levels.offset).astype(dtype)

    camera = Camera()
    assert set(sights(camera.play(raw(live(room(16.0))), 4, levels))) == {Sight.OK}
    assert Sight.DARK in sights(camera.play(raw(live(uniform(0.0), 0.5)), 4, levels))
    camera.play(raw(live(room())), 2, levels)
    assert Sight.COVERED in sights(camera.play(raw(live(uniform(130.0))), 4, levels))


def test_the_frame_is_not_modified() -> None:
    frozen = sensed(uniform(120.0), 0)
    frozen.setflags(write=False)
    Camera().play(lambda _: frozen, 8)


def test_a_slow_source_is_not_frozen_by_its_silence() -> None:
    """Four repeats are needed, at any rate; the first checksum of an image is calculated at its repeat."""
    detector, image = FreezeDetector(), room().astype(np.uint8)
    assert [detector.observe(image[::8, ::8], image, 10.0 * n) for n in range(6)] == [0.0] * 5 + [40.0]
    changed = image.copy()
    changed[1, 1] += 1
    assert detector.observe(changed[::8, ::8], changed, 60.0) == 0.0
