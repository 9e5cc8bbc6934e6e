"""A replay steps the real stages on the recording's clock: ticks at round times, stalls, ends."""

from datetime import datetime, timedelta, timezone

import numpy as np

from edge_agent.core.camera.visibility import Visibility
from edge_agent.core.frame import Frame
from edge_agent.core.types import CameraReport, FrameInfo, Moment, Outcome, Presence, Sight
from edge_agent.runtime.replay import Replay, ReplayCamera, ReplayClock


class Pipeline:
    """Records its calls, each with the replay's time."""

    def __init__(self, clock):
        self.calls, self._clock = [], clock

    def frame_info(self, frame, moment):
        return FrameInfo("door", frame.sequence, moment, 8, 8)

    def step(self, frame, info):
        self.calls.append((self._clock().t, "frame"))
        return Outcome("door", info=info)

    def tick(self, moment):
        self.calls.append((moment.t, "tick"))

    def excuse(self, seconds):
        assert seconds == 0.0, "a recording of detections has no damaged frames"

    def set_sight(self, sight, moment):
        self.calls.append((moment.t, sight.value))
        return Outcome("door", report=CameraReport("door", Presence.UNKNOWN, sight, moment))


class Rig:
    def __init__(self):
        self.clock = ReplayClock()
        self.pipeline = Pipeline(self.clock)
        self.visibility = Visibility(True, Sight.OK)
        camera = ReplayCamera(self.pipeline, lambda: lambda pixels, levels, t: self.visibility, 1.0)
        self.replay = Replay(self.clock, lambda name: camera)

    def deliver(self, t, released=None):
        moment = Moment(t, datetime.fromtimestamp(0, timezone.utc) + timedelta(seconds=t))
        frame = Frame(np.zeros((8, 8), np.uint8), 1, t, on_release=released)
        return list(self.replay.deliver("door", frame, moment))


def test_ticks_fall_on_round_times_between_frames():
    rig, released = Rig(), []
    rig.deliver(0.25, lambda: released.append(0.25))
    rig.deliver(0.55)
    assert rig.pipeline.calls == [
        (0.25, "ok"), (0.25, "frame"), (0.25, "tick"), (0.3, "tick"), (0.4, "tick"), (0.5, "tick"), (0.55, "frame"),
    ]  # fmt: skip
    assert released == [0.25]


def test_silence_is_a_loss_and_the_next_frame_ends_it():
    rig = Rig()
    rig.deliver(1.0)
    outcomes = rig.deliver(9.0)
    assert [outcome.report.sight for outcome in outcomes if outcome.report] == [Sight.LOST, Sight.OK]
    assert (2.0, "lost") in rig.pipeline.calls and (9.0, "ok") in rig.pipeline.calls
    assert not [t for t, _ in rig.pipeline.calls if 2.0 < t < 9.0], "a camera that cannot see is not stepped"


def test_a_camera_that_cannot_see_does_not_stall():
    rig = Rig()
    rig.visibility = Visibility(False, Sight.DARK)
    rig.deliver(1.0)
    rig.visibility = Visibility(True, Sight.OK)
    rig.deliver(9.0)
    assert [what for _, what in rig.pipeline.calls if what not in ("tick", "frame")] == ["dark", "ok"]


def test_the_end_ends_every_source():
    rig = Rig()
    rig.deliver(1.0)
    (outcome,) = rig.replay.end()
    assert outcome.report.sight is Sight.ENDED and rig.clock().t == 1.0
