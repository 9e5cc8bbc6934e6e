"""The health message `B/health`: figures of the machine, the cameras and the agent, and the state derived from them."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Dict, List, Mapping, Optional

from edge_agent.core.params import param
from edge_agent.core.protocol.messages import OutboxStatus, timestamp
from edge_agent.core.types import Counters, Presence, Sight


@dataclass(frozen=True)
class Throttling:
    """Throttling of the processors.

    Attributes:
        active: State of each active cooling device, without fans; None where the machine has none.
        over_current: Throttle events since the agent's start, by the SoC's name: oc1 under-voltage, oc2 average, oc3
            peak current. None where they are not counted.
    """

    active: Optional[Mapping[str, int]] = None
    over_current: Optional[Mapping[str, int]] = None


@dataclass(frozen=True)
class Power:
    """Measured power rails.

    Attributes:
        rails_w: Watts by name of the rail.
        total_w: Power of the whole module; None where no rail, or known set of rails, measures it.
    """

    rails_w: Mapping[str, float]
    total_w: Optional[float] = None


@dataclass(frozen=True)
class MachineHealth:
    """Figures of the machine; a figure that cannot be read is missing or None.

    Attributes:
        temperature_c: Temperature of the warmest processor zone.
        temperatures_c: Temperatures of all readable zones, by type.
        gpu_load: Load of the GPU, 0..1.
    """

    temperature_c: Optional[float] = None
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    throttling: Optional[Throttling] = None
    power: Optional[Power] = None
    gpu_load: Optional[float] = None

    def payload(self) -> Dict[str, Any]:
        """The fields of these figures in the health message."""
        throttling, power = self.throttling, self.power
        return {
            "temperature_c": self.temperature_c,
            "temperatures_c": dict(self.temperatures_c),
            "throttling": throttling
            and {
                "active": None if throttling.active is None else dict(throttling.active),
                "over_current": None if throttling.over_current is None else dict(throttling.over_current),
            },
            "power": power and {"total_w": power.total_w, "rails_w": dict(power.rails_w)},
            "gpu_load": self.gpu_load,
        }


@dataclass(frozen=True)
class HealthParams:
    """How often health messages are sent."""

    # Home Assistant's entities expire after 180 s, so one message may be late.
    interval_s: float = param(30.0, "Seconds between health messages; a change of state is sent at once", ge=1, le=90)


LINK_STATES = ("connecting", "connected", "waiting", "closed")


@dataclass(frozen=True)
class LinkHealth:
    """The connection to the broker.

    Attributes:
        connected: True only after an accepting CONNACK.
        reconnects: Connections after the first.
        last_fault: Text of the last fault, also after recovery; empty without one.
        state: One of `LINK_STATES`.
        protocol: "5" or "3.1.1".
        fault: Text of the current fault; empty while connected.
        publish_verified: Whether the self-test received its message; None on MQTT 5 and before the first result.
        certificate_until: End of the client certificate's validity; None without one.
        broker_certificate_until: End of the broker certificate's validity; None without TLS.
    """

    connected: bool = False
    reconnects: int = 0
    last_fault: str = ""
    state: str = "connecting"
    protocol: str = ""
    fault: str = ""
    publish_verified: Optional[bool] = None
    certificate_until: Optional[datetime] = None
    broker_certificate_until: Optional[datetime] = None

    def payload(self) -> Dict[str, Any]:
        """Return the `mqtt` object of the health message."""
        return {
            "connected": self.connected,
            "reconnects": self.reconnects,
            "last_fault": self.last_fault,
            "state": self.state,
            "protocol": self.protocol,
            "fault": self.fault,
            "publish_verified": self.publish_verified,
            "certificate_until": self.certificate_until and timestamp(self.certificate_until),
            "broker_certificate_until": self.broker_certificate_until and timestamp(self.broker_certificate_until),
        }


@dataclass(frozen=True)
class CameraState:
    """State of one camera in the status line.

    Attributes:
        last_fault: Text of the source's last fault; empty without one.
    """

    sight: Sight
    presence: Presence
    last_fault: str = ""


@dataclass(frozen=True)
class CameraHealth:
    """Figures of one camera since the start.

    Attributes:
        fps_in: Captured frames per second, over ten seconds.
        fps_inferred: Inferred frames per second.
        counters: Drops by cause, dark frames, stalls, faults, recoveries.
        latency_ms: Exposure to result: p50, p95, p99, or None without a measurement.
        last_fault: Text of the last fault; empty without one.
        trouble: What is wrong with the frames of a camera that delivers; empty when nothing is. A reason of the state.
    """

    sight: Sight
    fps_in: float
    fps_inferred: float
    counters: Counters
    latency_ms: Mapping[str, Optional[float]]
    last_fault: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class AgentHealth:
    """All figures of the health message."""

    cameras: Mapping[str, CameraHealth]
    outbox: OutboxStatus
    link: LinkHealth
    lost_events: int
    uptime_s: float
    rss_bytes: Optional[int]
    rss_slope_bytes_per_hour: Optional[float]
    clock_synced: bool
    machine: MachineHealth = MachineHealth()
    recovery: Mapping[str, int] = field(default_factory=dict)
    commands: Mapping[str, Any] = field(default_factory=dict)
    faults: List[str] = field(default_factory=list)


def health_payload(health: AgentHealth) -> Dict[str, Any]:
    """The health message as a dict.

    Its state is "failed" when no camera can see and none is only dark, "degraded" when there is any other reason, and
    else "ok".
    """
    blind = [
        f"camera {camera}: {state.sight.value}"
        for camera, state in health.cameras.items()
        if not state.sight.available and state.sight is not Sight.STARTING
    ]
    troubled = [f"camera {camera}: {state.trouble}" for camera, state in health.cameras.items() if state.trouble]
    reasons = blind + troubled + list(health.faults)
    if health.outbox.dropped or health.lost_events:
        reasons.append("messages were dropped")
    if health.outbox.quarantined:
        reasons.append("messages are in quarantine")
    # A camera that is dark delivers frames: it works, and light is all that it lacks.
    dark = any(state.sight is Sight.DARK for state in health.cameras.values())
    failed = bool(health.cameras) and len(blind) == len(health.cameras) and not dark
    return {
        "schema": "edge-agent.health/1",
        "state": "failed" if failed else "degraded" if reasons else "ok",
        "reasons": reasons,
        "uptime_s": round(health.uptime_s, 1),
        "cameras": {camera: _camera(state) for camera, state in health.cameras.items()},
        "rss_bytes": health.rss_bytes,
        "rss_slope_bytes_per_hour": _rounded(health.rss_slope_bytes_per_hour),
        "outbox": {
            "pending": health.outbox.pending,
            "in_flight": health.outbox.in_flight,
            "bytes": health.outbox.bytes,
            "oldest_s": round(health.outbox.oldest_s, 1),
            "dropped": health.outbox.dropped,
            "quarantined": health.outbox.quarantined,
            "lost_before": health.lost_events,
        },
        "mqtt": health.link.payload(),
        "clock_synced": health.clock_synced,
        **health.machine.payload(),
        "recovery": dict(health.recovery),
        "commands": dict(health.commands),
    }


def status_line(cameras: Mapping[str, CameraState], link: LinkHealth) -> str:
    """Return a one-line summary: cameras by state, and the connection to the broker."""
    blind: List[str] = []
    count = dict.fromkeys(Presence, 0)
    for camera, state in cameras.items():
        if state.sight.can_see:
            count[state.presence] += 1
        else:
            fault = state.last_fault if state.sight is Sight.LOST else ""
            blind.append(f"{camera} ({fault or state.sight.value})")
    parts = [f"{len(cameras)} camera{'' if len(cameras) == 1 else 's'}"]
    parts += [f"{count[Presence.YES]} with a face"] if count[Presence.YES] else []
    parts += [f"{count[Presence.NO]} without a face"] if count[Presence.NO] else []
    parts += [f"{count[Presence.UNKNOWN]} not known yet"] if count[Presence.UNKNOWN] else []
    parts += [f"{len(blind)} cannot see: {', '.join(blind)}"] if blind else []
    fault = f" ({link.fault})" if link.fault else ""
    return f"{', '.join(parts)}; broker {'connected' if link.connected else 'not connected' + fault}"


def _camera(state: CameraHealth) -> Dict[str, Any]:
    return {
        "sight": state.sight.value,
        "fps_in": round(state.fps_in, 2),
        "fps_inferred": round(state.fps_inferred, 2),
        "counters": dict(state.counters),
        "latency_ms": dict(state.latency_ms),
        "last_fault": state.last_fault,
    }


def _rounded(value: Optional[float]) -> Optional[int]:
    return None if value is None else round(value)
