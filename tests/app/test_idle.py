"""The agent infers an empty room less often and counts that, except where every frame's detections are published."""

import json

import pytest

from tests.fakes.agent import AgentProcess, edge_agent
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto

pytestmark = needs_mosquitto


@pytest.fixture
def broker(tmp_path):
    with Broker(tmp_path) as broker:
        yield broker


def test_idle_frames_are_counted_apart_from_drops_unless_detections_are_published(broker, tmp_path):
    base = {"IDLE__AFTER_S": 0.2, "MQTT__PORT": broker.port}
    settings = {
        "off": {"NODE": "off", "CAMERAS__A__URI": "test://empty?fps=50&end=4"},
        "native": {"NODE": "native", "CAMERAS__A__URI": "test://one?fps=50&end=4", "MQTT__DETECTIONS": "native"},
    }
    agents = {node: AgentProcess({**base, **own}) for node, own in settings.items()}
    with Listener(broker, "edge-agent/#") as listener, agents["off"] as off, agents["native"] as native:
        assert off.wait(60) == native.wait(60) == 0, off.log + native.log
        for node in agents:
            eventually(lambda: listener.last(f"edge-agent/{node}/availability") == b"offline")  # noqa: B023
            assert b"OFF" in listener.payloads(f"edge-agent/{node}/a/presence")
        counters = {
            node: json.loads(listener.last(f"edge-agent/{node}/health"))["cameras"]["a"]["counters"] for node in agents
        }
        heard = listener.payloads("edge-agent/native/a/detections")
        events = listener.payloads("edge-agent/native/a/events")
    for count in counters.values():
        drops = sum(number for name, number in count.items() if name.startswith("dropped_"))
        assert count["frames"] == count["inferred"] + count["idle"] + drops, count
    assert counters["off"]["idle"] > 2 * counters["off"]["inferred"]
    assert counters["native"]["idle"] == 0
    assert len(heard) > counters["off"]["inferred"]

    recording = tmp_path / "heard.jsonl"
    recording.write_bytes(b"\n".join(heard))
    replayed = edge_agent("replay", recording, settings=settings["native"])
    assert replayed.returncode == 0, replayed.stderr
    starts = [json.loads(line) for line in replayed.stdout.splitlines() if '"event_type":"start"' in line]
    (live,) = (json.loads(event) for event in events if b'"event_type":"start"' in event)
    same = ("seq", "ts", "frame", "score", "track_id", "camera", "node")
    assert [[start[name] for name in same] for start in starts] == [[live[name] for name in same]]
    assert starts[0]["box"] == pytest.approx(live["box"], abs=1e-3)
