"""A float network stored in half precision, which TensorRT 11 then computes in; its inputs and answers stay float."""

from dataclasses import replace
from typing import Dict, List

import numpy as np

from edge_agent.errors import ModelError
from edge_agent.models.onnx.graph import Graph, Node, make_node, renamed

_FLOAT, _HALF = 1, 10  # of TensorProto.DataType
_LARGEST = 65504.0
# Their float inputs may all be halves.
_READY = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add", "Sub", "Mul", "Div", "Exp", "Sqrt"),
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Softmax"),
    *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Pad", "Concat", "Reshape", "Transpose"),
    *("Flatten", "Squeeze", "Unsqueeze", "Identity"),
)


def halve(graph: Graph, name: str) -> Graph:
    """The same network in half precision; `graph` is left as it is.

    Raises:
        ModelError: An operator is not known to take halves, or a weight is too large for one.
    """
    unknown = sorted({node.operator for node in graph.nodes}.difference(_READY))
    if unknown:
        raise ModelError(
            f"model {name}: cannot be stored in fp16: it uses {', '.join(unknown)}",
            "give a file that is stored in fp16, or ask for precision fp32",
        )
    weights = {}
    for key, values in graph.weights.items():
        if values.dtype == np.float32:
            if values.size and np.abs(values).max() > _LARGEST:
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
