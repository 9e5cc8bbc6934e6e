"""The CPU engine on graphs with known outputs, on the real CenterFace, and on faulty files."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from edge_agent.core.detection.detector import DetectionParams, FaceDetector
from edge_agent.core.detection.model_contract import CENTERFACE, FACEDETECTIR, ModelContract
from edge_agent.core.frame import Image
from edge_agent.errors import EngineError, MissingPackage, ModelError
from edge_agent.inference import EngineParams, open_engine
from edge_agent.models.onnx.file import read_onnx
from tests.fakes import graphs
from tests.fakes.agent import AgentProcess
from tests.fakes.views import wandering
from tests.fakes.waiting import eventually
from tests.fakes.weights import centerface_models_dir

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

from edge_agent.inference.calibration.measure import make_int8, measure
from edge_agent.inference.ort import OrtEngine, stored_precision
from edge_agent.inference.trt.network import read_network
from edge_agent.inference.trt.precision import to_fp16


def opened(path: Path, **params: Any) -> Any:
    return open_engine(EngineParams(model=str(path), **params), path.parent)


def image_with_cell(net: Any, stride: int, row: int, column: int) -> Image:
    """Twice the network's size, dark, with one cell of the grid white."""
    pixels = np.zeros((net[1] * 2, net[0] * 2), np.uint8)
    size = stride * 2
    pixels[row * size : (row + 1) * size, column * size : (column + 1) * size] = 255
    return Image(pixels)


@pytest.mark.parametrize("suffix", ["", ":0"])
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_detectnet_is_run_as_its_file_states(tmp_path: Path, suffix: str, batch: Any, channels: int) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx", suffix=suffix, batch=batch, channels=channels)
    engine = opened(path)
    assert engine.contract == replace(FACEDETECTIR, channels=channels)
    outputs = engine.infer(image_with_cell((384, 240), 16, 4, 20))
    assert {role: array.shape for role, array in outputs.items()} == {"cov": (1, 15, 24), "bbox": (4, 15, 24)}
    assert [tuple(cell) for cell in np.argwhere(outputs["cov"][0] > 0.5)] == [(4, 20)]
    np.testing.assert_allclose(outputs["bbox"][:, 4, 20], graphs.BOX)
    assert outputs["cov"].dtype == outputs["bbox"].dtype == np.float32


@pytest.mark.parametrize(("net", "stride"), [((960, 544), 16), ((736, 416), 16), ((320, 320), 32), ((64, 32), 8)])
def test_other_sizes_come_from_the_file(tmp_path: Path, net: Any, stride: int) -> None:
    engine = opened(graphs.gridbox(tmp_path / "m.onnx", net=net, stride=stride))
    assert engine.contract.net == net
    assert engine.contract.stride == (stride, stride)
    cov = engine.infer(image_with_cell(net, stride, 3, 1))["cov"]
    assert [tuple(cell) for cell in np.argwhere(cov[0] > 0.5)] == [(3, 1)]


def test_one_of_several_classes_is_the_face(tmp_path: Path) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx", classes=3)
    with pytest.raises(ModelError, match=r"no class is called 'face'.*one of: 0, 1, 2"):
        opened(path)
    assert opened(path, class_name="2").contract.target == 2
    (tmp_path / "labels.txt").write_text("person\nbag\nFace\n")
    engine = opened(path)
    assert (engine.contract.labels, engine.contract.target) == (("person", "bag", "Face"), 2)
    assert engine.infer(Image(np.zeros((240, 384), np.uint8)))["cov"].shape == (3, 15, 24)
    assert opened(path, class_name="bag").contract.target == 1
    (tmp_path / "labels.txt").write_text("person\nbag\n")
    with pytest.raises(ModelError, match=r"3 classes, but its labels file names 2"):
        opened(path)


def test_a_single_class_needs_no_name(tmp_path: Path) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx")
    (tmp_path / "labels.txt").write_text("Gesicht")
    assert opened(path).contract.labels == ("Gesicht",)


@pytest.mark.parametrize("ids", [("537", "538", "539", "540"), ("a", "b", "c", "d"), ("hm", "wh", "off")])
def test_centerface_is_known_by_its_ids_or_its_shape(tmp_path: Path, ids: Any) -> None:
    engine = opened(graphs.centerface(tmp_path / "m.onnx", ids=ids), long_side=320)
    assert engine.contract == replace(CENTERFACE, long_side=320)
    for width, height, grid in [
        (640, 480, (64, 80)),
        (480, 640, (80, 64)),
        (1280, 800, (56, 80)),
        (640, 480, (64, 80)),
    ]:
        outputs = engine.infer(Image(np.full((height, width), 255, np.uint8)))
        assert sorted(outputs) == ["heatmap", "offset", "scale"]
        assert outputs["heatmap"].shape == (1, *grid)
        assert outputs["heatmap"].max() == pytest.approx(1.0)
        np.testing.assert_allclose(outputs["scale"][:, 0, 0], [0.1, 0.2], rtol=1e-6)
        assert outputs["offset"].shape == (2, *grid)


def test_the_error_names_the_preparation_of_centerface_as_published(tmp_path: Path) -> None:
    path = graphs.centerface(tmp_path / "m.onnx", shape=(10, 3, 32, 32), grid=(8, 8), as_published=True)
    with pytest.raises(ModelError, match=r"fixed at .*10x3x32x32.*model fetch centerface --from"):
        opened(path)


def test_the_runtime_stays_silent(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = graphs.centerface(tmp_path / "m.onnx", shape=(10, 3, 32, 32), grid=(8, 8), as_published=True)
    path.write_bytes(
        graphs.with_shapes(path.read_bytes(), {"input.1": (1, 3, "h", "w")})
    )  # stale outputs: it would warn
    engine = OrtEngine(path, CENTERFACE)
    engine.infer(Image(np.zeros((480, 640), np.uint8)))
    assert capfd.readouterr() == ("", "")


WRONG = [
    ("float64", {}, "takes input_1 float64"),
    ("inputs", {}, "has 2 inputs"),
    ("outputs", {}, "outputs of unknown meaning"),
    ("bbox", {"bbox_planes": 5}, "grids that do not belong together"),
    ("batch", {"batch": 4}, "fixed batch of 4"),
    ("channels", {"channels": 4}, "needs 1 or 3 channels"),
]


@pytest.mark.parametrize(("fault", "how", "message"), WRONG, ids=[entry[0] for entry in WRONG])
def test_other_contracts_are_refused_and_described(tmp_path: Path, fault: str, how: Any, message: str) -> None:
    path = tmp_path / "m.onnx"
    if fault == "float64":
        nodes = [
            helper.make_node("Identity", ["input_1"], ["cov"]),
            helper.make_node("Identity", ["input_1"], ["bbox"]),
        ]
        ends = [graphs.tensor(name, [1, 3, 8, 8], 11) for name in ("input_1", "cov", "bbox")]
        graphs.save(path, nodes, ends[:1], ends[1:])
    elif fault == "inputs":
        nodes = [helper.make_node("Add", ["a", "b"], ["cov"])]
        graphs.save(path, nodes, [graphs.tensor(name, [1, 3, 8, 8]) for name in "ab"], [graphs.tensor("cov", None)])
    elif fault == "outputs":
        nodes = [helper.make_node("Identity", ["a"], ["boxes"])]
        graphs.save(path, nodes, [graphs.tensor("a", [1, 3, 8, 8])], [graphs.tensor("boxes", [1, 3, 8, 8])])
    else:
        graphs.gridbox(path, **how)
    with pytest.raises(ModelError) as caught:
        opened(path)
    assert message in caught.value.message
    assert "found inputs" in caught.value.message
    assert "expected DetectNet_v2" in caught.value.hint


@pytest.mark.parametrize(
    "contract",
    [CENTERFACE, replace(FACEDETECTIR, net=(384, 256)), ModelContract("gridbox", labels=("face", "person"))],
)
def test_a_file_that_keeps_another_contract_is_refused(tmp_path: Path, contract: ModelContract) -> None:
    with pytest.raises(ModelError, match=r"found gridbox, input 3x240x384, stride 16x16, classes 1.*expected"):
        OrtEngine(graphs.gridbox(tmp_path / "m.onnx"), contract)


def test_damaged_files(tmp_path: Path) -> None:
    whole = graphs.gridbox(tmp_path / "m.onnx").read_bytes()
    for name, data in (("cut", whole[:-200]), ("empty", b""), ("text", b"<html>not found</html>")):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=f"{name}.onnx: (damaged|no ONNX)"):
            opened(path)
    with pytest.raises(ModelError, match=r"sha256 is .* expected 00"):
        OrtEngine(tmp_path / "m.onnx", FACEDETECTIR, sha256="00")


def test_a_file_that_the_runtime_refuses_is_a_model_error(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx", activation="NoSuchOperator")
    with pytest.raises(ModelError, match=r"cannot run it: .*NoSuchOperator"):
        opened(path)
    assert capfd.readouterr().err == ""


def test_nan_and_infinity_are_an_engine_error(tmp_path: Path) -> None:
    engine = opened(graphs.gridbox(tmp_path / "m.onnx", activation="Exp", slope=110.0, net=(64, 32)))
    assert engine.infer(Image(np.zeros((32, 64), np.uint8)))["cov"].max() < 1.0
    with pytest.raises(EngineError, match=r"cov output holds NaN or infinity"):
        engine.infer(Image(np.full((32, 64), 255, np.uint8)))


def test_a_network_that_always_returns_nan_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"NaN or infinity"):
        opened(graphs.gridbox(tmp_path / "m.onnx", activation="Log"))


def test_the_golden_image_is_run_before_the_engine_is_open(tmp_path: Path) -> None:
    """A blank image would pass here, and the first face would then stop the agent."""
    with pytest.raises(ModelError, match=r"NaN or infinity"):
        opened(graphs.gridbox(tmp_path / "m.onnx", activation="Exp", slope=200.0, net=(64, 32)))


def test_use_after_close(tmp_path: Path) -> None:
    engine = opened(graphs.gridbox(tmp_path / "m.onnx"))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match=r"after it was closed"):
        engine.infer(Image(np.zeros((8, 8), np.uint8)))


def test_the_choice_is_logged_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "edge_agent"):
        engine = opened(graphs.gridbox(tmp_path / "m.onnx"), threads=2)
    (line,) = caplog.messages
    assert line.startswith("engine: onnxruntime, model m.onnx, fp32")
    assert "threads 2" in line
    assert "auto" in line
    assert (engine.info.backend, engine.info.precision, len(engine.info.model_sha256)) == ("onnxruntime", "fp32", 64)


def test_choices_that_cannot_be_met(tmp_path: Path) -> None:
    with pytest.raises(MissingPackage, match=r"tensorrt"):
        open_engine(EngineParams(backend="tensorrt"), tmp_path)
    with pytest.raises(ModelError, match=r"did you mean 'centerface'"):
        open_engine(EngineParams(model="centreface"), tmp_path)
    with pytest.raises(ModelError) as caught:
        open_engine(EngineParams(), tmp_path)
    assert caught.value.hint == f"run: edge-agent model fetch centerface --models-dir {tmp_path}"


def test_facedetectir_runs_on_a_cpu_once_it_is_converted(tmp_path: Path) -> None:
    folder = tmp_path / "facedetectir"
    folder.mkdir()
    sealed = folder / "resnet18_facedetectir_pruned.etlt"
    sealed.write_bytes(b"\x07\0\0\0input_1" + bytes(16))
    with pytest.raises(ModelError, match=r"needs it converted") as caught:
        open_engine(EngineParams(model="facedetectir"), tmp_path)
    made = sealed.with_suffix(".onnx")
    assert caught.value.hint == f"run: edge-agent model convert {sealed} {made} --key tlt_encode"
    with pytest.raises(ModelError, match=r"needs it converted"):
        open_engine(EngineParams(model=str(sealed)), tmp_path)
    graphs.gridbox(made)
    for model in ("facedetectir", str(sealed)):
        engine = open_engine(EngineParams(model=model, backend="onnxruntime"), tmp_path)
        assert engine.contract == FACEDETECTIR
        engine.close()
    graphs.gridbox(made, net=(736, 416))
    with pytest.raises(ModelError, match=r"keeps another contract"):
        open_engine(EngineParams(model="facedetectir"), tmp_path)


@pytest.mark.parametrize(
    ("labels", "class_name", "target"),
    [("Person\nBag\nFace\n", None, 2), ("Person\nBag\nHead\n", "head", 2), ("a\nb\nc\n", "1", 1), (None, "2", 2)],
)
def test_the_class_that_is_a_face(tmp_path: Path, labels: str, class_name: str, target: int) -> None:
    """PeopleNet's size and TAO's names; of class k the coverage is sigmoid(10 - k) on a white image."""
    path = graphs.gridbox(tmp_path / "m.onnx", net=(960, 544), classes=3, suffix=":0", batch="N")
    names = tmp_path / "names.txt"
    if labels:
        names.write_text(labels)
    params = EngineParams(model=str(path), class_name=class_name, labels_file=str(names) if labels else None)
    engine = open_engine(params, tmp_path)
    assert (engine.contract.target, len(engine.contract.labels), engine.contract.net) == (target, 3, (960, 544))
    faces = FaceDetector(engine, DetectionParams()).detect(Image(np.full((544, 960), 255, np.uint8)))
    assert len(faces.confidence)
    np.testing.assert_allclose(faces.confidence, 1 / (1 + np.exp(-10.0 + target)), rtol=1e-4)
    engine.close()


def test_a_missing_class_and_missing_labels(tmp_path: Path) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx", classes=3)
    for class_name in (None, "3", "-1", "\u00b2"):
        with pytest.raises(ModelError, match=r"no class is called") as caught:
            open_engine(EngineParams(model=str(path), class_name=class_name), tmp_path)
        assert "or to its number, 0 to 2" in caught.value.hint
    with pytest.raises(ModelError, match=r"labels file .*names.txt cannot be read"):
        open_engine(EngineParams(model=str(path), labels_file=str(tmp_path / "names.txt")), tmp_path)
    (tmp_path / "names.txt").write_text("face\n")
    with pytest.raises(ModelError, match=r"3 classes, but its labels file names 1"):
        open_engine(EngineParams(model=str(path), labels_file=str(tmp_path / "names.txt")), tmp_path)


def test_the_scripted_engine_is_chosen_like_any_other(tmp_path: Path) -> None:
    engine = open_engine(EngineParams(backend="scripted", model="scripted?fail_after=0"), tmp_path)
    assert engine.info.backend == "scripted"
    with pytest.raises(EngineError):
        engine.infer(Image(np.zeros((240, 384), np.uint8)))


def test_nothing_heavy_is_loaded_before_it_is_chosen() -> None:
    code = (
        "import sys, edge_agent.inference, edge_agent.commands.model\n"
        "print(sorted({'onnxruntime', 'cv2', 'onnx', 'pydantic', 'pip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_runtime_is_named_with_its_remedy(tmp_path: Path) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx")
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path; from edge_agent.errors import MissingPackage\n"
        "from edge_agent.inference import EngineParams, open_engine\n"
        f"try: open_engine(EngineParams(model={str(path)!r}), Path('.'))\n"
        "except MissingPackage as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install onnxruntime" in done.stdout, done.stderr


def test_an_agent_on_onnxruntime_imports_no_onnx(tmp_path: Path) -> None:
    """Neither `onnx` nor protobuf: the names, types and shapes come from the session."""
    path = graphs.gridbox(tmp_path / "m.onnx")
    for package in ("onnx", "google"):
        mark = f"import pathlib\npathlib.Path({str(tmp_path / 'imported')!r}).touch()\n"
        (tmp_path / f"{package}.py").write_text(mark + "raise ImportError('not installed')\n")
    settings = {"CAMERAS__A__URI": "test://one", "MODEL__MODEL": path, "MODEL__BACKEND": "onnxruntime", "MQTT__PORT": 9}
    search = os.pathsep.join([str(tmp_path), *sys.path])
    with AgentProcess(settings, tmp_path / "state", scripted=False, environ={"PYTHONPATH": search}) as agent:
        eventually(lambda: "engine: onnxruntime, model m.onnx, fp32" in agent.log, "the engine is open")
        agent.stop()
    assert "engine: onnxruntime, model m.onnx, fp32" in agent.log
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_precision_of_a_file_is_known_without_the_onnx_package(tmp_path: Path, precision: str) -> None:
    network = read_network(str(graphs.residual(tmp_path / "m.onnx")), tmp_path)
    amplitudes = measure(network, wandering(2))
    made = {"fp32": network.onnx, "fp16": to_fp16(network).data, "int8": make_int8(network, amplitudes)}
    path = tmp_path / "made.onnx"
    path.write_bytes(made[precision] or b"")
    engine = opened(path)
    assert engine.info.precision == stored_precision(path.read_bytes()) == read_onnx(path).precision == precision
    engine.close()


def test_the_runtime_sends_no_telemetry(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry, on by default since 1.32, would keep an identifier of the device at home."""
    path = graphs.gridbox(tmp_path / "m.onnx")
    code = (
        "from pathlib import Path; from edge_agent.inference import EngineParams, open_engine\n"
        f"open_engine(EngineParams(model={str(path)!r}), Path('.')).close()"
    )
    home = tmp_path / "home"
    home.mkdir()
    # Nothing but these: neither a switch of the machine's own, nor another place for caches.
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environ, timeout=60, check=True)
    assert list(home.rglob("*")) == []


def test_the_real_centerface_runs_at_any_size_with_the_same_answers_for_gray() -> None:
    directory = centerface_models_dir()
    engine = open_engine(EngineParams(), directory)
    assert engine.contract == CENTERFACE
    gray = np.random.default_rng(3).integers(0, 256, (480, 640), dtype=np.uint8)
    heatmap = engine.infer(Image(gray))["heatmap"]
    assert heatmap.shape == (1, 72, 96)
    assert 0.0 <= heatmap.min() <= heatmap.max() <= 1.0
    colour = engine.infer(Image(np.repeat(gray[:, :, None], 3, axis=2)))["heatmap"]
    np.testing.assert_allclose(colour, heatmap, atol=1e-6)
    assert engine.infer(Image(gray[:200]))["heatmap"].shape == (1, 32, 96)
