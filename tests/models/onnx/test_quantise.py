"""Graphs read, written, folded, quantised and halved: against ONNX Runtime and the rules of TensorRT."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.core.frame import Image
from edge_agent.errors import ModelError
from edge_agent.inference.calibration.measure import make_int8, measure, reached
from edge_agent.inference.ort import run_once
from edge_agent.inference.preprocess import Preprocessor
from edge_agent.inference.trt.network import Network, read_network
from edge_agent.inference.trt.precision import to_fp16, to_int8
from edge_agent.models.calibration_cache import encode_calibration, read_calibration
from edge_agent.models.onnx.fold import prepare
from edge_agent.models.onnx.graph import read_graph, write_graph
from edge_agent.models.onnx.quantise import halve, int8_weights
from tests.fakes import graphs
from tests.fakes.views import wandering

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")


def network_of(path: Path) -> Network:
    return read_network(str(path), path.parent)


def outputs_of(network: Network, data: bytes, image: Image) -> Dict[str, np.ndarray]:
    feed = np.array(Preprocessor(network.contract)(image))
    found = run_once(data, "made", {network.binding.input: feed})
    return {role: found[name] for role, name in network.binding.outputs.items()}


def largest_error(network: Network, data: bytes, images: List[Image]) -> float:
    """The largest difference of any output, as a share of the float network's norm."""
    worst = 0.0
    for image in images:
        wanted = outputs_of(network, network.onnx, image)
        for role, value in outputs_of(network, data, image).items():
            worst = max(worst, float(np.linalg.norm(value - wanted[role]) / np.linalg.norm(wanted[role])))
    return worst


def scales(network: Network, images: List[Image], folder: Path) -> Any:
    path = folder / "own.int8.txt"
    path.write_bytes(encode_calibration(reached(network, measure(network, images))))
    return read_calibration(path)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("opset", [9, 13])
def test_a_prepared_network_has_the_same_outputs(tmp_path: Path, opset: int, decomposed: bool) -> None:
    network = network_of(graphs.residual(tmp_path / "m.onnx", opset, decomposed))
    graph = read_graph(network.onnx, "m")
    assert largest_error(network, write_graph(graph), wandering(1)) == 0.0
    made = prepare(graph, "m")
    assert made.opset == 13
    assert not {"BatchNormalization", "Mul"} & {node.operator for node in made.nodes}
    assert [node.operator for node in made.nodes].count("Add") == 1
    data = write_graph(made)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert 0.0 < largest_error(network, data, wandering(2)) < 1e-5


def test_weights_are_read_in_every_form(tmp_path: Path) -> None:
    halves = np.array([1.5, -2.0, 0.25], np.float16)
    tensors = [
        helper.make_tensor("floats", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("longs", TensorProto.INT64, [2], [-1, 2**40]),
        helper.make_tensor("bytes", TensorProto.INT8, [2], [-128, 127]),
        helper.make_tensor("halves", TensorProto.FLOAT16, [3], halves),
        numpy_helper.from_array(np.float64([0.5]), "doubles"),
        numpy_helper.from_array(np.zeros((0,), np.float32), "nothing"),
    ]
    value = numpy_helper.from_array(np.float32([[4.0]]), "inner")
    nodes = [helper.make_node("Constant", [], ["constant"], value=value), helper.make_node("Relu", ["x"], ["y"])]
    io = [graphs.tensor("x", [1]), graphs.tensor("y", [1])]
    graph = read_graph(
        helper.make_model(helper.make_graph(nodes, "g", io[:1], io[1:], tensors)).SerializeToString(), "g"
    )
    assert [node.operator for node in graph.nodes] == ["Relu"]
    wanted = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    wanted["constant"] = np.float32([[4.0]])
    for name, values in wanted.items():
        assert graph.weights[name].dtype == values.dtype
        np.testing.assert_array_equal(graph.weights[name], values)


def test_the_error_names_why_a_graph_cannot_be_read(tmp_path: Path) -> None:
    node, io = helper.make_node("Relu", ["x"], ["y"]), [graphs.tensor("x", [1]), graphs.tensor("y", [1])]
    away = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    away.data_location = TensorProto.EXTERNAL
    foreign = helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft")
    for nodes, tensors, why in (([node], [away], "weights in another file"), ([foreign], [], "operator of com.micro")):
        data = helper.make_model(helper.make_graph(nodes, "g", io[:1], io[1:], tensors)).SerializeToString()
        with pytest.raises(ModelError, match=why):
            read_graph(data, "g")
    for damaged in (b"", b"\x00\x01", graphs.residual(tmp_path / "m.onnx").read_bytes()[:-50]):
        with pytest.raises(ModelError, match="its graph cannot be read"):
            read_graph(damaged, "g")


def test_the_error_names_old_operators_that_have_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=1)]
    graphs.save(path, nodes, [graphs.tensor("x", [1, 3])], [graphs.tensor("y", [1, 3])])
    model = onnx.load(str(path))
    model.opset_import[0].version = 11
    with pytest.raises(ModelError, match=r"opset 11 and uses Softmax") as caught:
        prepare(read_graph(model.SerializeToString(), "m"), "m")
    assert "opset 13" in str(caught.value.hint)


def test_pairs_are_where_tensorrt_fuses_them(tmp_path: Path) -> None:
    network = network_of(graphs.residual(tmp_path / "m.onnx"))
    made = to_int8(network, scales(network, wandering(4), tmp_path))
    assert (made.int8_layers, made.layers) == (7, 7)
    model = onnx.load_from_string(made.data)
    onnx.checker.check_model(model, full_check=True)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        behind = [makers[name].op_type if name in makers else "" for name in node.input]
        if node.op_type in ("Conv", "ConvTranspose"):
            assert behind[:2] == ["DequantizeLinear", "DequantizeLinear"], node.name
            whole, scale = (weights[name] for name in makers[node.input[1]].input[:2])
            # A transposed one has no scale per output channel.
            assert scale.shape == (whole.shape[:1] if node.op_type == "Conv" else ())
        elif node.op_type == "Add":
            # One branch is fused into its convolution; the other one must be INT8 for that.
            assert sorted(behind) == ["Conv", "DequantizeLinear"]
        elif node.op_type == "AveragePool":
            assert behind == ["DequantizeLinear"]
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero, scale = weights[node.input[2]], weights[node.input[1]]
            assert zero.dtype == np.int8 and not zero.any() and (scale > 0).all()
            assert node.op_type != "QuantizeLinear" or scale.ndim == 0
    assert {tensor.name for tensor in model.graph.output} == set(network.binding.outputs.values())


def test_pairs_are_where_onnxruntime_fuses_them(tmp_path: Path) -> None:
    network = network_of(graphs.bright(tmp_path / "m.onnx"))
    sums = network_of(graphs.residual(tmp_path / "r.onnx"))
    for each, layers in ((network, 2), (sums, 4)):
        model = onnx.load_from_string(make_int8(each, measure(each, wandering(4))) or b"")
        onnx.checker.check_model(model, full_check=True)
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        makers = {name: node for node in model.graph.node for name in node.output}
        found = 0
        for node in model.graph.node:
            sources = [makers.get(name) for name in node.input]
            kinds = ["" if source is None else source.op_type for source in sources]
            if node.op_type == "Relu":
                # Behind a transposed convolution, the batch norm is inside that.
                assert kinds in (["Conv"], ["Add"], ["ConvTranspose"])
            elif node.op_type == "Add":
                assert kinds == ["DequantizeLinear"] * 2
            elif node.op_type == "QuantizeLinear":
                assert weights[node.input[2]].dtype == np.uint8
            elif node.op_type == "Conv" and kinds[1] == "DequantizeLinear":
                found += 1
                source, kernel = (weights[maker.input[1]] for maker in sources[:2])
                assert weights[sources[1].input[0]].dtype == np.int8
                if len(node.input) > 2:
                    assert weights[sources[2].input[0]].dtype == np.int32
                    np.testing.assert_allclose(weights[sources[2].input[1]], source * kernel, rtol=1e-6)
        assert found == layers


def test_int8_and_fp16_are_close_to_float(tmp_path: Path) -> None:
    network = network_of(graphs.residual(tmp_path / "m.onnx", 9))
    fit, others = wandering(8), wandering(12)[8:]
    assert 0.0 < largest_error(network, to_int8(network, scales(network, fit, tmp_path)).data, others) < 0.06
    assert 0.0 < largest_error(network, make_int8(network, measure(network, fit)), others) < 0.06
    assert 0.0 < largest_error(network, to_fp16(network).data, others) < 0.003


def test_layers_without_calibration_stay_float(tmp_path: Path) -> None:
    network = network_of(graphs.residual(tmp_path / "m.onnx"))
    own = scales(network, wandering(4), tmp_path)
    half_of_it = {name: code for name, code in own.codes.items() if "up" not in name and "pool" not in name}
    made = to_int8(network, replace(own, codes=half_of_it))
    assert 0 < made.int8_layers < made.layers
    assert largest_error(network, made.data, wandering(1)) < 0.06


def test_int8_weights_use_the_full_scale() -> None:
    values = np.random.default_rng(5).normal(0, 1, (4, 3, 2, 2)).astype(np.float32)
    values[2] = 0.0
    for per_channel in (True, False):
        for full_scale in (127, 63):
            whole, scale = int8_weights(values, per_channel, full_scale)
            assert np.abs(whole).max() == full_scale and scale.shape == ((4,) if per_channel else ())
            back = whole * (scale.reshape(-1, 1, 1, 1) if per_channel else scale)
            assert np.abs(back - values).max() <= 0.5001 * scale.max()


def test_the_error_names_what_cannot_be_halved(tmp_path: Path) -> None:
    io = [graphs.tensor("x", [1, 3]), graphs.tensor("y", [1, 3])]
    path = graphs.save(tmp_path / "m.onnx", [helper.make_node("Erf", ["x"], ["y"])], io[:1], io[1:])
    with pytest.raises(ModelError, match="uses Erf"):
        halve(read_graph(path.read_bytes(), "m"), "m")
    nodes, large = [helper.make_node("Add", ["x", "w"], ["y"])], [("w", np.float32([1e5]))]
    path = graphs.save(tmp_path / "m.onnx", nodes, io[:1], io[1:], large)
    with pytest.raises(ModelError, match="w are too large for fp16"):
        halve(read_graph(path.read_bytes(), "m"), "m")


def test_only_a_float_network_is_calibrated(tmp_path: Path) -> None:
    network = network_of(graphs.residual(tmp_path / "m.onnx"))
    made = to_fp16(network)
    (tmp_path / "h.onnx").write_bytes(made.data)
    with pytest.raises(ModelError, match="is stored in fp16"):
        measure(network_of(tmp_path / "h.onnx"), wandering(1))
