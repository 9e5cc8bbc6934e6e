"""Wrong input: one clear line or a counted retry, the right exit code, and never a traceback."""

import json
import socket
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.fakes.agent import AgentProcess, edge_agent
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto

SCENE = {"CAMERAS__A__URI": "test://one"}
SCRIPTED = {"MODEL__BACKEND": "scripted", "MODEL__MODEL": "scripted"}
NOBODY = {"MQTT__PORT": 9, "MQTT__HOST": "127.0.0.1"}


def refused(done, *words, code=1):
    assert done.returncode == code, (done.stdout, done.stderr)
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_no_camera_and_bad_settings_exit_78_with_one_line_per_fault():
    refused(edge_agent("run"), "EDGE_AGENT_CAMERAS__", "no camera is set", code=78)
    done = edge_agent("run", settings={**SCENE, "MQTT__PORT": "0", "CAMERAS__A__ROTATE": "45", "CAMERA__B__URI": "x"})
    refused(done, "EDGE_AGENT_MQTT__PORT", "EDGE_AGENT_CAMERAS__A__ROTATE", "did you mean", code=78)
    assert len(done.stderr.strip().splitlines()) == 3


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("gopher://camera", "unknown kind of source"),
        ("test://nowhere", "unknown scene"),
        ("test://one?size=0x0", "size"),
    ],
)
def test_an_invalid_uri_is_refused_at_once(uri, expected):
    for command in (["run"], ["config", "check"]):
        done = edge_agent(*command, settings={"CAMERAS__A__URI": uri, **SCRIPTED, **NOBODY})
        refused(done, "EDGE_AGENT_CAMERAS__A__URI", expected, code=78)


def test_an_unknown_model_is_a_fault_of_the_settings():
    for command in (["run"], ["config", "check"]):
        done = edge_agent(*command, settings={**SCENE, **NOBODY, "MODEL__MODEL": "centreface"})
        refused(done, "EDGE_AGENT_MODEL__MODEL", "did you mean 'centerface'", code=78)


def corrupt_onnx(folder):
    path = folder / "corrupt.onnx"
    path.write_bytes(b"\x08\x09this is no model" * 50)
    return path, "corrupt.onnx"


def wrong_contract(folder):
    node = helper.make_node("Relu", ["x"], ["y"])
    shape = [1, 3, 224, 224]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    path = folder / "classifier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), str(path))
    return path, "expected"


def missing_file(folder):
    return folder / "nothing.onnx", "nothing.onnx"


@pytest.mark.parametrize("make", [corrupt_onnx, wrong_contract, missing_file])
def test_a_model_that_cannot_be_used_ends_the_agent_with_its_reason(make, tmp_path):
    path, expected = make(tmp_path)
    done = edge_agent("run", settings={**SCENE, **NOBODY, "MODEL__MODEL": path}, state_dir=tmp_path)
    refused(done, expected)


def test_a_model_that_was_never_fetched_names_the_command(tmp_path):
    settings = {**SCENE, **NOBODY, "MODEL__MODELS_DIR": tmp_path / "models"}
    done = edge_agent("run", settings=settings, state_dir=tmp_path)
    refused(done, "edge-agent model fetch centerface")


def test_an_engine_that_fails_while_running_ends_the_agent_in_order(tmp_path):
    settings = {**SCENE, **NOBODY, **SCRIPTED, "MODEL__MODEL": "scripted?fail_after=20"}
    done = edge_agent("run", settings=settings, state_dir=tmp_path)
    refused(done, "failed at call 21", "stopped in")


@needs_mosquitto
@pytest.mark.parametrize("what", ["missing device", "unreadable video", "empty folder", "missing by-id link"])
def test_a_source_that_cannot_be_read_is_lost_and_tried_again(what, tmp_path):
    video = tmp_path / "broken.mp4"
    video.write_bytes(np.random.default_rng(1).bytes(4096))
    folder = tmp_path / "empty"
    folder.mkdir()
    uri = {
        "missing device": "v4l2:/dev/video987",
        "unreadable video": video,
        "empty folder": folder,
        "missing by-id link": "v4l2:/dev/v4l/by-id/usb-nobody",
    }[what]
    with Broker(tmp_path) as broker, Listener(broker, "edge-agent/n/#") as listener:
        with AgentProcess({"CAMERAS__A__URI": uri, "MQTT__PORT": broker.port, "HEALTH__INTERVAL_S": 1}) as agent:

            def faults():
                health = json.loads(listener.last("edge-agent/n/health") or b"{}")
                return health.get("cameras", {}).get("a", {}).get("counters", {}).get("faults", 0)

            eventually(lambda: faults() >= 2, "a second attempt")
            eventually(lambda: listener.last("edge-agent/n/a/presence") == b"None")
            eventually(lambda: listener.last("edge-agent/n/a/availability") == b"offline")
            eventually(lambda: json.loads(listener.last("edge-agent/n/health"))["state"] == "failed")
            agent.stop()
            assert "Traceback" not in agent.log
            warned = [line for line in agent.log.splitlines() if "WARNING" in line and ".stages" in line]
            assert len(warned) == 1, "the first fault warns, repeats are for debug"


def test_without_a_broker_the_agent_continues_logs_why_and_stops_in_time(tmp_path):
    with AgentProcess({**SCENE, **NOBODY}, tmp_path) as agent:
        eventually(lambda: "Connection refused" in agent.log)
        assert agent.process.poll() is None
        assert agent.stop() < 5
        assert agent.process.returncode == 0
        assert "Traceback" not in agent.log


def test_another_service_on_the_broker_s_port_is_recognised(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings = {**SCENE, "MQTT__PORT": port, "MQTT__CONNECT_TIMEOUT_S": 0.5}
        with AgentProcess(settings, tmp_path) as agent:
            eventually(lambda: f"127.0.0.1:{port}" in agent.log and "WARNING" in agent.log)
            assert agent.process.poll() is None
            agent.stop()
            assert "Traceback" not in agent.log


@needs_mosquitto
def test_a_state_folder_that_cannot_be_written_is_logged_and_survived(tmp_path):
    not_a_folder = tmp_path / "file"
    not_a_folder.write_text("")
    with Broker(tmp_path) as broker, Listener(broker, "edge-agent/n/#") as listener:
        with AgentProcess({**SCENE, "MQTT__PORT": broker.port}, not_a_folder / "state") as agent:
            eventually(lambda: listener.last("edge-agent/n/info") is not None)
            assert json.loads(listener.last("edge-agent/n/info"))["boot"] > 1_700_000_000
            eventually(lambda: listener.last("edge-agent/n/a/presence") in (b"ON", b"OFF"))
        assert "EDGE_AGENT_STATE_DIR" in agent.log and "Traceback" not in agent.log
        warned = [line for line in agent.log.splitlines() if "WARNING" in line]
        assert len(warned) == 1, "one warning, not one per writer"


def test_a_second_signal_stops_at_once(tmp_path):
    """A source that hangs while opening keeps the ordered stop waiting; the second signal does not wait."""
    with AgentProcess({**SCENE, **NOBODY}, tmp_path) as agent:
        eventually(lambda: "sight is ok" in agent.log)
        agent.process.terminate()
        started = time.monotonic()
        agent.process.terminate()
        code = agent.wait()
        assert code in (0, 128 + 15)
        assert time.monotonic() - started < 5
