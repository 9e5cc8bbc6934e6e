"""A pipeline under a test's control: the test places the faces and advances the clock."""

import itertools
from typing import List, Optional, Tuple

import numpy as np

from edge_agent.core.camera.params import CameraParams
from edge_agent.core.frame import Frame
from edge_agent.core.presence.pipeline import FacePipeline, PipelineParams
from edge_agent.core.types import CameraReport, Detections, FaceEvent, Outcome, Sight
from tests.fakes.clock import FakeClock

WIDTH, HEIGHT = 640, 480
SIDE = 80
INFER_S = 0.004
EMPTY_ROOM = np.full((HEIGHT, WIDTH), 90, np.uint8)

Centre = Tuple[float, float]


class ScriptedDetector:
    """Returns the detections set last; each call takes `INFER_S` on the test's clock."""

    def __init__(self, clock: FakeClock) -> None:
        self.answer = Detections.empty()
        self.fault: Optional[Exception] = None
        self.calls = 0
        self.image = None
        self._clock = clock

    def detect(self, image):
        self.calls += 1
        self.image = image
        self._clock.advance(INFER_S)
        if self.fault is not None:
            raise self.fault
        return self.answer


class StagedCamera:
    """A pipeline with detector and clock; records all events and reports."""

    def __init__(self, sight: Optional[Sight] = Sight.OK, camera: Optional[CameraParams] = None, **params) -> None:
        self.clock = FakeClock()
        self.detector = ScriptedDetector(self.clock)
        ids = (f"event-{number}" for number in itertools.count(1))
        shared = PipelineParams(**params)
        self.pipeline = FacePipeline(
            "door",
            camera or CameraParams("test://"),
            self.detector,
            lambda: next(ids),
            self.clock,
            shared,
        )
        self.sequence = 0
        self.events: List[FaceEvent] = []
        self.reports: List[CameraReport] = []
        if sight is not None:
            self.sight(sight)

    def show(
        self, *centres: Centre, after_s=0.1, side=SIDE, score=0.9, pixels=None, latency_s=0.0, kind="max", faint=False
    ) -> Outcome:
        """A frame, `after_s` after the last step, with faces around `centres` px; it arrives `latency_s` later."""
        self.clock.advance(after_s)
        taken = self.clock()
        self.clock.advance(latency_s)
        c = np.array(centres, np.float32).reshape(-1, 2)
        self.detector.answer = Detections(np.hstack([c - side / 2, c + side / 2]), np.full(len(c), score), kind)
        self.sequence += 1
        with Frame(EMPTY_ROOM if pixels is None else pixels, self.sequence, taken.t) as frame:
            frame.faint = faint
            return self._record(self.pipeline.step(frame, self.pipeline.frame_info(frame, taken)))

    def tick(self, after_s=0.1) -> Optional[Outcome]:
        return self._record(self.pipeline.tick(self.clock.advance(after_s)))

    def sight(self, sight: Sight, after_s=0.0) -> Optional[Outcome]:
        return self._record(self.pipeline.set_sight(sight, self.clock.advance(after_s)))

    def set_enabled(self, on: bool) -> Optional[Outcome]:
        return self._record(self.pipeline.set_enabled(on, self.clock()))

    @property
    def published(self) -> List[Tuple[str, str]]:
        return [(event.event_type, event.event_id) for event in self.events]

    @property
    def report(self) -> CameraReport:
        """The newest published report, which has to equal the state of the pipeline."""
        unpublished_best_score = self.pipeline.report().best_score
        assert self.pipeline.report() == self.reports[-1].__class__(
            **{**vars(self.reports[-1]), "best_score": unpublished_best_score}
        )
        return self.reports[-1]

    def _record(self, outcome: Optional[Outcome]) -> Optional[Outcome]:
        if outcome is not None:
            self.events += outcome.events
            self.reports += [outcome.report] if outcome.report else []
        return outcome


def textured(*faces: Tuple[float, float, int], side=SIDE) -> np.ndarray:
    """(H, W) uint8 gray room with one checkered face per (x, y, level), whose bright squares have that level."""
    pixels = np.full((HEIGHT, WIDTH), 60, np.uint8)
    y, x = np.mgrid[:side, :side]
    for cx, cy, level in faces:
        left, top = int(cx - side / 2), int(cy - side / 2)
        pixels[top : top + side, left : left + side] = np.where((x // 8 + y // 8) % 2, level, 60)
    return pixels
