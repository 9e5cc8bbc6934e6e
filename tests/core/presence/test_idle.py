"""Idling: unchanged frames are skipped, every change is inferred at once, and no visit starts later."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.capture.synthetic.render import Renderer, Sprite
from edge_agent.capture.synthetic.scene import Disturbances, Scene, SceneFace
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.visibility import VisibilityMonitor, VisibilityParams
from edge_agent.core.frame import Frame, Image, Levels
from edge_agent.core.presence.idle import IdleGate, IdleParams, changed, sample
from edge_agent.core.presence.pipeline import FacePipeline, PipelineParams
from edge_agent.core.presence.state_machine import PresenceParams
from edge_agent.core.presence.tracker import TrackerParams
from edge_agent.core.types import Detections, Sight
from tests.core.presence.staged_camera import EMPTY_ROOM, StagedCamera, textured
from tests.fakes.clock import FakeClock

FPS = 10.0
IDLE = IdleParams(fps=2.0, after_s=2.0)
SELDOM = IdleParams(fps=0.2, after_s=0.0)  # so that only the change itself causes an inference
SIZE = (320, 240)


def room(seed=1, shape=(240, 320)):
    """(H, W) float64, 40..200, with edges."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.uniform(40, 200, (12, 16)), np.ones((shape[0] // 12, shape[1] // 16)))


def seen(scene, noise=0.0, seed=1):
    """(H, W) uint8: the scene through a noisy sensor."""
    return (scene + np.random.default_rng(seed).normal(0, noise, scene.shape)).round().clip(0, 255).astype(np.uint8)


def differs(before, now, **levels):
    return changed(sample(Image(before, **levels)), sample(Image(now, **levels)))


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0, 6.0, 10.0])
def test_noise_alone_is_no_change(noise):
    scene = room()
    first = seen(scene, noise, 0)
    assert not any(differs(first, seen(scene, noise, seed)) for seed in range(1, 60))


def test_noise_that_grows_with_the_brightness_is_no_change():
    scene = room()
    shot = [scene + np.random.default_rng(seed).normal(0, 1, scene.shape) * np.sqrt(scene) / 5 for seed in range(40)]
    assert not any(differs(seen(shot[0]), seen(other)) for other in shot[1:])


@given(
    st.floats(0, 0.93),
    st.floats(0, 0.93),
    st.floats(0.05, 0.9),
    st.sampled_from([-1, 1]),
    st.floats(0, 3),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_a_new_object_is_a_change_wherever_and_however_small(x, y, height, sign, noise, seed):
    """25 gray levels against what was there: a face in poor light."""
    scene = room(seed)
    other = scene.copy()
    top, left = int(y * 240), int(x * 320)
    tall = max(int(height * 240), 12)
    other[top : top + tall, left : left + max(9, tall * 3 // 4)] += 25 * sign
    assert differs(seen(scene, noise, seed), seen(other, noise, seed + 1))


def test_structure_of_the_same_mean_is_a_change():
    y, x = np.mgrid[:24, :24]
    scene = np.full((240, 320), 90.0)
    checkered = scene.copy()
    checkered[60:84, 100:124] += np.where((x // 2 + y // 2) % 2, 20, -20)
    assert differs(seen(scene, 1, 1), seen(checkered, 1, 2))


@pytest.mark.parametrize("step", [-8, -4, 4, 8])
def test_a_small_flicker_is_no_change_and_a_switched_lamp_is(step):
    scene = room()
    assert not differs(seen(scene, 2, 1), seen(scene + step, 2, 2))
    assert differs(seen(scene, 2, 1), seen(scene + 6 * step, 2, 2))


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
@pytest.mark.parametrize("shape", [(240, 320), (241, 323), (480, 641), (5, 7), (4, 4)])
def test_the_edges_of_the_image_are_compared(corner, shape):
    before = np.full(shape, 90, np.uint8)
    now = before.copy()
    step = 2 if shape[0] > 300 else 1
    rows = slice(0, 4 * step) if corner[0] == 0 else slice(-4 * step, None)
    columns = slice(0, 4 * step) if corner[1] == 0 else slice(-4 * step, None)
    assert not differs(before, now)
    now[rows, columns] = 200
    assert differs(before, now)


def test_all_kinds_of_pixels_and_a_new_size():
    deep = (room() * 4).astype(np.uint16)
    levels = Levels(0.0, 0.25)
    assert not differs(deep, deep + 12, levels=levels)
    bright = deep.copy()
    bright[50:80, 60:90] += 120
    assert differs(deep, bright, levels=levels)
    color = np.stack([seen(room())] * 3, axis=2)
    lit = color.copy()
    lit[50:80, 60:90] += 30
    assert not differs(color, color)
    assert differs(color, lit)
    assert differs(seen(room()), seen(room(shape=(480, 320))))
    assert differs(np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8)), "too small to compare"


class IdleRig:
    """An idle gate with frames at `FPS`; records which of them were inferred."""

    def __init__(self, params=IDLE):
        self.gate = IdleGate(params)
        self.inferred = []
        self.t = 50.0

    def show(self, image, empty=True):
        self.t += 1.0 / FPS
        due = self.gate.should_infer(Image(image), self.t)
        if due:
            self.gate.inferred(Image(image), self.t, empty)
        self.inferred.append(due)
        return due


def test_unchanged_frames_are_inferred_at_the_idle_rate_and_a_change_at_once():
    rig = IdleRig()
    for seed in range(120):
        rig.show(seen(room(), 2, seed))
    assert all(rig.inferred[:20])
    assert sum(rig.inferred[20:]) == pytest.approx(100 / FPS * IDLE.fps, abs=1)
    longest = max(len(list(run)) for due, run in itertools.groupby(rig.inferred) if not due)
    assert longest == FPS / IDLE.fps - 1
    for _ in range(3):
        rig.show(seen(room(), 2, 7))
    moved = room()
    moved[100:140, 100:130] += 40
    assert rig.show(seen(moved, 2, 8)), "the very frame that shows it"
    assert all(rig.show(seen(moved, 2, 9 + n)) for n in range(19)), "and those after it, for after_s"


def test_while_a_face_is_present_every_frame_is_inferred():
    rig = IdleRig()
    assert all(rig.show(seen(room()), empty=False) for _ in range(100))
    assert all(rig.show(seen(room())) for _ in range(20)), "after_s starts when no face is present any more"
    for _ in range(10):
        rig.show(seen(room()))
    assert not all(rig.inferred[-8:])


def test_zero_infers_every_frame():
    rig = IdleRig(IdleParams(fps=0.0))
    assert all(rig.show(seen(room())) for _ in range(100))


def test_a_step_back_in_time_is_inferred():
    rig = IdleRig()
    for _ in range(40):
        rig.show(seen(room()))
    rig.t -= 3600.0
    assert rig.show(seen(room()))


def test_slow_changes_add_up_until_they_count():
    """Inferred once in 100 s, so only the change since then can wake it: 0.5 gray levels per frame cannot."""
    rig = IdleRig(IdleParams(fps=0.01, after_s=0.0))
    scene = room()
    for step in range(60):
        scene[100:140, 100:130] += 0.5
        rig.show(seen(scene, 1, step))
    assert 2 <= sum(rig.inferred[1:]) <= 10


def idle_camera(**params):
    return StagedCamera(idle=IDLE, **params)


def test_a_pipeline_skips_and_reports_idle_frames():
    camera = idle_camera()
    outcomes = [camera.show() for _ in range(100)]
    assert camera.detector.calls == sum(not outcome.idle for outcome in outcomes) == pytest.approx(21 + 16, abs=2)
    assert all(outcome.detections is None and not outcome.events for outcome in outcomes if outcome.idle)
    image = textured((320, 240, 200))
    assert not camera.show((320, 240), pixels=image).idle
    assert camera.published == [("start", "event-1")]
    calls = camera.detector.calls
    assert not any(camera.show((320, 240), pixels=image).idle for _ in range(50)), "a face that stands still"
    assert camera.detector.calls == calls + 50


def test_a_still_face_before_its_confirmation_is_inferred_frame_by_frame():
    camera = idle_camera(tracker=TrackerParams(confirm_s=5.0), presence=PresenceParams(delay_on_s=3.0))
    for _ in range(50):
        camera.show()
    image = textured((320, 240, 200))
    assert not any(camera.show((320, 240), pixels=image).idle for _ in range(100))
    assert camera.published == [("start", "event-1")]


def test_only_an_inferred_frame_ends_a_visit_and_off_comes_as_at_full_rate():
    times = []
    for params in (IdleParams(fps=0.0), IdleParams(fps=0.1, after_s=0.0)):
        camera = StagedCamera(idle=params)
        camera.show((320, 240), pixels=textured((320, 240, 200)))
        camera.clock.advance(0.1)
        left_t = camera.clock().t
        while camera.report.presence.value == "ON":
            assert camera.clock().t < left_t + 10
            camera.show()
            camera.tick(0.02)
        times.append(camera.clock().t - left_t)
        assert [event.end_reason for event in camera.events] == [None, "left"]
    assert times[0] == pytest.approx(times[1])


@pytest.mark.parametrize("wake", ["sight", "threshold", "enabled", "settings"])
def test_what_may_change_the_result_ends_idling(wake):
    camera = idle_camera()
    for _ in range(60):
        camera.show()
    calls = camera.detector.calls
    while not camera.show().idle:
        calls = camera.detector.calls
    if wake == "sight":
        camera.sight(Sight.DARK)
        camera.sight(Sight.OK)
    elif wake == "enabled":
        camera.set_enabled(False)
        camera.set_enabled(True)
    elif wake == "threshold":
        camera.pipeline.end_idle()
    else:
        camera.pipeline.configure(CameraParams("test://"), PipelineParams(idle=IDLE))
    calls = camera.detector.calls
    assert not any(camera.show().idle for _ in range(15))
    assert camera.detector.calls == calls + 15


def test_a_change_under_a_mask_or_outside_the_region_does_not_end_idling():
    mask = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
    camera = idle_camera(camera=CameraParams("test://", masks=(mask,), roi=(0.0, 0.0, 1.0, 0.5)))
    rng = np.random.default_rng(3)
    for _ in range(60):
        image = EMPTY_ROOM.copy()
        image[:, :320] = rng.integers(0, 255, (480, 320))
        image[240:] = rng.integers(0, 255, (240, 640))
        camera.show(pixels=image)
    assert camera.detector.calls <= 21 + 8 + 1


class SceneDetector:
    """Finds every face of a scene that is at least half inside the image, in any light."""

    def __init__(self, scene):
        self.scene, self.t_s, self.calls = scene, 0.0, 0

    def detect(self, image):
        self.calls += 1
        faces = self.scene.boxes(self.t_s, *SIZE)
        whole = np.array([face.xyxy(*SIZE) for face in self.scene.faces(self.t_s)]).reshape(-1, 4)
        if len(faces) != len(whole):
            return Detections.empty()
        inside = (faces[:, 2:] - faces[:, :2]).prod(axis=1) >= 0.5 * (whole[:, 2:] - whole[:, :2]).prod(axis=1)
        return Detections(faces, np.full(len(faces), 0.9)).select(inside)


def faint(contrast):
    """Draws faces that differ from a wall of about 80 by `contrast`, with darker eyes and mouth."""

    def artist(height_px):
        width_px = max(3, round(height_px * 0.75))
        pixels = np.full((height_px, width_px), 80 + contrast, np.uint8)
        pixels[height_px // 3 : height_px // 3 + max(1, height_px // 10)] -= 15
        return Sprite(pixels, None, width_px / 2, height_px / 2)

    return artist


def onsets(scene, params, until_s, artist, noise=2.0, seed=1):
    """Frame numbers of the "start" events, and how many frames were inferred; with a VisibilityMonitor."""
    clock, detector = FakeClock(), SceneDetector(scene)
    ids = (f"event-{number}" for number in itertools.count(1))
    pipeline = FacePipeline(
        "door", CameraParams("test://"), detector, lambda: next(ids), clock, PipelineParams(idle=params)
    )
    monitor = VisibilityMonitor(VisibilityParams(), "sensor")
    renderer = Renderer(scene, SIZE, FPS, artist, noise, seed)
    starts, sight = [], Sight.STARTING
    for index in range(int(until_s * FPS)):
        moment = clock.advance(1.0 / FPS)
        detector.t_s = index / FPS
        frame = Frame(renderer.draw(index), index, moment.t)
        visibility = monitor.observe(frame.pixels, frame.levels, frame.t)
        if visibility.sight is not sight:
            sight = visibility.sight
            pipeline.set_sight(sight, moment)
        if visibility.keep:
            outcome = pipeline.step(frame, pipeline.frame_info(frame, moment))
            starts += [event.info.sequence for event in outcome.events if event.event_type == "start"]
    return starts, detector.calls


def visits(rng, count):
    """One face after the other with pauses: standing there at once, walking in, creeping in from an edge."""
    at_s, faces = 4.0, []
    for number in range(count):
        size = float(rng.uniform(0.08, 0.6))
        place = tuple(rng.uniform(0.1, 0.9, 2))
        kind = number % 3
        lasts_s = (1.0, 2.0, 5.0)[kind]
        edge = (-0.1, place[1])
        creeping = (0.06, place[1])
        path = ((place,), (edge, place), ((-0.03, place[1]), creeping))[kind]
        faces.append(SceneFace(at_s, at_s + lasts_s, path, (0.08 if kind == 2 else size,)))
        at_s += lasts_s + float(rng.uniform(5.0, 7.0))
    return Scene(tuple(faces)), at_s


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("contrast", [30, 120])
def test_no_onset_is_missed_or_later_than_at_full_rate(seed, contrast):
    rng = np.random.default_rng(seed)
    scene, until_s = visits(rng, 6)
    full, all_frames = onsets(scene, IdleParams(fps=0.0), until_s, faint(contrast), noise=seed, seed=seed)
    idle, inferred = onsets(scene, SELDOM, until_s, faint(contrast), noise=seed, seed=seed)
    assert len(full) == 6
    assert len(idle) == len(full)
    late = [after - before for before, after in zip(full, idle)]
    assert max(late) <= 1 and min(late) >= 0, late
    assert inferred < 0.7 * all_frames


@pytest.mark.slow
def test_an_empty_room_costs_a_fraction_in_steady_and_in_strobed_light_and_at_dusk():
    for disturbances in (Disturbances(), Disturbances(strobe=(1, 1))):
        _, full = onsets(Scene(disturbances=disturbances), IdleParams(fps=0.0), 60, faint(30))
        _, inferred = onsets(Scene(disturbances=disturbances), IdleParams(fps=1.0), 60, faint(30))
        assert inferred <= 0.25 * full, disturbances
    dusk = IdleRig()
    for step in range(600):
        dusk.show(seen(room() * (1.0 - step / 1000.0), 2, step))
    assert sum(dusk.inferred) <= 0.3 * 600
