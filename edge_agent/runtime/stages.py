"""The stages capture, infer and publish. Each works in bounded calls of `step`, so that tests need no threads."""

import logging
import math
import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Callable, Dict, Iterable, Mapping, Optional, Protocol

from edge_agent.core.camera.damage import DamageMonitor
from edge_agent.core.camera.visibility import Visibility
from edge_agent.core.frame import Frame, Levels
from edge_agent.core.meters import LatencyMeter
from edge_agent.core.ports import Clock, Source
from edge_agent.core.presence.pipeline import FacePipeline
from edge_agent.core.types import Array, Counters, Moment, Outcome, Sight
from edge_agent.errors import EndOfStream, SourceError
from edge_agent.runtime.command_queue import CommandQueue
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.publish_queue import PublishQueue
from edge_agent.runtime.worker import DEADLINE_S

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 0.25
REOPEN_FIRST_S = 0.5
REOPEN_MAX_S = 5.0
STEADY_S = 2.0
"""A camera that fails sooner after its open has not recovered: the back-off grows on, and nothing is logged again."""
PUMP_S = 0.1
HEALTH_CHECK_S = 1.0
LATE_S, LATE_AFTER_S = 1.0, 5.0
"""Frames older than this, for so long, are reported in health."""
TICKS_PER_S = 10
"""Ticks fall on multiples of 0.1 s, so that delays end without frames and a replay ticks at round times."""
TAKE_TIMEOUT_S = 1.0 / TICKS_PER_S
_ROUNDING_S = 1e-6
_REGULAR_CALL_S = 1.0  # by then a read has returned, on a busy machine too
_LONGEST_OPEN_S = 10.0  # beyond a network camera's time limit, which follows `stall_after_s`

Judge = Callable[[Array, Levels, float], Visibility]
"""Judges one frame: pixels, their levels, the time of exposure."""


def moment_of(t: float, now: Moment) -> Moment:
    """Return the moment at monotonic `t`, its UTC time derived from both clocks as of `now`."""
    return Moment(t, now.at - timedelta(seconds=now.t - t), now.synced)


@dataclass
class CaptureCounters:
    """Counts of one camera since start. Written by its capture thread.

    Attributes:
        dark: Dark frames of a strobe, dropped while the camera sees.
        blind: Frames dropped because the camera cannot see, or may not be able to.
        damaged: Damaged frames, dropped.
    """

    frames: int = 0
    dark: int = 0
    blind: int = 0
    damaged: int = 0
    stalls: int = 0
    faults: int = 0
    recoveries: int = 0
    source: Counters = field(default_factory=dict)


class CaptureStage:
    """Opens and reads one camera, judges visibility, hands frames over, and reopens with back-off after a fault.

    Args:
        camera: Its id.
        source: Closed; opened by the thread that calls `step`.
        make_judge: Makes the judge of visibility; called at every open, since exposure may differ.
        mailbox: Takes frames and changes of sight.
        clock: Both clocks.
        wait: Sleeps up to so many seconds, less when the worker is to stop.
        stall_after_s: Seconds without a frame after which the source is reopened.
        jitter: Spreads the reopening of many cameras on one bus.

    Attributes:
        deadline_s: Seconds after which a step does not return any more.
        first_open_done: Whether the first open has succeeded or failed.
        ended: Whether the source has ended.
        last_fault: Text of the last fault; empty without one.
        trouble: What is wrong with the frames of a camera that delivers, in words; else empty.
    """

    def __init__(
        self,
        camera: str,
        source: Source,
        make_judge: Callable[[], Judge],
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
        self.last_fault = self.trouble = ""
        self._make_judge, self._mailbox, self._clock, self._wait = make_judge, mailbox, clock, wait
        self._stall_after_s = stall_after_s
        self.deadline_s = max(DEADLINE_S, stall_after_s + _LONGEST_OPEN_S)
        self._jitter = jitter or random.Random()
        self._judge: Optional[Judge] = None
        self._damage = DamageMonitor()
        self._damaged_since_t: Optional[float] = None
        self._late_since_t: Optional[float] = None
        self._opened_t = self._last_frame_t = 0.0
        self._call_t: Optional[float] = None
        self._retry_t = 0.0
        self._failures = 0

    def step(self) -> None:
        """Open the source, or read at most one frame; takes about `READ_TIMEOUT_S`, plus the time of an open."""
        self._call_t = self._clock().t
        try:
            if self.ended:
                self._wait(READ_TIMEOUT_S)
            elif self._judge is None:
                self._open()
            else:
                self._read(self._judge)
        finally:
            self._call_t = None

    def check(self) -> None:
        """Report the camera as lost while a call to it does not return. From any thread; the next frame ends it."""
        call_t, now = self._call_t, self._clock()
        if call_t is None:
            return
        if self._judge is None:
            late = now.t - call_t >= self.deadline_s
        else:
            late = now.t - call_t >= _REGULAR_CALL_S and now.t - self._last_frame_t >= self._stall_after_s
        if late and self._mailbox.set_sight(self.camera, Sight.LOST, now):
            self.last_fault = f"{self.source.uri}: a call to the camera does not return"
            log.warning("%s: %s", self.camera, self.last_fault, extra={"EVENT": "camera-lost"})

    def close(self) -> None:
        """Close the source. Idempotent."""
        self.source.close()
        self._judge = None

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
        self._judge = self._make_judge()
        self._opened_t = self._last_frame_t = self._clock().t

    def _read(self, judge: Judge) -> None:
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
        self._hand_over(judge, frame, now)

    def _hand_over(self, judge: Judge, frame: Frame, now: Moment) -> None:
        if self._failures and now.t - self._opened_t >= STEADY_S:
            back = "%s: %s delivers again after %d failed attempts"
            log.info(back, self.camera, self.source.uri, self._failures, extra={"EVENT": "camera-back"})
            self.counters.recoveries += 1
            self._failures = 0
        self._damage.observe(frame.damaged, now.t)
        self.counters.source = self.source.counters()
        self.trouble = self._trouble(frame, now)
        if frame.damaged or self._damage.blind:
            self._drop_damaged(frame, now)
            return
        visibility = judge(frame.pixels, frame.levels, frame.t)
        if self._mailbox.set_sight(self.camera, visibility.sight, moment_of(frame.t, now)):
            log.info("%s: sight is %s", self.camera, visibility.sight.value, extra={"EVENT": "sight-changed"})
        self._mailbox.set_doubt(self.camera, visibility.doubt or visibility.faint)
        if self._damaged_since_t is not None:
            self._mailbox.add_doubt(self.camera, max(0.0, frame.t - self._damaged_since_t))
            self._damaged_since_t = None
        if visibility.keep:
            frame.faint = visibility.faint
            self._mailbox.put(self.camera, frame)
        else:
            if visibility.sight.can_see and not visibility.doubt:
                self.counters.dark += 1
            else:
                self.counters.blind += 1
            self._drop(frame, blind=not visibility.sight.can_see)

    def _drop_damaged(self, frame: Frame, now: Moment) -> None:
        """A damaged frame proves nothing: the camera is in doubt, and blind when damage lasts."""
        if frame.damaged:
            self.counters.damaged += 1
        else:
            self.counters.blind += 1
        moment = moment_of(frame.t, now)
        if self._damaged_since_t is None:
            self._damaged_since_t = frame.t
        self._mailbox.set_doubt(self.camera, True)
        if self._damage.blind and self._mailbox.set_sight(self.camera, Sight.DAMAGED, moment):
            log.info("%s: sight is %s", self.camera, Sight.DAMAGED.value, extra={"EVENT": "sight-changed"})
        self._drop(frame, blind=self._damage.blind)

    def _drop(self, frame: Frame, blind: bool) -> None:
        """Release a frame that is not inferred, unless a snapshot waits for it: it shows why the camera is blind."""
        if blind and not frame.is_placeholder and self._mailbox.frame_wanted(self.camera):
            self._mailbox.put(self.camera, frame)
        else:
            frame.release()

    def _trouble(self, frame: Frame, now: Moment) -> str:
        """What is wrong with the frames; rounded, so that the same trouble keeps its words."""
        if now.t - frame.t < LATE_S:
            self._late_since_t = None
        elif self._late_since_t is None:
            self._late_since_t = now.t
        words = []
        if self._late_since_t is not None and now.t - self._late_since_t >= LATE_AFTER_S:
            words.append(f"frames are about {now.t - frame.t:.0f} s old")
        if self._damage.share:
            words.append(f"about {max(10, round(self._damage.share, 1) * 100):.0f} % of the frames are damaged")
        return ", ".join(words)

    def _fault(self, error: SourceError) -> None:
        self.counters.faults += 1
        self.last_fault = str(error)
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
    """Runs the frames of all cameras, one at a time, through their pipelines.

    Args:
        mailbox: Delivers frames and changes of sight.
        cameras: Their ids.
        open_pipelines: Opens the engine and makes one pipeline per camera; called by `setup`, in the owning thread.
        clock: Both clocks.
        sink: Takes every outcome with news; must not block.
        every_frame: Whether the detections of each frame are news.
        command_queue: Commands for the pipelines.
    """

    def __init__(
        self,
        mailbox: FrameMailbox,
        cameras: Iterable[str],
        open_pipelines: Callable[[], Mapping[str, FacePipeline]],
        clock: Clock,
        sink: Callable[[Outcome], None],
        every_frame: bool = False,
        command_queue: Optional[CommandQueue] = None,
    ) -> None:
        self._command_queue = command_queue
        self._mailbox, self._open_pipelines, self._clock, self._sink = mailbox, open_pipelines, clock, sink
        self._pipelines: Mapping[str, FacePipeline] = {}
        self._every_frame = every_frame
        self._ticks = -1
        self.capture_to_result: Dict[str, LatencyMeter] = {camera: LatencyMeter() for camera in cameras}

    def setup(self) -> None:
        """Open the engine and the pipelines in the thread that owns them."""
        self._pipelines = self._open_pipelines()

    def step(self) -> None:
        """Wait up to `TAKE_TIMEOUT_S` for one camera's news, process it, run commands, and let delays end."""
        delivery = self._mailbox.take(TAKE_TIMEOUT_S)
        if delivery is not None:
            pipeline = self._pipelines[delivery.camera]
            pipeline.excuse(delivery.doubted_s)
            for sight, moment in delivery.sights:
                self._emit(pipeline.set_sight(sight, moment))
            if delivery.frame is not None:
                with delivery.frame as frame:
                    self._infer(pipeline, delivery.camera, frame)
        now = self._clock()
        for outcome in self._command_queue.run_pending(self._pipelines, now) if self._command_queue is not None else ():
            self._emit(outcome)
        for camera in self._command_queue.waiting_snapshots() if self._command_queue is not None else ():
            self._mailbox.want_frame(camera)
        ticks = math.floor((now.t + _ROUNDING_S) * TICKS_PER_S)
        if ticks > self._ticks:
            self._ticks = ticks
            for camera, pipeline in self._pipelines.items():
                # A camera that may be blind has not shown that anybody left.
                if not self._mailbox.in_doubt(camera):
                    self._emit(pipeline.tick(now))

    def finish(self) -> None:
        """End all open events with the reason "shutdown"; presence becomes unknown. Not while `step` changes them."""
        self._mailbox.close()
        now = self._clock()
        for pipeline in self._pipelines.values():
            self._emit(pipeline.set_sight(Sight.STOPPED, now))

    def _infer(self, pipeline: FacePipeline, camera: str, frame: Frame) -> None:
        info = pipeline.frame_info(frame, moment_of(frame.t, self._clock()))
        if self._command_queue is not None:
            self._command_queue.take_snapshots(pipeline, frame, info)
        outcome = pipeline.step(frame, info)
        self._emit(outcome)
        if outcome.idle:
            self._mailbox.count_idle(camera)
        else:
            self.capture_to_result[camera].add(self._clock().t - frame.t)

    def _emit(self, outcome: Optional[Outcome]) -> None:
        if outcome is None:
            return
        if outcome.events or outcome.report or outcome.first_crop or (self._every_frame and outcome.info):
            self._sink(outcome)


class MessagePublisher(Protocol):
    """The publish stage's port to the broker; see `mqtt.publisher.Publisher`."""

    @property
    def connected(self) -> bool: ...
    def outcome(self, outcome: Outcome) -> None: ...
    def handle(self, item: object) -> None: ...
    def info(self, info: Mapping[str, object]) -> None: ...
    def health(self, health: Mapping[str, object]) -> None: ...
    def pump(self) -> None: ...


class PublishStage:
    """Hands outcomes and client events to the publisher, and publishes info and health.

    Args:
        publish_queue: Delivers outcomes, client events and calls.
        publisher: Called by this stage's thread only.
        health: Returns the health report's payload.
        info: Returns what the agent is.
        clock: Both clocks.
        health_interval_s: Seconds between health reports; may be replaced at any time. A change of the state, its
            reasons or the connection is published within `HEALTH_CHECK_S`.
    """

    def __init__(
        self,
        publish_queue: PublishQueue,
        publisher: MessagePublisher,
        health: Callable[[], Mapping[str, object]],
        info: Callable[[], Mapping[str, object]],
        clock: Clock,
        health_interval_s: float = 30.0,
    ) -> None:
        self._publish_queue, self._publisher, self._clock = publish_queue, publisher, clock
        self._health, self._info = health, info
        self.health_interval_s = health_interval_s
        self._next_check_t = 0.0
        self._published_t = -math.inf
        self._connected = False
        self._published_state: object = None
        self._published_info: object = None

    def step(self) -> None:
        """Wait up to `PUMP_S` for something to do, and do all of it."""
        for item in self._publish_queue.take(PUMP_S):
            if isinstance(item, Outcome):
                self._publisher.outcome(item)
            elif callable(item):
                item()
            else:
                self._publisher.handle(item)
        now = self._clock()
        # Before anything is sent: else a new session would begin with a report of the connection that was missing.
        changed = self._publisher.connected != self._connected
        if changed or now.t >= self._next_check_t:
            self._next_check_t = now.t + HEALTH_CHECK_S
            self._report(now, always=changed)
        self._publisher.pump()

    def finish(self) -> None:
        """Publish the last health report."""
        self._report(self._clock(), always=True)

    def _report(self, now: Moment, always: bool) -> None:
        self._connected = self._publisher.connected
        info = self._info()
        if info != self._published_info:
            self._published_info = info
            self._publisher.info(info)
        health = self._health()
        state = (health["state"], health["reasons"])
        if always or state != self._published_state or now.t - self._published_t >= self.health_interval_s:
            self._published_state, self._published_t = state, now.t
            self._publisher.health(health)
