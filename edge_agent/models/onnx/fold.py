"""Prepares a network for quantisation: opset 13, with batch norm folded into the preceding convolution."""

from dataclasses import replace
from typing import Dict, List, Optional, Tuple

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import ModelError
from edge_agent.models.onnx.graph import OPSET, Graph, Node

CONVOLUTIONS = ("Conv", "ConvTranspose")
# Operators whose definition is the same in opsets 9 to 13.
_UNCHANGED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add", "Sub", "Mul", "Div", "Exp", "Sqrt"),
    *("Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"),
    *("Concat", "Reshape", "Transpose", "Flatten", "Identity", "Shape"),
)


def prepare(graph: Graph, name: str) -> Graph:
    """The same network in opset 13 or later with batch norm folded; `graph` is not modified.

    Raises:
        ModelError: It is of an older opset and uses operators whose definition has changed since.
    """
    if graph.opset < OPSET:
        changed = sorted({node.operator for node in graph.nodes}.difference(_UNCHANGED))
        if changed or graph.opset < 9:
            raise ModelError(
                f"model {name}: cannot be quantised: it is of opset {graph.opset}"
                + (f" and uses {', '.join(changed)}" if changed else ""),
                f"export it with opset {OPSET}",
            )
    return _fold(replace(graph, opset=max(graph.opset, OPSET), weights=dict(graph.weights)))


def _fold(graph: Graph) -> Graph:
    """Fold multiplications and additions per channel into the convolution that they follow."""
    uses = graph.uses()
    convolutions: Dict[str, int] = {}  # index in `nodes` by output
    nodes: List[Node] = []
    for node in graph.nodes:
        folded = None
        source, constants = _split(node, graph)
        if source in convolutions and uses[source] == 1:
            folded = _merged(graph, nodes[convolutions[source]], node, constants)
        if folded is not None:
            index = convolutions.pop(source)
            nodes[index] = folded
            convolutions[folded.outputs[0]] = index
            continue
        if node.operator in CONVOLUTIONS:
            convolutions[node.outputs[0]] = len(nodes)
        nodes.append(node)
    return replace(graph, nodes=nodes)


def _split(node: Node, graph: Graph) -> Tuple[str, List[Array]]:
    """The one variable input ("" unless there is exactly one), and the constant ones."""
    if node.operator not in ("BatchNormalization", "Mul", "Add"):
        return "", []
    variable = [name for name in node.inputs if name not in graph.weights]
    return (variable[0] if len(variable) == 1 else ""), [graph.weights[n] for n in node.inputs if n in graph.weights]


def _merged(graph: Graph, convolution: Node, node: Node, constants: List[Array]) -> Optional[Node]:
    """The convolution with `node` folded in, under the output name of `node`; None where that is not possible."""
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
    """(factor, shift) per channel that `node` applies, float64; (None, None) where it is not per channel."""
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
    # The channel axis is the third from the end.
    if constant.size == channels and constant.ndim >= 3 and constant.shape[-3] == channels:
        return constant.reshape(-1).astype(np.float64)
    return None
