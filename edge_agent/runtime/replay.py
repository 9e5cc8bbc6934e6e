"""Replays a recording through the real capture and infer stages, on the recording's clock instead of the machine's."""

import math
import random
from datetime import datetime, timedelta, timezone
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

from edge_agent.core.frame import Frame
from edge_agent.core.presence.pipeline import FacePipeline
from edge_agent.core.types import Counters, Moment, Outcome
from edge_agent.errors import EndOfStream
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.stages import TICKS_PER_S, CaptureStage, InferStage, Judge

_EPOCH = datetime.fromtimestamp(0.0, timezone.utc)


class ReplayClock:
    """Callable: the recording's time. Only `Replay` moves it."""

    def __init__(self) -> None:
        self.now = Moment(0.0, _EPOCH)

    def __call__(self) -> Moment:
        return self.now


class ReplayCamera(NamedTuple):
    """The parts of one recorded camera.

    Attributes:
        pipeline: On the replay's clock.
        make_judge: Makes the judge of visibility.
        stall_after_s: Seconds without a frame after which the camera counts as lost.
    """

    pipeline: FacePipeline
    make_judge: Callable[[], Judge]
    stall_after_s: float


class Replay:
    """All cameras of one recording. Each has stages of its own, for a recording does not name its cameras beforehand.

    Args:
        clock: The recording's; the pipelines use it as well.
        open_camera: Makes a camera's parts when it first occurs.
    """

    def __init__(self, clock: ReplayClock, open_camera: Callable[[str], ReplayCamera]) -> None:
        self._clock, self._open_camera = clock, open_camera
        self._cameras: Dict[str, _Stages] = {}
        self._outcomes: List[Outcome] = []
        self._next_tick = 0

    def deliver(self, camera: str, frame: Frame, moment: Moment) -> Iterator[Outcome]:
        """Let time pass until `moment`, then have the camera deliver a frame. Yields the outcomes of both.

        Args:
            camera: Its id.
            frame: Its `t` is that of `moment`; released here.
            moment: May lie a little before the clock: frames of several cameras do not come in order of exposure.
        """
        yield from self._advance(moment)
        if camera not in self._cameras:
            self._cameras[camera] = _Stages(camera, self._open_camera(camera), self._clock, self._outcomes.append)
        stages = self._cameras[camera]
        stages.source.offer(frame)
        while stages.source.pending:
            stages.capture.step()
        yield from self._infer(stages)

    def end(self) -> Iterator[Outcome]:
        """End every camera's source. Yields the last outcomes."""
        for stages in self._cameras.values():
            stages.source.ended = True
            while not stages.capture.ended:
                stages.capture.step()
            yield from self._infer(stages)

    def _advance(self, moment: Moment) -> Iterator[Outcome]:
        # A camera that cannot see is not stepped: the frames that it delivered meanwhile stand in no recording of
        # detections, so their absence is no stall, and nothing ends with time.
        while any(stages.can_see for stages in self._cameras.values()):
            t = self._next_tick / TICKS_PER_S  # Counted, not added up, so that ticks stay at round times.
            if t >= moment.t:
                break
            self._next_tick += 1
            self._clock.now = Moment(t, _EPOCH + timedelta(seconds=t))
            for stages in self._cameras.values():
                if stages.can_see:
                    stages.capture.step()
                    yield from self._infer(stages)
        self._next_tick = max(self._next_tick, math.ceil(moment.t * TICKS_PER_S))
        if moment.t > self._clock.now.t:
            self._clock.now = moment

    def _infer(self, stages: "_Stages") -> Iterator[Outcome]:
        stages.infer.step()
        yield from self._outcomes
        self._outcomes.clear()


class _Stages:
    """The stages of one camera; nothing in them waits."""

    def __init__(self, name: str, camera: ReplayCamera, clock: ReplayClock, sink: Callable[[Outcome], None]) -> None:
        self._name = name
        self.source = _RecordedSource()
        self._mailbox = FrameMailbox([name], wait=lambda condition, seconds: None)
        self.capture = CaptureStage(
            name,
            self.source,
            camera.make_judge,
            self._mailbox,
            clock,
            lambda seconds: None,
            camera.stall_after_s,
            _NoBackOff(),
        )
        self.infer = InferStage(self._mailbox, [name], lambda: {name: camera.pipeline}, clock, sink, every_frame=True)
        self.infer.setup()

    @property
    def can_see(self) -> bool:
        return self._mailbox.sights()[self._name].can_see


class _RecordedSource:
    """A `Source` that delivers the frame it was given, and otherwise none."""

    uri, kind, mode = "recording", "still", "cpu"

    def __init__(self) -> None:
        self.ended = False
        self._frame: Optional[Frame] = None

    @property
    def pending(self) -> bool:
        return self._frame is not None

    def offer(self, frame: Frame) -> None:
        self._frame = frame

    def open(self) -> None:
        pass

    def read(self, timeout_s: float) -> Optional[Frame]:
        if self.ended:
            raise EndOfStream(f"{self.uri}: ended")
        frame, self._frame = self._frame, None
        return frame

    def close(self) -> None:
        pass

    def counters(self) -> Counters:
        return {}


class _NoBackOff(random.Random):
    """A recorded camera is there again with its next frame."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0
