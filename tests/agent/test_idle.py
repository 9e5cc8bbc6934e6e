"""An agent that looks at an empty room less often says so, and does not for a listener of every frame."""

import json

import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto

pytestmark = needs_mosquitto


@pytest.fixture
def broker(tmp_path):
    with Broker(tmp_path) as broker:
        yield broker


def test_idle_frames_are_counted_apart_from_drops_unless_detections_are_published(broker):
    settings = {
        "CAMERAS__A__URI": "test://empty?fps=50&end=4",
        "IDLE__AFTER_S": 0.2,
        "MQTT__PORT": broker.port,
    }
    agents = {"off": AgentProcess({**settings, "NODE": "off"})}
    agents["native"] = AgentProcess({**settings, "NODE": "native", "MQTT__DETECTIONS": "native"})
    with Listener(broker, "edge-agent/#") as listener, agents["off"] as off, agents["native"] as native:
        assert off.wait(60) == native.wait(60) == 0, off.log + native.log
        for node in agents:
            eventually(lambda: listener.last(f"edge-agent/{node}/availability") == b"offline")  # noqa: B023
            assert b"OFF" in listener.payloads(f"edge-agent/{node}/a/presence")
        counters = {
            node: json.loads(listener.last(f"edge-agent/{node}/health"))["cameras"]["a"]["counters"] for node in agents
        }
        heard = len(listener.payloads("edge-agent/native/a/detections"))
    for count in counters.values():
        drops = sum(number for name, number in count.items() if name.startswith("dropped_"))
        assert count["frames"] == count["inferred"] + count["idle"] + drops, count
    assert counters["off"]["idle"] > 2 * counters["off"]["inferred"]
    assert counters["native"]["idle"] == 0
    assert heard > counters["off"]["inferred"]
