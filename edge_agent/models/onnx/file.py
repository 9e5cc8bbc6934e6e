"""What an ONNX file says of itself, and one edit of it, without the `onnx` package.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple, Union

from edge_agent.errors import ModelError
from edge_agent.models.onnx.protowire import Value, WireError, copy, encode, fields, integer, message, text

Dim = Union[int, str]
Shape = Tuple[Dim, ...]

FLOAT = 1
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
_INT8_OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"})

_MODEL_PRODUCER, _MODEL_PRODUCER_VERSION, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 2, 3, 7, 8, 14
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO = 1, 5, 11, 12, 13


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: As in the file, ":0" included.
        dtype: numpy's name of the element type.
        shape: Numbers where fixed, names (or "?") where free; None when the file does not say.
    """

    name: str
    dtype: str
    shape: Optional[Shape]

    def __str__(self) -> str:
        shape = "unknown" if self.shape is None else "x".join(str(dim) for dim in self.shape)
        return f"{self.name} {self.dtype} {shape}"


@dataclass(frozen=True)
class OnnxModel:
    """The outside of a model.

    Attributes:
        inputs: Those that must be fed: initialisers that old exporters list as inputs are left out.
        outputs: In file order.
        opsets: Version by operator domain ("" is ONNX's own).
        producer: Exporter and its version.
        metadata: The exporter's own key-value pairs.
        operators: Names of the operators used.
        precision: "int8", "fp16" or "fp32": what its arithmetic is stored as.
    """

    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]
    opsets: Mapping[str, int]
    producer: str
    metadata: Mapping[str, str]
    operators: FrozenSet[str]
    precision: str


def read_model(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        ModelError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"model {path}: {error.strerror}", "expected a readable ONNX file") from error


def read_onnx(path: Path) -> OnnxModel:
    """The outside of the model in `path`.

    Raises:
        ModelError: The file cannot be read, or is no ONNX model.
    """
    return parse_onnx(read_model(path), str(path))


def parse_onnx(data: bytes, name: str) -> OnnxModel:
    """The outside of the model in `data`; `name` says in errors where it came from.

    Raises:
        ModelError: It is no ONNX model.
    """
    try:
        model = _parse(data)
    except WireError as error:
        raise ModelError(
            f"model {name}: damaged or no ONNX file: {error}",
            "fetch or export it again; 'edge-agent model inspect' helps",
        ) from error
    if not model.operators or not model.outputs:
        raise ModelError(f"model {name}: no ONNX file: it holds no graph", "expected a model exported to ONNX")
    return model


def with_shapes(data: bytes, shapes: Mapping[str, Sequence[Dim]]) -> bytes:
    """The same model with other shapes for the named inputs and outputs (a name in place of a number frees a dim).

    Shapes noted for inner tensors are dropped, because they followed from the old ones; so are initialisers listed
    among the inputs, because a runtime must then take weights for changeable and cannot fold or pack them.

    Raises:
        WireError: `data` is no ONNX model.
    """
    out = []
    for field in fields(data):
        number, _, value = field
        out.append(encode(number, _reshape_graph(message(value), shapes)) if number == _MODEL_GRAPH else copy(field))
    return b"".join(out)


def _reshape_graph(graph: memoryview, shapes: Mapping[str, Sequence[Dim]]) -> bytes:
    weights = {_tensor_name(message(value)) for number, _, value in fields(graph) if number == _GRAPH_INITIALIZER}
    out = []
    for field in fields(graph):
        number, _, value = field
        if number == _GRAPH_VALUE_INFO:
            continue
        if number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            tensor, code = _value_info(message(value))
            if number == _GRAPH_INPUT and tensor.name in weights:
                continue
            if tensor.name in shapes:
                out.append(encode(number, _encode_value_info(tensor.name, code, shapes[tensor.name])))
                continue
        out.append(copy(field))
    return b"".join(out)


def _encode_value_info(name: str, code: int, shape: Sequence[Dim]) -> bytes:
    dims = b"".join(encode(1, encode(1 if isinstance(dim, int) else 2, dim)) for dim in shape)
    return encode(1, name) + encode(2, encode(1, encode(1, code) + encode(2, dims)))


def _parse(data: bytes) -> OnnxModel:
    producer: List[str] = []
    opsets: Dict[str, int] = {}
    metadata: Dict[str, str] = {}
    inputs: List[Tensor] = []
    outputs: List[Tensor] = []
    operators: List[str] = []
    weights: Dict[str, int] = {}
    for number, _, value in fields(data):
        if number in (_MODEL_PRODUCER, _MODEL_PRODUCER_VERSION):
            producer.append(text(value))
        elif number == _MODEL_OPSET:
            entry = _entries(value)
            opsets[text(entry.get(1, memoryview(b"")))] = integer(entry.get(2, 0))
        elif number == _MODEL_METADATA:
            entry = _entries(value)
            metadata[text(entry.get(1, memoryview(b"")))] = text(entry.get(2, memoryview(b"")))
        elif number == _MODEL_GRAPH:
            for inner, _, part in fields(message(value)):
                if inner == _GRAPH_NODE:
                    operators.append(text(_entries(part).get(4, memoryview(b""))))
                elif inner == _GRAPH_INITIALIZER:
                    tensor = _entries(part)
                    weights[_tensor_name(message(part))] = integer(tensor.get(2, 0))
                elif inner == _GRAPH_INPUT:
                    inputs.append(_value_info(message(part))[0])
                elif inner == _GRAPH_OUTPUT:
                    outputs.append(_value_info(message(part))[0])
    names = frozenset(operators)
    half = "float16" in {DTYPES.get(code) for code in weights.values()}
    return OnnxModel(
        inputs=tuple(tensor for tensor in inputs if tensor.name not in weights),
        outputs=tuple(outputs),
        opsets=opsets,
        producer=" ".join(part for part in producer if part),
        metadata=metadata,
        operators=names,
        precision="int8" if names & _INT8_OPERATORS else "fp16" if half else "fp32",
    )


def _entries(value: Value) -> Dict[int, Value]:
    """A message's fields by number; of a repeated one, the last."""
    return {number: entry for number, _, entry in fields(message(value))}


def _tensor_name(tensor: memoryview) -> str:
    return text(_entries(tensor).get(8, memoryview(b"")))


def _value_info(info: memoryview) -> Tuple[Tensor, int]:
    """The tensor, and the file's own code of its element type."""
    entries = _entries(info)
    name = text(entries.get(1, memoryview(b"")))
    kind = _entries(entries.get(2, memoryview(b""))).get(1)
    if kind is None:
        return Tensor(name, "no tensor", None), 0
    tensor = _entries(kind)
    code = integer(tensor.get(1, 0))
    shape: Optional[Shape] = None
    if 2 in tensor:
        shape = tuple(_dim(_entries(dim)) for number, _, dim in fields(message(tensor[2])) if number == 1)
    return Tensor(name, DTYPES.get(code, f"type {code}"), shape), code


def _dim(dim: Mapping[int, Value]) -> Dim:
    if 1 in dim and integer(dim[1]) > 0:
        return integer(dim[1])
    return text(dim[2]) if 2 in dim else "?"
