"""Assembles the health report: the only place that gathers the figures of all parts."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from edge_agent.core.meters import LatencyMeter, RateMeter, SlopeMeter
from edge_agent.core.ports import Clock
from edge_agent.core.protocol.health import (
    AgentHealth,
    CameraHealth,
    CameraState,
    LinkHealth,
    MachineHealth,
    status_line,
)
from edge_agent.core.protocol.messages import OutboxStatus
from edge_agent.core.types import Counters, Outcome, Presence
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.publish_queue import PublishQueue
from edge_agent.runtime.stages import CaptureStage


@dataclass(frozen=True)
class HealthSources:
    """Figures that no stage counts; each is read once per report.

    Attributes:
        outbox: Its sizes and losses.
        link: The connection to the broker; also read by other threads.
        commands: Counts of commands accepted and refused.
        machine: Temperatures, throttling, power.
        rss: Resident bytes, or None.
        recovery: Recovery steps taken, by name.
        faults: Faults of the other parts, in words.
    """

    outbox: Callable[[], OutboxStatus]
    link: Callable[[], LinkHealth]
    commands: Callable[[], Mapping[str, Any]]
    machine: Callable[[], MachineHealth]
    rss: Callable[[], Optional[int]]
    recovery: Callable[[], Mapping[str, int]]
    faults: Callable[[], List[str]]


class HealthCollector:
    """Callable: the whole health report as of now. For the publish thread; `status_line` is for any thread.

    Args:
        captures: One stage per camera.
        mailbox: Sights, and frames taken and dropped.
        publish_queue: Events and commands lost in it.
        latencies: Capture to result, per camera.
        sources: All other figures.
        clock: Both clocks.
    """

    def __init__(
        self,
        captures: Mapping[str, CaptureStage],
        mailbox: FrameMailbox,
        publish_queue: PublishQueue,
        latencies: Mapping[str, LatencyMeter],
        sources: HealthSources,
        clock: Clock,
    ) -> None:
        self._captures, self._mailbox, self._publish_queue = captures, mailbox, publish_queue
        self._latencies, self._sources, self._clock = latencies, sources, clock
        self._started_t = clock().t
        self._presence: Dict[str, Presence] = {}
        self._rates: Dict[str, Tuple[RateMeter, RateMeter]] = {name: (RateMeter(), RateMeter()) for name in captures}
        self._rss_slope = SlopeMeter()

    def note(self, outcome: Outcome) -> None:
        """Keep the camera's presence for the status line. For the infer thread."""
        if outcome.report is not None:
            self._presence[outcome.camera] = outcome.report.presence

    def status_line(self) -> str:
        """Return cameras and broker in one line for people."""
        return status_line(self._states(), self._sources.link())

    def __call__(self) -> AgentHealth:
        now = self._clock()
        rss = self._sources.rss()
        return AgentHealth(
            cameras={name: self._camera(name, state, now.t) for name, state in self._states().items()},
            outbox=self._sources.outbox(),
            link=self._sources.link(),
            lost_events=self._publish_queue.lost_events,
            uptime_s=now.t - self._started_t,
            rss_bytes=rss,
            rss_slope_bytes_per_hour=None if rss is None else self._rss_slope.sample(now.t, float(rss)),
            clock_synced=now.synced,
            machine=self._sources.machine(),
            recovery=self._sources.recovery(),
            commands={**self._sources.commands(), "overflowed": self._publish_queue.lost_received},
            faults=self._sources.faults(),
        )

    def _states(self) -> Dict[str, CameraState]:
        return {
            name: CameraState(sight, self._presence.get(name, Presence.UNKNOWN), self._captures[name].last_fault)
            for name, sight in self._mailbox.sights().items()
        }

    def _camera(self, name: str, state: CameraState, t: float) -> CameraHealth:
        delivered = self._mailbox.counters(name)
        captured = self._captures[name].counters
        counters: Counters = {
            "frames": captured.frames,
            "inferred": delivered["inferred"],
            "idle": delivered["idle"],
            "dropped_busy": delivered["dropped_busy"],
            "dropped_dark": captured.dark,
            "dropped_blind": captured.blind,
            "dropped_damaged": captured.damaged,
            "stalls": captured.stalls,
            "faults": captured.faults,
            "recoveries": captured.recoveries,
        }
        counters.update({f"source_{cause}": count for cause, count in captured.source.items()})
        fps_in, fps_inferred = self._rates[name]
        return CameraHealth(
            sight=state.sight,
            fps_in=fps_in.sample(t, captured.frames),
            fps_inferred=fps_inferred.sample(t, delivered["inferred"]),
            counters=counters,
            latency_ms=self._latencies[name].percentiles_ms(),
            last_fault=state.last_fault,
            trouble=self._captures[name].trouble,
        )
