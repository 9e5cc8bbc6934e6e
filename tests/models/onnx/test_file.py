"""ONNX files are read, their graphs are written again, and malformed files are refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_agent.errors import ModelError
from edge_agent.models.onnx.file import parse_onnx, read_onnx
from edge_agent.models.onnx.graph import read_graph, write_graph
from tests.fakes import graphs


def test_a_model_is_described(tmp_path: Path) -> None:
    model = read_onnx(graphs.gridbox(tmp_path / "m.onnx", suffix=":0", batch="N", classes=2))
    assert [str(tensor) for tensor in model.inputs] == ["input_1:0 float32 Nx3x240x384"]
    assert [str(tensor) for tensor in model.outputs] == [
        "output_cov/Sigmoid:0 float32 Nx2x15x24",
        "output_bbox/BiasAdd:0 float32 Nx8x15x24",
    ]
    assert model.opsets == {"": 13}
    assert model.producer == "tests"
    assert model.metadata == {"author": "tests", "note": "café"}
    assert model.operators == {"AveragePool", "Conv", "Sigmoid"}
    assert model.precision == "fp32"


def test_weights_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    model = read_onnx(graphs.centerface(tmp_path / "m.onnx", as_published=True))
    assert [tensor.name for tensor in model.inputs] == ["input.1"]


def test_unknown_shapes_and_other_types(tmp_path: Path) -> None:
    path = graphs.save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["a"], ["b"])],
        [graphs.tensor("a", None, TensorProto.INT64)],
        [graphs.tensor("b", [None, -1, 0, 5], TensorProto.INT64)],
    )
    model = read_onnx(path)
    assert str(model.inputs[0]) == "a int64 unknown"
    assert model.outputs[0].shape == ("?", "?", "?", 5)


@pytest.mark.parametrize(
    ("operator", "dtype", "precision"),
    [("DequantizeLinear", np.int8, "int8"), ("Identity", np.float16, "fp16"), ("Identity", np.float32, "fp32")],
)
def test_precision_is_what_the_file_stores(tmp_path: Path, operator: str, dtype: type, precision: str) -> None:
    path = graphs.save(
        tmp_path / "m.onnx",
        [helper.make_node(operator, ["w"], ["b"])],
        [],
        [graphs.tensor("b", [2])],
        [("w", np.ones(2, dtype))],
    )
    assert read_onnx(path).precision == precision


def test_a_graph_is_written_as_it_was_read(tmp_path: Path) -> None:
    path = graphs.centerface(tmp_path / "m.onnx", shape=(10, 3, 32, 32), grid=(8, 8), as_published=True)
    written = write_graph(read_graph(path.read_bytes(), "m"), ["cells"])

    expected = onnx.load(str(path))
    expected.ir_version = 7
    del expected.graph.input[1:]
    del expected.graph.value_info[:]
    expected.graph.output.add(name="cells")
    assert onnx.load_model_from_string(written) == expected
    onnx.checker.check_model(write_graph(read_graph(path.read_bytes(), "m")))


def test_attributes_weights_and_metadata_of_every_type_survive() -> None:
    nodes = [
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.25),
        helper.make_node("Selu", ["b"], ["c"], name="named"),
        helper.make_node("Unknown", ["c", "w", ""], ["d"], texts=["x", "y"], numbers=[1.5, -2.0], counts=[-1, 2**40]),
    ]
    weights = [numpy_helper.from_array(np.arange(3, dtype=np.float64), "w")]
    graph = helper.make_graph(nodes, "g", [graphs.tensor("a", [1])], [graphs.tensor("d", None)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    model.model_version = -7
    helper.set_model_props(model, {"key": "value"})
    assert onnx.load_model_from_string(write_graph(read_graph(model.SerializeToString(), "m"))) == model


def test_weights_that_are_not_read_are_left_out() -> None:
    weights = [numpy_helper.from_array(np.ones(3, np.float32), name) for name in ("w", "unused")]
    io = [graphs.tensor("a", [3]), graphs.tensor("b", [3])]
    graph = helper.make_graph([helper.make_node("Add", ["a", "w"], ["b"])], "g", io[:1], io[1:], weights)
    written = onnx.load_model_from_string(write_graph(read_graph(helper.make_model(graph).SerializeToString(), "m")))
    assert [tensor.name for tensor in written.graph.initializer] == ["w"]


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx")
    for call in ("read_onnx(path)", "read_graph(path.read_bytes(), 'm')"):
        code = (
            "import sys; sys.modules['onnx'] = None\n"
            "from pathlib import Path; from edge_agent.errors import MissingPackage\n"
            "from edge_agent.models.onnx.file import read_onnx; from edge_agent.models.onnx.graph import read_graph\n"
            f"path = Path({str(path)!r})\n"
            f"try: {call}\n"
            "except MissingPackage as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert "onnx cannot be imported" in done.stdout, done.stderr
        assert "pip install 'edge-agent[convert]'" in done.stdout


@pytest.mark.parametrize("data", [b"", b"hello, this is no model at all", b"\x08\x07", bytes(1000)])
def test_a_file_that_is_not_a_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"nowhere.onnx"):
        parse_onnx(data, "nowhere.onnx")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"No such file"):
        read_onnx(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match=r"not a regular file"):
        read_onnx(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_always_a_model_error(model_bytes: bytes, data: st.DataObject) -> None:
    damaged = bytearray(model_bytes)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        parse_onnx(bytes(damaged[:cut]), "damaged")
    except ModelError as error:
        assert "damaged" in error.message
    try:
        write_graph(read_graph(bytes(damaged[:cut]), "damaged"))
    except ModelError as error:
        assert "damaged" in error.message


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return graphs.gridbox(tmp_path_factory.mktemp("onnx") / "m.onnx").read_bytes()
