"""Service notifications and reload, with the whole agent and a real broker."""

import json
import signal

import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto
from tests.fakes.service_manager import ServiceManager

pytestmark = needs_mosquitto
STATE = "edge-agent/n/a/presence"


@pytest.fixture
def broker(tmp_path):
    # A new one each, that retains nothing of the agent before.
    with Broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def env_file(tmp_path):
    """Write the env file: settings by name."""
    path = tmp_path / "agent.env"

    def write(**settings):
        path.write_text("".join(f"EDGE_AGENT_{name}={value}\n" for name, value in settings.items()))
        return path

    return write


def agent(broker, path, manager, **environ):
    settings = {"CAMERAS__A__URI": "test://still?fps=10", "MQTT__PORT": broker.port, "ENV_FILE": path}
    return AgentProcess(settings, environ={**manager.environ, **environ})


def delay_off(listener):
    attributes = listener.last(f"{STATE}/attributes")
    return attributes and json.loads(attributes)["parameters"]["delay_off_s"]


def open_events(listener):
    return json.loads(listener.last(f"{STATE}/attributes"))["event_ids"]


def test_a_valid_reload_applies_and_loses_no_event(broker, env_file, tmp_path):
    path = env_file(PRESENCE__DELAY_OFF_S=2)
    with ServiceManager(str(tmp_path / "notify")) as manager:
        with Listener(broker, "edge-agent/#") as listener, agent(broker, path, manager, WATCHDOG_USEC="30000000") as it:
            eventually(lambda: delay_off(listener) == 2 and open_events(listener))
            event_ids = open_events(listener)
            fingerprint = json.loads(listener.last("edge-agent/n/info"))["settings_fingerprint"]
            eventually(lambda: manager.datagrams("WATCHDOG"), "the watchdog is fed")
            eventually(
                lambda: any("1 with a face; broker connected" in d["STATUS"] for d in manager.datagrams("STATUS"))
            )
            env_file(PRESENCE__DELAY_OFF_S=9, LOG_LEVEL="debug")
            it.process.send_signal(signal.SIGHUP)
            eventually(lambda: delay_off(listener) == 9, "published")
            eventually(
                lambda: json.loads(listener.last("edge-agent/n/info"))["settings_fingerprint"] != fingerprint,
                "so is this",
            )
            assert open_events(listener) == event_ids
            eventually(lambda: manager.states().count("READY") == 2, "the reload has ended")
            assert "MONOTONIC_USEC" in manager.datagrams("RELOADING")[0], "in the same datagram"
            events = [json.loads(event)["event_type"] for event in listener.payloads("edge-agent/n/a/events")]
            assert events and "end" not in events, "the face is still there, and so is its event"
            assert [value for value in listener.payloads(STATE) if value != b"None"] == [b"ON"]
            env_file(PRESENCE__DELAY_OFF_S=0, CAMERAS__A__MIN_FACE_PX=8000)
            it.process.send_signal(signal.SIGHUP)
            eventually(lambda: listener.last(STATE) == b"OFF", "no face is large enough any more")
            it.stop()
        states = [state for state in manager.states() if state != "EXTEND_TIMEOUT_USEC"]
        assert states == ["READY", *2 * ["RELOADING", "READY"], "STOPPING"]


@pytest.mark.parametrize("style", ["device", "components"])
def test_what_commands_may_do_is_announced_again(broker, env_file, tmp_path, style):
    path = env_file(HOME_ASSISTANT__STYLE=style)

    def found(listener, platform, key):
        """Return an entity's discovery config."""
        if style == "device":
            payload = listener.last("homeassistant/device/edge-agent_n/config")
            return payload and json.loads(payload)["components"].get(key)
        payload = listener.last(f"homeassistant/{platform}/edge-agent_n/{key}/config")
        return payload and json.loads(payload)

    def restart(listener):
        return (found(listener, "button", "restart") or {}).get("command_topic")

    def most(listener):
        return (found(listener, "number", "threshold") or {}).get("max")

    with ServiceManager(str(tmp_path / "notify")) as manager:
        with Listener(broker, "homeassistant/#") as listener, agent(broker, path, manager) as it:
            eventually(lambda: most(listener) == 0.99 and not restart(listener))
            env_file(HOME_ASSISTANT__STYLE=style, COMMANDS__RESTART="true", COMMANDS__MAX_THRESHOLD=0.5)
            it.process.send_signal(signal.SIGHUP)
            eventually(lambda: most(listener) == 0.5 and restart(listener))
            env_file(HOME_ASSISTANT__STYLE=style, COMMANDS__MAX_THRESHOLD=0.5)
            it.process.send_signal(signal.SIGHUP)
            eventually(lambda: not restart(listener), "the button has gone")
            assert most(listener) == 0.5


def test_a_refused_reload_changes_nothing_and_health_reports_why(broker, env_file, tmp_path):
    path = env_file(PRESENCE__DELAY_OFF_S=2)

    def reasons(listener):
        return " ".join(json.loads(listener.last("edge-agent/n/health") or b'{"reasons": []}')["reasons"])

    with ServiceManager(str(tmp_path / "notify")) as manager:
        with Listener(broker, "edge-agent/#") as listener, agent(broker, path, manager) as it:
            eventually(lambda: delay_off(listener) == 2)
            env_file(PRESENCE__DELAY_OFF_S=9, MQTT__PASSWORD="hunter2")
            it.process.send_signal(signal.SIGHUP)
            eventually(lambda: "settings refused" in reasons(listener))
            assert "EDGE_AGENT_MQTT__PASSWORD" in reasons(listener)
            assert delay_off(listener) == 2, "all or nothing"
            eventually(lambda: manager.states().count("READY") == 2)
            env_file(PRESENCE__DELAY_OFF_S=3)
            it.process.send_signal(signal.SIGHUP)
            eventually(lambda: delay_off(listener) == 3)
            eventually(lambda: "settings refused" not in reasons(listener))
            assert "hunter2" not in it.log and not any(b"hunter2" in heard.payload for heard in listener.heard)


def test_a_reload_that_needs_a_restart_ends_in_order(broker, env_file, tmp_path):
    path = env_file(PRESENCE__DELAY_OFF_S=2)
    with ServiceManager(str(tmp_path / "notify")) as manager:
        with Listener(broker, "edge-agent/#") as listener, agent(broker, path, manager) as it:
            eventually(lambda: listener.last(STATE) == b"ON")
            env_file(CAMERAS__A__ROTATE=90)
            it.process.send_signal(signal.SIGHUP)
            assert it.wait() == 0
            assert "EDGE_AGENT_CAMERAS__A__ROTATE" in it.log
            eventually(lambda: listener.last("edge-agent/n/status") == b"offline" or listener.last(STATE) == b"None")
        assert manager.states()[-1] == "STOPPING"
