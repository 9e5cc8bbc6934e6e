"""A stop while a call of the engine or of a camera takes longer than a stop may: still in order, and with code 0."""

import json

import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto
from tests.fakes.graphs import slow_gridbox

pytestmark = needs_mosquitto
SEEING = {"CAMERAS__A__URI": "test://still?fps=15"}


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


def stop_in_order(agent, listener, node):
    """Stop the agent; the exit code, and what was published last."""
    seconds = agent.stop()
    assert agent.process.returncode == 0, agent.log
    assert "stopped in" in agent.log and "terminate called" not in agent.log and "Traceback" not in agent.log
    assert seconds < 15, "about five seconds on an idle machine"
    eventually(lambda: listener.last(f"edge-agent/{node}/availability") == b"offline")


@pytest.mark.parametrize("fault", ["slow_s=6", "hang_after=8"])
def test_the_visits_end_while_the_engine_still_computes(broker, fault):
    node = f"slow-{fault[:4]}"
    settings = {**SEEING, "MODEL__MODEL": f"scripted?{fault}", "NODE": node, "MQTT__PORT": broker.port}
    with Listener(broker, f"edge-agent/{node}/#") as listener, AgentProcess(settings) as agent:
        eventually(lambda: listener.last(f"edge-agent/{node}/a/presence") == b"ON")
        stop_in_order(agent, listener, node)
        eventually(lambda: listener.last(f"edge-agent/{node}/a/presence") == b"None")
        events = [json.loads(payload) for payload in listener.payloads(f"edge-agent/{node}/a/events")]
    assert [event["event_type"] for event in events if event["event_type"] != "update"] == ["start", "end"]
    assert events[-1]["end_reason"] == "shutdown"


def test_onnxruntime_in_a_large_model_is_left_without_an_abort(broker, tmp_path):
    model = slow_gridbox(tmp_path / "slow.onnx")
    settings = {"MODEL__BACKEND": "onnxruntime", "MODEL__MODEL": model, "MODEL__THREADS": 2}
    settings.update({**SEEING, "NODE": "slow-ort", "MQTT__PORT": broker.port})
    with Listener(broker, "edge-agent/slow-ort/#") as listener, AgentProcess(settings, scripted=False) as agent:
        eventually(lambda: "ready: " in agent.log, deadline_s=60)
        stop_in_order(agent, listener, "slow-ort")


@pytest.mark.parametrize("fault", [{"MODEL__MODEL": "scripted?open_s=30"}, {"CAMERAS__A__URI": "test://still?hang=1"}])
def test_an_engine_that_opens_and_a_hung_camera_are_left_too(broker, fault):
    node = f"slow-{next(iter(fault))[0].lower()}"
    settings = {**SEEING, **fault, "NODE": node, "MQTT__PORT": broker.port}
    with Listener(broker, f"edge-agent/{node}/#") as listener, AgentProcess(settings) as agent:
        eventually(lambda: listener.last(f"edge-agent/{node}/a/presence") == b"None")
        eventually(lambda: "sight is ok" in agent.log)
        if "CAMERAS__A__URI" in fault:
            eventually(lambda: "does not return" in agent.log)
        stop_in_order(agent, listener, node)
