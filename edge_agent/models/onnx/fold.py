"""A network made ready to be quantised: newest operators, and batch norm inside the convolution before it."""

from dataclasses import replace
from typing import Dict, List, Optional, Tuple

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import ModelError
from edge_agent.models.onnx.graph import Graph, Node

OPSET = 13
"""The first whose quantisation has one scale per channel."""

CONVOLUTIONS = ("Conv", "ConvTranspose")
# What these mean has not changed from opset 9 to 13.
_STEADY = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add", "Sub", "Mul", "Div", "Exp", "Sqrt"),
    *("Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"),
    *("Concat", "Reshape", "Transpose", "Flatten", "Identity", "Shape"),
)


def prepare(graph: Graph, name: str) -> Graph:
    """The same network in opset 13 or later, batch norm folded; `graph` is left as it is.

    Raises:
        ModelError: It uses operators of an older opset that have changed since.
    """
    if graph.opset < OPSET:
        changed = sorted({node.operator for node in graph.nodes}.difference(_STEADY))
        if changed or graph.opset < 9:
            raise ModelError(
                f"model {name}: cannot be quantised: it is of opset {graph.opset}"
                + (f" and uses {', '.join(changed)}" if changed else ""),
                f"export it with opset {OPSET}",
            )
    return _fold(replace(graph, opset=max(graph.opset, OPSET), weights=dict(graph.weights)))


def _fold(graph: Graph) -> Graph:
    """Multiplications and additions per channel become part of the convolution that they follow."""
    uses = graph.uses()
    places: Dict[str, int] = {}  # of convolutions in `nodes`, by their output
    nodes: List[Node] = []
    for node in graph.nodes:
        folded = None
        source, constants = _split(node, graph)
        if source in places and uses[source] == 1:
            folded = _merged(graph, nodes[places[source]], node, constants)
        if folded is not None:
            place = places.pop(source)
            nodes[place] = folded
            places[folded.outputs[0]] = place
            continue
        if node.operator in CONVOLUTIONS:
            places[node.outputs[0]] = len(nodes)
        nodes.append(node)
    return replace(graph, nodes=nodes)


def _split(node: Node, graph: Graph) -> Tuple[str, List[Array]]:
    """The one input that is no constant, and those that are; "" where it is not so simple."""
    if node.operator not in ("BatchNormalization", "Mul", "Add"):
        return "", []
    moving = [name for name in node.inputs if name not in graph.weights]
    return (moving[0] if len(moving) == 1 else ""), [graph.weights[n] for n in node.inputs if n in graph.weights]


def _merged(graph: Graph, convolution: Node, node: Node, constants: List[Array]) -> Optional[Node]:
    """The convolution that does what `node` does, too, under its name; None where that is not possible."""
    weights = graph.weights.get(convolution.inputs[1])
    axis = 0 if convolution.operator == "Conv" else 1
    if weights is None or weights.dtype != np.float32 or (axis == 1 and convolution.integer("group", 1) != 1):
        return None
    channels = weights.shape[axis]
    factor, shift = _affine(node, constants, channels)
    if factor is None or shift is None:
        return None
    bias = np.zeros(channels, np.float32)
    if len(convolution.inputs) > 2 and convolution.inputs[2]:
        if convolution.inputs[2] not in graph.weights:
            return None
        bias = graph.weights[convolution.inputs[2]]
    shape = [1] * weights.ndim
    shape[axis] = channels
    output = node.outputs[0]
    names = (f"{output}/weights", f"{output}/bias")
    graph.weights[names[0]] = (weights * factor.reshape(shape)).astype(np.float32)
    graph.weights[names[1]] = (bias * factor + shift).astype(np.float32)
    return replace(convolution, inputs=(convolution.inputs[0], *names), outputs=(output,))


def _affine(node: Node, constants: List[Array], channels: int) -> Tuple[Optional[Array], Optional[Array]]:
    """(factor, shift) per channel that `node` applies, float64."""
    if node.operator == "BatchNormalization":
        gain, offset, mean, variance = (constant.astype(np.float64) for constant in constants)
        factor = gain / np.sqrt(variance + node.number("epsilon", 1e-5))
        return factor, offset - mean * factor
    values = _per_channel(constants[0], channels)
    if values is None:
        return None, None
    return (values, np.zeros(channels)) if node.operator == "Mul" else (np.ones(channels), values)


def _per_channel(constant: Array, channels: int) -> Optional[Array]:
    if constant.dtype.kind != "f":
        return None
    if constant.size == 1:
        return np.full(channels, constant.reshape(-1)[0], np.float64)
    # Counted from the last axis, channels are the third.
    if constant.size == channels and constant.ndim >= 3 and constant.shape[-3] == channels:
        return constant.reshape(-1).astype(np.float64)
    return None
