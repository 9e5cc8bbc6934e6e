"""ONNX files read with the `onnx` package: inputs, outputs, operators and stored precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, FrozenSet, Mapping

from edge_agent.errors import MissingPackage, ModelError
from edge_agent.files import MAX_MODEL_BYTES, read_regular
from edge_agent.models.onnx.binding import Dim, Signature, Tensor

DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
"""numpy's names of the element types (TensorProto.DataType) that weights may have."""

_INT8_OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"})


@dataclass(frozen=True)
class OnnxModel(Signature):
    """A model's description.

    Attributes:
        opsets: Version by operator domain ("" is ONNX's own).
        producer: Exporter and its version.
        metadata: The exporter's own key-value pairs.
        operators: Names of the operators used.
        precision: "int8" when it is quantised, "fp16" when it stores halves, else "fp32".
    """

    opsets: Mapping[str, int]
    producer: str
    metadata: Mapping[str, str]
    operators: FrozenSet[str]
    precision: str


def onnx_package() -> Any:
    """The `onnx` package.

    Raises:
        MissingPackage: It is not installed.
    """
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingPackage(
            f"onnx cannot be imported: {error}", "install it with: pip install 'edge-agent[convert]'"
        ) from error
    return onnx


def decode_model(data: bytes) -> Any:
    """The ModelProto in `data`.

    Raises:
        ValueError: It is no protobuf message.
        MissingPackage: `onnx` is not installed.
    """
    onnx = onnx_package()
    from google.protobuf.message import DecodeError

    try:
        return onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def checked_text(value: Any) -> str:
    """A text field; protobuf returns bytes for damaged text.

    Raises:
        ValueError: It is not UTF-8.
    """
    if not isinstance(value, str):
        raise ValueError("text that is not UTF-8")
    return value


def read_model(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        ModelError: It is missing or cannot be read.
    """
    try:
        return read_regular(path, MAX_MODEL_BYTES)
    except OSError as error:
        raise ModelError(f"model {path}: {error.strerror}", "expected a readable ONNX file") from error


def read_onnx(path: Path) -> OnnxModel:
    """The description of the model in `path`.

    Raises:
        ModelError: The file cannot be read, or is no ONNX model.
        MissingPackage: `onnx` is not installed.
    """
    return parse_onnx(read_model(path), str(path))


def parse_onnx(data: bytes, name: str) -> OnnxModel:
    """The description of the model in `data`; errors call it `name`.

    Raises:
        ModelError: It is no ONNX model.
        MissingPackage: `onnx` is not installed.
    """
    try:
        model = _describe(decode_model(data))
    except ValueError as error:
        raise ModelError(
            f"model {name}: damaged or no ONNX file: {error}",
            "fetch or export it again; 'edge-agent model inspect' helps",
        ) from error
    if not model.operators or not model.outputs:
        raise ModelError(f"model {name}: no ONNX file: it holds no graph", "expected a model exported to ONNX")
    return model


def _describe(model: Any) -> OnnxModel:
    graph = model.graph
    weights = {checked_text(tensor.name): tensor.data_type for tensor in graph.initializer}
    operators = frozenset(checked_text(node.op_type) for node in graph.node)
    half = "float16" in {DTYPES.get(code) for code in weights.values()}
    return OnnxModel(
        # Old exporters list the weights among the inputs.
        inputs=tuple(_tensor(entry) for entry in graph.input if entry.name not in weights),
        outputs=tuple(_tensor(entry) for entry in graph.output),
        opsets={checked_text(entry.domain): entry.version for entry in model.opset_import},
        producer=" ".join(checked_text(part) for part in (model.producer_name, model.producer_version) if part),
        metadata={checked_text(entry.key): checked_text(entry.value) for entry in model.metadata_props},
        operators=operators,
        precision="int8" if operators & _INT8_OPERATORS else "fp16" if half else "fp32",
    )


def _tensor(info: Any) -> Tensor:
    """A ValueInfoProto."""
    name = checked_text(info.name)
    if not info.type.HasField("tensor_type"):
        return Tensor(name, "no tensor", None)
    kind = info.type.tensor_type
    dtype = DTYPES.get(kind.elem_type, f"type {kind.elem_type}")
    if not kind.HasField("shape"):
        return Tensor(name, dtype, None)
    return Tensor(name, dtype, tuple(_dim(dim) for dim in kind.shape.dim))


def _dim(dim: Any) -> Dim:
    """A fixed size as a number, a free one as its name."""
    return int(dim.dim_value) if dim.dim_value > 0 else checked_text(dim.dim_param) or "?"
