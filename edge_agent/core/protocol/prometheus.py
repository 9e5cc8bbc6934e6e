"""Converts the health message to Prometheus metrics, with Prometheus's names and base units."""

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

from edge_agent.core.params import param
from edge_agent.core.protocol.health import LINK_STATES
from edge_agent.core.types import Sight

STATES = ("ok", "degraded", "failed")
_UNFIT = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True)
class MetricsParams:
    """Metrics for Prometheus over HTTP; needs the package prometheus-client."""

    enabled: bool = param(False, "Serve the figures of the health message to Prometheus", restart=True)
    host: str = param(
        "127.0.0.1",
        "Address to listen on; any other than loopback exposes the figures to the network without a password",
        min_length=1,
        restart=True,
    )
    port: int = param(9746, "TCP port to listen on", ge=1, le=65535, restart=True)


class Metric(NamedTuple):
    """One metric family.

    Attributes:
        name: Name without a counter's suffix `_total`.
        kind: "gauge" or "counter".
        about: Help text.
        labels: Label names.
        samples: Label values and number of each sample.
    """

    name: str
    kind: str
    about: str
    labels: Tuple[str, ...]
    samples: Sequence[Tuple[Tuple[str, ...], float]]


_SINGLE: Tuple[Tuple[str, str, str, str], ...] = (
    ("uptime_s", "uptime_seconds", "gauge", "Seconds since the agent's start."),
    ("rss_bytes", "resident_memory_bytes", "gauge", "Resident memory."),
    ("rss_slope_bytes_per_hour", "resident_memory_slope_bytes_per_hour", "gauge", "Growth of resident memory."),
    ("clock_synced", "clock_synced", "gauge", "1 while the system clock is synchronised."),
    ("temperature_c", "processor_temperature_celsius", "gauge", "Temperature of the warmest processor zone."),
    ("gpu_load", "gpu_load_ratio", "gauge", "Load of the GPU, 0 to 1."),
    ("power.total_w", "power_watts", "gauge", "Power of the whole module."),
    ("outbox.pending", "outbox_messages", "gauge", "Messages waiting to be sent."),
    ("outbox.in_flight", "outbox_in_flight_messages", "gauge", "Messages in flight."),
    ("outbox.bytes", "outbox_bytes", "gauge", "Size of the waiting messages."),
    ("outbox.oldest_s", "outbox_oldest_seconds", "gauge", "Age of the oldest waiting message."),
    ("outbox.quarantined", "outbox_quarantined_messages", "gauge", "Messages in quarantine."),
    ("outbox.dropped", "outbox_dropped", "counter", "Messages discarded to stay within the limits."),
    ("outbox.lost_before", "outbox_lost_before", "counter", "Events lost before the outbox."),
    ("mqtt.connected", "mqtt_connected", "gauge", "1 while the broker is connected."),
    ("mqtt.reconnects", "mqtt_reconnects", "counter", "Connections after the first."),
    ("mqtt.publish_verified", "mqtt_publish_verified", "gauge", "1 when the self-test received its message."),
    ("commands.accepted", "commands_accepted", "counter", "Commands accepted."),
    ("commands.overflowed", "commands_overflowed", "counter", "Commands dropped because the queue was full."),
)
_BY_KEY: Tuple[Tuple[str, str, str, str, str], ...] = (
    ("temperatures_c", "temperature_celsius", "gauge", "zone", "Thermal zones."),
    ("throttling.active", "cooling_state", "gauge", "device", "State of active cooling devices."),
    ("throttling.over_current", "over_current_events", "counter", "kind", "Over-current throttle events."),
    ("power.rails_w", "rail_power_watts", "gauge", "rail", "Power rails."),
    ("commands.refused", "commands_refused", "counter", "reason", "Commands refused."),
    ("recovery", "recovery_steps", "counter", "step", "Recovery steps."),
)
_EXPIRIES: Tuple[Tuple[str, str, str], ...] = (
    ("mqtt.certificate_until", "mqtt_certificate_expiry_timestamp_seconds", "Expiry of the client certificate."),
    (
        "mqtt.broker_certificate_until",
        "mqtt_broker_certificate_expiry_timestamp_seconds",
        "Expiry of the broker certificate.",
    ),
)
_QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}


def metrics_of(health: Mapping[str, Any]) -> List[Metric]:
    """All numbers of a health payload; null values have no sample."""
    found = [_state_set("health_state", "State of the agent.", "state", STATES, {(): health.get("state")})]
    count = float(len(health["reasons"]))
    found.append(Metric("health_reasons", "gauge", "Reasons for a state other than ok.", (), [((), count)]))
    for path, name, kind, about in _SINGLE:
        value = _at(health, path)
        if value is not None:
            found.append(Metric(name, kind, about, (), [((), float(value))]))
    for path, name, about in _EXPIRIES:
        until = _at(health, path)
        if until is not None:
            found.append(Metric(name, "gauge", about, (), [((), _unix_s(until))]))
    if _at(health, "mqtt.state") is not None:
        state: Dict[Tuple[str, ...], Any] = {(): _at(health, "mqtt.state")}
        found.append(_state_set("mqtt_state", "State of the connection to the broker.", "state", LINK_STATES, state))
    for path, name, kind, label, about in _BY_KEY:
        values = _at(health, path)
        if values:
            found.append(Metric(name, kind, about, (label,), [((key,), float(n)) for key, n in values.items()]))
    return [*found, *_cameras(health.get("cameras", {}))]


def _cameras(cameras: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    values = [sight.value for sight in Sight]
    sights: Dict[Tuple[str, ...], Any] = {(camera,): state["sight"] for camera, state in cameras.items()}
    yield _state_set("camera_sight", "Sight of the camera.", "sight", values, sights, ("camera",))
    rates, latencies = [], []
    counters: Dict[str, List[Tuple[Tuple[str, ...], float]]] = {}
    for camera, state in cameras.items():
        rates += [((camera, stage), float(state[f"fps_{stage}"])) for stage in ("in", "inferred")]
        for key, quantile in _QUANTILES.items():
            milliseconds = state["latency_ms"].get(key)
            if milliseconds is not None:
                latencies.append(((camera, quantile), milliseconds / 1000.0))
        for name, count in state["counters"].items():
            counters.setdefault(_UNFIT.sub("_", name), []).append(((camera,), float(count)))
    about = "Frames per second, over ten seconds."
    yield Metric("camera_frame_rate_hertz", "gauge", about, ("camera", "stage"), rates)
    yield Metric("camera_latency_seconds", "gauge", "From exposure to result.", ("camera", "quantile"), latencies)
    for name, samples in counters.items():
        yield Metric(f"camera_{name}", "counter", f"Counter `{name}` of the health message.", ("camera",), samples)


def _state_set(
    name: str,
    about: str,
    label: str,
    words: Sequence[str],
    values: Mapping[Tuple[str, ...], Any],
    more: Tuple[str, ...] = (),
) -> Metric:
    """A state set: 1 for the current value, 0 for all others."""
    samples = [((*key, word), float(word == value)) for key, value in values.items() for word in words]
    return Metric(name, "gauge", about, (*more, label), samples)


def _unix_s(text: str) -> float:
    """Unix time of a timestamp in the health message."""
    return datetime.fromisoformat(text[:-1]).replace(tzinfo=timezone.utc).timestamp()


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
