"""The command line on each board: the chosen precision, and each fault in one line."""

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

from edge_agent.cli import main
from edge_agent.commands.check import host_probes, probes
from edge_agent.commands.check.probes import NOTE, OK
from edge_agent.config.settings import load_settings
from tests.fakes import graphs
from tests.fakes.board_faults import FAULTS, calibrated, settings_of
from tests.fakes.gpu import FakeBoard, calibration
from tests.fakes.jetpack4 import JetPack4
from tests.fakes.views import wandering

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")


def plugged(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, backend: str = "tensorrt") -> FakeBoard:
    """A board with one of `FAULTS`, and the settings in the environment."""
    fault = FAULTS[name]
    values = {**settings_of(fault, folder), "MODEL__BACKEND": backend, "STATE_DIR": str(folder / "state")}
    fault.prepare(folder)
    for setting, value in values.items():
        monkeypatch.setenv(f"EDGE_AGENT_{setting}", value)
    board = FakeBoard(folder, **fault.board.get("gpu", {}))
    board.cuda.fail.update(fault.board.get("cuda_fails", {}))
    board.trt.fail.update(fault.board.get("tensorrt_fails", {}))
    board.plug_in(monkeypatch)
    return board


@pytest.mark.parametrize("name", FAULTS)
def test_model_build_reports_the_fault_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    fault, board = FAULTS[name], plugged(tmp_path, monkeypatch, name)
    settings = settings_of(fault, tmp_path)
    words = ["model", "build", "--model", settings["MODEL__MODEL"]]
    for option in ("calibration", "models-dir"):
        value = settings.get(f"MODEL__{option.upper().replace('-', '_')}")
        words += [f"--{option}", value] if value else []
    assert main(words) == (0 if fault.repaired else 1)
    shown = capsys.readouterr()
    reported = [line for line in shown.err.splitlines() if fault.line in line]
    assert len(reported) == 1, shown.err
    if not fault.repaired:
        assert reported[0].startswith("edge-agent: ") and shown.out == ""
        assert fault.hint in shown.err.splitlines()[-1]
    board.assert_clean()


@pytest.mark.parametrize("name", FAULTS)
def test_check_reports_the_fault_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    fault, board = FAULTS[name], plugged(tmp_path, monkeypatch, name)
    assert main(["check", "--json"]) == 1  # there is no broker
    shown = capsys.readouterr()
    (engine,) = [each for each in json.loads(shown.out)["findings"] if each["name"] == "engine"]
    if fault.repaired:
        assert engine["state"] == "ok" and fault.line in shown.err
    else:
        assert engine["state"] == "fail" and fault.line in engine["found"] and fault.hint in engine["remedy"]
    board.assert_clean()


@pytest.mark.parametrize("name", ["no GPU", "wrong driver", "old driver"])
def test_check_reports_the_cpu_in_place_of_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With `auto`, a board with a broken driver runs on the CPU; the check reports this."""
    plugged(tmp_path, monkeypatch, name, backend="auto")
    settings = load_settings({"EDGE_AGENT_MODEL__MODEL": str(tmp_path / "m.onnx")}, None)
    (finding,) = host_probes.gpu(settings)
    assert finding.state == NOTE and FAULTS[name].hint in finding.remedy
    assert finding.found.startswith("the CPU is used, because ") and FAULTS[name].line in finding.found
    engine, *_ = probes.engine(settings)
    assert engine.state == OK and "on onnxruntime" in engine.found


# (board, TensorRT of its JetPack, with a calibration, without one)
TABLE = [
    ("nano", "8.2", "fp16", "fp16"),
    ("xavier-nx", "8.6", "int8", "fp16"),
    ("agx-xavier", "8.6", "int8", "fp16"),
    ("orin", "10.3", "int8", "fp16"),
    ("orin-nano", "10.3", "int8", "fp16"),
    ("thor", "11.4", "int8", "fp16"),
    ("t4", "10.3", "int8", "fp16"),
    ("t4", "11.4", "int8", "fp16"),
]


@pytest.mark.parametrize(("board", "version", "with_calibration", "without"), TABLE)
def test_model_build_chooses_the_boards_precision(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    board: str,
    version: str,
    with_calibration: str,
    without: str,
) -> None:
    fake = FakeBoard(tmp_path, version, board)
    fake.plug_in(monkeypatch)
    model = str(graphs.gridbox(tmp_path / "m.onnx"))
    cache = str(calibration(tmp_path / "cache.txt", calibrated()))

    def built(*words: str) -> Any:
        assert main(["model", "build", "--json", "--model", model, *words]) == 0
        return json.loads(capsys.readouterr().out)

    report = built("--calibration", cache)
    assert report["precision_used"] == with_calibration and report["layers"][with_calibration]
    assert (report["calibration_sha256"] is not None) == (with_calibration == "int8")
    assert built()["precision_used"] == without
    code = main(["model", "build", "--model", model, "--calibration", cache, "--precision", "int8"])
    assert code == (0 if with_calibration == "int8" else 1)
    assert ("edge-agent: precision int8 was asked for, but" in capsys.readouterr().err) == (code == 1)
    fake.assert_clean()


@pytest.fixture
def jetpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JetPack4:
    made = JetPack4(tmp_path)
    made.plug_in(monkeypatch)
    monkeypatch.setenv("EDGE_AGENT_MODEL__TENSORRT_PYTHON", made.python)
    return made


@pytest.mark.parametrize(("faults", "precision"), [((), "fp16"), (("int8",), "int8")], ids=["nano", "xavier"])
def test_on_jetpack_4_the_users_own_calibration_is_taken_where_there_is_int8(
    jetpack: JetPack4,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    faults: Any,
    precision: str,
) -> None:
    jetpack.plug_in(monkeypatch, *faults)
    views = tmp_path / "views"
    views.mkdir()
    for index, image in enumerate(wandering(16)):
        cv2.imwrite(str(views / f"{index:02}.png"), image.pixels)
    model = ["--model", str(graphs.gridbox(tmp_path / "m.onnx"))]
    assert main(["model", "calibrate", "--source", str(views), "--for", "tensorrt", *model]) == 0
    capsys.readouterr()
    assert main(["model", "build", "--json", *model]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["tensorrt"], report["precision_used"]) == ("8.2.1.8", precision)
    assert (report["calibration_sha256"] is not None) == (precision == "int8")


def test_on_jetpack_4_check_reports_no_installed_package_as_missing(jetpack: JetPack4, tmp_path: Path) -> None:
    packages = {finding.name: finding for finding in probes.software(Path(jetpack.python))}
    for name in ("tensorrt", "pycuda"):
        if not packages[name].found[0].isdigit():  # where it is installed here, its version is reported
            assert packages[name].state == OK and "a worker of" in packages[name].found
    named = {"EDGE_AGENT_MODEL__TENSORRT_PYTHON": jetpack.python, "EDGE_AGENT_MODEL__BACKEND": "tensorrt"}
    (gpu,) = host_probes.gpu(load_settings(named, None))
    worker = f"in a worker of {jetpack.python}"
    assert (gpu.state, gpu.found) == (OK, f"NVIDIA Tegra X1 (sm_53), driver for CUDA 10.2, TensorRT 8.2.1.8, {worker}")


def test_on_jetpack_4_check_reports_missing_packages(tmp_path: Path) -> None:
    named = load_settings({"EDGE_AGENT_MODEL__TENSORRT_PYTHON": "/bin/false"}, None)
    (gpu,) = host_probes.gpu(named)
    assert gpu.state == NOTE and "/bin/false does not run TensorRT's worker" in gpu.found and gpu.remedy
