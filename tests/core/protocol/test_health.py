"""The health message: its state and reasons."""

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from edge_agent.core.protocol.health import AgentHealth, CameraHealth, LinkHealth, health_payload
from edge_agent.core.protocol.messages import OutboxStatus
from edge_agent.core.protocol.prometheus import metrics_of
from edge_agent.core.types import Sight


def camera(sight):
    return CameraHealth(sight, 30.0, 29.5, {"frames": 7}, {"p50": 1.0}, "")


def health(*sights, **more):
    cameras = {f"c{number}": camera(sight) for number, sight in enumerate(sights)}
    known = AgentHealth(cameras, OutboxStatus(), LinkHealth(True), 0, 12.34, None, None, True)
    return health_payload(replace(known, **more))


@pytest.mark.parametrize(
    ("sights", "state", "reasons"),
    [
        ((), "ok", []),
        ((Sight.OK, Sight.OK), "ok", []),
        ((Sight.STARTING, Sight.DISABLED), "ok", []),
        ((Sight.OK, Sight.DARK), "degraded", ["camera c1: dark"]),
        ((Sight.DISABLED, Sight.LOST), "degraded", ["camera c1: lost"]),
        ((Sight.DARK,), "degraded", ["camera c0: dark"]),
        ((Sight.DARK, Sight.LOST), "degraded", ["camera c0: dark", "camera c1: lost"]),
        ((Sight.EMITTER, Sight.COVERED), "failed", ["camera c0: emitter", "camera c1: covered"]),
    ],
)
def test_one_blind_camera_degrades_and_all_blind_fail(sights, state, reasons):
    payload = health(*sights)
    assert (payload["state"], payload["reasons"]) == (state, reasons)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"faults": ["metrics: port taken"]}, "metrics: port taken"),
        ({"outbox": OutboxStatus(dropped=1)}, "messages were dropped"),
        ({"lost_events": 1}, "messages were dropped"),
        ({"outbox": OutboxStatus(quarantined=1)}, "messages are in quarantine"),
    ],
)
def test_any_other_fault_degrades(more, reason):
    payload = health(Sight.OK, **more)
    assert (payload["state"], payload["reasons"]) == ("degraded", [reason])


def test_numbers_are_rounded_and_unknown_figures_are_null():
    payload = health(Sight.OK, outbox=OutboxStatus(oldest_s=1.26), rss_slope_bytes_per_hour=10.6)
    assert (payload["uptime_s"], payload["outbox"]["oldest_s"], payload["rss_slope_bytes_per_hour"]) == (12.3, 1.3, 11)
    assert payload["rss_bytes"] is None and payload["cameras"]["c0"]["fps_inferred"] == 29.5


def metrics(**link):
    found = {metric.name: metric for metric in metrics_of(health(Sight.OK, link=LinkHealth(**link)))}
    return {name: dict(metric.samples) for name, metric in found.items() if name.startswith("mqtt_")}


def test_certificate_expiry_verified_publish_and_link_state_reach_prometheus():
    until = datetime(2027, 1, 31, 12, tzinfo=timezone.utc)
    found = metrics(
        state="waiting", publish_verified=False, certificate_until=until, broker_certificate_until=until.replace(day=1)
    )
    assert found["mqtt_certificate_expiry_timestamp_seconds"] == {(): until.timestamp()}
    assert found["mqtt_broker_certificate_expiry_timestamp_seconds"] == {(): until.timestamp() - 30 * 86400}
    assert found["mqtt_publish_verified"] == {(): 0.0}
    assert found["mqtt_state"] == {("connecting",): 0, ("connected",): 0, ("waiting",): 1, ("closed",): 0}


def test_a_missing_connection_figure_is_no_metric():
    assert set(metrics(connected=True, state="connected")) == {"mqtt_connected", "mqtt_reconnects", "mqtt_state"}


def test_the_commands_reach_prometheus_with_the_report():
    payload = health(Sight.OK, commands={"accepted": 4, "refused": {"late": 2}, "overflowed": 1})
    assert payload["commands"]["overflowed"] == 1
    found = {metric.name: list(metric.samples) for metric in metrics_of(payload)}
    assert found["commands_overflowed"] == [((), 1.0)] and found["commands_refused"] == [(("late",), 2.0)]
