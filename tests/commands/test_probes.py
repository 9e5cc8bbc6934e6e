"""Single checks on simulated machines: devices, GPUs, models that detect nothing."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from edge_agent.commands.check import host_probes, probes
from edge_agent.core.types import Detections
from edge_agent.host.systemd import Account
from tests.fakes import graphs
from tests.fakes.agent import edge_agent

NOBODY = Account("agent", 4_000_000, frozenset())


def settings(backend="auto", **cameras):
    return SimpleNamespace(
        cameras={name: SimpleNamespace(uri=uri) for name, uri in cameras.items()},
        model=SimpleNamespace(tensorrt_python=None, backend=backend),
    )


@pytest.fixture
def root(tmp_path):
    """A folder that every user may enter, with a camera that only its group may open and a GPU that all may open."""
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o011)
    (tmp_path / "dev").mkdir(mode=0o755)
    for name, mode in (("video0", 0o660), ("nvidia0", 0o666)):
        (tmp_path / "dev" / name).touch()
        (tmp_path / "dev" / name).chmod(mode)
    return tmp_path


def test_a_needed_device_without_permission_fails_and_names_the_group(root):
    camera, gpu = host_probes.permissions(settings(door="v4l2:/dev/video0"), root, NOBODY)
    assert (camera.state, gpu.state) == ("fail", "ok")
    assert "video0" in camera.found and "usermod -aG" in camera.remedy and "agent" in camera.remedy
    camera, _ = host_probes.permissions(settings(door="rtsp://camera"), root, NOBODY)
    assert camera.state == "note"
    group = (root / "dev/video0").stat().st_gid
    camera, _ = host_probes.permissions(
        settings(door="v4l2:/dev/video0"), root, Account("agent", 4_000_000, frozenset([group]))
    )
    assert camera.state == "ok"


def test_a_machine_without_devices_has_no_permission_checks(tmp_path):
    assert list(host_probes.permissions(settings(), tmp_path, NOBODY)) == []


def test_an_env_file_that_the_service_may_not_read(root):
    file = root / "agent.env"
    file.write_text("")
    file.chmod(0o600)
    finding = host_probes.readable(file, NOBODY)
    assert finding.state == "fail" and "chmod 640" in finding.remedy
    file.chmod(0o644)
    assert host_probes.readable(file, NOBODY).state == "ok"
    assert host_probes.readable(root / "nothing", NOBODY).state == "fail"


def test_the_golden_face_is_found_or_not():
    def found(*boxes):
        return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.9, np.float32))

    assert probes.golden(found((88, 26, 139, 94)), own_file=False).state == "ok"
    elsewhere = found((0, 0, 32, 38), (150, 20, 200, 90))
    assert probes.golden(elsewhere, own_file=False).state == "fail"
    assert probes.golden(elsewhere, own_file=True).state == "note"
    everywhere = found((88, 26, 139, 94), *((x, 100, x + 10, 120) for x in range(0, 200, 20)))
    assert probes.golden(everywhere, own_file=False).state == "fail"
    nothing = probes.golden(found(), own_file=False)
    assert nothing.state == "fail" and nothing.remedy


def test_a_users_own_model_that_detects_no_face_is_a_note(tmp_path):
    model = graphs.gridbox(tmp_path / "own.onnx")
    given = {"MODEL__MODEL": model, "MODEL__BACKEND": "onnxruntime", "MQTT__HOST": "127.0.0.1", "MQTT__PORT": 9}
    text = edge_agent("check", settings=given, state_dir=tmp_path).stdout
    assert "note  golden answer: detects " in text and "ok    engine: own" in text, text
    assert "note  int8: not in use" in text and "edge-agent model calibrate --camera" in text, text
    for name in ("gpu", "clock", "disk", "unit"):
        assert f"  {name}: " in text, text


def test_a_gpu_that_is_needed_and_not_there_fails_with_the_remedy():
    (finding,) = host_probes.gpu(settings(backend="tensorrt"))
    (other,) = host_probes.gpu(settings())
    if finding.state == "ok":
        pytest.skip("needs a machine without a GPU: this one has one, and pycuda")
    assert finding.state == "fail" and finding.remedy
    assert other.state == "note" and "the CPU is used" in other.found
