"""What the agent keeps over kill -9 while the broker is away."""

import json
import signal

import pytest

from edge_agent.core.protocol.overrides import Overrides
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


def test_events_before_a_crash_are_published_after_it_and_no_visit_stays_open(broker, tmp_path):
    state = tmp_path / "state"
    with AgentProcess(settings(broker, "test://still?fps=15"), state) as agent:
        eventually(lambda: status(state)["open_appearances"] == 1, "a visit is on disk", 30)
        boot = status(state)["boot"]
        agent.kill()
    with broker, Listener(broker, "edge-agent/box/#") as listener:
        with AgentProcess(settings(broker, "test://empty?fps=15"), state) as agent:
            topic = "edge-agent/box/a/events"
            eventually(lambda: any(b'"end"' in p for p in listener.payloads(topic)), "the end", 30)
            published = [json.loads(p) for p in listener.payloads(topic)]
            assert [e["event_type"] for e in published if e["event_type"] != "update"] == ["start", "end"]
            assert [e["seq"] for e in published] == [*range(1, len(published)), 1]
            assert [e["boot"] for e in published] == [boot] * (len(published) - 1) + [boot + 1] and len(
                {e["event_id"] for e in published}
            ) == 1
            assert published[-1]["end_reason"] == "restart"
            info = json.loads(listener.last("edge-agent/box/info"))
            assert info["boot"] == boot + 2
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
        boot = (state / "boot").read_text()
        with AgentProcess({**settings(broker, "test://empty?fps=15"), "NODE": "two"}, state) as second:
            assert second.wait() == 1
            assert "in use by another edge-agent" in second.log and "Traceback" not in second.log
        assert (state / "boot").read_text() == boot, "who is refused has counted nothing"
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


SHORT_VISITS = [{"start_s": 0.3, "end_s": 0.8, "path": [[0.5, 0.5], [0.5, 0.5]], "size": [0.4]}]


@pytest.mark.parametrize("by", ["setting", "switch"])
def test_crops_of_an_earlier_run_are_not_sent_once_they_are_off(broker, tmp_path, by):
    state, env_file, script = tmp_path / "state", tmp_path / "agent.env", tmp_path / "script.json"
    script.write_text(json.dumps({"period_s": 1.5, "appearances": SHORT_VISITS}))
    env_file.write_text("")
    common = {**settings(broker, f"test://one?fps=15&script={script}"), "ENV_FILE": env_file}
    with AgentProcess(common, state) as agent:
        eventually(lambda: status(state).get("pending_crops"), "a crop waits", 30)
        if by == "setting":
            env_file.write_text("EDGE_AGENT_CROPS__ENABLED=false\n")
            agent.process.send_signal(signal.SIGHUP)
            agent.wait()
            assert "to be started again" in agent.log
        else:
            agent.kill()
            (state / "overrides.json").write_text(json.dumps(Overrides().with_switch("a", "crops", False).to_json()))
    waited = status(state)
    assert waited["pending_crops"]
    with broker, Listener(broker, "edge-agent/box/#") as listener, AgentProcess(common, state):

        def published():
            return [json.loads(payload) for payload in listener.payloads("edge-agent/box/a/events")]

        eventually(lambda: any(e["boot"] > waited["boot"] + 1 for e in published()), "the backlog is through", 30)
        gaps = [(gap["of"], gap["reason"], gap["count"]) for gap in published() if "from_seq" in gap]
        assert gaps == [("crops", "disabled", waited["pending_crops"])]
        assert not [topic for topic in listener.topics() if "/crops/" in topic and not topic.endswith("/state")]
