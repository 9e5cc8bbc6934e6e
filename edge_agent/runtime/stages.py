"""The three stages, each with a bounded `step()`, so that tests need no threads."""

import logging
import math
import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Callable, Dict, Iterable, Mapping, Optional, Protocol

from edge_agent.core.frame import Frame, Levels
from edge_agent.core.meters import LatencyMeter
from edge_agent.core.ports import Clock, Source
from edge_agent.core.types import Array, Counters, FrameInfo, Moment, Outcome, Sight
from edge_agent.errors import EndOfStream, SourceError
from edge_agent.runtime.command_queue import CommandQueue, CommandTarget
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.publish_queue import PublishQueue

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 0.25
REOPEN_FIRST_S = 0.5
REOPEN_MAX_S = 5.0
STEADY_S = 2.0
"""A camera that fails sooner after its open has not come back: it climbs the ladder on, and is told once."""
PUMP_S = 0.1
HEALTH_LOOK_S = 1.0
TICK_S = 0.1
"""The infer thread looks at the clock at least this often, so that delays end without frames."""


class Monitor(Protocol):
    """What the capture stage needs of `core.illumination`."""

    def observe(self, pixels: Array, levels: Levels, t: float) -> "VerdictLike":
        """Judge one frame."""


class VerdictLike(Protocol):
    """Whether the frame goes on, and whether the camera can see."""

    @property
    def keep(self) -> bool:
        """True when the frame is worth inferring."""

    @property
    def sight(self) -> Sight:
        """The camera's state as of this frame."""

    @property
    def doubt(self) -> bool:
        """True while the camera may have gone blind, which is not proven yet."""


class Pipeline(CommandTarget, Protocol):
    """What the infer stage needs of `core.pipeline.FacePipeline`."""

    def frame_info(self, frame: Frame, moment: Moment) -> FrameInfo:
        """The frame's identity, upright."""

    def step(self, frame: Frame, info: FrameInfo) -> Outcome:
        """One frame through."""

    def tick(self, moment: Moment) -> Optional[Outcome]:
        """Let delays end."""

    def set_sight(self, sight: Sight, moment: Moment) -> Optional[Outcome]:
        """The camera gained or lost sight."""


def moment_of(t: float, now: Moment) -> Moment:
    """The moment at monotonic `t`, given both clocks now: the camera's stamp turned to UTC."""
    return Moment(t, now.at - timedelta(seconds=now.t - t), now.synced)


@dataclass
class CaptureCounters:
    """What happened to one camera since start. Written by its capture thread.

    Attributes:
        dark: Dark frames of a strobe, dropped while the camera sees.
        blind: Frames dropped since the camera cannot see, or may not be able to.
    """

    frames: int = 0
    dark: int = 0
    blind: int = 0
    stalls: int = 0
    faults: int = 0
    recoveries: int = 0
    source: Counters = field(default_factory=dict)
    last_fault: str = ""


class CaptureStage:
    """One camera: open, read, judge the light, hand over; on a fault close, back off and open again.

    Args:
        camera: Its id.
        source: Closed; opened here, by the thread that calls `step`.
        monitor: Judges light and life of each frame; made anew at every open, since exposure may differ.
        mailbox: Where frames and sight go.
        clock: Both clocks.
        wait: Sleeps up to so many seconds, or less when the worker is to stop.
        stall_after_s: Without a frame for so long the source is closed and opened again.
        jitter: Spreads the reopening of many cameras on one bus.
    """

    def __init__(
        self,
        camera: str,
        source: Source,
        monitor: Callable[[], Monitor],
        mailbox: FrameMailbox,
        clock: Clock,
        wait: Callable[[float], None],
        stall_after_s: float = 5.0,
        jitter: Optional[random.Random] = None,
    ) -> None:
        self.camera = camera
        self.source = source
        self.counters = CaptureCounters()
        self.first_open_done = False
        self.ended = False
        self._make_monitor, self._mailbox, self._clock, self._wait = monitor, mailbox, clock, wait
        self._stall_after_s = stall_after_s
        self._jitter = jitter or random.Random()
        self._monitor: Optional[Monitor] = None
        self._opened_t = self._last_frame_t = 0.0
        self._retry_t = 0.0
        self._failures = 0

    def step(self) -> None:
        """Open, or read at most one frame; at most about a quarter of a second, plus the time an open takes."""
        if self.ended:
            self._wait(READ_TIMEOUT_S)
        elif self._monitor is None:
            self._open()
        else:
            self._read(self._monitor)

    def abandon(self) -> None:
        """A call to the camera does not return, so nothing that was seen holds any more. From any thread.

        Should it return after all, the next frame tells what is seen.
        """
        if self._mailbox.set_sight(self.camera, Sight.LOST, self._clock()):
            self.counters.last_fault = f"{self.source.uri}: a call to the camera does not return"
            log.warning("%s: %s", self.camera, self.counters.last_fault, extra={"EVENT": "camera-lost"})

    def close(self) -> None:
        """Give the device back. Idempotent."""
        self.source.close()
        self._monitor = None

    def _open(self) -> None:
        now = self._clock()
        if now.t < self._retry_t:
            self._wait(min(READ_TIMEOUT_S, self._retry_t - now.t))
            return
        try:
            self.source.open()
        except SourceError as error:
            self._fault(error)
            return
        finally:
            self.first_open_done = True
        self._monitor = self._make_monitor()
        self._opened_t = self._last_frame_t = self._clock().t

    def _read(self, monitor: Monitor) -> None:
        try:
            frame = self.source.read(READ_TIMEOUT_S)
        except EndOfStream:
            log.info("%s: %s has ended", self.camera, self.source.uri, extra={"EVENT": "source-ended"})
            self.ended = True
            self._mailbox.set_sight(self.camera, Sight.ENDED, self._clock())
            self.close()
            return
        except SourceError as error:
            self._fault(error)
            return
        now = self._clock()
        if frame is None:
            if now.t - self._last_frame_t >= self._stall_after_s:
                self.counters.stalls += 1
                self._fault(SourceError(f"{self.source.uri}: no frame for {self._stall_after_s:g} s"))
            return
        self._last_frame_t = now.t
        self.counters.frames += 1
        self._judge(monitor, frame, now)

    def _judge(self, monitor: Monitor, frame: Frame, now: Moment) -> None:
        if self._failures and now.t - self._opened_t >= STEADY_S:
            back = "%s: %s delivers again after %d failed attempts"
            log.info(back, self.camera, self.source.uri, self._failures, extra={"EVENT": "camera-back"})
            self.counters.recoveries += 1
            self._failures = 0
        verdict = monitor.observe(frame.pixels, frame.levels, frame.t)
        if self._mailbox.set_sight(self.camera, verdict.sight, moment_of(frame.t, now)):
            log.info("%s: sight is %s", self.camera, verdict.sight.value, extra={"EVENT": "sight-changed"})
        self._mailbox.set_doubt(self.camera, verdict.doubt)
        if verdict.keep:
            self._mailbox.put(self.camera, frame)
        else:
            frame.release()
            if verdict.sight.can_see and not verdict.doubt:
                self.counters.dark += 1
            else:
                self.counters.blind += 1
        self.counters.source = self.source.counters()

    def _fault(self, error: SourceError) -> None:
        self.counters.faults += 1
        self.counters.last_fault = str(error)
        self.counters.source = self.source.counters()
        self.close()
        self._failures += 1
        first = self._failures == 1
        level = logging.WARNING if first else logging.DEBUG
        log.log(level, "%s: %s", self.camera, error, extra={"EVENT": "camera-lost"})
        delay = min(REOPEN_MAX_S, REOPEN_FIRST_S * 2 ** min(self._failures - 1, 8))
        now = self._clock()
        self._retry_t = now.t + delay * self._jitter.uniform(0.5, 1.0)
        self._mailbox.set_sight(self.camera, Sight.LOST, now)
        self._mailbox.set_doubt(self.camera, False)


class InferStage:
    """Frames of all cameras, one at a time, through their pipelines.

    Args:
        mailbox: Where frames come from.
        cameras: Their ids.
        open_pipelines: Makes one pipeline per camera, and the engine behind them; called by `setup`, in the thread that
            will own them.
        clock: Both clocks.
        sink: Takes every outcome that says something; must not block.
        every_frame: True when each frame's detections are news too.
        command_queue: Commands for the pipelines.
    """

    def __init__(
        self,
        mailbox: FrameMailbox,
        cameras: Iterable[str],
        open_pipelines: Callable[[], Mapping[str, Pipeline]],
        clock: Clock,
        sink: Callable[[Outcome], None],
        every_frame: bool = False,
        command_queue: Optional[CommandQueue] = None,
    ) -> None:
        self._command_queue = command_queue
        self._mailbox, self._open_pipelines, self._clock, self._sink = mailbox, open_pipelines, clock, sink
        self._pipelines: Mapping[str, Pipeline] = {}
        self._every_frame = every_frame
        self._next_tick_t = 0.0
        self.capture_to_result: Dict[str, LatencyMeter] = {camera: LatencyMeter() for camera in cameras}

    def setup(self) -> None:
        """Make what only this thread may touch."""
        self._pipelines = self._open_pipelines()

    def step(self) -> None:
        """Wait up to `TICK_S` for news, think about it, and let delays end."""
        delivery = self._mailbox.take(TICK_S)
        if delivery is not None:
            pipeline = self._pipelines[delivery.camera]
            for sight, moment in delivery.sights:
                self._emit(pipeline.set_sight(sight, moment))
            if delivery.frame is not None:
                with delivery.frame as frame:
                    info = pipeline.frame_info(frame, moment_of(frame.t, self._clock()))
                    if self._command_queue is not None:
                        self._command_queue.take_snapshots(pipeline, frame, info)
                    result = pipeline.step(frame, info)
                    self._emit(result)
                    if result.idle:
                        self._mailbox.count_idle(delivery.camera)
                    else:
                        self.capture_to_result[delivery.camera].add(self._clock().t - frame.t)
        now = self._clock()
        for outcome in self._command_queue.run_pending(self._pipelines, now) if self._command_queue is not None else ():
            self._emit(outcome)
        if now.t >= self._next_tick_t:
            self._next_tick_t = now.t + TICK_S
            for camera, pipeline in self._pipelines.items():
                # A camera that may be blind has not shown that anybody left.
                if not self._mailbox.in_doubt(camera):
                    self._emit(pipeline.tick(now))

    def finish(self) -> None:
        """Say what is true at the end: open events close with "shutdown", presence becomes unknown."""
        self._mailbox.close()
        now = self._clock()
        for pipeline in self._pipelines.values():
            self._emit(pipeline.set_sight(Sight.STOPPED, now))

    def _emit(self, outcome: Optional[Outcome]) -> None:
        if outcome is None:
            return
        if outcome.events or outcome.report or outcome.first_crop or (self._every_frame and outcome.info):
            self._sink(outcome)


class Publisher(Protocol):
    """What the publish stage needs of `mqtt.publisher`."""

    def outcome(self, outcome: Outcome) -> None:
        """Keep what must be sent."""

    def notice(self, notice: object) -> None:
        """Something the broker client noticed, or a `Lost` in the place of events that the publish_queue had to drop."""

    def info(self, info: Mapping[str, object]) -> None:
        """What the agent is, from now on."""

    def health(self, health: Mapping[str, object]) -> None:
        """How the agent is, now."""

    def pump(self) -> None:
        """Send what can be sent. Never blocks."""


class PublishStage:
    """From outcomes to the outbox to the broker.

    Args:
        publish_queue: Where outcomes and notices come from.
        publisher: Called by one thread only.
        health: Tells how the agent is.
        info: Tells what it is.
        clock: Both clocks.
        health_interval_s: The state is sent this often, and within a second of a change; may be replaced at any time.
    """

    def __init__(
        self,
        publish_queue: PublishQueue,
        publisher: Publisher,
        health: Callable[[], Mapping[str, object]],
        info: Callable[[], Mapping[str, object]],
        clock: Clock,
        health_interval_s: float = 30.0,
    ) -> None:
        self._publish_queue, self._publisher, self._clock = publish_queue, publisher, clock
        self._health, self._info = health, info
        self.health_interval_s = health_interval_s
        self._next_look_t = 0.0
        self._sent_t = -math.inf
        self._told: object = None
        self._told_info: object = None

    def step(self) -> None:
        """Wait up to `PUMP_S` for something to do, and do all of it."""
        for item in self._publish_queue.take(PUMP_S):
            if isinstance(item, Outcome):
                self._publisher.outcome(item)
            elif callable(item):
                item()
            else:
                self._publisher.notice(item)
        now = self._clock()
        if now.t >= self._next_look_t:
            self._next_look_t = now.t + HEALTH_LOOK_S
            self._look(now)
        self._publisher.pump()

    def finish(self) -> None:
        """Say how it ended, whatever was said last."""
        self._told = None
        self._look(self._clock())

    def _look(self, now: Moment) -> None:
        info = self._info()
        if info != self._told_info:
            self._told_info = info
            self._publisher.info(info)
        health = self._health()
        told = (health["state"], health["reasons"])
        if told != self._told or now.t - self._sent_t >= self.health_interval_s:
            self._told, self._sent_t = told, now.t
            self._publisher.health(health)
