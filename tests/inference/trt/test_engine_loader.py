"""Selecting TensorRT by settings, and `edge-agent model build`."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.commands import model
from edge_agent.config.settings import load_settings
from edge_agent.core.frame import Image
from edge_agent.errors import EdgeAgentError, EngineError, InputError, MissingPackage, ModelError
from edge_agent.inference import EngineParams, open_engine
from tests.fakes import graphs
from tests.fakes.gpu import FakeBoard, calibration

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

WITHOUT = "needs a machine without TensorRT: it is installed here"


def opened(path: Path, **params: Any) -> Any:
    return open_engine(EngineParams(model=str(path), **params), path.parent)


def build(*words: str) -> int:
    parser = argparse.ArgumentParser()
    model.add_parser(parser.add_subparsers())
    return model.run(parser.parse_args(["model", "build", *words]))


def is_installed() -> bool:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.skipif(is_installed(), reason=WITHOUT)
def test_without_tensorrt_backend_tensorrt_is_an_error(tmp_path: Path) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx")
    for call in (lambda: opened(path, backend="tensorrt"), lambda: build("--model", str(path))):
        with pytest.raises(MissingPackage, match=r"tensorrt cannot be imported.*comes with JetPack"):
            call()


@pytest.mark.skipif(is_installed(), reason=WITHOUT)
def test_without_tensorrt_auto_takes_onnxruntime_and_logs_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine = opened(graphs.gridbox(tmp_path / "m.onnx"))
    assert engine.info.backend == "onnxruntime"
    assert "auto: not TensorRT, because tensorrt cannot be imported" in caplog.text
    engine.close()


@pytest.mark.parametrize("backend", ["auto", "tensorrt"])
def test_with_a_gpu_it_is_opened_once_and_runs_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, backend: str
) -> None:
    caplog.set_level(logging.INFO)
    board = FakeBoard(tmp_path)
    board.plug_in(monkeypatch)
    path = graphs.gridbox(tmp_path / "m.onnx")
    cache = calibration(tmp_path / "m_int8.txt", [("input_1", 1 / 127), ("cells", 0.01), ("logits", 0.1)])
    engine = opened(path, backend=backend, calibration=str(cache))
    assert (engine.info.backend, engine.info.precision) == ("tensorrt", "int8")
    assert engine.infer(Image(np.zeros((480, 640), np.uint8)))["cov"].shape == (1, 15, 24)
    assert "engine: tensorrt, model m.onnx, int8, version 10.3.0, gpu Fake" in caplog.text
    assert ("auto: TensorRT is installed, and Fake answers" in caplog.text) == (backend == "auto")
    assert board.cuda.opened == 1
    engine.close()
    board.assert_clean()


def test_without_a_gpu_auto_takes_onnxruntime_and_tensorrt_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    board = FakeBoard(tmp_path, devices=0)
    board.plug_in(monkeypatch)
    path = graphs.gridbox(tmp_path / "m.onnx")
    engine = opened(path)
    assert engine.info.backend == "onnxruntime"
    assert "auto: not TensorRT, because CUDA: opening the GPU" in caplog.text
    engine.close()
    with pytest.raises(EngineError, match="no CUDA-capable device"):
        opened(path, backend="tensorrt")
    board.assert_clean()


def test_a_failed_build_releases_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = FakeBoard(tmp_path)
    board.plug_in(monkeypatch)
    board.trt.fail = {"build": "10: Could not find any implementation"}
    with pytest.raises(ModelError, match="Could not find any implementation"):
        opened(graphs.gridbox(tmp_path / "m.onnx"), backend="tensorrt")
    board.assert_clean()


def test_a_missing_compiler_is_an_error_before_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = FakeBoard(tmp_path)
    board.plug_in(monkeypatch)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(MissingPackage, match="nowhere"):
        opened(graphs.gridbox(tmp_path / "m.onnx"), backend="tensorrt")
    assert board.trt.built == 0  # found out before the work
    board.assert_clean()


def test_build_prints_progress_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    board = FakeBoard(tmp_path)
    board.plug_in(monkeypatch)
    path = graphs.gridbox(tmp_path / "m.onnx")
    cache = calibration(tmp_path / "m_int8.txt", [("input_1:0", 1 / 127), ("cells", 0.01)])
    words = ("--model", str(path), "--calibration", str(cache), "--precision", "int8")
    assert build(*words) == 0
    shown = capsys.readouterr()
    for line in ("TensorRT 10.3.0 on Fake (sm_87)", "precision int8: as asked", "building engine", "verified with"):
        assert line in shown.err
    rows = dict(line.split(None, 1) for line in shown.out.splitlines())
    assert (rows["precision_asked"], rows["precision_used"]) == ("int8", "int8")
    assert rows["layers"] == "int8 3, fp16 1"
    assert rows["built"] == "now"
    (plan,) = board.engines()
    assert rows["path"] == str(plan)
    assert int(rows["size_bytes"]) == plan.stat().st_size

    assert build(*words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["built"], report["why"]) == ("before", "as asked")
    assert set(report["off_reference"]) == {"cov", "bbox"}
    assert build(*words, "--rebuild", "--cache-dir", str(tmp_path / "elsewhere")) == 0
    assert list((tmp_path / "elsewhere" / "engines").glob("*.plan"))
    # The agent finds it ready.
    built = board.trt.built
    engine = opened(path, backend="tensorrt", calibration=str(cache), precision="int8")
    assert board.trt.built == built
    engine.close()
    board.assert_clean()


def test_the_agent_loads_what_build_made_with_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    board = FakeBoard(tmp_path)
    board.plug_in(monkeypatch)
    given = {
        "MODEL": graphs.centerface(tmp_path / "c.onnx"),
        "LONG_SIDE": 320,
        "WORKSPACE_MB": 64,
        "PRECISION": "fp32",
    }
    settings = tmp_path / "agent.env"
    settings.write_text("".join(f"EDGE_AGENT_MODEL__{name}={value}\n" for name, value in given.items()))
    assert build("--env-file", str(settings)) == 0
    assert "fp32" in capsys.readouterr().out
    params = load_settings({}, settings).model
    open_engine(params, tmp_path, board.reported.append).close()
    assert board.trt.built == 1
    assert build("--env-file", str(settings), "--precision", "fp16") == 0  # options outrank them
    assert board.trt.built == 2
    board.assert_clean()


@pytest.mark.parametrize(
    ("words", "kind", "why"),
    [
        (("--model", "nobody"), ModelError, "no model is called 'nobody'"),
        (("--model", "missing.onnx"), ModelError, "missing.onnx: No such file"),
        (("--model", "missing.uff"), ModelError, "missing.uff: No such file"),
        (("--long-side", "100"), InputError, "multiple of 32"),
        ((), ModelError, "edge-agent model fetch centerface"),
    ],
)
def test_an_invalid_build_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, kind: Any, why: str
) -> None:
    FakeBoard(tmp_path).plug_in(monkeypatch)
    with pytest.raises(kind, match=why) as caught:
        build(*words, "--models-dir", str(tmp_path))
    assert isinstance(caught.value, EdgeAgentError) and "\n" not in str(caught.value)
