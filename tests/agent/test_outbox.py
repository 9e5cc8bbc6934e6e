"""What the whole agent keeps over kill -9, with the broker away."""

import json

import pytest

from tests.fakes.agent import AgentProcess, edge_agent
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto

pytestmark = needs_mosquitto


@pytest.fixture
def broker(tmp_path):
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = Broker(folder)
    yield broker
    broker.kill()


def settings(broker, uri):
    return {"CAMERAS__A__URI": uri, "MQTT__PORT": broker.port, "NODE": "box"}


def status(folder):
    done = edge_agent("outbox", "status", "--json", state_dir=folder)
    return json.loads(done.stdout) if done.returncode == 0 else {"pending": 0, "open_appearances": 0}


def test_what_happened_before_a_crash_is_told_after_it_and_nothing_stays_open(broker, tmp_path):
    state = tmp_path / "state"
    with AgentProcess(settings(broker, "test://still?fps=15"), state) as agent:
        eventually(lambda: status(state)["open_appearances"] == 1, "an appearance is on disk", 30)
        boot = status(state)["boot"]
        agent.kill()
    with broker, Listener(broker, "edge-agent/box/#") as listener:
        with AgentProcess(settings(broker, "test://empty?fps=15"), state) as agent:
            topic = "edge-agent/box/a/events"
            eventually(lambda: any(b'"end"' in p for p in listener.payloads(topic)), "the end", 30)
            told = [json.loads(p) for p in listener.payloads(topic)]
            assert [e["event_type"] for e in told if e["event_type"] != "update"] == ["start", "end"]
            assert [e["seq"] for e in told] == list(range(1, len(told) + 1))
            assert {e["boot"] for e in told} == {boot} and len({e["event_id"] for e in told}) == 1
            assert told[-1]["end_reason"] == "restart"
            info = json.loads(listener.last("edge-agent/box/info"))
            assert info["boot"] == boot + 1
            first_event = listener.topics().index(topic)
            assert listener.topics().index("edge-agent/box/availability") < first_event, "truth before backlog"
            eventually(lambda: status(state)["pending"] == 0, "acknowledged and forgotten")
            assert agent.stop() < 5 and agent.process.returncode == 0, agent.log
        again = edge_agent("outbox", "status", "--json", state_dir=state)
        assert json.loads(again.stdout)["pending"] == 0


def test_a_second_agent_on_the_same_folder_is_refused(broker, tmp_path):
    state = tmp_path / "state"
    with broker, AgentProcess(settings(broker, "test://empty?fps=15"), state) as first:
        eventually(lambda: "boot" in status(state), "the first has the file", 30)
        with AgentProcess({**settings(broker, "test://empty?fps=15"), "NODE": "two"}, state) as second:
            assert second.wait() == 1
            assert "in use by another edge-agent" in second.log and "Traceback" not in second.log
        assert first.process.poll() is None


def test_a_damaged_file_degrades_health_and_begins_a_new_boot(broker, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    (state / "outbox.db").write_bytes(b"torn" * 5000)
    with broker, Listener(broker, "edge-agent/box/health") as listener:
        with AgentProcess(settings(broker, "test://empty?fps=15"), state):
            eventually(lambda: listener.last("edge-agent/box/health"), "health", 30)
            health = json.loads(listener.last("edge-agent/box/health"))
    assert health["state"] == "degraded"
    assert any("was damaged" in reason and "outbox.db.corrupt-" in reason for reason in health["reasons"])
    assert health["boot"] > 1_700_000_000, "nothing is known of earlier boots"
