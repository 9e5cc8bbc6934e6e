"""Commands for the infer thread: they run between frames, their number is bounded, and each is answered once."""

import numpy as np

from edge_agent.core.frame import Frame
from edge_agent.core.protocol.commands import Command, CommandResult
from edge_agent.core.types import CameraReport, FrameInfo, Outcome, Presence, Sight
from edge_agent.runtime.command_queue import SNAPSHOT_WITHIN_S, CommandQueue
from tests.fakes.clock import FakeClock


class Switchboard:
    """As much of a pipeline as commands touch."""

    def __init__(self, camera):
        self.camera, self.enabled, self.crops_on = camera, True, True

    def set_enabled(self, on, moment):
        self.enabled = on
        return Outcome(self.camera)

    def set_crops(self, on):
        self.crops_on = on

    def snapshot(self, frame, info):
        return (info.camera, frame.sequence)

    def report(self):
        return CameraReport(self.camera, Presence.UNKNOWN, Sight.OK, None, None, None, (), {})


def setup(capacity=32, set_threshold=lambda value: None):
    answers = []
    queue = CommandQueue(answers.append, set_threshold, capacity)
    return queue, {name: Switchboard(name) for name in "ab"}, answers, FakeClock()


def frame(camera, clock):
    return Frame(np.zeros((4, 4), np.uint8), 7, clock.t), FrameInfo(camera, 7, clock(), 4, 4)


def test_switches_and_threshold():
    thresholds = []
    command_queue, pipelines, answers, clock = setup(set_threshold=thresholds.append)
    commands = [
        Command("detection", camera="a", arguments={"on": False}),
        Command("crops", camera="b", arguments={"on": False}),
        Command("set_threshold", arguments={"value": 0.5}),
    ]
    assert all(command_queue.submit(command) for command in commands)
    assert not answers, "nothing runs before the infer thread runs it"
    assert [outcome for outcome in command_queue.run_pending(pipelines, clock()) if outcome] == [Outcome("a")]
    assert answers == [CommandResult(command) for command in commands]
    assert not pipelines["a"].enabled and pipelines["a"].crops_on and not pipelines["b"].crops_on
    assert thresholds == [0.5]
    assert list(command_queue.run_pending(pipelines, clock())) == [] and len(answers) == 3


def test_a_call_runs_in_order_with_the_commands_and_is_not_answered():
    seen, thresholds = [], []
    command_queue, pipelines, answers, clock = setup(set_threshold=thresholds.append)
    command_queue.submit(Command("set_threshold", arguments={"value": 0.5}))
    command_queue.submit(lambda: seen.append(thresholds[-1]))
    command_queue.submit(Command("set_threshold", arguments={"value": 0.7}))
    list(command_queue.run_pending(pipelines, clock()))
    assert seen == [0.5] and [done.command.name for done in answers] == 2 * ["set_threshold"]


def test_an_unknown_camera_is_answered_with_an_error():
    command_queue, pipelines, answers, clock = setup()
    for camera in ("c", None):
        command_queue.submit(Command("detection", camera=camera, arguments={"on": False}))
    list(command_queue.run_pending(pipelines, clock()))
    assert [done.error for done in answers] == 2 * ["no such camera"]


def test_commands_beyond_the_capacity_are_refused():
    command_queue, pipelines, _, clock = setup(capacity=2)
    command = Command("crops", camera="a", arguments={"on": True})
    assert [command_queue.submit(command) for _ in range(3)] == [True, True, False]
    list(command_queue.run_pending(pipelines, clock()))
    assert command_queue.submit(command)


def test_a_snapshot_is_of_the_next_frame_of_its_camera():
    command_queue, pipelines, answers, clock = setup()
    command = Command("snapshot", "t", "a")
    command_queue.submit(command)
    list(command_queue.run_pending(pipelines, clock()))
    command_queue.take_snapshots(pipelines["b"], *frame("b", clock))
    assert not answers
    command_queue.take_snapshots(pipelines["a"], *frame("a", clock))
    command_queue.take_snapshots(pipelines["a"], *frame("a", clock))
    assert answers == [CommandResult(command, crop=("a", 7))]


def test_a_camera_without_frames_has_no_snapshot():
    command_queue, pipelines, answers, clock = setup()
    command_queue.submit(Command("snapshot", "t", "a"))
    list(command_queue.run_pending(pipelines, clock()))
    list(command_queue.run_pending(pipelines, clock.advance(SNAPSHOT_WITHIN_S - 0.1)))
    assert not answers
    list(command_queue.run_pending(pipelines, clock.advance(0.1)))
    assert "no frame" in answers[0].error and answers[0].command == Command("snapshot", "t", "a")
    command_queue.take_snapshots(pipelines["a"], *frame("a", clock))
    assert len(answers) == 1


def test_no_snapshot_while_detection_or_crops_are_off():
    for switch in ("enabled", "crops_on"):
        command_queue, pipelines, answers, clock = setup()
        setattr(pipelines["a"], switch, False)
        command_queue.submit(Command("snapshot", "t", "a"))
        list(command_queue.run_pending(pipelines, clock()))
        command_queue.take_snapshots(pipelines["a"], *frame("a", clock))
        assert "switched off" in answers[0].error and answers[0].crop is None
