"""Building an encrypted .etlt with a stub of NVIDIA's tao-converter that checks its arguments."""

import os
import sys
from pathlib import Path
from typing import Any, List

import pytest

from edge_agent.errors import EngineError, ModelError
from edge_agent.inference.trt.network import Network, read_network
from tests.fakes.gpu import FakeBoard, calibration
from tests.inference.trt.test_trt import uff_network

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

# As NVIDIA's program does, it ends with 0 whatever happened.
STUB = """#!{python}
import pathlib, sys
here = pathlib.Path(__file__).parent
options, rest = dict(), sys.argv[1:]
while len(rest) > 1:
    name, value, *rest = rest
    if name not in ("-k", "-d", "-o", "-t", "-c", "-b", "-m", "-w", "-u", "-e") or name in options:
        sys.exit("[ERROR] unknown or repeated option " + name)
    options[name] = value
(here / "arguments").write_text(repr((options, rest)))
if "-c" in options:
    (here / "calibration").write_text(pathlib.Path(options["-c"]).read_text())
if options["-k"] != "tlt_encode":
    print("[ERROR] UffParser: Could not read buffer. key " + options["-k"])
elif (here / "fault").exists():
    print("[INFO] begin\\n[ERROR] " + (here / "fault").read_text() + options["-k"] + "\\n[INFO] end")
else:
    pathlib.Path(options["-e"]).write_bytes((here / "plan").read_bytes())
"""
CACHE = [("input_1", 1.00024 / 127), ("block_1a_conv_1/BiasAdd", 0.1), ("add_2b/add", 0.1)]


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the stub, on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "tao-converter"
    program.write_text(STUB.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def plan_of(tmp_path: Path, version: str, board: str, **options: Any) -> bytes:
    """The plan that TensorRT builds from the model that stands in for the .etlt's content."""
    other = tmp_path / "other"
    other.mkdir(exist_ok=True)
    opened = FakeBoard(other, version, board).open(uff_network(other), precision="fp16", rebuild=True, **options)
    opened.engine.close()
    return opened.path.read_bytes()


def encrypted(tmp_path: Path) -> Network:
    folder = tmp_path / "models" / "facedetectir"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "resnet18_facedetectir_pruned.etlt").write_bytes(b"\x07\0\0\0input_1" + bytes(64))
    calibration(folder / "facedetectir_int8.txt", CACHE)
    return read_network("facedetectir", tmp_path / "models")


@pytest.mark.parametrize(
    ("version", "board", "precision", "dla"),
    [("8.2", "nano", "fp16", None), ("8.2", "xavier-nx", "int8", None), ("8.6", "agx-xavier", "int8", 1)],
)
def test_an_encrypted_model_is_built_with_nvidias_arguments(
    tmp_path: Path, converter: Path, version: str, board: str, precision: str, dla: Any
) -> None:
    network = encrypted(tmp_path)
    (converter / "plan").write_bytes(plan_of(tmp_path, version, board, dla_core=dla))
    fake = FakeBoard(tmp_path, version, board)
    opened = fake.open(network, dla_core=dla)
    options, rest = eval((converter / "arguments").read_text())
    expected = {
        "-k": "tlt_encode",
        "-d": "3,240,384",
        "-o": "output_cov/Sigmoid,output_bbox/BiasAdd",
        "-t": precision,
        "-b": "1",
        "-m": "1",
        "-w": str(256 << 20),
    }
    if dla is not None:
        expected["-u"] = str(dla)
    assert {key: value for key, value in options.items() if key not in ("-c", "-e")} == expected
    assert ("-c" in options) == (precision == "int8")
    if precision == "int8":  # NVIDIA's scales, labelled as of this TensorRT
        given, own = ((converter / "calibration").read_text(), network.calibration.read_text())
        assert given.splitlines()[1:] == own.splitlines()[1:]
        assert given.splitlines()[0] == {"8.2": "TRT-8201", "8.6": "TRT-8601"}[version] + "-EntropyCalibration2"
    assert rest == [str(network.path)] and not Path(options["-e"]).exists()
    assert opened.built and opened.engine.info.model == "facedetectir"
    assert set(opened.errors) == set()
    assert any("an encrypted model has no reference" in line for line in fake.reported)
    opened.engine.close()

    (converter / "arguments").unlink()
    again = FakeBoard(tmp_path, version, board)
    opened = again.open(encrypted(tmp_path), dla_core=dla)
    assert not opened.built and not (converter / "arguments").exists()  # out of the cache
    opened.engine.close()


def test_a_converted_form_is_preferred(tmp_path: Path, converter: Path) -> None:
    network = encrypted(tmp_path)
    assert network.encrypted is not None
    made = uff_network(tmp_path)
    network.path.with_suffix(".onnx").write_bytes(made.onnx)
    assert read_network("facedetectir", tmp_path / "models").encrypted is None


def faults(tmp_path: Path, converter: Path, kind: str) -> None:
    if kind == "refused":
        (converter / "fault").write_text("Failed to parse the model, key ")
    elif kind == "program":
        (converter / "tao-converter").write_bytes(b"\x7fELF of another machine")
    elif kind == "plan":
        (converter / "plan").write_bytes(b"FAKEPLAN of another TensorRT")
    else:
        other = tmp_path / "elsewhere"
        other.mkdir()
        (converter / "plan").write_bytes(plan_of(other, "8.6", "agx-xavier"))


FAULTS: List[Any] = [
    ("refused", ModelError, r"built no engine from it: \[ERROR\] Failed to parse the model, key \.\.\. "),
    ("program", ModelError, "tao-converter does not start: Exec format"),
    ("plan", EngineError, "cannot load the engine"),
    ("version", EngineError, "not compatible with this version of TensorRT"),
]


@pytest.mark.parametrize(("kind", "error", "why"), FAULTS)
def test_a_failure_of_the_converter_is_an_error_of_one_line(
    tmp_path: Path, converter: Path, kind: str, error: Any, why: str
) -> None:
    faults(tmp_path, converter, kind)
    fake = FakeBoard(tmp_path, "8.2", "xavier-nx")
    with pytest.raises(error, match=why) as caught:
        fake.open(encrypted(tmp_path))
    assert "tlt_encode" not in str(caught.value) and "\n" not in str(caught.value)
    assert fake.engines() == []
    fake.assert_clean()


def test_an_implausible_engine_is_rejected(tmp_path: Path, converter: Path) -> None:
    (converter / "plan").write_bytes(plan_of(tmp_path, "8.2", "nano"))
    fake = FakeBoard(tmp_path, "8.2", "nano")
    fake.trt.wrong = True
    with pytest.raises(EngineError, match=r"answers wrongly: on the golden image its coverage is 1"):
        fake.open(encrypted(tmp_path))
    assert fake.engines() == []
    fake.assert_clean()
