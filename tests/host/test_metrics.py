"""The Prometheus endpoint over real HTTP: its samples, and faults of its address and clients."""

import contextlib
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("prometheus_client", reason="needs prometheus-client: scripts/setup installs it with the dev extra")
from prometheus_client.parser import text_string_to_metric_families

from edge_agent.core.protocol.prometheus import MetricsParams
from edge_agent.errors import MissingPackage
from edge_agent.host import metrics
from edge_agent.host.metrics import MetricsServer
from tests.fakes.broker import eventually

CAMERA = {
    "sight": "ok", "fps_in": 24.96, "fps_inferred": 12.5, "counters": {"frames": 81233, "source_odd-name": 3},
    "latency_ms": {"p50": 12.5, "p95": 20.0, "p99": None}, "last_fault": "",
}  # fmt: skip
HEALTH = {
    "state": "degraded", "reasons": ["a", "b"], "uptime_s": 12.5, "cameras": {"door": CAMERA},
    "rss_bytes": 104857600, "rss_slope_bytes_per_hour": None, "clock_synced": True, "temperature_c": 48.6,
    "temperatures_c": {'odd "zone"\n': 1.5, "cpu-thermal": 48.6}, "power": None, "gpu_load": 0.0,
    "throttling": {"active": {}, "over_current": {"oc3": 12}}, "recovery": {"camera_restarts": 1},
    "outbox": {"pending": 3, "in_flight": 1, "bytes": 100, "oldest_s": 1.5, "dropped": 7, "quarantined": 0,
               "lost_before": 0},
    "mqtt": {"connected": False, "reconnects": 2}, "commands": {"accepted": 4, "refused": {"late": 2}, "overflowed": 0},
}  # fmt: skip


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def samples(port, host="127.0.0.1"):
    """Samples by name and labels, without the node's label."""
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("node") == "lobby"
            found[(sample.name, *sorted(labels.items()))] = sample.value
    return found


class Running:
    """A server whose thread steps until the block ends."""

    def __init__(self, port):
        self.server = MetricsServer(MetricsParams(enabled=True, port=port), "lobby", timeout_s=1.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._stop.wait(min(self.server.step(), 0.05)):
            pass
        self.server.close()

    def __enter__(self):
        self._thread.start()
        return self.server

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_every_number_of_health_is_a_sample_and_null_is_none():
    port = free_port()
    with Running(port) as server:
        eventually(lambda: listens(port))
        assert samples(port) == {}, "no samples before the first health"
        server.update(HEALTH)
        found = samples(port)
    expected = {
        ("edge_agent_uptime_seconds",): 12.5,
        ("edge_agent_health_state", ("state", "degraded")): 1,
        ("edge_agent_health_state", ("state", "ok")): 0,
        ("edge_agent_health_reasons",): 2,
        ("edge_agent_resident_memory_bytes",): 104857600,
        ("edge_agent_clock_synced",): 1,
        ("edge_agent_gpu_load_ratio",): 0,
        ("edge_agent_processor_temperature_celsius",): 48.6,
        ("edge_agent_temperature_celsius", ("zone", "cpu-thermal")): 48.6,
        ("edge_agent_temperature_celsius", ("zone", 'odd "zone"\n')): 1.5,
        ("edge_agent_over_current_events_total", ("kind", "oc3")): 12,
        ("edge_agent_outbox_dropped_total",): 7,
        ("edge_agent_mqtt_connected",): 0,
        ("edge_agent_commands_refused_total", ("reason", "late")): 2,
        ("edge_agent_recovery_steps_total", ("step", "camera_restarts")): 1,
        ("edge_agent_camera_sight", ("camera", "door"), ("sight", "ok")): 1,
        ("edge_agent_camera_sight", ("camera", "door"), ("sight", "dark")): 0,
        ("edge_agent_camera_frame_rate_hertz", ("camera", "door"), ("stage", "in")): 24.96,
        ("edge_agent_camera_latency_seconds", ("camera", "door"), ("quantile", "0.5")): 0.0125,
        ("edge_agent_camera_frames_total", ("camera", "door")): 81233,
        ("edge_agent_camera_source_odd_name_total", ("camera", "door")): 3,
    }
    assert {key: found.get(key) for key in expected} == expected
    names = {key[0] for key in found}
    assert not names & {"edge_agent_power_watts", "edge_agent_resident_memory_slope_bytes_per_hour"}
    assert ("edge_agent_camera_latency_seconds", ("camera", "door"), ("quantile", "0.99")) not in found


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingPackage, match=r"pip install prometheus-client"):
        MetricsServer(MetricsParams(enabled=True), "lobby")


def test_a_port_in_use_is_a_fault_logged_once_until_the_port_is_free(caplog):
    caplog.set_level("INFO", "edge_agent.host.metrics")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        it = MetricsServer(MetricsParams(enabled=True, port=port), "lobby")
        assert it.step() == metrics.RETRY_S and it.step() == metrics.RETRY_S
        assert it.fault == f"metrics: 127.0.0.1:{port}: Address already in use"
        assert caplog.text.count("already in use") == 1
    assert it.step() == 0.0 and it.fault == ""
    it.close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7"])
def test_an_unavailable_address_is_a_fault(host):
    it = MetricsServer(MetricsParams(enabled=True, host=host, port=free_port()), "lobby")
    assert it.step() > 0 and host in it.fault


def test_a_silent_or_disconnected_client_delays_others_only_briefly():
    port = free_port()
    with Running(port) as server:
        server.update(HEALTH)
        eventually(lambda: listens(port))
        with socket.create_connection(("127.0.0.1", port), 5) as mute:
            mute.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
            mute.shutdown(socket.SHUT_RDWR)
        with socket.create_connection(("127.0.0.1", port), 5) as slow, pytest.raises(OSError):
            slow.sendall(b"GET /metrics HTTP/1.0\r\n")
            for number in range(1000):
                slow.sendall(b"X%d: y\r\n" % number)
                time.sleep(0.05)
        assert samples(port)[("edge_agent_uptime_seconds",)] == 12.5
        with pytest.raises(urllib.error.HTTPError, match="405") as refused:
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/", data=b"x"), timeout=10)
        refused.value.close()
