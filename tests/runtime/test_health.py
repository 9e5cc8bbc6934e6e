"""The health report is built once: payload, metrics and status line agree."""

from datetime import datetime, timezone
from types import SimpleNamespace

import pytest

from edge_agent.core.meters import LatencyMeter
from edge_agent.core.protocol.health import LinkHealth, MachineHealth, health_payload
from edge_agent.core.protocol.messages import OutboxStatus
from edge_agent.core.protocol.prometheus import metrics_of
from edge_agent.core.types import CameraReport, Outcome, Presence, Sight
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.health import HealthCollector, HealthSources
from edge_agent.runtime.publish_queue import MAX_RECEIVED, PublishQueue
from edge_agent.runtime.stages import CaptureCounters
from tests.fakes.clock import FakeClock

UNTIL = datetime(2027, 1, 31, tzinfo=timezone.utc)


class Rig:
    """A collector on two cameras, door and yard."""

    def __init__(self):
        cameras = ("door", "yard")
        self.clock, self.mailbox, self.queue = FakeClock(), FrameMailbox(cameras), PublishQueue()
        self.captures = {
            name: SimpleNamespace(counters=CaptureCounters(), last_fault="", trouble="") for name in cameras
        }
        self.link = LinkHealth(True, 1, state="connected", publish_verified=True, certificate_until=UNTIL)
        self.faults = []
        sources = HealthSources(
            outbox=lambda: OutboxStatus(pending=3),
            link=lambda: self.link,
            commands=lambda: {"accepted": 4, "refused": {}},
            machine=MachineHealth,
            rss=lambda: 1000,
            recovery=lambda: {"camera_restarts": 2},
            faults=lambda: self.faults,
        )
        latencies = {name: LatencyMeter() for name in cameras}
        self.collect = HealthCollector(self.captures, self.mailbox, self.queue, latencies, sources, self.clock)

    def report(self, camera, presence, sight=Sight.OK):
        self.mailbox.set_sight(camera, sight, self.clock())
        self.collect.note(Outcome(camera, report=CameraReport(camera, presence, sight, self.clock())))


def test_every_figure_is_in_the_payload_and_in_the_metrics():
    rig = Rig()
    rig.captures["door"].counters.frames = 50
    for _ in range(MAX_RECEIVED + 1):
        rig.queue.put_received("flood")
    rig.clock.advance(5.0)
    payload = health_payload(rig.collect())
    assert payload["uptime_s"] == 5.0 and payload["rss_bytes"] == 1000 and payload["outbox"]["pending"] == 3
    assert payload["cameras"]["door"]["counters"]["frames"] == 50
    assert payload["commands"] == {"accepted": 4, "refused": {}, "overflowed": 1}
    assert payload["mqtt"]["publish_verified"] is True and payload["mqtt"]["certificate_until"].startswith("2027-01-31")
    found = {metric.name: dict(metric.samples) for metric in metrics_of(payload)}
    assert found["mqtt_certificate_expiry_timestamp_seconds"] == {(): UNTIL.timestamp()}
    assert found["mqtt_publish_verified"] == {(): 1} and found["mqtt_state"][("connected",)] == 1
    assert found["commands_overflowed"] == {(): 1} and found["recovery_steps"] == {("camera_restarts",): 2}


def test_a_fault_of_another_part_is_a_reason():
    rig = Rig()
    assert health_payload(rig.collect())["state"] == "ok"
    rig.faults.append("publish does not return")
    assert health_payload(rig.collect())["reasons"] == ["publish does not return"]


def test_the_status_line_names_blind_cameras_and_the_reason():
    rig = Rig()
    assert rig.collect.status_line() == "2 cameras, 2 cannot see: door (starting), yard (starting); broker connected"
    rig.report("door", Presence.YES)
    rig.report("yard", Presence.UNKNOWN, Sight.LOST)
    rig.captures["yard"].last_fault = "v4l2:/dev/video0: no such device"
    rig.link = LinkHealth(fault="refused: bad credentials", state="waiting")
    assert rig.collect.status_line() == (
        "2 cameras, 1 with a face, 1 cannot see: yard (v4l2:/dev/video0: no such device); "
        "broker not connected (refused: bad credentials)"
    )


@pytest.mark.parametrize(("presence", "words"), [(Presence.NO, "without a face"), (Presence.UNKNOWN, "not known yet")])
def test_the_status_line_counts_cameras_by_presence(presence, words):
    rig = Rig()
    for camera in ("door", "yard"):
        rig.report(camera, presence)
    assert rig.collect.status_line() == f"2 cameras, 2 {words}; broker connected"
