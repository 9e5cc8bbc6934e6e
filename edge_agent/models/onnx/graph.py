"""The inside of an ONNX model, read, changed and written back without the `onnx` package.

Field numbers are those of onnx.proto (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto).
"""

from dataclasses import dataclass, replace
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import ModelError
from edge_agent.models.onnx.file import DTYPES
from edge_agent.models.onnx.protowire import (
    BYTES,
    Value,
    WireError,
    copy,
    encode,
    fields,
    integer,
    integers,
    message,
    text,
)
from edge_agent.models.onnx.writer import Attribute, encode_attribute, encode_weights

_IR_VERSION = 7  # the first that knows opset 13
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_TYPED_DATA = {4: "float32", 5: "int32", 7: "int64", 10: "float64"}
_EMPTY = memoryview(b"")


@dataclass(frozen=True)
class Node:
    """An operator.

    Attributes:
        operator: Its name in ONNX.
        inputs: Names of tensors; "" for one that is left out.
        outputs: Names of tensors.
        rest: The other fields, encoded: name, operator, attributes.
    """

    operator: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    rest: bytes

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        found = self._attribute(name)
        return default if found is None else integer(found.get(3, 0))

    def number(self, name: str, default: float) -> float:
        """An attribute that is a float."""
        found = self._attribute(name)
        return default if found is None else float(np.frombuffer(message(found.get(2, memoryview(bytes(4)))), "<f4")[0])

    def _attribute(self, name: str) -> Optional[Dict[int, Value]]:
        for number, _, value in fields(self.rest):
            if number == 5:
                entry = {inner: part for inner, _, part in fields(message(value))}
                if text(entry.get(1, _EMPTY)) == name:
                    return entry
        return None


def make_node(
    operator: str, inputs: Sequence[str], output: str, attributes: Optional[Mapping[str, Attribute]] = None
) -> Node:
    """A new operator of one output, with a name that no exporter gives."""
    parts = [encode(3, f"{output}/{operator}"), encode(4, operator)]
    parts += [encode(5, encode_attribute(name, value)) for name, value in (attributes or {}).items()]
    return Node(operator, tuple(inputs), (output,), b"".join(parts))


@dataclass
class Graph:
    """A model taken apart.

    Attributes:
        nodes: In the order in which they run.
        weights: Constants by name.
        inputs: Names of what must be fed.
        outputs: Names of the answers.
        opset: Version of ONNX's own operators.
        head: The model's other fields, encoded: producer, metadata.
        sides: The graph's other fields, encoded: its name, and what inputs and outputs look like.
    """

    nodes: List[Node]
    weights: Dict[str, Array]
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    opset: int
    head: bytes = b""
    sides: bytes = b""

    def uses(self) -> Dict[str, int]:
        """How many read each tensor, the model's outputs included."""
        counts = dict.fromkeys(self.outputs, 1)
        for node in self.nodes:
            for name in node.inputs:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def readers(self) -> Dict[str, List[Node]]:
        """The operators that read each tensor."""
        found: Dict[str, List[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def makers(self) -> Dict[str, Node]:
        """The operator that makes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs}


def read_graph(data: bytes, name: str) -> Graph:
    """Take a model apart; `name` says in errors where it came from.

    Raises:
        ModelError: It is damaged, keeps weights elsewhere, or uses operators that are not ONNX's own.
    """
    try:
        return _read(data)
    except (WireError, ValueError, KeyError) as error:
        raise ModelError(
            f"model {name}: cannot be taken apart: {error}", "expected one ONNX file of standard operators"
        ) from error


def write_graph(graph: Graph, extra: Sequence[str] = ()) -> bytes:
    """The whole ModelProto; `extra` names inner tensors to be answered, too. Weights that nobody reads are left out."""
    used: Set[str] = {name for node in graph.nodes for name in node.inputs}
    parts = [encode(_NODE, _encode_node(node)) for node in graph.nodes]
    parts += [encode(_INITIALIZER, encode_weights(name, graph.weights[name])) for name in graph.weights if name in used]
    parts.append(graph.sides)
    parts += [encode(_OUTPUT, encode(1, name)) for name in extra]
    opset = encode(8, encode(1, "") + encode(2, graph.opset))
    return b"".join((encode(1, _IR_VERSION), graph.head, encode(7, b"".join(parts)), opset))


def _encode_node(node: Node) -> bytes:
    parts = [encode(1, name) for name in node.inputs] + [encode(2, name) for name in node.outputs]
    return b"".join((*parts, node.rest))


def _read(data: bytes) -> Graph:
    head: List[bytes] = []
    graph = Graph([], {}, (), (), 0)
    for entry in fields(data):
        number, _, value = entry
        if number == 7:
            _read_graph(message(value), graph)
        elif number == 8:
            parts = {inner: part for inner, _, part in fields(message(value))}
            if text(parts.get(1, _EMPTY)) in ("", "ai.onnx"):
                graph.opset = integer(parts.get(2, 0))
        elif number != 1:
            head.append(copy(entry))
    graph.head = b"".join(head)
    if not graph.nodes or not graph.opset:
        raise WireError("it holds no graph")
    return graph


def _read_graph(view: memoryview, graph: Graph) -> None:
    sides: List[bytes] = []
    inputs: List[Tuple[str, bytes]] = []
    outputs: List[str] = []
    for entry in fields(view):
        number, _, value = entry
        if number == _NODE:
            _take_node(message(value), graph)
        elif number == _INITIALIZER:
            name, values = _tensor(message(value))
            graph.weights[name] = values
        elif number == _INPUT:
            inputs.append((_name(message(value)), copy(entry)))
        elif number == _OUTPUT:
            outputs.append(_name(message(value)))
            sides.append(copy(entry))
        elif number != _VALUE_INFO:
            sides.append(copy(entry))
    # Old exporters list weights among the inputs.
    inputs = [entry for entry in inputs if entry[0] not in graph.weights]
    graph.inputs, graph.outputs = tuple(name for name, _ in inputs), tuple(outputs)
    graph.sides = b"".join((*sides, *(encoded for _, encoded in inputs)))


def _take_node(view: memoryview, graph: Graph) -> None:
    inputs: List[str] = []
    outputs: List[str] = []
    rest: List[bytes] = []
    operator = ""
    for entry in fields(view):
        number, _, value = entry
        if number == 1:
            inputs.append(text(value))
        elif number == 2:
            outputs.append(text(value))
        elif number == 7 and text(value) not in ("", "ai.onnx"):
            raise WireError(f"an operator of {text(value)}")
        else:
            operator = text(value) if number == 4 else operator
            rest.append(copy(entry))
    node = Node(operator, tuple(inputs), tuple(outputs), b"".join(rest))
    values = _constant(node)
    if values is None:
        graph.nodes.append(node)
    else:
        graph.weights[outputs[0]] = values


def _constant(node: Node) -> Optional[Array]:
    """What a Constant holds, where it is a tensor."""
    if node.operator != "Constant":
        return None
    for number, _, value in fields(node.rest):
        if number == 5:
            entry = {inner: part for inner, _, part in fields(message(value))}
            if text(entry.get(1, _EMPTY)) == "value" and 5 in entry:
                return _tensor(message(entry[5]))[1]
    return None


def _name(view: memoryview) -> str:
    return next((text(value) for number, _, value in fields(view) if number == 1), "")


def _tensor(view: memoryview) -> Tuple[str, Array]:
    """A TensorProto's name and values."""
    dims: List[int] = []
    name, code, raw = "", 0, None
    typed: List[Array] = []
    for number, wire, value in fields(view):
        if number == 1:
            dims += integers(message(value)) if wire == BYTES else [integer(value)]
        elif number == 2:
            code = integer(value)
        elif number == 8:
            name = text(value)
        elif number == 9:
            raw = message(value)
        elif number in _TYPED_DATA:
            typed.append(_typed(number, wire, value))
        elif number in (13, 14) and (wire == BYTES or integer(value)):
            raise WireError("weights in another file")
    if code not in DTYPES:
        raise WireError(f"weights of type {code} in {name}")
    dtype = np.dtype(DTYPES[code])
    if raw is not None:
        values = np.frombuffer(raw, dtype.newbyteorder("<"))
    else:
        joined = np.concatenate(typed) if typed else np.zeros(0)
        # A half is kept as the number of its bits.
        values = joined.astype(np.uint16).view(np.float16) if dtype == np.float16 else joined
    return name, values.astype(dtype).reshape(dims)


def _typed(number: int, wire: int, value: Value) -> Array:
    if number in (4, 10):
        kind = "<f4" if number == 4 else "<f8"
        return np.frombuffer(message(value), kind)
    return np.array(integers(message(value)) if wire == BYTES else [integer(value)], np.int64)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The same operator, reading other tensors."""
    return replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))
