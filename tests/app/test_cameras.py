"""Several cameras of different kinds in one process, and their counts."""

import json

import cv2
import numpy as np
import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto
from tests.fakes.images import write_video

pytestmark = needs_mosquitto


@pytest.fixture
def broker(tmp_path):
    with Broker(tmp_path) as broker:
        yield broker


def room(seed, face=None):
    rng = np.random.default_rng(seed)
    image = (60 + 20 * np.sin(np.add.outer(np.arange(480) / 17, np.arange(640) / 23))).astype(np.float32)
    image += rng.normal(0, 2, image.shape)
    image = image.clip(0, 255).astype(np.uint8)
    if face:
        cv2.ellipse(image, face, (60, 80), 0, 0, 360, 235, -1)
    return image


def drops(counters):
    return sum(count for name, count in counters.items() if name.startswith("dropped_"))


def test_three_kinds_of_cameras_on_one_broker_each_with_its_own_presence(broker, tmp_path):
    video, folder = tmp_path / "clip.mkv", tmp_path / "images"
    write_video(video, [room(i, (320, 240)) for i in range(40)], fps=10)
    folder.mkdir()
    for index in range(6):
        cv2.imwrite(str(folder / f"{index}.png"), room(index))
    settings = {
        "CAMERAS__FILE__URI": f"{video}?loop=1",
        "CAMERAS__FOLDER__URI": f"{folder}?loop=1&fps=10",
        "CAMERAS__SCENE__URI": "test://still?fps=15",
        "CAMERAS__SCENE__ZONES__LEFT": "[[0,0],[0.5,0],[0.5,1],[0,1]]",
        "CAMERAS__SCENE__ZONES__ALL": "[[0,0],[1,0],[1,1],[0,1]]",
        "MQTT__PORT": broker.port,
        "HEALTH__INTERVAL_S": 1,
    }
    with Listener(broker, "edge-agent/n/#") as listener, AgentProcess(settings) as agent:
        truth = {"file": b"ON", "folder": b"OFF", "scene": b"ON"}
        for camera, presence in truth.items():
            eventually(lambda: listener.last(f"edge-agent/n/{camera}/presence") == presence, camera)  # noqa: B023
            eventually(lambda: listener.last(f"edge-agent/n/{camera}/availability") == b"online")  # noqa: B023
        eventually(lambda: listener.last("edge-agent/n/scene/zones/all/presence") == b"ON")
        eventually(lambda: listener.last("edge-agent/n/scene/zones/left/presence") in (b"ON", b"OFF"))
        eventually(lambda: listener.last("edge-agent/n/scene/face_count") == b"1")
        eventually(lambda: listener.last("edge-agent/n/folder/face_count") == b"0")
        eventually(lambda: len(listener.payloads("edge-agent/n/health")) >= 4)
        with Listener(broker, "edge-agent/n/+/presence") as late:
            eventually(lambda: len(late.heard) == 3)
            assert all(heard.retain for heard in late.heard)
            assert {heard.topic.split("/")[2]: heard.payload for heard in late.heard} == truth
        assert agent.stop() < 5
        assert agent.process.returncode == 0


def test_every_frame_is_inferred_or_counted_as_dropped(broker):
    """Two cameras at full speed on one slowed engine: frames are certainly dropped, and all are counted."""
    settings = {
        "CAMERAS__A__URI": "test://one?pace=fast&end=60",
        "CAMERAS__B__URI": "test://empty?pace=fast&end=60",
        "MODEL__MODEL": "scripted?slow_s=0.01",
        "MQTT__PORT": broker.port,
        "HEALTH__INTERVAL_S": 1,
    }
    with Listener(broker, "edge-agent/n/#") as listener, AgentProcess(settings) as agent:
        assert agent.wait(60) == 0, agent.log
        eventually(lambda: listener.last("edge-agent/n/availability") == b"offline")
        health = json.loads(listener.last("edge-agent/n/health"))
        for camera in ("a", "b"):
            counters = health["cameras"][camera]["counters"]
            assert counters["frames"] == counters["inferred"] + counters["idle"] + drops(counters) >= 1000, counters
            assert counters["dropped_busy"] > 0, "the engine was too slow for this not to happen"
            assert json.loads(listener.last(f"edge-agent/n/{camera}/presence/attributes"))["reason"] == "stopped"


def test_a_failing_camera_does_not_stop_the_others(broker):
    settings = {
        "CAMERAS__GOOD__URI": "test://still?fps=15",
        "CAMERAS__BAD__URI": "v4l2:/dev/video987",
        "MQTT__PORT": broker.port,
        "HEALTH__INTERVAL_S": 1,
    }
    with Listener(broker, "edge-agent/n/#") as listener, AgentProcess(settings):
        eventually(lambda: listener.last("edge-agent/n/good/presence") == b"ON")
        eventually(lambda: listener.last("edge-agent/n/bad/availability") == b"offline")
        eventually(lambda: listener.last("edge-agent/n/bad/presence") == b"None")

        def degraded():
            health = json.loads(listener.last("edge-agent/n/health") or b"{}")
            return health.get("state") == "degraded" and "camera bad: lost" in health["reasons"]

        eventually(degraded)
        fault = json.loads(listener.last("edge-agent/n/health"))["cameras"]["bad"]["last_fault"]
        assert "/dev/video987" in fault
