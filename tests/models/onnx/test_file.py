"""Reading and editing ONNX without the `onnx` package, with that package as the oracle."""

import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_agent.errors import ModelError
from edge_agent.models.onnx import protowire
from edge_agent.models.onnx.file import parse_onnx, read_onnx, with_shapes
from tests.fakes import graphs


def test_the_outside_of_a_model_is_read(tmp_path: Path) -> None:
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


def test_weights_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = read_onnx(graphs.centerface(tmp_path / "m.onnx", as_published=True))
    assert [tensor.name for tensor in model.inputs] == ["input.1"]


def test_unknown_shapes_and_other_types_are_told(tmp_path: Path) -> None:
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


def test_an_edit_changes_what_was_asked_and_nothing_else(tmp_path: Path) -> None:
    path = graphs.centerface(tmp_path / "m.onnx", shape=(10, 3, 32, 32), grid=(8, 8), as_published=True)
    edited = with_shapes(path.read_bytes(), {"input.1": (1, 3, "height", "width"), "537": (1, 1, "gh", "gw")})

    expected = onnx.load(str(path))
    source, heatmap = expected.graph.input[0], expected.graph.output[0]
    source.CopyFrom(graphs.tensor("input.1", [1, 3, "height", "width"]))
    heatmap.CopyFrom(graphs.tensor("537", [1, 1, "gh", "gw"]))
    del expected.graph.input[1:]
    del expected.graph.value_info[:]
    assert onnx.load_model_from_string(edited) == expected
    onnx.checker.check_model(edited)


def test_fields_of_every_wire_type_survive_a_copy() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.25), helper.make_node("Selu", ["b"], ["c"])],
            "g",
            [graphs.tensor("a", [1])],
            [graphs.tensor("c", [1])],
            [numpy_helper.from_array(np.arange(3, dtype=np.float64), "w")],
        )
    )
    model.graph.initializer[0].double_data.extend([1.5, -2.5])
    model.model_version = -7
    data = model.SerializeToString()
    assert onnx.load_model_from_string(with_shapes(data, {})) == model


def test_negative_numbers_are_twos_complement() -> None:
    (field,) = protowire.fields(protowire.encode(3, -5))
    assert protowire.integer(field[2]) == -5


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=300)))))
def test_what_is_encoded_is_read(entries: list) -> None:
    data = b"".join(protowire.encode(number, value) for number, value in entries)
    read = [(number, value if isinstance(value, int) else bytes(value)) for number, _, value in protowire.fields(data)]
    assert read == entries
    assert b"".join(protowire.copy(field) for field in protowire.fields(data)) == data


def test_fixed_width_fields_are_copied() -> None:
    data = bytes([9 << 3 & 0x7F | 1]) + struct.pack("<d", 0.5) + bytes([10 << 3 & 0x7F | 5]) + struct.pack("<f", 2.0)
    assert b"".join(protowire.copy(field) for field in protowire.fields(data)) == data


@pytest.mark.parametrize("data", [b"\x80" * 11, b"\x0a\x05abc", b"\x0b", b"\x00\x01", b"\x09\x00", b"\x80"])
def test_broken_messages_are_refused(data: bytes) -> None:
    with pytest.raises(protowire.WireError):
        list(protowire.fields(data))


@pytest.mark.parametrize("data", [b"", b"hello, this is no model at all", b"\x08\x07", bytes(1000)])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"nowhere.onnx"):
        parse_onnx(data, "nowhere.onnx")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"No such file"):
        read_onnx(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match=r"directory"):
        read_onnx(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_never_gives_anything_but_a_model_error(model_bytes: bytes, data: st.DataObject) -> None:
    damaged = bytearray(model_bytes)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        parse_onnx(bytes(damaged[:cut]), "damaged")
    except ModelError as error:
        assert "damaged" in error.message


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return graphs.gridbox(tmp_path_factory.mktemp("onnx") / "m.onnx").read_bytes()
