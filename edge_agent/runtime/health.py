"""Gathers the stages' own counters into one `AgentHealth`. Reads only; called from the publish thread."""

from typing import Callable, Dict, Mapping, Optional, Protocol, Sequence, Tuple

from edge_agent.core.meters import LatencyMeter, RateMeter, SlopeMeter
from edge_agent.core.ports import Clock
from edge_agent.core.protocol.health import AgentHealth, CameraHealth, MachineHealth
from edge_agent.core.protocol.messages import OutboxStatus
from edge_agent.core.types import Counters, Sight
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.publish_queue import PublishQueue
from edge_agent.runtime.stages import CaptureStage


class Link(Protocol):
    """What the broker client says of itself."""

    @property
    def connected(self) -> bool:
        """True only after an accepting CONNACK."""

    @property
    def reconnects(self) -> int:
        """Connections after the first."""

    @property
    def last_fault(self) -> str:
        """In words; empty when there was none."""


class HealthCollector:
    """Callable: the agent's health now.

    Args:
        captures: One stage per camera.
        mailbox: The slots.
        publish_queue: The publish queue.
        latencies: Frame to result, per camera.
        outbox: Its status.
        link: The broker client's.
        rss: Resident bytes, or None.
        machine: Temperatures and the like.
        recovery: Steps of recovery that were taken.
        clock: Both clocks.
    """

    def __init__(
        self,
        captures: Mapping[str, CaptureStage],
        mailbox: FrameMailbox,
        publish_queue: PublishQueue,
        latencies: Mapping[str, LatencyMeter],
        outbox: Callable[[], OutboxStatus],
        link: Callable[[], Link],
        rss: Callable[[], Optional[int]],
        machine: Callable[[], MachineHealth],
        recovery: Callable[[], Mapping[str, int]],
        clock: Clock,
    ) -> None:
        self._captures, self._mailbox, self._publish_queue, self._latencies = (
            captures,
            mailbox,
            publish_queue,
            latencies,
        )
        self._outbox, self._link, self._rss, self._clock = outbox, link, rss, clock
        self._machine, self._recovery = machine, recovery
        self._started_t = clock().t
        self._rates: Dict[str, Tuple[RateMeter, RateMeter]] = {name: (RateMeter(), RateMeter()) for name in captures}
        self._slope = SlopeMeter()

    def __call__(self, faults: Sequence[str] = ()) -> AgentHealth:
        """Now; `faults` are reasons that others know of."""
        now = self._clock()
        rss = self._rss()
        link = self._link()
        sights = self._mailbox.sights()
        return AgentHealth(
            cameras={name: self._camera(name, stage, sights[name], now.t) for name, stage in self._captures.items()},
            outbox=self._outbox(),
            connected=link.connected,
            reconnects=link.reconnects,
            broker_fault=link.last_fault,
            lost_events=self._publish_queue.lost_events,
            uptime_s=now.t - self._started_t,
            rss_bytes=rss,
            rss_slope_bytes_per_hour=None if rss is None else self._slope.sample(now.t, float(rss)),
            clock_synced=now.synced,
            machine=self._machine(),
            recovery=self._recovery(),
            faults=list(faults),
        )

    def _camera(self, name: str, stage: CaptureStage, sight: Sight, t: float) -> CameraHealth:
        slot = self._mailbox.counters(name)
        own = stage.counters
        counters: Counters = {
            "frames": own.frames,
            "inferred": slot["inferred"],
            "idle": slot["idle"],
            "dropped_busy": slot["dropped_busy"],
            "dropped_dark": own.dark,
            "dropped_blind": own.blind,
            "stalls": own.stalls,
            "faults": own.faults,
            "recoveries": own.recoveries,
        }
        counters.update({f"source_{cause}": count for cause, count in own.source.items()})
        fps_in, fps_inferred = self._rates[name]
        return CameraHealth(
            sight=sight,
            fps_in=fps_in.sample(t, own.frames),
            fps_inferred=fps_inferred.sample(t, slot["inferred"]),
            counters=counters,
            latency_ms=self._latencies[name].percentiles_ms(),
            last_fault=own.last_fault,
        )
