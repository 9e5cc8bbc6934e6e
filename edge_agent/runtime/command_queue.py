"""What other threads ask of the infer thread: commands in a bounded queue, done between frames."""

import threading
from collections import deque
from typing import Callable, Deque, Dict, Iterator, List, Mapping, Optional, Protocol, Tuple, Union

from edge_agent.core.frame import Frame
from edge_agent.core.protocol.commands import Command, CommandResult
from edge_agent.core.types import Crop, FrameInfo, Moment, Outcome

Work = Callable[[], None]
SNAPSHOT_WITHIN_S = 5.0
"""A camera that delivers no frame for so long has none to show."""


class CommandTarget(Protocol):
    """What commands need of `core.pipeline.FacePipeline`."""

    enabled: bool

    @property
    def crops_on(self) -> bool:
        """Whether crops are taken."""

    def set_enabled(self, on: bool, moment: Moment) -> Optional[Outcome]:
        """Switch detection on or off."""

    def set_crops(self, on: bool) -> None:
        """Switch crops on or off."""

    def snapshot(self, frame: Frame, info: FrameInfo) -> Crop:
        """The whole frame as a crop."""


class CommandQueue:
    """Takes commands from any thread and does them in the infer thread.

    Args:
        answer: Takes what became of each; must not block.
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
        """From any thread; False when too many wait. Work that is no command is done and not answered."""
        with self._lock:
            if len(self._waiting) >= self._capacity:
                return False
            self._waiting.append(command)
        return True

    def run_pending(self, pipelines: Mapping[str, CommandTarget], now: Moment) -> Iterator[Optional[Outcome]]:
        """Do what waits; yields what that says to the world."""
        with self._lock:
            commands = list(self._waiting)
            self._waiting.clear()
        for command in commands:
            if isinstance(command, Command):
                yield self._do(command, pipelines, now)
            else:
                command()
        for waiting in self._snapshots.values():
            while waiting and now.t >= waiting[0][1]:
                self._answer(CommandResult(waiting.pop(0)[0], error="the camera delivers no frame"))

    def take_snapshots(self, pipeline: CommandTarget, frame: Frame, info: FrameInfo) -> None:
        """A frame is here: take the snapshots that were asked for."""
        for command, _ in self._snapshots.pop(info.camera, ()):
            why_not = _why_not(pipeline)
            self._answer(CommandResult(command, why_not, crop=None if why_not else pipeline.snapshot(frame, info)))

    def _do(self, command: Command, pipelines: Mapping[str, CommandTarget], now: Moment) -> Optional[Outcome]:
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


def _why_not(pipeline: CommandTarget) -> Optional[str]:
    """Who has switched detection or crops off wants no picture taken."""
    if not pipeline.enabled:
        return "detection is switched off"
    return None if pipeline.crops_on else "crops are switched off"
