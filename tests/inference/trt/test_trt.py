"""TensorRT in every generation of its API: outputs compared with ONNX Runtime's, the cache, and failures."""

import hashlib
import json
import os
import re
import threading
from pathlib import Path
from queue import Queue
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
import pytest

from edge_agent.core.detection.detector import DetectionParams, FaceDetector
from edge_agent.core.detection.geometry import iou
from edge_agent.core.frame import Image
from edge_agent.errors import EdgeAgentError, EngineError, InputError, MissingPackage, ModelError
from edge_agent.inference.ort import OrtEngine
from edge_agent.inference.preprocess import Preprocessor, golden_image
from edge_agent.inference.trt.engine_loader import TOLERANCES, progress_reports
from edge_agent.inference.trt.network import Network, read_network
from edge_agent.inference.trt.precision import (
    Capabilities,
    built_precision,
    choose_precision,
    count_layers,
    has_fast_int8,
)
from edge_agent.models.onnx.graph import read_graph
from tests.fakes import graphs
from tests.fakes.gpu import FakeBoard, calibration
from tests.fakes.uff_writer import detectnet
from tests.fakes.weights import centerface_models_dir

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

SIZES = [(640, 480), (1280, 800), (500, 500), (480, 640), (640, 480)]
WHITE = 1 / 127.0


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[Callable[..., FakeBoard]]:
    """Creates boards; checks at the end that nothing was left on their GPUs."""
    made: List[FakeBoard] = []

    def make(version: str = "10.3", board: str = "orin", **gpu: Any) -> FakeBoard:
        made.append(FakeBoard(tmp_path, version, board, **gpu))
        return made[-1]

    yield make
    for board in made:
        board.assert_clean()


def gridbox(folder: Path, **options: Any) -> Network:
    return read_network(str(graphs.gridbox(folder / "m.onnx", **options)), folder)


def scales(suffix: str = "", white: float = WHITE) -> List[Tuple[str, float]]:
    """Scales of all tensors of `graphs.gridbox`."""
    outputs = [f"output_cov/Sigmoid{suffix}", f"output_bbox/BiasAdd{suffix}"]
    return [(f"input_1{suffix}", white), *((name, 0.1) for name in ("cells", "logits", *outputs))]


def calibrated(folder: Path, suffix: str = "", **options: Any) -> Network:
    cache = calibration(folder / "m_int8.txt", scales(suffix))
    return read_network(str(graphs.gridbox(folder / "m.onnx", **options)), folder, calibration=str(cache))


def uff_network(folder: Path) -> Network:
    feed = np.array(Preprocessor(gridbox(folder).contract)(golden_image()))
    (folder / "m.uff").write_bytes(detectnet(feed).encode())
    return read_network(str(folder / "m.uff"), folder)


def centerface_like(folder: Path) -> Network:
    return read_network(str(graphs.centerface(folder / "c.onnx")), folder)


def reference_engine(network: Network, folder: Path) -> OrtEngine:
    path = folder / "reference.onnx"
    path.write_bytes(network.onnx)
    return OrtEngine(path, network.contract)


def images() -> List[Image]:
    found = [golden_image()]
    for width, height in SIZES:
        y, x = np.mgrid[:height, :width]
        blob = np.exp(-((x - width / 3) ** 2 + (y - height / 2) ** 2) / (width * 8.0))
        found.append(Image(np.clip(40 + 215 * blob, 0, 255).astype(np.uint8)))
    return found


GENERATIONS = [
    ("8.2", "nano", uff_network, "execute_async", "fp16"),
    ("8.2", "nano", gridbox, "execute_async_v2", "fp16"),
    ("8.2", "nano", centerface_like, "execute_async_v2", "fp16"),
    ("8.4", "agx-xavier", uff_network, "execute_async", "fp16"),
    ("8.4", "orin", gridbox, "execute_async_v2", "fp16"),
    ("8.6", "agx-xavier", uff_network, "execute_async", "fp16"),
    ("8.6", "agx-xavier", gridbox, "execute_async_v3", "fp16"),
    ("8.6", "t4", centerface_like, "execute_async_v3", "fp16"),
    ("10.3", "orin", uff_network, "execute_async_v3", "fp16"),
    ("10.3", "orin-nano", gridbox, "execute_async_v3", "fp16"),
    ("10.3", "t4", centerface_like, "execute_async_v3", "fp16"),
    ("11.4", "thor", uff_network, "execute_async_v3", "fp16"),
    ("11.4", "orin", gridbox, "execute_async_v3", "fp16"),
    ("11.4", "t4", centerface_like, "execute_async_v3", "fp16"),
]


@pytest.mark.parametrize(("version", "board", "network", "call", "precision"), GENERATIONS)
def test_every_generation_has_the_outputs_of_onnxruntime(
    boards: Any, tmp_path: Path, version: str, board: str, network: Any, call: str, precision: str
) -> None:
    fake, model = boards(version, board), network(tmp_path)
    opened = fake.open(model)
    engine, other = opened.engine, reference_engine(model, tmp_path)
    assert opened.built and engine.info.precision == precision
    assert max(opened.errors.values()) < 0.005
    # Every cell for itself: which of several equals wins a clustering is luck.
    params = DetectionParams(pre_cluster_threshold=0.7, cluster_mode="none", top_k=1000)
    faces = 0
    for image in images():
        answers, expected = engine.infer(image), other.infer(image)
        assert sorted(answers) == sorted(expected)
        for role, value in expected.items():
            # OpenCV rounds to whole gray levels, of which the test's steepest network makes 0.02.
            np.testing.assert_allclose(answers[role], value, atol=0.03, rtol=0.01)
        found = FaceDetector(engine, params).detect(image).xyxy
        expected = FaceDetector(other, params).detect(image).xyxy
        if len(expected):
            alike = iou(found, expected) > 0.9
            assert min(alike.any(axis=0).mean(), alike.any(axis=1).mean()) > 0.95
        faces += len(expected)
    assert faces
    assert set(fake.trt.calls) == {call}
    engine.close()
    engine.close()
    assert fake.cuda.aborts == []


def test_the_real_centerface_finds_the_same_face(boards: Any, tmp_path: Path) -> None:
    directory = centerface_models_dir()
    network = read_network("centerface", directory)
    other = OrtEngine(directory / "centerface" / "centerface.onnx", network.contract)
    for version, board in (("8.2", "nano"), ("10.3", "orin"), ("11.4", "thor")):
        engine = boards(version, board).open(network).engine
        found = [FaceDetector(one, DetectionParams()).detect(golden_image()) for one in (engine, other)]
        assert len(found[0].xyxy) == len(found[1].xyxy) == 1
        np.testing.assert_allclose(found[0].xyxy, found[1].xyxy, atol=1.0)
        np.testing.assert_allclose(found[0].confidence, found[1].confidence, atol=0.02)
        engine.close()
    other.close()


# JetPack's TensorRT of each board; INT8 only where the GPU computes in it.
TABLE = [
    ("nano", "8.2", "fp16", "fp16"),
    ("xavier-nx", "8.2", "int8", "fp16"),
    ("xavier-nx", "8.4", "int8", "fp16"),
    ("xavier-nx", "8.6", "int8", "fp16"),
    ("agx-xavier", "8.6", "int8", "fp16"),
    ("orin", "8.6", "int8", "fp16"),
    ("orin", "10.3", "int8", "fp16"),
    ("orin-nano", "10.3", "int8", "fp16"),
    ("thor", "10.3", "int8", "fp16"),
    ("t4", "8.6", "int8", "fp16"),
    ("t4", "10.3", "int8", "fp16"),
    ("thor", "11.4", "int8", "fp16"),
    ("orin", "11.4", "int8", "fp16"),
    ("t4", "11.4", "int8", "fp16"),
]


@pytest.mark.parametrize(("board", "version", "with_calibration", "without"), TABLE)
def test_the_board_decides_the_precision(
    boards: Any, tmp_path: Path, board: str, version: str, with_calibration: str, without: str
) -> None:
    for network, precision in ((calibrated(tmp_path), with_calibration), (gridbox(tmp_path), without)):
        fake = boards(version, board)
        opened = fake.open(network, rebuild=True)
        assert opened.engine.info.precision == precision
        assert (opened.engine.info.calibration_sha256 is not None) == (precision == "int8")
        flags = fake.trt.configs[-1]["flags"] & {"INT8", "FP16"}
        expected = {"int8": {"INT8", "FP16"}, "fp16": {"FP16"}, "fp32": set()}[precision]
        assert flags == (set() if version == "11.4" else expected)  # there the network is strongly typed
        assert fake.trt.configs[-1]["workspace"] == 256 << 20
        # Strongly typed, what lies between Q/DQ pairs stays float.
        rest = {"fp32"} if (version, precision) == ("11.4", "int8") else set()
        assert set(opened.manifest.layers) == {precision} | rest
        opened.engine.close()


@pytest.mark.parametrize(("in_file", "in_cache"), [("", ":0"), (":0", ""), (":0", ":0")])
def test_a_calibration_fits_with_and_without_colon_0_in_names(
    boards: Any, tmp_path: Path, in_file: str, in_cache: str
) -> None:
    cache = calibration(tmp_path / "m_int8.txt", scales(in_cache))
    path = graphs.gridbox(tmp_path / "m.onnx", suffix=in_file)
    opened = boards().open(read_network(str(path), tmp_path, calibration=str(cache)), precision="int8")
    assert opened.manifest.layers == {"int8": 4}
    opened.engine.close()


def test_fp32_is_built_without_tf32(boards: Any, tmp_path: Path) -> None:
    fake = boards()
    opened = fake.open(gridbox(tmp_path), precision="fp32")
    assert fake.trt.configs[-1]["flags"] == set()
    opened.engine.close()


def test_dynamic_networks_calibrate_with_their_profile(boards: Any, tmp_path: Path) -> None:
    path = graphs.centerface(tmp_path / "c.onnx")
    cache = calibration(tmp_path / "c_int8.txt", [("input.1", 255 / 127), ("cells", 255 / 127), ("537", 1 / 127)])
    fake = boards()
    opened = fake.open(read_network(str(path), tmp_path, calibration=str(cache)))
    assert fake.trt.configs[-1]["calibration_profile"] and opened.engine.info.precision == "int8"
    opened.engine.close()


def test_a_deep_learning_accelerator_is_used_if_present(boards: Any, tmp_path: Path) -> None:
    fake = boards("8.6", "agx-xavier")
    opened = fake.open(gridbox(tmp_path), dla_core=1)
    assert fake.trt.configs[-1]["dla"] == 1 and "GPU_FALLBACK" in fake.trt.configs[-1]["flags"]
    assert opened.engine.info.detail["dla_core"] == 1
    opened.engine.close()
    for network, board, core, why in (
        (gridbox(tmp_path), "agx-xavier", 2, "DLA core 2 was asked for, but there are 2"),
        (gridbox(tmp_path), "orin-nano", 0, "DLA core 0 was asked for, but there are 0"),
        (centerface_like(tmp_path), "agx-xavier", 0, "runs models of one input size only"),
    ):
        with pytest.raises(ModelError, match=why):
            boards("8.6", board).open(network, dla_core=core)


@pytest.mark.parametrize(
    ("asked", "int8", "fp16", "fixed", "file", "calibrated", "precision"),
    [
        ("auto", True, True, False, "fp32", True, "int8"),
        ("auto", True, True, False, "fp32", False, "fp16"),
        ("auto", False, True, False, "fp32", True, "fp16"),
        ("auto", False, False, False, "fp32", True, "fp32"),
        ("auto", True, True, False, "int8", False, "int8"),
        ("int8", True, True, True, "int8", False, "int8"),
        ("auto", False, True, True, "int8", False, "quantised to INT8, which X does not have"),
        ("auto", False, True, False, "int8", True, "quantised to INT8, which X does not have"),
        ("fp16", True, True, False, "int8", True, "the file is quantised: int8"),
        ("auto", True, True, True, "fp16", True, "fp16"),
        ("fp16", False, False, False, "fp32", False, "is not fast at it"),
        ("fp32", False, False, False, "fp32", False, "fp32"),
    ],
)
def test_choose_precision(
    asked: str, int8: bool, fp16: bool, fixed: bool, file: str, calibrated: bool, precision: str
) -> None:
    can = Capabilities("X", int8, fp16, fixed)
    if precision in TOLERANCES:
        assert choose_precision(asked, can, file, calibrated).precision == precision
    else:
        with pytest.raises(ModelError, match=precision):
            choose_precision(asked, can, file, calibrated)


def test_fast_int8_by_compute_capability() -> None:
    found = {sm: has_fast_int8(sm) for sm in ("53", "60", "61", "62", "70", "72", "75", "87", "90", "110", "120")}
    assert [sm for sm, fast in found.items() if not fast] == ["53", "60", "62", "70"]


def test_progress_is_reported_at_intervals() -> None:
    progress: Any = Queue()
    with progress_reports(progress.put, "still building", 0.01):
        assert progress.get(timeout=5).startswith("still building, ")
        progress.get(timeout=5)
    assert not any(thread.name == "trt-progress" for thread in threading.enumerate())


UNMET: List[Tuple[str, str, str, bool, str]] = [
    ("8.2", "nano", "int8", True, "int8 was asked for, but Fake does not have it"),
    ("10.3", "orin", "int8", False, "no calibration for this model"),
    ("11.4", "thor", "int8", False, "no calibration for this model"),
]


@pytest.mark.parametrize(("version", "board", "precision", "with_calibration", "why"), UNMET)
def test_an_unavailable_precision_is_an_error(
    boards: Any, tmp_path: Path, version: str, board: str, precision: str, with_calibration: bool, why: str
) -> None:
    network = calibrated(tmp_path) if with_calibration else gridbox(tmp_path)
    fake = boards(version, board)
    with pytest.raises(ModelError, match=why) as caught:
        fake.open(network, precision=precision)
    assert caught.value.hint
    assert fake.trt.built == 0


def convolution(**fields: Any) -> Dict[str, Any]:
    inputs = [{"Name": "a", "Format/Datatype": fields.pop("seen", "N/A due to dynamic shapes")}]
    return {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": inputs, "Outputs": [], **fields}


def pooling(seen: str) -> Dict[str, Any]:
    return {"LayerType": "CudaPooling", "Inputs": [{"Name": "a", "Format/Datatype": seen}]}


LAYERS: List[Tuple[List[Any], Dict[str, int]]] = [
    (
        [convolution(Weights={"Type": "Int8", "Count": 9}), convolution(Weights={"Type": "Half"})],
        {"int8": 1, "fp16": 1},
    ),
    ([convolution(), pooling("N/A due to dynamic shapes")], {}),
    (
        [pooling("Channel major FP16 format where channel % 8 == 0"), pooling("Row major linear FP32")],
        {"fp16": 1, "fp32": 1},
    ),
    (
        [convolution(seen="Thirty-two wide channel vectorized row major Int8 format", Weights={"Type": "Int8"})],
        {"int8": 1},
    ),
    ([convolution(seen="Row major linear FP32", Weights={"Type": "Float"}), pooling("Int32")], {"fp32": 1, "other": 1}),
    ([{"LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major Int8 format"}]}, "a name only"], {}),
]


@pytest.mark.parametrize(("layers", "counted"), LAYERS)
def test_layers_are_counted_by_the_type_of_their_weights(layers: Any, counted: Any) -> None:
    found = count_layers(json.dumps({"Layers": layers, "Bindings": []}))
    assert found == counted and list(found) == list(counted)
    assert built_precision(found, "fp16") == next(iter(counted), "fp16")


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_a_model_of_any_size_has_the_requested_precision(boards: Any, tmp_path: Path, precision: str) -> None:
    network = centerface_like(tmp_path)
    inner = [name for node in read_graph(network.onnx, "c.onnx").nodes for name in node.outputs]
    cache = calibration(
        tmp_path / "c_int8.txt", [(network.binding.input, 255 / 127), *((name, 10.0) for name in inner)]
    )
    opened = boards().open(
        read_network(str(tmp_path / "c.onnx"), tmp_path, calibration=str(cache)), precision=precision
    )
    assert opened.manifest.layers.get(precision) and opened.engine.info.precision == precision
    opened.engine.close()


def test_a_precision_that_no_layer_has_is_an_error_and_not_cached(boards: Any, tmp_path: Path) -> None:
    fake = boards()
    fake.trt.stubborn = True
    with pytest.raises(ModelError, match=r"int8 was asked for, but TensorRT built no layer in it \(fp32 4\)"):
        fake.open(calibrated(tmp_path), precision="int8")
    assert fake.engines() == []
    opened = fake.open(calibrated(tmp_path))
    assert opened.engine.info.precision == "fp32"
    opened.engine.close()


@pytest.mark.parametrize("header", ["TRT-7103-EntropyCalibration2", "TRT-8XXX-MinMaxCalibration"])
@pytest.mark.parametrize("version", ["8.2", "8.6", "10.3"])
def test_a_calibration_of_any_tensorrt_fits_every_other(boards: Any, tmp_path: Path, version: str, header: str) -> None:
    cache = calibration(tmp_path / "other.txt", scales(), header)
    network = read_network(str(graphs.gridbox(tmp_path / "m.onnx")), tmp_path, calibration=str(cache))
    opened = boards(version, "xavier-nx").open(network, precision="int8")
    assert opened.engine.info.precision == "int8"
    opened.engine.close()


CALIBRATIONS: List[Tuple[str, Callable[[Path], Path], str]] = [
    ("missing", lambda path: path, "No such file"),
    ("images", lambda path: calibration(path, scales(white=255 / 127)), "other preprocessing.*reaches 255"),
    ("input", lambda path: calibration(path, scales()[1:]), "another model: it has no scale for the input"),
    (
        "tensors",
        lambda path: calibration(path, [scales()[0], *((f"conv{n}", 0.1) for n in range(9))]),
        "another model: of its 10 tensors only 1",
    ),
    ("algorithm", lambda path: calibration(path, scales(), "TRT-7103-LegacyCalibration"), "its first line is"),
    ("onnx", lambda path: graphs.gridbox(path), "its first line is"),
    ("line", lambda path: path.write_text("TRT-1-EntropyCalibration2\na: 12\n") and path, "line 2 cannot be read"),
    ("nan", lambda path: calibration(path, [("input_1", float("nan"))]), "the scale is nan"),
    ("empty", lambda path: calibration(path, []), "names no tensor"),
]


@pytest.mark.parametrize(("make", "why"), [entry[1:] for entry in CALIBRATIONS], ids=[e[0] for e in CALIBRATIONS])
def test_a_wrong_calibration_is_an_error_of_one_line(boards: Any, tmp_path: Path, make: Any, why: str) -> None:
    path = tmp_path / "m_int8.txt"
    made = make(path) or path
    model = graphs.gridbox(tmp_path / "m.onnx")
    fake = boards()
    with pytest.raises(ModelError, match=why) as caught:
        fake.open(read_network(str(model), tmp_path, calibration=str(made)))
    assert "\n" not in str(caught.value) and caught.value.hint
    assert fake.engines() == []


def test_an_engine_is_built_once_and_verified_at_every_load(boards: Any, tmp_path: Path) -> None:
    first, second = boards(), boards()
    opened = first.open(gridbox(tmp_path))
    opened.engine.close()
    assert [path.name for path in first.engines()] == [opened.path.name]
    manifest = json.loads(opened.path.with_suffix(".json").read_text())
    assert manifest["key"]["tensorrt"] == "10.3.0" and manifest["key"]["sm"] == "87"
    assert (manifest["precision"], manifest["layers"]) == ("fp16", {"fp16": 4})
    again = second.open(gridbox(tmp_path))
    assert not again.built and second.trt.built == 0
    assert again.manifest == opened.manifest
    assert second.trt.calls == ["execute_async_v3"]  # the proof
    assert not any("computing the reference" in line for line in second.reported)
    again.engine.close()
    third = boards().open(gridbox(tmp_path), rebuild=True)
    assert third.built
    third.engine.close()


def test_every_part_of_the_key_makes_another_engine(boards: Any, tmp_path: Path) -> None:
    def path(fake: FakeBoard, network: Network, **options: Any) -> Path:
        opened = fake.open(network, **options)
        opened.engine.close()
        assert opened.built
        return opened.path

    plain = gridbox(tmp_path)
    paths = [
        path(boards(), plain),
        path(boards("8.6"), plain),
        path(boards(board="t4"), plain),
        path(boards(multiprocessors=8), plain),
        path(boards(), plain, precision="fp32"),
        path(boards(), plain, workspace_mb=64),
        path(boards(), plain, dla_core=0),
        path(boards(), gridbox(tmp_path, slope=10.0)),
        path(boards(), calibrated(tmp_path)),
        path(boards(), centerface_like(tmp_path)),
        path(boards(), read_network(str(tmp_path / "c.onnx"), tmp_path, long_side=320)),
    ]
    calibration(tmp_path / "other.txt", [*scales()[:-1], ("output_bbox/BiasAdd", 0.2)])
    paths.append(
        path(boards(), read_network(str(tmp_path / "m.onnx"), tmp_path, calibration=str(tmp_path / "other.txt")))
    )
    assert len(set(paths)) == len(paths)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _vouch(path: Path, plan: bytes) -> None:
    """Replace a plan, with a matching manifest."""
    path.write_bytes(plan)
    entries = json.loads(path.with_suffix(".json").read_text())
    entries.update(plan_sha256=hashlib.sha256(plan).hexdigest(), plan_bytes=len(plan))
    path.with_suffix(".json").write_text(json.dumps(entries))


DAMAGES: List[Tuple[str, Callable[[Path], Any], str]] = [
    ("truncated", _truncate, "damaged: .* bytes instead of"),
    ("flipped", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), "damaged: "),
    ("truncated-whole", lambda path: _vouch(path, path.read_bytes()[:-10]), "Serialization assertion failed"),
    (
        "version",
        lambda path: _vouch(path, path.read_bytes().replace(b'"10.3.0"', b'"10.2.0"')),
        "cannot load the engine: 6: .*expecting library version 10.3.0 got 10.2.0",
    ),
    (
        "device",
        lambda path: _vouch(path, path.read_bytes().replace(b"[8, 7]", b"[7, 2]")),
        "incompatible device, expecting compute 8.7 got compute 7.2",
    ),
    ("manifest", lambda path: path.with_suffix(".json").write_text("{"), "manifest is damaged"),
    ("list", lambda path: path.with_suffix(".json").write_text("[]"), "manifest is damaged"),
    ("no-manifest", lambda path: path.with_suffix(".json").unlink(), "there is none"),
    ("format", lambda path: path.with_suffix(".json").write_text('{"format": 0}'), "another version of this program"),
]


@pytest.mark.parametrize(("damage", "why"), [entry[1:] for entry in DAMAGES], ids=[entry[0] for entry in DAMAGES])
def test_an_unusable_engine_is_built_again(boards: Any, tmp_path: Path, damage: Any, why: str) -> None:
    opened = boards().open(gridbox(tmp_path))
    opened.engine.close()
    damage(opened.path)
    fake = boards()
    again = fake.open(gridbox(tmp_path))
    assert again.built and fake.trt.built == 1
    (line,) = [line for line in fake.reported if line.startswith("building engine")]
    assert re.search(why, line), line
    again.engine.close()
    last = boards().open(gridbox(tmp_path))
    assert not last.built
    last.engine.close()


def test_an_engine_of_another_model_is_built_again(boards: Any, tmp_path: Path) -> None:
    foreign = boards().open(centerface_like(tmp_path))
    foreign.engine.close()
    opened = boards().open(gridbox(tmp_path))
    opened.engine.close()
    _vouch(opened.path, foreign.path.read_bytes())
    fake = boards()
    again = fake.open(gridbox(tmp_path))
    assert again.built and any("another model's: input_1" in line for line in fake.reported)
    again.engine.close()


def test_an_engine_with_wrong_outputs_is_built_again_once(boards: Any, tmp_path: Path) -> None:
    opened = boards().open(gridbox(tmp_path))
    opened.engine.close()
    other = boards().open(gridbox(tmp_path, slope=-20.0))
    other.engine.close()
    _vouch(opened.path, other.path.read_bytes())
    fake = boards()
    again = fake.open(gridbox(tmp_path))
    assert again.built and fake.trt.built == 1
    assert any(
        "engine answers wrongly" in line and "differs from the reference in cov" in line for line in fake.reported
    )
    plain = boards()
    engine = plain.open(gridbox(tmp_path)).engine
    assert fake.cuda.allocated_bytes == plain.cuda.allocated_bytes  # nothing is left of the wrong one
    engine.close()
    again.engine.close()

    broken = boards()
    broken.trt.wrong = True
    with pytest.raises(EngineError, match=r"answers wrongly: .* differs from the reference in cov by \d+%"):
        broken.open(gridbox(tmp_path))
    assert broken.trt.built == 1
    fresh = boards()
    fresh.trt.wrong = True
    for path in fresh.engines():
        path.unlink()
    with pytest.raises(EngineError, match="answers wrongly"):
        fresh.open(gridbox(tmp_path))
    assert fresh.engines() == []


def test_a_damaged_reference_is_computed_again(boards: Any, tmp_path: Path) -> None:
    boards().open(gridbox(tmp_path)).engine.close()
    (kept,) = (tmp_path / "cache" / "engines").glob("*.npz")
    for damage in (b"", kept.read_bytes()[:100], b"PK\x03\x04"):
        kept.write_bytes(damage)
        fake = boards()
        fake.open(gridbox(tmp_path)).engine.close()
        assert any("computing the reference" in line for line in fake.reported)


def test_the_cache_keeps_the_newest_of_each_model(boards: Any, tmp_path: Path) -> None:
    other = boards().open(centerface_like(tmp_path))
    other.engine.close()
    built: List[Path] = []
    for index, workspace_mb in enumerate((100, 101, 102, 103)):
        opened = boards().open(gridbox(tmp_path), workspace_mb=workspace_mb)
        opened.engine.close()
        os.utime(str(opened.path), (1000 + index, 1000 + index))
        built.append(opened.path)
    boards().open(gridbox(tmp_path), workspace_mb=100).engine.close()  # used, and so the newest
    fake = boards()
    newest = fake.open(gridbox(tmp_path), workspace_mb=104)
    newest.engine.close()
    assert fake.engines() == sorted([other.path, built[0], *built[2:], newest.path])
    assert not built[1].with_suffix(".json").exists() and built[0].with_suffix(".json").exists()
    assert f"removed from the cache because long unused: {built[1]}" in fake.reported


FAULTS: List[Tuple[str, Dict[str, str], Any, str]] = [
    ("build", {"build": "10: Could not find any implementation for node {A}."}, ModelError, "cannot build.*10: Could"),
    ("memory", {"build": "2: [utils.cpp] OutOfMemory (requested 5 bytes)"}, EngineError, "cannot build.*OutOfMemory"),
    ("parse", {"parse": "No importer registered for op: Foo"}, ModelError, "10.3.0 cannot read it: No importer"),
    ("context", {"context": "2: OutOfMemory"}, EngineError, "no execution context: 2: OutOfMemory .*stop other"),
    ("enqueue", {"enqueue": "1: [cuda] launch failed"}, EngineError, "did not run the network: 1: .cuda. launch"),
    ("broken", {"enqueue": "1: (an illegal memory access)"}, EngineError, "did not run the network.*only a restart"),
]


@pytest.mark.parametrize(("fail", "kind", "why"), [entry[1:] for entry in FAULTS], ids=[entry[0] for entry in FAULTS])
def test_a_failure_of_tensorrt_is_one_line(boards: Any, tmp_path: Path, fail: Any, kind: Any, why: str) -> None:
    fake = boards()
    fake.trt.fail = fail
    with pytest.raises(kind, match=why) as caught:
        fake.open(gridbox(tmp_path))
    assert "\n" not in str(caught.value)
    assert fake.engines() == []


@pytest.mark.parametrize(
    ("version", "board", "network"),
    [("8.2", "nano", uff_network), ("8.2", "nano", gridbox), ("10.3", "t4", gridbox), ("11.4", "thor", gridbox)],
)
def test_a_refused_run_is_an_error_in_every_generation(
    boards: Any, tmp_path: Path, version: str, board: str, network: Any
) -> None:
    fake = boards(version, board)
    engine = fake.open(network(tmp_path)).engine
    fake.trt.fail = {"enqueue": "1: [cuda] launch failed"}
    with pytest.raises(EngineError, match=r"did not run the network: 1: .cuda. launch") as caught:
        engine.infer(golden_image())
    engine.close()
    fake.assert_clean()  # although the error, still here, holds the frames that saw the engine
    assert caught.value.__traceback__ is not None


def test_uff_that_the_parser_rejects(boards: Any, tmp_path: Path) -> None:
    fake = boards("8.2", "nano")
    fake.trt.fail = {"parse": "UffParser: Parser error"}
    with pytest.raises(ModelError, match="UFF parser cannot read it"):
        fake.open(uff_network(tmp_path))


@pytest.mark.parametrize(("setting", "why"), [("nan", "holds NaN or infinity"), ("memory", "out of memory")])
def test_failures_while_running(boards: Any, tmp_path: Path, setting: str, why: str) -> None:
    fake = boards()
    engine = fake.open(gridbox(tmp_path)).engine
    if setting == "nan":
        fake.trt.nan = True
    else:
        fake.cuda.fail["cuMemHostAlloc"] = "out of memory"
    with pytest.raises(EngineError, match=why):
        engine.infer(Image(np.zeros((2000, 3000), np.uint8)))
    fake.cuda.fail.clear()
    engine.close()


def test_an_unwritable_cache_is_an_error_before_the_build(boards: Any, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "engines"
    place.parent.mkdir()
    for spoil in (lambda: place.write_text("a file"), lambda: place.symlink_to(tmp_path / "no" / "where")):
        spoil()
        fake = boards()
        with pytest.raises(InputError, match=r"engine cache .*engines.*(directory|exists).*CacheDirectory="):
            fake.open(gridbox(tmp_path))
        assert fake.trt.built == 0
        place.unlink()


def test_an_image_in_gpu_memory_is_not_copied(boards: Any, tmp_path: Path) -> None:
    fake = boards()
    engine = fake.open(gridbox(tmp_path)).engine
    before = fake.cuda.copied_bytes
    for _ in range(3):
        engine.infer(golden_image())
    assert fake.cuda.copied_bytes == before == 0  # an integrated GPU reads and writes the host's memory
    engine.close()
    apart = boards("10.3", "t4")
    engine = apart.open(gridbox(tmp_path)).engine
    apart.cuda.copied_bytes = 0
    engine.infer(golden_image())
    assert apart.cuda.copied_bytes == 192 * 256 + 4 * 5 * 15 * 24
    engine.close()


@pytest.mark.parametrize("version", ["8.2", "8.4", "8.6", "10.3", "11.4"])
def test_facedetectir_converted_runs_everywhere(boards: Any, tmp_path: Path, version: str) -> None:
    """With NVIDIA's calibration where version and board support it; from .uff where TensorRT reads UFF."""
    folder = tmp_path / "facedetectir"
    folder.mkdir()
    (folder / "resnet18_facedetectir_pruned.etlt").write_bytes(b"encrypted")
    feed = np.array(Preprocessor(gridbox(tmp_path).contract)(golden_image()))
    (folder / "resnet18_facedetectir_pruned.uff").write_bytes(detectnet(feed).encode())
    names = ["input_1", "block_1a_bn_1/batchnorm/mul_1", "block_1a_conv_1/BiasAdd", "add_2b/add"]
    calibration(folder / "facedetectir_int8.txt", [(name, 1.00024 / 127) for name in names])
    network = read_network("facedetectir", tmp_path)
    opened = boards(version, "xavier-nx").open(network)
    assert opened.engine.info.precision == "int8"
    assert opened.engine.info.model == "facedetectir"
    opened.engine.close()


def test_encrypted_facedetectir_has_a_hint(tmp_path: Path) -> None:
    folder = tmp_path / "facedetectir"
    folder.mkdir()
    (folder / "resnet18_facedetectir_pruned.etlt").write_bytes(b"\x07\0\0\0input_1" + bytes(16))
    with pytest.raises(MissingPackage, match="nvidia-eff-tao-encryption") as caught:
        read_network("facedetectir", tmp_path)
    assert str(folder / "resnet18_facedetectir_pruned.onnx") in caught.value.hint


def test_facedetectir_must_match_its_contract(tmp_path: Path) -> None:
    folder = tmp_path / "facedetectir"
    folder.mkdir()
    (folder / "resnet18_facedetectir_pruned.etlt").write_bytes(b"encrypted")
    graphs.centerface(folder / "resnet18_facedetectir_pruned.onnx")
    with pytest.raises(ModelError, match="keeps another contract"):
        read_network("facedetectir", tmp_path)


def test_no_gpu_is_an_error_of_one_line(boards: Any, tmp_path: Path) -> None:
    with pytest.raises(EdgeAgentError, match="no CUDA-capable device"):
        boards(devices=0).open(gridbox(tmp_path))
