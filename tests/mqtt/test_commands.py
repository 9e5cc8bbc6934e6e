"""Commands and switches through a real broker to the real agent, and the state kept over a restart."""

import hashlib
import json
import re
import time
from pathlib import Path

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import VERSIONS, Broker, Listener, eventually, needs_mosquitto

pytestmark = needs_mosquitto
B = "edge-agent/n"


@pytest.fixture
def broker(tmp_path_factory):
    """A new broker for each test, without retained messages of another one."""
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class Sender:
    """Publishes commands."""

    def __init__(self, port):
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.max_inflight_messages_set(0)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def send(self, topic, payload=b"{}", retain=False):
        self._client.publish(f"{B}/{topic}", payload, qos=1, retain=retain).wait_for_publish(5)

    def flood(self, topic, count):
        for message in [self._client.publish(f"{B}/{topic}", b"{}", qos=1) for _ in range(count)]:
            message.wait_for_publish(5)

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def sender(broker):
    sender = Sender(broker.port)
    yield sender
    sender.close()


def settings(broker, **more):
    return {"CAMERAS__A__URI": "test://still?fps=15", "MQTT__PORT": broker.port, "HEALTH__INTERVAL_S": 1, **more}


@pytest.fixture
def listener(broker):
    with Listener(broker, f"{B}/#", "homeassistant/#") as listener:
        yield listener


def seen(listener):
    """Wait until a face is detected and health, which is sent after it, is published."""
    eventually(lambda: listener.last(f"{B}/a/presence") == b"ON", "presence")
    eventually(lambda: listener.last(f"{B}/health"), "health")


def answers(listener, name):
    return [json.loads(payload) for payload in listener.payloads(f"{B}/response/{name}")]


def ask(sender, listener, name, **fields):
    """Send a command and return its answer."""
    before = len(answers(listener, name))
    sender.send(f"request/{name}", json.dumps(fields))
    eventually(lambda: len(answers(listener, name)) > before, f"an answer to {name}")
    return answers(listener, name)[-1]


def test_commands_are_answered_with_their_transaction(broker, listener, sender):
    with AgentProcess(settings(broker)) as agent:
        seen(listener)
        answer = ask(sender, listener, "ping", transaction="t-1")
        assert answer["status"] == "ok" and answer["transaction"] == "t-1" and answer["error"] is None
        assert ask(sender, listener, "ping")["transaction"] is None
        before = len(listener.payloads(f"{B}/info"))
        assert ask(sender, listener, "republish")["status"] == "ok"
        eventually(lambda: len(listener.payloads(f"{B}/info")) > before, "sent again")
        assert ask(sender, listener, "restart", transaction="r")["reason"] == "forbidden"
        assert agent.process.poll() is None


@pytest.mark.slow
def test_the_threshold_is_bounded_published_and_kept(broker, listener, sender, tmp_path):
    def threshold():
        return json.loads(listener.last(f"{B}/info"))["threshold"]

    with AgentProcess(settings(broker), tmp_path) as agent:
        seen(listener)
        default = threshold()
        assert ask(sender, listener, "set_threshold", value=0.42)["result"] == {"threshold": 0.42}
        eventually(lambda: threshold() == 0.42, "in info")
        assert ask(sender, listener, "set_threshold", value=0.01)["reason"] == "invalid"
        agent.stop()
    with AgentProcess(settings(broker), tmp_path) as agent:
        eventually(lambda: threshold() == 0.42, "kept")
        seen(listener)
        answer = ask(sender, listener, "set_threshold", value=None)
        assert answer["result"] == {"threshold": default}
        agent.stop()


def test_detection_off_is_unknown_and_stays_off_over_a_restart(broker, listener, sender, tmp_path):
    def reason():
        return json.loads(listener.last(f"{B}/a/presence/attributes"))["reason"]

    with AgentProcess(settings(broker), tmp_path) as agent:
        seen(listener)
        eventually(lambda: listener.last(f"{B}/a/detection/state") == b"ON", "sent after presence")
        sender.send("a/detection/set", b"OFF")
        eventually(lambda: listener.last(f"{B}/a/detection/state") == b"OFF")
        eventually(lambda: listener.last(f"{B}/a/presence") == b"None" and reason() == "disabled")
        assert listener.last(f"{B}/a/availability") == b"online"
        eventually(lambda: b'"disabled"' in listener.last(f"{B}/a/events"), "the end of the event")
        answer = ask(sender, listener, "snapshot", transaction="s", camera="a")
        assert answer["status"] == "error" and "detection" in answer["error"]
        agent.kill()
    eventually(lambda: listener.last(f"{B}/availability") == b"offline", "the last will")
    with AgentProcess(settings(broker), tmp_path) as agent:
        eventually(lambda: listener.last(f"{B}/availability") == b"online", "the next start")
        eventually(lambda: reason() == "disabled" and listener.last(f"{B}/a/availability") == b"online")
        eventually(lambda: listener.last(f"{B}/a/detection/state") == b"OFF")
        sender.send("a/detection/set", b"ON")
        seen(listener)
        eventually(lambda: listener.last(f"{B}/a/detection/state") == b"ON")


@pytest.mark.slow
def test_crops_off_stays_off_and_on_is_refused_when_the_settings_disable_crops(broker, listener, sender, tmp_path):
    with AgentProcess(settings(broker), tmp_path) as agent:
        seen(listener)
        sender.send("a/crops/set", b"OFF")
        eventually(lambda: listener.last(f"{B}/a/crops/state") == b"OFF")
        agent.stop()
    assert not [t for t in listener.topics() if f"{B}/a/crops/0" in t]
    with AgentProcess(settings(broker, CROPS__IMAGE="true"), tmp_path) as agent:
        seen(listener)
        eventually(lambda: listener.last(f"{B}/a/crops/state") == b"OFF")
        sender.send("a/crops/set", b"ON")
        eventually(lambda: listener.last(f"{B}/a/crops/state") == b"ON")
        eventually(lambda: listener.last(f"{B}/a/face/image"), "a crop")
        agent.stop()
    assert [t for t in listener.topics() if f"{B}/a/crops/0" in t], "a crop, once they are on"
    crops = len([t for t in listener.topics() if f"{B}/a/crops/0" in t])
    with AgentProcess(settings(broker, CROPS__ENABLED="false", CROPS__IMAGE="true"), tmp_path) as agent:
        seen(listener)
        eventually(lambda: listener.last(f"{B}/a/crops/state") == b"OFF")
        sender.send("a/crops/set", b"ON")
        eventually(lambda: [a for a in answers(listener, "crops") if a["reason"] == "forbidden"])
        assert ask(sender, listener, "snapshot", transaction="s")["reason"] == "forbidden"
        agent.stop()
    assert len([t for t in listener.topics() if f"{B}/a/crops/0" in t]) == crops
    eventually(lambda: listener.last(f"{B}/a/crops/state") == b"OFF")
    assert not listener.last(f"{B}/a/face/image")


def test_a_snapshot_is_an_image_named_by_its_transaction(broker, listener, sender):
    with AgentProcess(settings(broker, CAMERAS__A__MASKS="[[[0, 0], [0.75, 0], [0.75, 1], [0, 1]]]")):
        eventually(lambda: listener.last(f"{B}/a/availability") == b"online")
        answer = ask(sender, listener, "snapshot", transaction="shot-1")
        topic = answer["result"]["topic"]
        assert topic == f"{B}/a/crops/shot-1"
        eventually(lambda: listener.last(topic))
        jpeg = listener.last(topic)
        assert hashlib.sha256(jpeg).hexdigest() == answer["result"]["sha256"]
        cv2 = pytest.importorskip("cv2", reason="needs OpenCV to decode the image: pip install opencv-python-headless")
        import numpy as np

        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        hidden = pixels[:, : pixels.shape[1] * 2 // 3]
        assert max(pixels.shape) <= 320 and hidden.max() < 8 and pixels.max() > 50, "as the mask has it"
        with Listener(broker, f"{B}/a/crops/#") as late:
            assert ask(sender, listener, "ping")["status"] == "ok"
            assert topic not in late.topics(), "must not be retained"


REFUSED = {
    "malformed": ("request/ping", b"{"),
    "not UTF-8": ("request/ping", b"\xff\xfe"),
    "oversized": ("request/ping", b"{" + b" " * 5000 + b"}"),
    "far oversized": ("request/ping", b"[" * 60_000),
    "unknown": ("request/shutdown", b"{}"),
    "no topic level": ("request/%7B%7D $", b"{}"),
    "invalid": ("request/set_threshold", b'{"value": 5}'),
    "expired": ("request/ping", b'{"expires_at": "2020-01-01T00:00:00Z"}'),
    "a switch": ("a/detection/set", b"off"),
}


@pytest.mark.slow
def test_a_refusal_is_answered_counted_and_logged(broker, listener, sender):
    def refused():
        return json.loads(listener.last(f"{B}/health"))["commands"]["refused"]

    with AgentProcess(settings(broker)) as agent:
        seen(listener)
        for topic, payload in REFUSED.values():
            time.sleep(0.25)  # More than five a second would be refused for that alone.
            before = [t for t in listener.topics() if "/response/" in t]
            sender.send(topic, payload)
            eventually(lambda: len([t for t in listener.topics() if "/response/" in t]) > len(before), topic)  # noqa: B023
        assert len(answers(listener, "ping")) == 5 and len(answers(listener, "unknown")) == 1
        eventually(lambda: sum(refused().values()) == len(REFUSED), "counted")
        assert refused() == {"malformed": 3, "oversized": 2, "unknown": 2, "invalid": 1, "expired": 1}

        assert ask(sender, listener, "ping", transaction="once")["status"] == "ok"
        assert ask(sender, listener, "ping", transaction="once")["reason"] == "duplicate"

        assert all(len(json.dumps(answer)) < 1024 for answer in answers(listener, "ping"))
        for reason in ("malformed", "oversized", "unknown", "duplicate", "expired"):
            assert agent.log.count(f"refused ({reason})") == 1, "the first is logged, the rest are counted"
        agent.stop()


def test_retained_commands_do_nothing_at_the_next_start(broker, listener, sender, tmp_path):
    sender.send("a/detection/set", b"OFF", retain=True)
    sender.send("request/restart", b'{"transaction": "kept"}', retain=True)
    with AgentProcess(settings(broker, COMMANDS__RESTART="true"), tmp_path) as agent:
        seen(listener)
        eventually(lambda: json.loads(listener.last(f"{B}/health"))["commands"]["refused"] == {"retained": 2})
        eventually(lambda: listener.last(f"{B}/a/detection/state") == b"ON")
        assert agent.process.poll() is None


def test_a_retained_command_that_is_sent_now_does_nothing_either(broker, listener, sender):
    """Otherwise it would run again at each start."""
    with AgentProcess(settings(broker)):
        seen(listener)
        sender.send("a/detection/set", b"OFF", retain=True)
        sender.send("request/ping", b"{}", retain=True)
        eventually(lambda: [answer["reason"] for answer in answers(listener, "ping")] == ["retained"])
        eventually(lambda: json.loads(listener.last(f"{B}/health"))["commands"]["refused"] == {"retained": 2})
        assert listener.payloads(f"{B}/a/detection/state") == [b"ON"]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_a_command_of_any_size_costs_no_memory(broker, listener, sender, version):
    """MQTT 5 announces a limit to the broker, 3.1.1 cannot. The message is retained, so it arrives at each connect."""
    huge_bytes = 16_000_000
    sender.send("request/ping", bytes(huge_bytes), retain=True)
    with AgentProcess(settings(broker), version=version) as agent:
        seen(listener)
        if version == "3.1.1":
            eventually(lambda: sum(json.loads(listener.last(f"{B}/health"))["commands"]["refused"].values()) == 1)
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        peak_kb, now_kb = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmHWM", "VmRSS"))
        assert peak_kb - now_kb < huge_bytes / 2000
        assert json.loads(listener.last(f"{B}/health"))["mqtt"]["reconnects"] == 0


@pytest.mark.slow
def test_a_transaction_that_comes_twice_is_done_once(broker, listener, sender):
    """The second is not run; it is refused, counted and logged."""
    with AgentProcess(settings(broker)) as agent:
        seen(listener)
        for _ in range(2):
            sender.send("request/snapshot", b'{"transaction": "shot"}')
        eventually(lambda: len(answers(listener, "snapshot")) == 2)
        results = sorted((answer["status"], answer["reason"]) for answer in answers(listener, "snapshot"))
        assert results == [("error", "duplicate"), ("ok", None)]
        assert {answer["transaction"] for answer in answers(listener, "snapshot")} == {"shot"}
        eventually(lambda: json.loads(listener.last(f"{B}/health"))["commands"]["refused"] == {"duplicate": 1})
        assert len(listener.payloads(f"{B}/a/crops/shot")) == 1
        assert agent.log.count("refused (duplicate)") == 1


@pytest.mark.slow
def test_a_flood_is_counted_and_answered_within_limits(broker, listener, sender):
    with AgentProcess(settings(broker)) as agent:
        seen(listener)
        sender.flood("request/ping", 2000)
        eventually(lambda: len(answers(listener, "ping")) >= 5)

        def commands():
            return json.loads(listener.last(f"{B}/health"))["commands"]

        eventually(
            lambda: commands()["accepted"] + sum(commands()["refused"].values()) + commands()["overflowed"] == 2000
        )
        assert len(answers(listener, "ping")) < 400
        eventually(lambda: ask(sender, listener, "ping", transaction="after")["status"] == "ok", "calm again")
        assert agent.log.count("(flooded)") == 1
        assert listener.last(f"{B}/a/presence") == b"ON"


def test_restart_ends_in_order_when_the_settings_allow_it(broker, listener, sender):
    with AgentProcess(settings(broker, COMMANDS__RESTART="true")) as agent:
        seen(listener)
        assert ask(sender, listener, "restart", transaction="r")["status"] == "ok"
        assert agent.wait() == 0
        eventually(lambda: listener.last(f"{B}/availability") == b"offline")


@pytest.mark.slow
def test_disabled_commands_are_not_subscribed_to(broker, listener, sender):
    with AgentProcess(settings(broker, COMMANDS__ENABLED="false")):
        seen(listener)
        sender.send("request/ping", b"{}")
        sender.send("a/detection/set", b"OFF")
        health = len(listener.payloads(f"{B}/health"))
        eventually(lambda: len(listener.payloads(f"{B}/health")) > health + 1)
        assert json.loads(listener.last(f"{B}/health"))["commands"] == {"accepted": 0, "refused": {}, "overflowed": 0}
        assert not answers(listener, "ping") and listener.last(f"{B}/a/presence") == b"ON"
        node = json.loads(listener.last("homeassistant/device/edge-agent_n/config"))
        assert "threshold" not in node["components"]


@pytest.mark.slow
def test_the_face_image_is_its_events_crop_and_goes_when_its_time_is_over(broker, listener, sender):
    more = {"CROPS__IMAGE": "true", "CROPS__IMAGE_TTL_S": 5}
    with AgentProcess(settings(broker, **more)) as agent:
        eventually(lambda: listener.last(f"{B}/a/face/image"), "the first acceptable crop")
        described = f"{B}/a/face/image/attributes"  # a topic of its own: it may come a moment after the image
        eventually(lambda: json.loads(listener.last(described))["event_id"], "the image's event")
        shown = json.loads(listener.last(described))
        attributes = f"{B}/a/presence/attributes"
        eventually(lambda: json.loads(listener.last(attributes))["event_ids"], "the visit's event")
        assert shown["event_id"] in json.loads(listener.last(attributes))["event_ids"]
        assert hashlib.sha256(listener.last(f"{B}/a/face/image")).hexdigest() == shown["sha256"]
        eventually(lambda: listener.last(f"{B}/a/face/image") == b"", "cleared")
        assert json.loads(listener.last(f"{B}/a/face/image/attributes"))["event_id"] is None
        sender.send("a/detection/set", b"OFF")
        eventually(lambda: listener.last(f"{B}/a/face/image"), "the best crop, at the end")
        eventually(lambda: b'"end"' in listener.last(f"{B}/a/events"))
        end = json.loads(listener.last(f"{B}/a/events"))
        assert end["event_type"] == "end" and end["event_id"] == shown["event_id"]
        assert hashlib.sha256(listener.last(f"{B}/a/face/image")).hexdigest() == end["crop"]["sha256"]
        sender.send("a/crops/set", b"OFF")
        eventually(lambda: listener.last(f"{B}/a/face/image") == b"", "switched off")
        agent.stop()


@pytest.mark.parametrize("profile", ["native", "deepstream-minimal", "axis"])
def test_detections_of_every_frame_in_the_configured_format(broker, profile):
    schema = b'"schema":"edge-agent.detections/1"'
    markers = {"native": schema, "deepstream-minimal": b'"4.0"', "axis": b'"observations"'}
    # The listener checks payloads against the agent's own schemas, which these profiles do not follow.
    with Listener(broker, f"{B}/a/detections") as listener, AgentProcess(
        settings(broker, MQTT__DETECTIONS=profile, HOME_ASSISTANT__ENABLED="false")
    ):
        eventually(lambda: len(listener.heard) > 10)
        assert all(markers[profile] in heard.payload and not heard.retain for heard in listener.heard)
        assert any(b"Face" in heard.payload or b'"score"' in heard.payload for heard in listener.heard)


@pytest.mark.slow
def test_a_camera_that_has_gone_leaves_nothing_retained(broker, listener, tmp_path):
    zone = "[[0, 0], [1, 0], [1, 1]]"
    both = settings(broker, CAMERAS__B__URI="test://still?fps=5", CAMERAS__A__ZONES__DESK=zone)
    with AgentProcess(both, tmp_path) as agent:
        seen(listener)
        eventually(lambda: listener.last("homeassistant/device/edge-agent_n_b/config"))
        agent.stop()
    with AgentProcess(settings(broker), tmp_path):
        seen(listener)
        eventually(lambda: listener.last("homeassistant/device/edge-agent_n_b/config") == b"", "the device")
        eventually(lambda: listener.last(f"{B}/b/availability") == b"", "its state")
        door = json.loads(listener.last("homeassistant/device/edge-agent_n_a/config"))
        assert door["components"]["zone_desk"] == {"platform": "binary_sensor"}
        record = tmp_path / "retained.json"
        eventually(lambda: "desk" not in record.read_text() and f"{B}/b/" not in record.read_text(), "forgotten")
        with Listener(broker, "#") as late:
            eventually(lambda: late.last(f"{B}/a/presence"))
            gone = [t for t in late.topics() if t.startswith((f"{B}/b/", f"{B}/a/zones")) or t.endswith("_b/config")]
            assert not gone, gone
    with AgentProcess(settings(broker), tmp_path):
        # The removal is sent once; the next start no longer publishes it.
        topic = "homeassistant/device/edge-agent_n_a/config"
        eventually(lambda: "zone_desk" not in json.loads(listener.last(topic))["components"])


@pytest.mark.slow
def test_home_assistants_birth_is_answered(broker, listener):
    with AgentProcess(settings(broker)):
        seen(listener)
        topic = "homeassistant/device/edge-agent_n/config"
        eventually(lambda: listener.last(topic))
        before = len(listener.payloads(topic))
        client = Sender(broker.port)
        # Some installations publish it retained; a new message must be answered nevertheless.
        client._client.publish("homeassistant/status", "online", retain=True).wait_for_publish(5)
        client.close()
        eventually(lambda: len(listener.payloads(topic)) > before, "sent again", deadline_s=20)


def test_a_state_folder_that_cannot_be_read_stops_nothing(broker, listener, sender, tmp_path):
    (tmp_path / "overrides.json").write_text("{")
    (tmp_path / "retained.json").write_text("[1, 2")
    with AgentProcess(settings(broker), tmp_path) as agent:
        seen(listener)
        assert agent.log.count("damaged") == 2
        assert ask(sender, listener, "set_threshold", value=0.5)["status"] == "ok"
        eventually(lambda: json.loads((tmp_path / "overrides.json").read_text())["threshold"] == 0.5)
