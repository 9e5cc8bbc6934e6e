"""Faults of a board, an engine or a model, and the message that the user must get for each."""

import hashlib
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple

from edge_agent.inference.trt.network import read_network
from tests.fakes import graphs
from tests.fakes.gpu import FakeBoard, calibration


class Fault(NamedTuple):
    """One fault.

    Attributes:
        prepare: Creates the files in the folder.
        line: Expected text of the message.
        hint: Expected hint.
        repaired: True when the engine is built again instead of an error.
        board: Arguments for `board_modules.environment`.
        settings: Settings of `EDGE_AGENT_MODEL__` besides the model m.onnx; {} in a value is the folder.
    """

    prepare: Callable[[Path], Any]
    line: str
    hint: str
    repaired: bool = False
    board: Mapping[str, Any] = MappingProxyType({})
    settings: Mapping[str, str] = MappingProxyType({})


def nothing(folder: Path) -> None:
    """Leave the files without a fault."""


def unwritable_cache(folder: Path) -> None:
    (folder / "cache").write_text("a file where a folder should be")


def truncated_engine(folder: Path) -> None:
    plan = _built(folder)
    plan.write_bytes(plan.read_bytes()[:-100])


def foreign_engine(folder: Path) -> None:
    """A plan that matches its manifest but that TensorRT cannot load, as after a copy from another machine."""
    plan = _built(folder)
    data = plan.read_bytes().replace(b"10.3.0", b"10.4.0")
    plan.write_bytes(data)
    manifest = json.loads(plan.with_suffix(".json").read_text())
    manifest["plan_sha256"] = hashlib.sha256(data).hexdigest()
    plan.with_suffix(".json").write_text(json.dumps(manifest))


def others_calibration(folder: Path) -> None:
    calibration(folder / "other.txt", [("data", 1 / 127), ("conv1", 0.1), ("relu1", 0.1)])


def others_pictures(folder: Path) -> None:
    calibration(folder / "other.txt", calibrated(white=255.0))


def sealed(folder: Path) -> None:
    """NVIDIA's encrypted file, without tao-converter installed."""
    model = folder / "models" / "facedetectir"
    model.mkdir(parents=True)
    (model / "resnet18_facedetectir_pruned.etlt").write_bytes(b"\x07\0\0\0input_1" + bytes(64))


def calibrated(white: float = 1.0) -> List[Tuple[str, float]]:
    """Scales for `graphs.gridbox`."""
    inner = ("cells", "logits", "output_cov/Sigmoid", "output_bbox/BiasAdd")
    return [("input_1", white / 127), *((name, 0.1) for name in inner)]


def _built(folder: Path) -> Path:
    """Build the engine that the agent will load."""
    board = FakeBoard(folder)
    board.open(read_network(str(graphs.gridbox(folder / "m.onnx")), folder)).engine.close()
    (plan,) = board.engines()
    return plan


OTHER = {"CALIBRATION": "{}/other.txt"}
UNSUPPORTED = "system has unsupported display driver / cuda driver combination"
OLD_DRIVER = "CUDA initialization failure with error: 35. Please check your CUDA installation"
FAULTS: Dict[str, Fault] = {
    "no GPU": Fault(
        nothing,
        "CUDA: opening the GPU: cuInit failed: no CUDA-capable device is detected",
        "is there an NVIDIA GPU, and may this user open its device files?",
        board={"gpu": {"devices": 0}},
    ),
    "wrong driver": Fault(
        nothing, UNSUPPORTED, "reboot after a driver update", board={"cuda_fails": {"cuInit": UNSUPPORTED}}
    ),
    "old driver": Fault(
        nothing,
        f"TensorRT does not start: {OLD_DRIVER}",
        "install the driver that belongs to this CUDA or JetPack",
        board={"tensorrt_fails": {"start": OLD_DRIVER}},
    ),
    "no memory": Fault(
        nothing, "out of memory", "stop other programs on the GPU", board={"gpu": {"memory_bytes": 200_000}}
    ),
    "no memory to build": Fault(
        nothing,
        "TensorRT 10.3.0 cannot build model m.onnx: 2: [utils.cpp] OutOfMemory (requested 5 bytes)",
        "lower workspace_mb",
        board={"tensorrt_fails": {"build": "2: [utils.cpp] OutOfMemory (requested 5 bytes)"}},
    ),
    "unwritable cache": Fault(
        unwritable_cache, "Not a directory", "expected a folder that the agent may write: CacheDirectory="
    ),
    "truncated engine": Fault(truncated_engine, "building engine", "", repaired=True),
    "foreign engine": Fault(foreign_engine, "is not compatible with this version of TensorRT", "", repaired=True),
    "another model's calibration": Fault(
        others_calibration,
        "other.txt: made for another model: it has no scale for the input input_1",
        "it begins with data, conv1, relu1",
        settings=OTHER,
    ),
    "a calibration for other images": Fault(
        others_pictures,
        "other.txt: made for other preprocessing: its input input_1 reaches 255, but this model's images reach 1",
        "use the calibration that was published with this model, or precision fp16",
        settings=OTHER,
    ),
    "a missing calibration": Fault(
        nothing, "other.txt: No such file or directory", "expected an INT8 calibration cache", settings=OTHER
    ),
    "a missing converter": Fault(
        sealed,
        "resnet18_facedetectir_pruned.etlt is encrypted: NVIDIA's package nvidia-eff-tao-encryption is needed",
        "pip install nvidia-eff-tao-encryption",
        settings={"MODEL": "facedetectir", "MODELS_DIR": "{}/models"},
    ),
}


def settings_of(fault: Fault, folder: Path) -> Dict[str, str]:
    """Names without `EDGE_AGENT_`."""
    settings = {"BACKEND": "tensorrt", "MODEL": str(graphs.gridbox(folder / "m.onnx")), **fault.settings}
    return {f"MODEL__{name}": value.format(folder) for name, value in settings.items()}
