"""`edge-agent model calibrate`, and the use of its files by every TensorRT and on the CPU."""

import argparse
import json
import logging
import shutil
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np
import onnx
import pytest

from edge_agent.commands import model
from edge_agent.commands.recordings import FrameSample, gather
from edge_agent.config.settings import load_settings
from edge_agent.core.detection.detector import DetectionParams, FaceDetector
from edge_agent.core.detection.model_contract import CENTERFACE
from edge_agent.core.frame import Image
from edge_agent.errors import InputError, MissingPackage, ModelError
from edge_agent.inference import EngineParams, open_engine
from edge_agent.inference.calibration import cpu_int8
from edge_agent.inference.ort import OrtEngine
from edge_agent.inference.preprocess import golden_image
from edge_agent.inference.trt.engine_loader import relative_errors
from edge_agent.inference.trt.network import local_calibration, read_network
from edge_agent.models import registry
from edge_agent.models.calibration_cache import read_calibration
from tests.fakes import graphs
from tests.fakes.gpu import FakeBoard, calibration
from tests.fakes.images import write_video
from tests.fakes.views import wandering
from tests.fakes.weights import centerface_models_dir

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")


def calibrate(*words: str) -> int:
    parser = argparse.ArgumentParser()
    model.add_parser(parser.add_subparsers())
    return model.run(parser.parse_args(["model", "calibrate", *words]))


def folder_of(path: Path, count: int) -> Path:
    path.mkdir()
    for index, image in enumerate(wandering(count)):
        cv2.imwrite(str(path / f"{index:03}.png"), image.pixels)
    return path


def small(folder: Path) -> Path:
    """A model that detects its bright cells, so that the trial has faces."""
    folder.mkdir(exist_ok=True)
    return graphs.bright(folder / "m.onnx")


def test_kept_frames_are_spread_over_time_and_differ() -> None:
    found = FrameSample(8)
    rng = np.random.default_rng(4)
    for index in range(1000):
        pixels = np.full((48, 64), 30, np.uint8)
        pixels[:, index * 64 // 1000 :] = 200 - index // 10
        found.offer(Image(pixels))
        found.offer(
            Image(np.clip(pixels + rng.normal(0, 2, pixels.shape), 0, 255).astype(np.uint8))
        )  # noise is not new
    kept = [200 - int(image.pixels[0, -1]) for image in found.images()]
    assert len(kept) == 8 and kept == sorted(set(kept))
    assert kept[0] < 15 and kept[-1] > 80 and max(np.diff(kept)) < 25
    assert found.alike > 100 and found.seen == 2000


def test_dark_and_empty_frames_are_not_kept() -> None:
    found = FrameSample(8)
    for level in (0, 3, 128, 255):
        found.offer(Image(np.full((48, 64), level, np.uint8)))
    assert (found.flat, found.images()) == (4, [])


@pytest.mark.parametrize("kind", ["folder", "video", "file:"])
def test_files_are_read_to_their_end(tmp_path: Path, kind: str) -> None:
    if kind == "video":
        source = str(write_video(tmp_path / "clip.avi", [image.pixels for image in wandering(40)], 25))
    else:
        source = ("file:" if kind == "file:" else "") + str(folder_of(tmp_path / "views", 40))
    found = gather(source, 20, 0.001, 16)
    assert len(found) == 20
    again = gather(source, 20, 0.001, 16)
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(found, again))


def test_a_live_source_is_read_for_the_given_time() -> None:
    with pytest.raises(InputError, match=r"too few images to calibrate with: \d+ that differ, expected 16") as caught:
        gather("test://empty", 20, 0.3, 16)
    assert "move in front" in str(caught.value.hint)


def test_too_few_frames_are_reported_in_one_line(tmp_path: Path) -> None:
    views = folder_of(tmp_path / "views", 5)
    for index in range(40):
        shutil.copy(str(views / "000.png"), str(views / f"9{index:02}.png"))
        cv2.imwrite(str(views / f"8{index:02}.png"), np.zeros((192, 256), np.uint8))
    path = small(tmp_path / "models")
    with pytest.raises(InputError, match=r"5 that differ.*of 85 frames 40 were alike, 40 dark or empty"):
        calibrate("--source", str(views), "--model", str(path))
    with pytest.raises(InputError, match="is one image, and 16 or more are needed"):
        calibrate("--source", str(views / "000.png"), "--model", str(path))
    assert [entry.name for entry in path.parent.iterdir()] == ["m.onnx"]


WRONG: List[Any] = [
    (("--frames", "3"), InputError, "--frames 3: expected 16 or more"),
    (("--seconds", "0"), InputError, "--seconds 0"),
    (("--long-side", "100"), InputError, "multiple of 32"),
    (("--model", "nobody"), ModelError, "no model is called 'nobody'"),
    (("--source", "nowhere"), InputError, "nowhere"),
]


@pytest.mark.parametrize(("words", "kind", "why"), WRONG)
def test_wrong_arguments_are_reported_in_one_line(tmp_path: Path, words: Any, kind: Any, why: str) -> None:
    usual = {"--source": str(folder_of(tmp_path / "views", 2)), "--model": str(small(tmp_path / "models"))}
    usual.update([words])
    with pytest.raises(kind, match=why) as caught:
        calibrate(*(word for pair in usual.items() for word in pair))
    assert "\n" not in str(caught.value)


def test_an_encrypted_model_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "facedetectir"
    folder.mkdir()
    (folder / "resnet18_facedetectir_pruned.etlt").write_bytes(b"\x07\0\0\0input_1" + bytes(16))
    with pytest.raises(MissingPackage, match="nvidia-eff-tao-encryption"):
        calibrate("--source", str(tmp_path), "--model", "facedetectir", "--models-dir", str(tmp_path))


def test_frames_of_a_camera_are_transformed_as_for_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    views, path = folder_of(tmp_path / "views", 24), small(tmp_path / "models")
    camera = {
        "URI": f"{views}?pace=fast",
        "ROTATE": "90",
        "MASKS": "[[[0, 0], [1, 0], [1, 0.5], [0, 0.5]]]",
        "ROI": "[0, 0.25, 1, 1]",
    }
    values = {**{f"CAMERAS__DOOR__{name}": value for name, value in camera.items()}, "MODEL__MODEL": path}
    settings = tmp_path / "agent.env"
    settings.write_text("".join(f"EDGE_AGENT_{name}='{value}'\n" for name, value in values.items()))
    seen = gather(str(views), 20, 1.0, 16)
    found = gather(camera["URI"], 20, 1.0, 16, load_settings({}, settings).cameras["door"])
    assert seen[0].pixels.shape == (192, 256) and found[0].pixels.shape == (192, 192)
    assert not found[0].pixels[:64].any()
    turned = [np.rot90(image.pixels, -1)[128:] for image in seen]
    assert any(np.array_equal(found[0].pixels[64:], lower) for lower in turned)
    assert calibrate("--camera", "door", "--env-file", str(settings), "--for", "tensorrt", "--json") == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == str(local_calibration(path))
    with pytest.raises(InputError, match="--camera hall: the settings have no such camera") as caught:
        calibrate("--camera", "hall", "--env-file", str(settings))
    assert caught.value.hint == "expected one of: door"


@pytest.fixture(scope="module")
def centerface(tmp_path_factory: Any) -> Path:
    """A models directory in which the real CenterFace has been calibrated."""
    folder = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(str(centerface_models_dir() / "centerface"), str(folder / "models" / "centerface"))
    views = folder_of(folder / "views", 16)
    assert calibrate("--source", str(views), "--models-dir", str(folder / "models"), "--json") == 0
    return folder / "models"


def test_the_files_are_complete_and_reproducible(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, path = folder_of(tmp_path / "views", 24), small(tmp_path / "models")
    sums: List[Dict[str, bytes]] = []
    for _ in range(2):
        assert calibrate("--source", str(views), "--model", str(path), "--json") == 0
        report = json.loads(capsys.readouterr().out)
        sums.append({key: Path(report[key]).read_bytes() for key in ("calibration", "qdq", "fp16", "cpu_int8")})
    assert sums[0] == sums[1]
    assert report["pictures"] == 12 and report["int8_layers"] == "4 of 4"
    lines = sums[0]["calibration"].decode().splitlines()
    assert lines[0] == "TRT-8601-EntropyCalibration2"
    assert lines[1] == "input_1: 3c010204"  # white / 127
    names = ["cells", "cells/relu", "same", "same/relu", "logits", "output_cov/Sigmoid", "output_bbox/BiasAdd"]
    assert [line.split(":")[0] for line in lines[2:]] == names
    assert calibrate("--source", str(views), "--model", str(path), "--for", "tensorrt") == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["pictures"] == "24" and "cpu_int8" not in rows


BOARDS = [("8.2", "nano", "fp16"), ("8.6", "agx-xavier", "int8"), ("10.3", "orin", "int8"), ("11.4", "thor", "int8")]


@pytest.mark.slow
@pytest.mark.parametrize(("version", "board", "precision"), BOARDS)
def test_centerface_builds_on_every_generation(
    centerface: Path, tmp_path: Path, version: str, board: str, precision: str
) -> None:
    network = read_network("centerface", centerface)
    assert network.calibration == local_calibration(network.path)
    fake = FakeBoard(tmp_path, version, board)
    opened = fake.open(network)
    assert opened.engine.info.precision == precision
    found = FaceDetector(opened.engine, DetectionParams()).detect(golden_image())
    assert len(found.xyxy) == 1
    assert max(opened.errors.values()) < (0.25 if precision == "int8" else 0.02)
    if version == "11.4":
        assert any("converted to int8 for this TensorRT: 63 of 63 layers" in line for line in fake.reported)
        assert opened.manifest.layers["int8"] >= 63 and fake.trt.configs[-1]["flags"] == {"TF32"}
    opened.engine.close()
    fake.assert_clean()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_on_tensorrt_11_every_precision_is_met(centerface: Path, tmp_path: Path, precision: str) -> None:
    fake = FakeBoard(tmp_path, "11.4", "orin")
    for built in (True, False):
        opened = fake.open(read_network("centerface", centerface), precision=precision)
        assert (opened.engine.info.precision, opened.built) == (precision, built)
        assert opened.engine.info.model_sha256 == read_network("centerface", centerface).sha256
        opened.engine.close()
        fake = FakeBoard(tmp_path, "11.4", "orin")
    assert len(fake.engines()) == 1


@pytest.mark.slow
def test_the_files_themselves_build_on_tensorrt_11(centerface: Path, tmp_path: Path) -> None:
    """The files as such, for use with another program."""
    folder = centerface / "centerface"
    for name, precision in (("centerface.qdq.onnx", "int8"), ("centerface.fp16.onnx", "fp16")):
        network = read_network(str(folder / name), folder)
        opened = FakeBoard(tmp_path, "11.4", "t4").open(network, precision=precision)
        assert opened.engine.info.precision == precision
        opened.engine.close()
        with pytest.raises(ModelError, match="computes in the file's own precision"):
            FakeBoard(tmp_path, "11.4", "t4").open(network, precision="fp32")


@pytest.mark.slow
def test_the_files_are_close_to_float(centerface: Path) -> None:
    folder = centerface / "centerface"
    wanted = run_on_cpu(folder / "centerface.onnx")
    for name, most in (("qdq", 0.25), ("cpu-int8", 0.25), ("fp16", 0.02)):
        path = folder / f"centerface.{name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        assert 0.0 < max(relative_errors(run_on_cpu(path), wanted).values()) < most


def run_on_cpu(path: Path) -> Dict[str, np.ndarray]:
    engine = OrtEngine(path, CENTERFACE)
    answers = {role: value.copy() for role, value in engine.infer(golden_image()).items()}
    engine.close()
    return answers


@pytest.mark.slow
def test_tensorrt_11_refuses_the_file_for_the_cpu(centerface: Path, tmp_path: Path) -> None:
    network = read_network(str(centerface / "centerface" / "centerface.cpu-int8.onnx"), centerface)
    with pytest.raises(ModelError, match="zero points must be int8 and 0"):
        FakeBoard(tmp_path, "11.4", "t4").open(network)


def test_a_calibration_of_another_model_is_refused_by_tensorrt_11(tmp_path: Path) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx")
    cache = calibration(tmp_path / "o.txt", [("input_1", 1 / 127), *((f"conv{n}", 0.1) for n in range(9))])
    with pytest.raises(ModelError, match="made for another model"):
        FakeBoard(tmp_path, "11.4", "t4").open(read_network(str(path), tmp_path, calibration=str(cache)))


def stored_trial(path: Path, **changes: Any) -> cpu_int8.Int8Trial:
    """Write a trial of the INT8 version beside `path`."""
    facts: Dict[str, Any] = {
        "model_sha256": registry.sha256_of(path),
        "int8_sha256": registry.sha256_of(cpu_int8.int8_file(path)),
        "cpu": cpu_int8.cpu_name(),
        "onnxruntime": cpu_int8.runtime_version(),
        "pictures": 50,
        "faces": 50,
        "precision": 0.995,
        "recall": 0.99,
        "float_ms": 10.0,
        "int8_ms": 5.0,
    }
    found = cpu_int8.Int8Trial(**{**facts, **changes})
    cpu_int8.store_trial(path, found)
    return found


@pytest.fixture
def tried(tmp_path: Path) -> Path:
    """A model with a verified INT8 version."""
    path = small(tmp_path / "models")
    views = folder_of(tmp_path / "views", 24)
    assert calibrate("--source", str(views), "--model", str(path), "--for", "cpu") == 0
    stored_trial(path)
    return path


def opened(path: Path, **params: Any) -> Any:
    return open_engine(EngineParams(model=str(path), backend="onnxruntime", **params), path.parent)


def test_a_verified_int8_version_is_used(tried: Path) -> None:
    for precision, used in (("auto", "int8"), ("int8", "int8"), ("fp32", "fp32")):
        engine = opened(tried, precision=precision)
        assert (engine.info.precision, engine.info.model) == (used, "m.onnx")
        engine.close()
    with pytest.raises(ModelError, match=r"fp16 was asked for.*no faster than fp32"):
        opened(tried, precision="fp16")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"recall": 0.985}, r"precision 0.995, recall 0.985"),
        ({"precision": 0.5}, r"precision 0.500, recall 0.990"),
        ({"faces": 9}, "too few faces to judge by: 9 of 10"),
        ({"int8_ms": 9.8}, "not faster here: 9.8 ms against 10.0 ms"),
        ({"cpu": "another"}, "was tried on another with ONNX Runtime"),
        ({"onnxruntime": "0.1"}, "with ONNX Runtime 0.1, not here"),
        ({"model_sha256": "0"}, "was made from another model"),
        ({"int8_sha256": "0"}, "or changed since"),
    ],
)
def test_an_unverified_int8_version_is_not_used(
    tried: Path, caplog: pytest.LogCaptureFixture, changes: Any, why: str
) -> None:
    caplog.set_level(logging.INFO)
    stored_trial(tried, **changes)
    engine = opened(tried)
    assert engine.info.precision == "fp32" and "not in INT8" in caplog.text
    engine.close()
    with pytest.raises(ModelError, match=why):
        opened(tried, precision="int8")


def test_damage_is_logged_and_the_float_version_used(tried: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    target = cpu_int8.int8_file(tried)
    for damage in ("", "{}", "[]", '{"format": 1}', '{"format": 99}'):
        target.with_suffix(".json").write_text(damage)
        opened(tried).close()
    assert caplog.text.count("not in INT8") == 5
    target.with_suffix(".json").unlink()
    opened(tried).close()
    assert caplog.text.count("engine: onnxruntime, model m.onnx, fp32") == 6


def test_the_trial_rejects_a_bad_version(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Calibrated with dim images only, and judged with bright ones: INT8 then clips the scores."""
    views = tmp_path / "views"
    views.mkdir()
    for index, image in enumerate(wandering(48)):
        dim = (image.pixels // 4 if index % 2 == 0 else image.pixels).astype(np.uint8)
        cv2.imwrite(str(views / f"{index:03}.png"), dim)
    path = small(tmp_path / "models")
    assert calibrate("--source", str(views), "--model", str(path), "--for", "cpu", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["recall"] < 0.99 and report["used_on_this_cpu"].startswith("no: ")
    engine = opened(path)
    assert engine.info.precision == "fp32"
    engine.close()


@pytest.mark.slow
def test_the_real_centerface_is_accurate_in_int8(centerface: Path) -> None:
    shown = json.loads((centerface / "centerface" / "centerface.cpu-int8.json").read_text())
    assert shown["recall"] >= 0.9 and shown["precision"] >= 0.9 and shown["faces"] >= 5
    assert read_calibration(centerface / "centerface" / "centerface.int8.txt").codes["input.1"] == "40008102"
