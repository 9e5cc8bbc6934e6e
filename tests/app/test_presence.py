"""Presence through the whole agent and a real broker: never OFF while the camera cannot see."""

import json

import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto

pytestmark = needs_mosquitto
P = "edge-agent/n/a/presence"
ATTRIBUTES = "edge-agent/n/a/presence/attributes"


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


def watch(listener, topic=P):
    """Return the values of a topic, without repeats."""
    values = [payload.decode() for payload in listener.payloads(topic)]
    return [value for index, value in enumerate(values) if index == 0 or value != values[index - 1]]


def reason(listener):
    return json.loads(listener.last(ATTRIBUTES))["reason"]


def events(listener):
    return [json.loads(payload) for payload in listener.payloads("edge-agent/n/a/events")]


def settings(broker, uri, **more):
    return {"CAMERAS__A__URI": uri, "MQTT__PORT": broker.port, "PRESENCE__DELAY_OFF_S": 0.5, **more}


BLIND = {
    "lost": ("lose=3-6", {"CAMERAS__A__STALL_AFTER_S": 1}, "lost"),
    "dark": ("dark=3-9", {"ILLUMINATION__DARK_AFTER_S": 1}, "dark"),
    "frozen": ("freeze=3-9", {"ILLUMINATION__FROZEN_AFTER_S": 1}, "frozen"),
    "emitter": ("strobe=1:1&dark=4-9", {"ILLUMINATION__DARK_AFTER_S": 1}, "emitter"),
    "covered": ("cover=3-12", {"ILLUMINATION__COVERED_AFTER_S": 1}, "covered"),
}


@pytest.mark.parametrize("fault", BLIND)
def test_a_camera_that_cannot_see_is_none_with_its_reason_and_comes_back(broker, fault):
    disturbance, more, reason = BLIND[fault]
    node = f"truth-{fault}"
    topic = f"edge-agent/{node}/a"
    agent = AgentProcess({**settings(broker, f"test://still?fps=15&{disturbance}"), **more, "NODE": node})
    with Listener(broker, f"edge-agent/{node}/#") as listener, agent:
        eventually(lambda: listener.last(f"{topic}/presence") == b"ON", "a face from the start")
        eventually(lambda: listener.last(f"{topic}/presence") == b"None", f"{fault} is published", 20)
        eventually(lambda: json.loads(listener.last(f"{topic}/presence/attributes"))["reason"] == reason)
        eventually(lambda: listener.last(f"{topic}/availability") == b"offline")
        eventually(lambda: listener.last(f"{topic}/face_count") == b"None")
        eventually(lambda: listener.last(f"{topic}/presence") == b"ON", "it sees again", 30)
        eventually(lambda: listener.last(f"{topic}/availability") == b"online")
        assert "OFF" not in watch(listener, f"{topic}/presence"), "a blind camera must not publish that nobody is there"

        def ends():
            events = [json.loads(p) for p in listener.payloads(f"{topic}/events")]
            return [event["end_reason"] for event in events if event["event_type"] == "end"]

        def reasons():
            return [
                reason for p in listener.payloads(f"edge-agent/{node}/health") for reason in json.loads(p)["reasons"]
            ]

        eventually(ends, "the end is published")
        assert ends() == ["camera_lost"]
        eventually(lambda: f"camera a: {reason}" in reasons(), "health has published it")


@pytest.mark.parametrize("uri", ["test://empty?fps=15&noise=2", "test://empty?fps=15&noise=1&bits=10"])
def test_a_live_empty_room_stays_off(broker, uri):
    node = "empty" + uri[-1]
    with Listener(broker, f"edge-agent/{node}/#") as listener, AgentProcess(
        {**settings(broker, uri), "NODE": node, "ILLUMINATION__DARK_AFTER_S": 1, "ILLUMINATION__FROZEN_AFTER_S": 1,
         "ILLUMINATION__COVERED_AFTER_S": 1, "HEALTH__INTERVAL_S": 1}
    ):  # fmt: skip
        eventually(lambda: listener.last(f"edge-agent/{node}/a/presence") == b"OFF")
        eventually(lambda: len(listener.payloads(f"edge-agent/{node}/health")) >= 5, "five more seconds of life")
        # "None" is published first only when the broker was reachable before the first frame.
        assert watch(listener, f"edge-agent/{node}/a/presence") in (["None", "OFF"], ["OFF"])
        eventually(lambda: listener.last(f"edge-agent/{node}/a/availability") == b"online")


def test_delays_end_on_time_even_when_no_frame_arrives(broker, tmp_path):
    """The camera stops delivering while a face is there, long before it counts as stalled."""
    script = tmp_path / "scene.json"
    script.write_text(json.dumps({"appearances": [{"start_s": 0.5, "end_s": 2, "from": [0.5, 0.5], "size": 0.4}]}))
    uri = f"test://one?fps=2&script={script}"
    with Listener(broker, "edge-agent/slow/#") as listener, AgentProcess({**settings(broker, uri), "NODE": "slow"}):
        eventually(lambda: listener.last("edge-agent/slow/a/presence") == b"ON")
        eventually(lambda: listener.last("edge-agent/slow/a/presence") == b"OFF")
        # Presence is published first: an event has to be on disk before it is sent.
        eventually(lambda: any(b'"end"' in p for p in listener.payloads("edge-agent/slow/a/events")))
        end = next(json.loads(p) for p in listener.payloads("edge-agent/slow/a/events") if b'"end"' in p)
        assert end["end_reason"] == "left"


def test_after_kill_9_the_will_reports_offline_and_a_restart_leaves_nothing_stale(broker, tmp_path):
    topic = "edge-agent/killed/a/presence"
    with_face = {**settings(broker, "test://still?fps=15"), "NODE": "killed"}
    empty_now = {**settings(broker, "test://empty?fps=15"), "NODE": "killed"}
    with Listener(broker, "edge-agent/killed/#") as listener:
        with AgentProcess(with_face, tmp_path) as agent:
            eventually(lambda: listener.last(topic) == b"ON")
            boot = json.loads(listener.last("edge-agent/killed/info"))["boot"]
            agent.kill()
        eventually(lambda: listener.last("edge-agent/killed/availability") == b"offline", "the last will")
        with AgentProcess(empty_now, tmp_path):
            eventually(lambda: listener.last(topic) == b"OFF", "the new truth")
            eventually(lambda: json.loads(listener.last("edge-agent/killed/info"))["boot"] > boot)
        with Listener(broker, topic) as late:
            eventually(lambda: late.last(topic) is not None)
            assert late.payloads(topic)[0] == b"OFF", "what a late subscriber gets first"


def test_an_ordered_stop_is_published_and_ends_open_visits(broker):
    with Listener(broker, "edge-agent/clean/#") as listener, AgentProcess(
        {**settings(broker, "test://still?fps=15"), "NODE": "clean"}
    ) as agent:
        eventually(lambda: listener.last("edge-agent/clean/a/presence") == b"ON")
        took_s = agent.stop()
        assert agent.process.returncode == 0, agent.log
        assert took_s < 5
        eventually(lambda: listener.last("edge-agent/clean/availability") == b"offline")
        # QoS 0 to this listener: what the broker has acknowledged is on its way, not yet here.
        eventually(lambda: listener.last("edge-agent/clean/a/presence") == b"None")
        assert json.loads(listener.last("edge-agent/clean/a/presence/attributes"))["reason"] == "stopped"
        assert listener.last("edge-agent/clean/a/availability") == b"offline"
        seen = [json.loads(p) for p in listener.payloads("edge-agent/clean/a/events")]
        assert [e["event_type"] for e in seen if e["event_type"] != "update"] == ["start", "end"]
        assert seen[-1]["end_reason"] == "shutdown"
        crops = [t for t in listener.topics() if "/crops/" in t and not t.endswith("/state")]
        assert crops == [seen[-1]["crop"]["topic"]]


def test_a_read_that_does_not_return_is_none_after_the_cameras_own_stall_time(broker):
    node = "truth-hung"
    more = {"NODE": node, "CAMERAS__A__STALL_AFTER_S": 1}
    with Listener(broker, f"edge-agent/{node}/#") as listener:
        with AgentProcess({**settings(broker, "test://still?fps=15&hang=4"), **more}) as agent:
            topic = f"edge-agent/{node}/a/presence"
            eventually(lambda: listener.last(topic) == b"ON", "a face from the start")
            eventually(lambda: listener.last(topic) == b"None", "in far less than the 20 s of a hung step", 15)
            eventually(lambda: json.loads(listener.last(f"{topic}/attributes"))["reason"] == "lost")
        assert "does not return" in agent.log and b"OFF" not in listener.payloads(topic)[1:]
