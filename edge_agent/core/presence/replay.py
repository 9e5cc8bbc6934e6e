"""Runs pipelines on a recording's clock, as the stages do on the machine's: ticks, stalls, doubt."""

import math
from datetime import datetime, timedelta, timezone
from typing import Callable, Dict, Iterator, NamedTuple, Optional

from edge_agent.core.frame import Frame
from edge_agent.core.presence.pipeline import FacePipeline
from edge_agent.core.types import Moment, Outcome, Sight

TICKS_PER_S = 10
"""As often as the infer thread looks at its clock. Counted, not added up, so that replays tick at round times."""

_EPOCH = datetime.fromtimestamp(0.0, timezone.utc)


class RecordedClock:
    """Callable: where the recording is."""

    def __init__(self) -> None:
        self.now = Moment(0.0, _EPOCH)

    def __call__(self) -> Moment:
        return self.now


class Opened(NamedTuple):
    """A camera's pipeline, and how long it may be silent before it counts as lost."""

    pipeline: FacePipeline
    stall_after_s: float


class _Camera:
    def __init__(self, opened: Opened, moment: Moment) -> None:
        self.pipeline, self.stall_after_s = opened
        self.sight = Sight.STARTING
        self.doubt = False
        self.frame_t = moment.t


class Replay:
    """All cameras of one recording.

    Args:
        clock: Moved by this; the pipelines have it as well.
        open_camera: Makes what a camera needs when it first occurs.
    """

    def __init__(self, clock: RecordedClock, open_camera: Callable[[str], Opened]) -> None:
        self._clock, self._open_camera = clock, open_camera
        self._cameras: Dict[str, _Camera] = {}
        self._next_tick = 0

    def sight_of(self, camera: str) -> Sight:
        """As of now."""
        known = self._cameras.get(camera)
        return Sight.STARTING if known is None else known.sight

    def sight(self, camera: str, sight: Sight, moment: Moment, doubt: bool = False) -> Iterator[Outcome]:
        """The camera gained or lost sight, or may have."""
        yield from self._until(moment)
        state = self._state(camera)
        state.doubt = doubt
        if sight.can_see and not state.sight.can_see:
            state.frame_t = moment.t
        yield from self._see(state, sight, moment)

    def frame(self, camera: str, frame: Frame, moment: Moment) -> Iterator[Outcome]:
        """A frame that shows what it shows: the camera can see."""
        yield from self._until(moment)
        state = self._state(camera)
        state.frame_t = moment.t
        yield from self._see(state, Sight.OK, moment)
        yield state.pipeline.step(frame, state.pipeline.frame_info(frame, moment))

    def alive(self, camera: str, moment: Moment) -> Iterator[Outcome]:
        """The camera delivered a frame that is not looked at."""
        yield from self._until(moment)
        self._state(camera).frame_t = moment.t

    def end(self) -> Iterator[Outcome]:
        """The recording is over."""
        for state in self._cameras.values():
            yield from self._see(state, Sight.ENDED, self._clock())

    def _state(self, camera: str) -> _Camera:
        if camera not in self._cameras:
            self._cameras[camera] = _Camera(self._open_camera(camera), self._clock())
        return self._cameras[camera]

    def _see(self, state: _Camera, sight: Sight, moment: Moment) -> Iterator[Outcome]:
        if sight is not state.sight:
            state.sight = sight
            yield from _said(state.pipeline.set_sight(sight, moment))

    def _until(self, moment: Moment) -> Iterator[Outcome]:
        """Let time pass. Cameras' frames come not quite in the order of exposure, so it may have passed already."""
        while any(state.sight.can_see for state in self._cameras.values()):
            tick = _tick(self._next_tick)
            if tick.t >= moment.t:
                break
            self._next_tick += 1
            self._clock.now = tick
            for state in self._cameras.values():
                if state.sight.can_see and tick.t - state.frame_t >= state.stall_after_s:
                    state.doubt = False
                    yield from self._see(state, Sight.LOST, tick)
                elif not state.doubt:
                    yield from _said(state.pipeline.tick(tick))
        self._next_tick = max(self._next_tick, math.ceil(moment.t * TICKS_PER_S))
        if moment.t > self._clock.now.t:
            self._clock.now = moment


def _tick(number: int) -> Moment:
    return Moment(number / TICKS_PER_S, _EPOCH + timedelta(seconds=number / TICKS_PER_S))


def _said(outcome: Optional[Outcome]) -> Iterator[Outcome]:
    if outcome is not None:
        yield outcome
