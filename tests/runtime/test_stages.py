"""The stages, stepped by hand on an injected clock: back-off, stalls, ends, times, health reports."""

import random

import numpy as np
import pytest

from edge_agent.core.camera.visibility import Visibility, VisibilityMonitor, VisibilityParams
from edge_agent.core.frame import Frame
from edge_agent.core.protocol.commands import Command, CommandResult
from edge_agent.core.types import CameraReport, FrameInfo, Outcome, Presence, Sight
from edge_agent.runtime.command_queue import CommandQueue
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.publish_queue import PublishQueue
from edge_agent.runtime.stages import (
    HEALTH_CHECK_S,
    REOPEN_FIRST_S,
    REOPEN_MAX_S,
    CaptureStage,
    InferStage,
    PublishStage,
    moment_of,
)  # fmt: skip
from tests.core.presence.staged_camera import StagedCamera
from tests.fakes.camera import DAMAGED, END, FRAME, GONE, NOTHING, ScriptedCamera
from tests.fakes.clock import FakeClock


class Rig:
    """A capture stage on a scripted camera; `wait` moves the clock instead of sleeping."""

    def __init__(self, scripts, stall_after_s=5.0):
        self.clock = FakeClock()
        self.camera = ScriptedCamera(lambda: self.clock.t, scripts)
        self.mailbox = FrameMailbox(["door"], wait=lambda condition, seconds: None)
        self.stage = CaptureStage(
            "door",
            self.camera,
            lambda: VisibilityMonitor(VisibilityParams(), "sensor").observe,
            self.mailbox,
            self.clock,
            self.clock.advance,
            stall_after_s,
            random.Random(1),
        )

    def run(self, seconds, frame_s=0.1):
        until = self.clock.t + seconds
        while self.clock.t < until:
            self.stage.step()
            self.clock.advance(frame_s)

    @property
    def sight(self):
        return self.mailbox.sights()["door"]


def test_a_live_camera_is_seen_at_its_first_frame():
    rig = Rig([[FRAME] * 3])
    rig.stage.step()
    assert rig.sight is Sight.STARTING
    rig.stage.step()
    assert rig.sight is Sight.OK
    delivery = rig.mailbox.take(0)
    assert delivery.frame.sequence == 1
    assert rig.stage.counters.frames == 1


def test_an_absent_camera_is_lost_and_tried_again_with_growing_jittered_delay():
    rig = Rig([None] * 500)
    opened_at = []
    for _ in range(4000):
        before = rig.camera.history.count("open")
        rig.stage.step()
        if rig.camera.history.count("open") > before:
            opened_at.append(rig.clock.t)
        rig.clock.advance(0.01)
    gaps = [b - a for a, b in zip(opened_at, opened_at[1:])]
    assert rig.sight is Sight.LOST
    assert rig.stage.first_open_done
    assert REOPEN_FIRST_S / 2 <= gaps[0] <= REOPEN_FIRST_S + 0.3
    assert max(gaps) <= REOPEN_MAX_S + 0.3
    assert sum(gaps[-3:]) > 3 * REOPEN_MAX_S / 2
    assert rig.stage.counters.faults == len(opened_at)


def test_a_camera_that_goes_and_comes_back_is_lost_meanwhile_and_counted():
    rig = Rig([[FRAME] * 5 + [GONE], None, [FRAME] * 500])
    rig.run(0.6)
    assert rig.sight is Sight.LOST
    assert rig.camera.history.count("close") >= 1
    rig.run(5.0)
    assert rig.sight is Sight.OK
    assert rig.stage.counters.recoveries == 1
    assert rig.stage.counters.faults == 2
    sights = [sight for sight, _ in rig.mailbox.take(0).sights]
    assert sights == [Sight.OK, Sight.LOST, Sight.OK]


def test_a_camera_that_fails_again_and_again_after_a_frame_is_logged_once_and_opened_ever_less(caplog):
    caplog.set_level("INFO")
    rig = Rig([[FRAME, FRAME, GONE]] * 100 + [[FRAME] * 500])
    rig.run(60.0)
    opened = rig.camera.history.count("open")
    assert 60 / (REOPEN_MAX_S + 1) < opened < 30
    assert [record.levelname for record in caplog.records if "gone" in record.message] == ["WARNING"]
    assert rig.stage.counters.faults == opened and rig.stage.counters.recoveries == 0
    assert rig.sight is Sight.LOST and "delivers again" not in caplog.text


def test_silence_counts_as_a_stall_and_never_as_an_empty_room():
    rig = Rig([[FRAME] + [NOTHING] * 1000, [FRAME] * 1000], stall_after_s=3.0)
    rig.run(2.9)
    assert rig.sight is Sight.OK
    rig.run(0.6)
    assert rig.sight is Sight.LOST
    assert rig.stage.counters.stalls == 1
    assert "no frame for 3 s" in rig.stage.last_fault
    rig.run(5)
    assert rig.sight is Sight.OK


@pytest.mark.parametrize("stall_after_s", [0.5, 3.0, 40.0])
def test_a_read_that_does_not_return_is_a_loss_after_the_cameras_own_time_and_until_its_next_frame(stall_after_s):
    rig = Rig([[FRAME] * 5], stall_after_s)
    rig.run(0.3)
    assert rig.sight is Sight.OK
    lost_after_s = []
    returned = rig.camera.read

    def read(timeout_s):
        """Hang for a minute, checked twice a second as the supervisor does."""
        rig.camera.read = returned
        began_t = rig.clock.t
        while rig.clock.t - began_t < 60:
            rig.stage.check()
            if rig.sight is Sight.LOST and not lost_after_s:
                lost_after_s.append(rig.clock.t - began_t)
            rig.clock.advance(0.5)
        return returned(timeout_s)

    rig.camera.read = read
    rig.stage.step()
    assert lost_after_s and max(1.0, stall_after_s) - 0.2 <= lost_after_s[0] <= max(1.0, stall_after_s) + 0.5
    assert "does not return" in rig.stage.last_fault
    assert rig.sight is Sight.OK
    assert [sight for sight, _ in rig.mailbox.take(0).sights] == [Sight.OK, Sight.LOST, Sight.OK]


def test_reads_that_return_are_no_hung_calls():
    rig = Rig([[FRAME] + [NOTHING] * 1000], stall_after_s=30.0)
    for _ in range(200):
        rig.stage.step()
        rig.stage.check()
        rig.clock.advance(0.1)
    assert rig.sight is Sight.OK


def test_an_open_may_take_longer_than_a_read_but_not_for_ever():
    rig = Rig([[FRAME] * 5], stall_after_s=2.0)
    opened = rig.camera.open

    def open_slowly():
        rig.clock.advance(15)
        rig.stage.check()
        assert rig.sight is Sight.STARTING
        rig.clock.advance(6)
        rig.stage.check()
        assert rig.sight is Sight.LOST
        opened()

    rig.camera.open = open_slowly
    rig.stage.step()
    rig.run(0.3)
    assert rig.sight is Sight.OK


def test_an_end_is_an_end_and_not_a_fault():
    rig = Rig([[FRAME, END]])
    rig.run(2)
    assert rig.sight is Sight.ENDED
    assert rig.stage.ended
    assert rig.stage.counters.faults == 0
    assert rig.camera.history.count("open") == 1


def test_frames_judged_dark_are_released_and_counted():
    black = np.zeros((48, 64), np.uint8)
    rig = Rig([[black] * 200])
    rig.run(10)
    assert rig.sight is Sight.DARK
    assert rig.stage.counters.blind == rig.stage.counters.frames > 50 and rig.stage.counters.dark == 0
    left = rig.mailbox.take(0)
    held = 1 if left.frame else 0
    assert rig.camera.history.count("release") == rig.stage.counters.frames - held


def test_dark_frames_of_a_strobe_are_counted_apart_from_blindness():
    lit = np.random.default_rng(1).integers(100, 200, (60, 48, 64)).astype(np.uint8)
    rig = Rig([[image for each in lit for image in (each, each // 8)]])
    rig.run(12)
    counters = rig.stage.counters
    assert rig.sight is Sight.OK and counters.frames > 110
    assert counters.dark > 50 and counters.blind < 3


def test_the_frame_s_time_is_exposure_time_on_both_clocks_even_when_the_wall_clock_steps():
    clock = FakeClock(1000.0)
    clock.step_wall(3600.0)
    now = clock()
    then = moment_of(999.9, now)
    assert then.t == 999.9
    assert (now.at - then.at).total_seconds() == pytest.approx(0.1)


class Recorder:
    """A pipeline that records its calls."""

    def __init__(self, name):
        self.name, self.calls = name, []

    def frame_info(self, frame, moment):
        return FrameInfo(self.name, frame.sequence, moment, 64, 48)

    def step(self, frame, info):
        assert not frame.released
        self.calls.append(("frame", info.sequence))
        return Outcome(self.name, info=info)

    def tick(self, moment):
        self.calls.append(("tick", moment.t))

    def excuse(self, seconds):
        """Time in which damage hid the scene; nothing to do for a recorder."""

    def set_sight(self, sight, moment):
        self.calls.append(("sight", sight))
        return Outcome(self.name, report=CameraReport(self.name, Presence.UNKNOWN, sight, moment))


@pytest.mark.parametrize(("inferred", "counted", "measured"), [(range(0), (0, 8), False), (range(1, 4), (3, 5), True)])
def test_frames_that_were_not_inferred_are_counted_as_idle_and_have_no_latency(inferred, counted, measured):
    class Idler(Recorder):
        def step(self, frame, info):
            return Outcome(self.name, info=info, idle=frame.sequence not in inferred)

    rig = Rig([[FRAME] * 9])
    stage = InferStage(rig.mailbox, ["door"], lambda: {"door": Idler("door")}, rig.clock, lambda outcome: None)
    stage.setup()
    for _ in range(9):
        rig.stage.step()
        rig.clock.advance(0.1)
        stage.step()
    counters = rig.mailbox.counters("door")
    assert (counters["inferred"], counters["idle"]) == counted and counters["dropped_busy"] == 0
    assert (stage.capture_to_result["door"].percentiles_ms()["p99"] is not None) is measured


def test_infer_sees_sight_before_the_frame_releases_it_and_ticks_without_frames():
    rig = Rig([[FRAME] * 5])
    out, pipeline = [], Recorder("door")
    stage = InferStage(rig.mailbox, ["door"], lambda: {"door": pipeline}, rig.clock, out.append)
    stage.setup()
    rig.stage.step()
    rig.stage.step()
    stage.step()
    assert pipeline.calls[0] == ("sight", Sight.OK)
    assert pipeline.calls[1] == ("frame", 1)
    assert rig.camera.history[-1] == "release"
    ticks = sum(1 for what, _ in pipeline.calls if what == "tick")
    for _ in range(10):
        rig.clock.advance(0.1)
        stage.step()
    assert sum(1 for what, _ in pipeline.calls if what == "tick") == ticks + 10
    stage.step()
    assert sum(1 for what, _ in pipeline.calls if what == "tick") == ticks + 10, "no time has passed"
    assert [outcome.report.sight for outcome in out] == [Sight.OK], "a frame without a change reports nothing new"
    rig.mailbox.set_doubt("door", True)
    rig.clock.advance(0.1)
    stage.step()
    assert sum(1 for what, _ in pipeline.calls if what == "tick") == ticks + 10, "a camera in doubt shows nobody leave"
    stage.finish()
    assert out[-1].report.sight is Sight.STOPPED


def test_a_blindness_proven_while_another_camera_is_inferred_is_delivered_before_the_next_tick():
    rig = Rig([[FRAME] * 5])
    mailbox = FrameMailbox(["door", "hall"], wait=lambda condition, seconds: None)

    class Slow(Recorder):
        """A slow pipeline; meanwhile the other camera's thread proves its blindness."""

        def step(self, frame, info):
            mailbox.set_sight("door", Sight.DARK, rig.clock())
            mailbox.set_doubt("door", False)
            return super().step(frame, info)

    door, hall = Recorder("door"), Slow("hall")
    stage = InferStage(mailbox, ["door", "hall"], lambda: {"door": door, "hall": hall}, rig.clock, lambda outcome: None)
    stage.setup()
    mailbox.set_doubt("door", True)
    mailbox.put("hall", Frame(np.zeros((48, 64), np.uint8), 1, rig.clock.t))
    for _ in range(3):
        stage.step()
        rig.clock.advance(0.1)
    assert door.calls[0] == ("sight", Sight.DARK), "a tick before it could report that the person has left"
    assert ("frame", 1) in hall.calls and door.calls[1][0] == "tick"


def test_commands_are_done_between_frames_and_a_snapshot_is_of_the_next_one():
    class Eye(Recorder):
        enabled = crops_on = True

        def snapshot(self, frame, info):
            self.calls.append(("snapshot", info.sequence))
            return "crop"

        def report(self):
            return CameraReport("door", Presence.UNKNOWN, Sight.OK, rig.clock(), None, None, (), {})

    rig, answers, pipeline = Rig([[FRAME] * 5]), [], Eye("door")
    command_queue = CommandQueue(answers.append, lambda value: None)
    stage = InferStage(
        rig.mailbox, ["door"], lambda: {"door": pipeline}, rig.clock, answers.append, command_queue=command_queue
    )
    stage.setup()
    command_queue.submit(Command("snapshot", "t", "door"))
    command_queue.submit(lambda: pipeline.calls.append(("work", None)))
    stage.step()
    rig.run(0.3)
    stage.step()
    assert [what for what, _ in pipeline.calls if what != "tick"] == ["work", "sight", "snapshot", "frame"]
    assert [done.crop for done in answers if isinstance(done, CommandResult)] == ["crop"]


def test_a_snapshot_of_a_camera_that_cannot_see_is_its_frame_with_the_reason():
    answers = []
    rig = Rig([[FRAME] * 200])
    rig.stage._make_judge = lambda: lambda pixels, levels, t: Visibility(False, Sight.DARK)
    camera = StagedCamera(sight=None)
    command_queue = CommandQueue(answers.append, lambda value: None)
    stage = InferStage(
        rig.mailbox, ["door"], lambda: {"door": camera.pipeline}, rig.clock, lambda _: None, command_queue=command_queue
    )
    stage.setup()
    rig.run(0.5)
    stage.step()
    assert rig.mailbox.take(0) is None, "else its frames are dropped"
    command_queue.submit(Command("snapshot", "t", "door"))
    stage.step()
    rig.run(0.3)
    stage.step()
    (done,) = answers
    assert done.error is None and done.crop is not None and done.result == {"sight": "dark"}
    assert camera.detector.calls == 0


@pytest.mark.parametrize(("side", "answered"), [(48, True), (1, False)])
def test_a_snapshot_of_a_damaged_camera_is_its_frame_unless_nothing_of_it_can_be_decoded(side, answered):
    answers = []
    rig = Rig([[FRAME] * 200])
    pixels = np.zeros((side, side), np.uint8)
    rig.camera.read = lambda timeout_s: Frame(pixels, 1, rig.clock.t, damaged=True)
    camera = StagedCamera(sight=None)
    command_queue = CommandQueue(answers.append, lambda value: None)
    stage = InferStage(
        rig.mailbox, ["door"], lambda: {"door": camera.pipeline}, rig.clock, lambda _: None, command_queue=command_queue
    )
    stage.setup()
    rig.run(2.5)
    command_queue.submit(Command("snapshot", "t", "door"))
    stage.step()
    rig.run(0.3)
    stage.step()
    assert [done.result for done in answers if done.error is None] == ([{"sight": "damaged"}] if answered else [])
    assert camera.detector.calls == 0


class RecordingPublisher:
    """A publisher that records its calls."""

    def __init__(self):
        self.calls, self.connected = [], False

    def outcome(self, outcome):
        self.calls.append(("outcome", outcome))

    def handle(self, item):
        self.calls.append(("handle", item))

    def info(self, info):
        self.calls.append(("info", dict(info)))

    def health(self, health):
        self.calls.append(("health", health["state"]))

    def pump(self):
        self.calls.append(("pump", None))

    def take(self, *kinds):
        taken = [(kind, what) for kind, what in self.calls if kind in kinds]
        self.calls = []
        return taken


class PublishRig:
    def __init__(self):
        self.clock, self.publish_queue, self.publisher = FakeClock(), PublishQueue(), RecordingPublisher()
        self.health = {"state": "ok", "reasons": [], "uptime_s": 0}
        self.info = {"engine": None}
        self.stage = PublishStage(
            self.publish_queue, self.publisher, lambda: self.health, lambda: self.info, self.clock, 30.0
        )

    def step(self, after_s=0.0):
        self.clock.advance(after_s)
        self.publish_queue.put(lambda: None)  # so that it does not wait
        self.stage.step()


def test_publish_passes_each_item_to_its_method_and_pumps_last():
    rig, done = PublishRig(), []
    outcome = Outcome("door")
    rig.publish_queue.put_outcome(outcome)
    rig.publish_queue.put("connected")
    rig.publish_queue.put(lambda: done.append(True))
    rig.stage.step()
    assert done == [True]
    assert [kind for kind, _ in rig.publisher.calls] == ["outcome", "handle", "info", "health", "pump"]
    assert rig.publisher.take("outcome", "handle") == [("outcome", outcome), ("handle", "connected")]


def test_health_is_published_within_a_second_of_a_change_and_at_the_interval():
    rig = PublishRig()
    rig.step()
    assert rig.publisher.take("info", "health") == [("info", {"engine": None}), ("health", "ok")]
    rig.health = {"state": "failed", "reasons": ["camera door: lost"], "uptime_s": 1}
    rig.info = {"engine": "there"}
    rig.step(HEALTH_CHECK_S / 2)
    assert rig.publisher.take("info", "health") == [], "health is not checked so often"
    rig.step(HEALTH_CHECK_S / 2)
    assert rig.publisher.take("info", "health") == [("info", {"engine": "there"}), ("health", "failed")]
    published_t, rig.health = rig.clock.t, {**rig.health, "uptime_s": 2}
    while not rig.publisher.take("info", "health"):
        rig.step(HEALTH_CHECK_S)
    assert rig.clock.t - published_t == pytest.approx(30.0)
    rig.stage.health_interval_s = 5.0
    rig.step(4.0)
    assert rig.publisher.take("health") == []
    rig.step(1.0)
    assert rig.publisher.take("health") == [("health", "failed")], "another interval holds at once"


def test_a_new_session_begins_with_a_health_report_of_itself():
    rig = PublishRig()
    rig.step()
    rig.publisher.take()
    rig.publisher.connected = True
    rig.step()
    assert [kind for kind, _ in rig.publisher.calls] == ["health", "pump"], "before anything is sent"
    rig.publisher.take()
    rig.step()
    assert rig.publisher.take("health") == [], "once per session"


def test_the_last_health_report_is_published_whatever_was_published_before():
    rig = PublishRig()
    rig.step()
    rig.publisher.take()
    rig.stage.finish()
    assert rig.publisher.take("info", "health") == [("health", "ok")]


def test_a_short_burst_of_damage_is_doubt_and_no_news():
    rig = Rig([[FRAME] * 20 + [DAMAGED] * 4 + [FRAME] * 100])
    rig.run(2.0)
    assert rig.mailbox.take(0).frame is not None
    rig.run(0.3)
    assert rig.sight is Sight.OK and rig.mailbox.in_doubt("door"), "no visit may end as left"
    assert rig.mailbox.take(0) is None, "a damaged frame is no evidence"
    rig.run(1.0)
    delivery = rig.mailbox.take(0)
    assert delivery.frame is not None and not delivery.sights
    assert 0.3 <= delivery.doubted_s <= 0.5
    assert not rig.mailbox.in_doubt("door")
    assert rig.stage.counters.damaged == 4 and rig.stage.trouble == ""


def test_lasting_damage_is_no_sight_with_its_reason_and_trouble_in_health():
    rig = Rig([[FRAME] * 20 + [DAMAGED] * 40 + [FRAME] * 100])
    rig.run(2.0)
    rig.run(2.0)
    assert rig.sight is Sight.DAMAGED, "within two seconds"
    rig.run(2.0)
    assert rig.stage.counters.damaged == 40 and "% of the frames are damaged" in rig.stage.trouble
    assert rig.stage.counters.faults == 0, "the camera delivers"
    rig.run(3.0)
    assert rig.sight is Sight.OK
    rig.run(7.0)
    assert rig.stage.trouble == ""


def test_frames_that_stay_old_are_trouble():
    rig = Rig([[FRAME] * 400])
    rig.run(1.0)
    live, rig.camera._clock = rig.camera._clock, lambda: rig.clock.t - 3.2
    rig.run(4.0)
    assert rig.stage.trouble == "", "a backlog may pass"
    rig.run(4.0)
    assert rig.stage.trouble == "frames are about 3 s old"
    rig.camera._clock = live
    rig.run(0.5)
    assert rig.stage.trouble == ""
