"""Commands for the infer thread, from any thread, in a bounded queue; they run between frames."""

import threading
from collections import deque
from typing import Callable, Deque, Dict, Iterator, List, Mapping, Optional, Tuple, Union

from edge_agent.core.frame import Frame
from edge_agent.core.presence.pipeline import FacePipeline
from edge_agent.core.protocol.commands import Command, CommandResult
from edge_agent.core.types import FrameInfo, Moment, Outcome

Work = Callable[[], None]
SNAPSHOT_WITHIN_S = 5.0
"""A snapshot fails when the camera delivers no frame for so long."""


class CommandQueue:
    """Takes commands from any thread and runs them in the infer thread.

    Args:
        answer: Takes the result of each command; must not block.
        set_threshold: Changes the threshold of the detector that all cameras share; None restores the setting.
        capacity: Commands that may wait.
    """

    def __init__(
        self,
        answer: Callable[[CommandResult], None],
        set_threshold: Callable[[Optional[float]], None],
        capacity: int = 32,
    ) -> None:
        self._answer, self._set_threshold, self._capacity = answer, set_threshold, capacity
        self._waiting: Deque[Union[Command, Work]] = deque()
        self._lock = threading.Lock()
        self._snapshots: Dict[str, List[Tuple[Command, float]]] = {}

    def submit(self, command: Union[Command, Work]) -> bool:
        """Queue a command, or a call that needs no answer. From any thread; False when too many wait."""
        with self._lock:
            if len(self._waiting) >= self._capacity:
                return False
            self._waiting.append(command)
        return True

    def run_pending(self, pipelines: Mapping[str, FacePipeline], now: Moment) -> Iterator[Optional[Outcome]]:
        """Run what waits; yields the outcome of each command."""
        with self._lock:
            commands = list(self._waiting)
            self._waiting.clear()
        for command in commands:
            if isinstance(command, Command):
                yield self._run(command, pipelines, now)
            else:
                command()
        for waiting in self._snapshots.values():
            while waiting and now.t >= waiting[0][1]:
                self._answer(CommandResult(waiting.pop(0)[0], error="the camera delivers no frame"))

    def waiting_snapshots(self) -> List[str]:
        """The cameras of which a snapshot waits for a frame. For the infer thread."""
        return [camera for camera, waiting in self._snapshots.items() if waiting]

    def take_snapshots(self, pipeline: FacePipeline, frame: Frame, info: FrameInfo) -> None:
        """Take the snapshots that wait for a frame of this camera."""
        for command, _ in self._snapshots.pop(info.camera, ()):
            refusal = _refusal(pipeline)
            if refusal is not None:
                self._answer(CommandResult(command, refusal))
                continue
            # A frame of a camera that cannot see shows why.
            sight = pipeline.report().sight
            result = {} if sight.can_see else {"sight": sight.value}
            self._answer(CommandResult(command, result=result, crop=pipeline.snapshot(frame, info)))

    def _run(self, command: Command, pipelines: Mapping[str, FacePipeline], now: Moment) -> Optional[Outcome]:
        name, camera = command.name, command.camera
        if name == "set_threshold":
            self._set_threshold(command.arguments["value"])
            self._answer(CommandResult(command))
            return None
        if camera is None or camera not in pipelines:
            self._answer(CommandResult(command, error="no such camera"))
            return None
        outcome = None
        pipeline = pipelines[camera]
        if name == "snapshot":
            self._snapshots.setdefault(camera, []).append((command, now.t + SNAPSHOT_WITHIN_S))
            return None
        if name == "detection":
            outcome = pipeline.set_enabled(command.arguments["on"], now)
        elif name == "crops":
            pipeline.set_crops(command.arguments["on"])
        self._answer(CommandResult(command))
        return outcome


def _refusal(pipeline: FacePipeline) -> Optional[str]:
    """Return why no snapshot may be taken; None when it may. A switch that is off forbids frames to leave the agent."""
    if not pipeline.enabled:
        return "detection is switched off"
    return None if pipeline.crops_on else "crops are switched off"
