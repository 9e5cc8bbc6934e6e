"""The whole agent: its metrics over HTTP, and its restart when no camera works."""

import json
import socket
import urllib.request

import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto
from tests.fakes.service_manager import ServiceManager

prometheus = pytest.importorskip(
    "prometheus_client.parser", reason="needs prometheus-client: scripts/setup installs it with the dev extra"
)
pytestmark = needs_mosquitto
SCENE = {"CAMERAS__DOOR__URI": "test://one?fps=20", "HEALTH__INTERVAL_S": 1}


@pytest.fixture
def broker(tmp_path):
    with Broker(tmp_path) as broker:
        yield broker


def health(listener):
    return json.loads(listener.last("edge-agent/n/health") or b'{"reasons": []}')


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = prometheus.text_string_to_metric_families(answer.read().decode())
    return {
        (sample.name, sample.labels["node"], sample.labels.get("camera")): sample.value
        for family in families for sample in family.samples if set(sample.labels) <= {"node", "camera"}
    }  # fmt: skip


def test_the_metrics_equal_health_and_scraping_delays_no_frame(broker):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    frames, dropped = ("edge_agent_camera_frames_total", "n", "door"), ("edge_agent_camera_stalls_total", "n", "door")
    settings = {
        **SCENE, "METRICS__ENABLED": "true", "METRICS__PORT": port, "MQTT__PORT": broker.port,
        "MQTT__PROTOCOL": "3.1.1",
    }  # fmt: skip
    with Listener(broker, "edge-agent/n/#") as listener, AgentProcess(settings) as agent:
        eventually(lambda: health(listener).get("cameras", {}).get("door", {}).get("fps_inferred", 0) > 0)
        before = health(listener)
        scraped = scrape(port)
        for _ in range(200):
            scraped = scrape(port)
        eventually(lambda: health(listener)["uptime_s"] > scraped["edge_agent_uptime_seconds", "n", None])
        after = health(listener)
        count = lambda message: message["cameras"]["door"]["counters"]["frames"]  # noqa: E731
        assert count(before) <= scraped[frames] <= count(after) and scraped[dropped] == 0
        assert scraped["edge_agent_mqtt_connected", "n", None] == 1
        assert scraped["edge_agent_outbox_dropped_total", "n", None] == 0
        eventually(lambda: scrape(port).get(("edge_agent_mqtt_publish_verified", "n", None)) == 1, "as health has it")
        eventually(lambda: scrape(port)[frames] > scraped[frames], "frames go on")
        assert agent.stop() < 5
        assert "Traceback" not in agent.log


def test_a_port_in_use_is_a_fault_in_health_and_the_agent_continues(broker):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings = {**SCENE, "METRICS__ENABLED": "true", "METRICS__PORT": port, "MQTT__PORT": broker.port}
        with Listener(broker, "edge-agent/n/#") as listener, AgentProcess(settings) as agent:
            eventually(lambda: any("already in use" in reason for reason in health(listener)["reasons"]))
            assert health(listener)["state"] == "degraded"
            eventually(lambda: listener.last("edge-agent/n/door/presence") in (b"ON", b"OFF"))
            agent.stop()
            assert agent.process.returncode == 0 and "Traceback" not in agent.log


def test_without_any_camera_for_long_the_agent_restarts_and_only_once(broker, tmp_path):
    settings = {
        "CAMERAS__DOOR__URI": "v4l2:/dev/video987", "RECOVERY__CAMERA_RESTART_AFTER_S": 1,
        "HEALTH__INTERVAL_S": 1, "MQTT__PORT": broker.port,
    }  # fmt: skip
    state = tmp_path / "state"
    with ServiceManager(str(tmp_path / "notify")) as manager, Listener(broker, "edge-agent/n/#") as listener:
        with AgentProcess(settings, state, environ=manager.environ) as agent:
            assert agent.wait() == 1
            assert "no camera has delivered for" in agent.log and "stopped in" in agent.log
            assert manager.states()[-2:] == ["READY", "STOPPING"]
        boot = int((state / "boot").read_text())
        with AgentProcess(settings, state, environ=manager.environ) as again:
            eventually(lambda: health(listener).get("uptime_s", 0) > 2 and health(listener)["boot"] > boot)
            assert health(listener)["recovery"]["camera_restarts"] == 1
            assert again.process.poll() is None, "the limit holds over the restart"
            again.stop()
