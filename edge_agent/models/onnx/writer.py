"""Writing ONNX without the `onnx` package: one graph, opset 13, weights as raw bytes.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto).
"""

import struct
from typing import Dict, List, Mapping, Optional, Sequence, Union

import numpy as np

from edge_agent import __version__
from edge_agent.core.types import Array
from edge_agent.models.onnx.file import DTYPES, Dim, Tensor
from edge_agent.models.onnx.protowire import FIXED32, copy, encode

Attribute = Union[int, float, str, Sequence[int]]

_IR_VERSION = 7
_OPSET = 13
_CODES = {name: code for code, name in DTYPES.items()}
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7


class OnnxWriter:
    """Collects a graph's nodes and weights, in the order in which they must run, and writes the file."""

    def __init__(self) -> None:
        self._nodes: List[bytes] = []
        self._weights: Dict[str, bytes] = {}

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str,
        attributes: Optional[Mapping[str, Attribute]] = None,
    ) -> None:
        """Add an operator of one output; the node is named as its output."""
        parts = [encode(1, name) for name in inputs]
        parts += [encode(2, output), encode(3, output), encode(4, operator)]
        parts += [encode(5, encode_attribute(name, value)) for name, value in (attributes or {}).items()]
        self._nodes.append(encode(1, b"".join(parts)))

    def weights(self, name: str, values: Array) -> None:
        """Add a constant, copied now."""
        self._weights[name] = encode(5, encode_weights(name, values))

    def write(
        self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], metadata: Mapping[str, str]
    ) -> bytes:
        """The whole ModelProto."""
        graph = [*self._nodes, encode(2, name), *self._weights.values()]
        graph += [encode(11, _value_info(tensor)) for tensor in inputs]
        graph += [encode(12, _value_info(tensor)) for tensor in outputs]
        model = [encode(1, _IR_VERSION), encode(2, "edge-agent"), encode(3, __version__), encode(7, b"".join(graph))]
        model.append(encode(8, encode(1, "") + encode(2, _OPSET)))
        model += [encode(14, encode(1, key) + encode(2, value)) for key, value in metadata.items()]
        return b"".join(model)


def encode_weights(name: str, values: Array) -> bytes:
    """A TensorProto."""
    parts = [encode(1, dim) for dim in values.shape]
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    parts += [encode(2, _CODES[values.dtype.name]), encode(8, name), encode(9, little.tobytes())]
    return b"".join(parts)


def encode_attribute(name: str, value: Attribute) -> bytes:
    """An AttributeProto."""
    if isinstance(value, float):
        return encode(1, name) + copy((2, FIXED32, memoryview(struct.pack("<f", value)))) + encode(20, _FLOAT)
    if isinstance(value, int):
        return encode(1, name) + encode(3, value) + encode(20, _INT)
    if isinstance(value, str):
        return encode(1, name) + encode(4, value) + encode(20, _STRING)
    return encode(1, name) + b"".join(encode(8, entry) for entry in value) + encode(20, _INTS)


def _value_info(tensor: Tensor) -> bytes:
    dims = b"".join(encode(1, _dim(dim)) for dim in tensor.shape or ())
    return encode(1, tensor.name) + encode(2, encode(1, encode(1, _CODES[tensor.dtype]) + encode(2, dims)))


def _dim(dim: Dim) -> bytes:
    return encode(1 if isinstance(dim, int) else 2, dim)
