"""`edge-agent check`: results for this machine, and a remedy for each failure."""

import json

import cv2
import numpy as np
import pytest

from edge_agent.capture.synthetic.source import ASTRONAUT
from edge_agent.config.settings import load_settings
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.frame import FULL_RANGE
from tests.fakes.agent import edge_agent
from tests.fakes.broker import Broker, needs_mosquitto
from tests.fakes.weights import centerface_models_dir

SCRIPTED = {"MODEL__BACKEND": "scripted", "MODEL__MODEL": "scripted", "MQTT__HOST": "127.0.0.1"}


def findings(done):
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


@needs_mosquitto
def test_everything_that_the_settings_need_works(tmp_path):
    with Broker(tmp_path) as broker:
        settings = {**SCRIPTED, "CAMERAS__A__URI": "test://one", "MQTT__PORT": broker.port}
        done = edge_agent("check", "--json", settings=settings, state_dir=tmp_path / "state")
    assert done.returncode == 0, done.stdout
    found = findings(done)
    for name in ("python", "numpy", "settings", "state folder", "engine", "camera a", "broker"):
        assert found[name]["state"] == "ok", found[name]
    assert "MQTT 5" in found["broker"]["found"]
    assert "640x480" in found["camera a"]["found"]


def test_no_third_party_files_are_left_in_the_users_home(tmp_path, monkeypatch):
    """ONNX Runtime keeps an identifier of the device there, and sends usage data, unless this is disabled."""
    monkeypatch.setenv("HOME", str(tmp_path))
    edge_agent("check", settings=SCRIPTED, state_dir=tmp_path / "state")
    assert {path.name for path in tmp_path.iterdir()} == {"state"}


def test_a_failed_check_has_a_remedy_and_the_others_still_run(tmp_path):
    settings = {
        "CAMERAS__A__URI": "v4l2:/dev/video987",
        "MODEL__MODELS_DIR": tmp_path / "none",
        "MQTT__HOST": "127.0.0.1",
        "MQTT__PORT": 9,
    }
    done = edge_agent("check", "--json", settings=settings, state_dir=tmp_path)
    assert done.returncode == 1
    found = findings(done)
    assert "edge-agent model fetch" in found["engine"]["remedy"]
    for name in ("camera a", "engine", "broker"):
        assert found[name]["state"] == "fail" and found[name]["remedy"], found[name]
    text = edge_agent("check", settings=settings, state_dir=tmp_path)
    assert "FAIL  camera a" in text.stdout and "3 of" in text.stdout
    assert text.stderr == "", "results are printed once"


def test_invalid_settings_are_reported_as_a_failed_check():
    done = edge_agent("check", "--json", settings={"MQTT__PORT": 0, "NODEE": "x"})
    assert done.returncode == 1
    faults = [finding["found"] for finding in json.loads(done.stdout)["findings"] if finding["name"] == "settings"]
    assert any("EDGE_AGENT_MQTT__PORT" in fault for fault in faults)
    assert any("did you mean EDGE_AGENT_NODE" in fault for fault in faults)


@pytest.mark.parametrize(
    ("uri", "state", "words"),
    [
        ("test://demo", "ok", "frames per second, mean level"),
        ("test://demo", "ok", "a face"),
        ("test://empty?dark=0-100", "fail", "it cannot see: dark"),
    ],
)
def test_a_camera_is_judged_by_what_it_shows(uri, state, words):
    from edge_agent.commands.check.probes import _camera
    from edge_agent.core.camera.visibility import VisibilityParams

    result = _camera("door", CameraParams(uri), VisibilityParams(dark_after_s=0.5), lambda pixels, levels: ", a face")
    assert result.state == state and words in result.found
    assert "noise" in result.found and "sharpness" in result.found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "words"), [(None, "% of the height"), (400, "under 10% faces are often missed"), (0, "no face")]
)
def test_the_size_of_a_face_in_view_is_reported(side, words):
    from edge_agent.commands.check.probes import _face_in_view

    face = cv2.imread(str(ASTRONAUT), cv2.IMREAD_GRAYSCALE)
    scene = face if side is None else np.full((1080, 1920), 96, np.uint8)
    if side:
        scene[300 : 300 + side, 800 : 800 + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    settings = load_settings({"EDGE_AGENT_MODEL__MODELS_DIR": str(centerface_models_dir())}, None)
    assert words in _face_in_view(settings, CameraParams("test://"), scene, FULL_RANGE)
