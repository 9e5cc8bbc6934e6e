"""The agent on a Jetson's CSI camera: a fake of jetson-utils lies where the real one would, on Python's path."""

import json
from pathlib import Path

import pytest

from tests.fakes.agent import AgentProcess, edge_agent
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto

REPOSITORY = Path(__file__).resolve().parents[2]
BOARD = '''
from pathlib import Path
import numpy as np
from tests.fakes.jetson_utils import Board, FakeJetsonUtils, Input

UNPLUGGED = Path(__file__).with_name("unplugged")

class Camera(Input):
    """Delivers nothing while a file exists."""
    @property
    def silent(self):
        return UNPLUGGED.exists()
    @silent.setter
    def silent(self, value):
        pass

def scene(sequence, width, height):
    rng = np.random.default_rng(sequence)
    y, x = np.mgrid[0:height, 0:width]
    room = 60 + 20 * np.sin(y / 17 + x / 23) + rng.normal(0, 2, (height, width))
    room[((x - 320) / 60) ** 2 + ((y - 240) / 80) ** 2 < 1] = 235
    return room.clip(0, 255)

board = Board({"csi://0": Camera(scene=scene, fps=15, size_at=lambda sequence: (640, 480))})
fake = FakeJetsonUtils(board)
def __getattr__(name):
    return getattr(fake, name)
'''


@pytest.fixture
def path(tmp_path: Path):
    folder = tmp_path / "dist-packages"
    folder.mkdir()
    (folder / "jetson_utils_python.py").write_text(BOARD)
    return folder


@needs_mosquitto
def test_a_csi_camera_from_sensor_to_broker_through_a_silent_unplug(tmp_path: Path, path: Path) -> None:
    with Broker(tmp_path) as broker:
        settings = {
            "CAMERAS__DOOR__URI": "csi://0",
            "CAMERAS__DOOR__STALL_AFTER_S": 1,
            "MQTT__PORT": broker.port,
            "HEALTH__INTERVAL_S": 1,
        }
        agent = AgentProcess(settings, environ={"PYTHONPATH": f"{path}:{REPOSITORY}"})
        with Listener(broker, "edge-agent/n/#") as listener, agent:

            def presence() -> bytes:
                return listener.last("edge-agent/n/door/presence")

            eventually(lambda: presence() == b"ON", "a face before the camera")
            (path / "unplugged").touch()
            eventually(lambda: presence() == b"None", "no error ever comes, and it is noticed all the same")
            fault = json.loads(listener.last("edge-agent/n/door/presence/attributes"))
            assert fault["reason"] != "stopped"
            (path / "unplugged").unlink()
            eventually(lambda: presence() == b"ON", "it is back")

            def counters() -> dict:
                health = json.loads(listener.last("edge-agent/n/health") or b"{}")
                return health.get("cameras", {}).get("door", {}).get("counters", {})

            eventually(lambda: counters().get("recoveries", 0) >= 1)
            assert counters()["source_capture_faults"] == 0, counters()
            assert {"source_skipped", "source_overwritten", "source_failed_opens"} <= set(counters())
            assert agent.stop() < 5
            assert agent.process.returncode == 0, agent.log


def test_without_jetson_utils_it_logs_the_remedy_and_stops(tmp_path: Path) -> None:
    done = edge_agent("run", settings={"CAMERAS__DOOR__URI": "csi://0"}, state_dir=tmp_path)
    assert done.returncode == 1
    assert "csi://0: jetson-utils is not installed" in done.stderr
    assert "dusty-nv/jetson-inference" in done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(edge_agent("check", "--json", settings={"CAMERAS__DOOR__URI": "csi://0"}).stdout)["findings"]
    camera = next(each for each in found if each["name"] == "camera door")
    assert camera["state"] == "fail" and "dusty-nv/jetson-inference" in camera["remedy"]
