"""Stores a float network in lower precision: in INT8 as Q/DQ (QuantizeLinear, DequantizeLinear), or in halves.

The placement of the pairs decides what a runtime can fuse, and the runtimes differ:

- TensorRT expects them before all inputs of weighted layers and before all inputs of an addition but the one that comes
  straight from a convolution, into which it fuses the addition. Everything is symmetric: int8, zero points 0. A
  transposed convolution has one scale for all its weights, because TensorRT has no others per output channel
  (github.com/NVIDIA/TensorRT issue 2380).
- ONNX Runtime's CPU kernels expect them around every operator that has an INT8 kernel, which a transposed convolution
  has not, and are fastest with uint8 activations and int8 weights. A convolution's bias must be int32.
"""

from dataclasses import dataclass, replace
from typing import Dict, List, Mapping, Sequence, Set, Tuple

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import ModelError
from edge_agent.models.onnx.fold import CONVOLUTIONS
from edge_agent.models.onnx.graph import Graph, Node, make_node, renamed

_WEIGHTED = (*CONVOLUTIONS, "Gemm", "MatMul")
_POOLS = ("AveragePool", "GlobalAveragePool")
_FLOAT, _HALF = 1, 10  # of TensorProto.DataType
_LARGEST_HALF = 65504.0
# Operators whose float inputs may all be halves.
_HALF_OPERATORS = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add", "Sub", "Mul", "Div", "Exp", "Sqrt"),
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Softmax"),
    *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Pad", "Concat", "Reshape", "Transpose"),
    *("Flatten", "Squeeze", "Unsqueeze", "Identity"),
)


@dataclass(frozen=True)
class Grid:
    """The quantisation grid of a tensor: its values are (number - zero) * scale.

    Attributes:
        scale: Step; above 0.
        zero: The number that means 0.
        dtype: "int8" or "uint8".
    """

    scale: float
    zero: int = 0
    dtype: str = "int8"


@dataclass(frozen=True)
class Placement:
    """Where the pairs of a runtime go.

    Attributes:
        tensors: Names of the tensors that get a pair.
        layers: Outputs of the weighted layers whose weights become int8.
        int32_bias: True makes biases int32.
        half_weights: True keeps weights within 7 bits: x86 without VNNI saturates sums of pairs of products.
    """

    tensors: Set[str]
    layers: Set[str]
    int32_bias: bool = False
    half_weights: bool = False


def for_tensorrt(graph: Graph, known: Mapping[str, Grid]) -> Placement:
    """The placement for TensorRT."""
    tensors: Set[str] = set()
    layers: Set[str] = set()
    uses, makers = graph.uses(), graph.makers()
    order = {name: index for index, node in enumerate(graph.nodes) for name in node.outputs}
    for node in graph.nodes:
        if _is_weighted(node, graph) and node.inputs[0] in known:
            tensors.add(node.inputs[0])
            layers.add(node.outputs[0])
        elif node.operator in _POOLS and node.inputs[0] in known:
            tensors.add(node.inputs[0])
        elif _is_sum(node, graph):
            fused = [name for name in node.inputs if uses[name] == 1 and _made_by_weighted(makers, name)]
            last = max(fused, key=lambda name: order[name], default="")
            branches = [name for name in node.inputs if name != last]
            if all(name in known for name in branches):
                tensors.update(branches)
    return Placement(tensors, layers)


def for_cpu(graph: Graph, known: Mapping[str, Grid], half_weights: bool = False) -> Placement:
    """The placement for ONNX Runtime's CPU kernels; layers that compute the network's outputs stay float."""
    tensors: Set[str] = set()
    layers: Set[str] = set()
    readers = graph.readers()
    for node in graph.nodes:
        if node.operator == "Conv" and _is_weighted(node, graph):
            result = _after_relu(graph, readers, node.outputs[0])
            if node.inputs[0] in known and result in known and not _is_output(graph, readers, result):
                tensors.update((node.inputs[0], result))
                layers.add(node.outputs[0])
        elif _is_sum(node, graph):
            around = (*node.inputs, _after_relu(graph, readers, node.outputs[0]))
            if all(name in known for name in around):
                tensors.update(around)
    return Placement(tensors, layers, int32_bias=True, half_weights=half_weights)


def weighted_layers(graph: Graph) -> List[str]:
    """Names of the outputs of the layers with constant weights."""
    return [node.outputs[0] for node in graph.nodes if _is_weighted(node, graph)]


def quantise(graph: Graph, grids: Mapping[str, Grid], placement: Placement) -> Graph:
    """The network with its pairs; `graph` is not modified.

    Args:
        graph: The result of `onnx.fold.prepare`.
        grids: By tensor name, of at least the tensors in the placement.
        placement: Where the pairs go.
    """
    made = replace(graph, nodes=[], weights=dict(graph.weights))
    names: Dict[str, str] = {}
    for name in graph.inputs:
        _add_pair(made, name, grids, placement, names)
    for node in graph.nodes:
        changed = renamed(node, names)
        if placement.layers.intersection(node.outputs):
            changed = _with_int8_weights(made, node, changed, grids[node.inputs[0]], placement)
        made.nodes.append(changed)
        for name in node.outputs:
            _add_pair(made, name, grids, placement, names)
    return made


def halve(graph: Graph, name: str) -> Graph:
    """The same network in half precision with float32 inputs and outputs; `graph` is not modified.

    Raises:
        ModelError: An operator is not known to accept halves, or a weight exceeds their range.
    """
    unknown = sorted({node.operator for node in graph.nodes}.difference(_HALF_OPERATORS))
    if unknown:
        raise ModelError(
            f"model {name}: cannot be stored in fp16: it uses {', '.join(unknown)}",
            "give a file that is stored in fp16, or ask for precision fp32",
        )
    weights = {}
    for key, values in graph.weights.items():
        if values.dtype == np.float32:
            if values.size and np.abs(values).max() > _LARGEST_HALF:
                raise ModelError(f"model {name}: weights {key} are too large for fp16", "ask for precision fp32")
            values = values.astype(np.float16)
        weights[key] = values
    names: Dict[str, str] = {key: f"{key}/half" for key in (*graph.inputs, *graph.outputs)}
    nodes: List[Node] = [make_node("Cast", (key,), names[key], {"to": _HALF}) for key in graph.inputs]
    for node in graph.nodes:
        outputs = tuple(names.get(key, key) for key in node.outputs)
        nodes.append(replace(renamed(node, names), outputs=outputs))
    nodes += [make_node("Cast", (names[key],), key, {"to": _FLOAT}) for key in graph.outputs]
    return replace(graph, nodes=nodes, weights=weights)


def _add_pair(made: Graph, name: str, grids: Mapping[str, Grid], placement: Placement, names: Dict[str, str]) -> None:
    if name not in placement.tensors:
        return
    grid = grids[name]
    zero = np.array(grid.zero, grid.dtype)
    made.weights.update({f"{name}/scale": np.array(grid.scale, np.float32), f"{name}/zero": zero})
    parameters = (f"{name}/scale", f"{name}/zero")
    names[name] = f"{name}/dequantised"
    made.nodes.append(make_node("QuantizeLinear", (name, *parameters), f"{name}/quantised"))
    made.nodes.append(make_node("DequantizeLinear", (f"{name}/quantised", *parameters), names[name]))


def _with_int8_weights(made: Graph, node: Node, changed: Node, source: Grid, placement: Placement) -> Node:
    """The layer with its weights (and bias) stored as integers."""
    output = node.outputs[0]
    inputs = list(changed.inputs)
    values = made.weights[node.inputs[1]]
    codes, scales = int8_weights(values, node.operator == "Conv", 63 if placement.half_weights else 127)
    inputs[1] = _dequantised(made, f"{output}/weights8", codes, scales)
    if placement.int32_bias and len(inputs) > 2 and inputs[2]:
        steps = scales * np.float64(source.scale)
        bias = np.rint(made.weights[node.inputs[2]] / steps).clip(-(2**31), 2**31 - 1).astype(np.int32)
        inputs[2] = _dequantised(made, f"{output}/bias32", bias, steps.astype(np.float32))
    return replace(changed, inputs=tuple(inputs))


def int8_weights(values: Array, per_channel: bool, full_scale: int = 127) -> Tuple[Array, Array]:
    """(int8 weights, float32 scale per output channel on axis 0, or one for all), symmetric."""
    axes = tuple(range(1, values.ndim)) if per_channel else None
    largest = np.abs(values).max(axis=axes, keepdims=per_channel)
    scales = np.where(largest > 0, largest / full_scale, 1.0).astype(np.float32)
    codes = np.rint(values / scales).clip(-full_scale, full_scale).astype(np.int8)
    return codes, scales.reshape(-1) if per_channel else scales.reshape(())


def _dequantised(made: Graph, name: str, codes: Array, scales: Array) -> str:
    made.weights.update({name: codes, f"{name}/scale": scales, f"{name}/zero": np.zeros(scales.shape, codes.dtype)})
    attributes = {"axis": 0} if scales.ndim else None
    made.nodes.append(
        make_node("DequantizeLinear", (name, f"{name}/scale", f"{name}/zero"), f"{name}/float", attributes)
    )
    return f"{name}/float"


def _is_weighted(node: Node, graph: Graph) -> bool:
    return node.operator in _WEIGHTED and len(node.inputs) > 1 and node.inputs[1] in graph.weights


def _is_sum(node: Node, graph: Graph) -> bool:
    return node.operator == "Add" and not any(name in graph.weights for name in node.inputs)


def _made_by_weighted(makers: Mapping[str, Node], name: str) -> bool:
    return name in makers and makers[name].operator in _WEIGHTED


def _after_relu(graph: Graph, readers: Mapping[str, Sequence[Node]], name: str) -> str:
    """The output of the ReLU that is fused into the layer, else the tensor itself."""
    found: List[Node] = list(readers.get(name, ()))
    alone = len(found) == 1 and name not in graph.outputs
    return found[0].outputs[0] if alone and found[0].operator == "Relu" else name


def _is_output(graph: Graph, readers: Mapping[str, Sequence[Node]], name: str) -> bool:
    """Whether a tensor is an output of the network, directly or through a sigmoid."""
    activated = {output for node in readers.get(name, ()) if node.operator == "Sigmoid" for output in node.outputs}
    return name in graph.outputs or bool(activated.intersection(graph.outputs))
