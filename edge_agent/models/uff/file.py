"""Reads UFF, the protobuf in which TensorRT up to 8.6 took TensorFlow networks: nodes, their fields, and weights.

The numbers of fields and kinds come from real files, the names of operations and fields from NVIDIA's
Apache-2.0 exporter (TAO's TensorFlow-to-UFF conversion functions) and of TensorRT's page "UFF Operators".
"""

from dataclasses import dataclass
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import ModelError
from edge_agent.models.uff.wire import Value, WireError, fields, integer, integers, message, text

_GRAPH, _REFERENCED = 4, 5
_GRAPH_NODE = 2
_NODE_ID, _NODE_INPUT, _NODE_OPERATION, _NODE_FIELD = 1, 2, 3, 4
_TEXT, _DOUBLE, _INTEGER, _INTEGERS, _BLOB, _REFERENCE, _DTYPE, _ORDERS = 1, 3, 7, 8, 9, 100, 101, 104
_MARK_OUTPUT = "MarkOutput"
_LARGEST_RANK = 8
_LIST_LIMIT_BYTES = 128
_ORDERS_LIMIT_BYTES = 1024
_NAME_LIMIT_BYTES = 1024

# Kind in the high half (1 integer, 2 float), bits in the low.
DTYPES = {0x10008: "<i1", 0x10020: "<i4", 0x10040: "<i8", 0x20010: "<f2", 0x20020: "<f4"}

# Axis codes of an order. SPACE stands for all spatial axes; in the file it is the range 2 to the largest int32.
BATCH, CHANNELS, SPACE = 0, 1, 2
_RANGE_END = 2**31 - 1
Order = Tuple[int, ...]

_Data = Tuple[int, Value]


@dataclass(frozen=True)
class Node:
    """A node: one operation.

    Attributes:
        source: The file's name, for errors.
        id: The name of the node and of its output.
        operation: "Conv", "Binary", ...
        inputs: Names of the nodes whose outputs it reads.
        fields: By key, (kind, value) with references resolved; fields without a value are omitted.
    """

    source: str
    id: str
    operation: str
    inputs: Tuple[str, ...]
    fields: Mapping[str, _Data]

    def error(self, what: str, hint: str = "") -> ModelError:
        """An error that names the file, this node and its operation."""
        return ModelError(f"{self.source}: node {self.id} ({self.operation}): {what}", hint)

    def text(self, key: str, default: Optional[str] = None) -> str:
        """A text field.

        Raises:
            ModelError: It is missing without a default, or damaged.
        """
        try:
            if default is not None and key not in self.fields:
                return default
            return text(self._value(key, _TEXT))
        except WireError as error:
            raise self.error(f"field {key}: {error}") from error

    def number(self, key: str) -> float:
        """A field that holds a float.

        Raises:
            ModelError: It is missing or damaged.
        """
        value = self._value(key, _DOUBLE)
        if not isinstance(value, memoryview) or len(value) != 8:
            raise self.error(f"field {key} is not a number")
        number = float(np.frombuffer(value, "<f8")[0])
        if not np.isfinite(number):
            raise self.error(f"field {key} is {number}")
        return number

    def integer(self, key: str, default: Optional[int] = None) -> int:
        """An integer field.

        Raises:
            ModelError: It is missing without a default, or damaged.
        """
        try:
            if default is not None and key not in self.fields:
                return default
            return integer(self._value(key, _INTEGER))
        except WireError as error:
            raise self.error(f"field {key}: {error}") from error

    def integers(self, key: str, default: Optional[Sequence[int]] = None) -> Tuple[int, ...]:
        """A field that holds a list of integers.

        Raises:
            ModelError: It is missing without a default, damaged, or longer than any tensor has axes.
        """
        try:
            if default is not None and key not in self.fields:
                return tuple(default)
            numbers = tuple(_integers(_small(self._value(key, _INTEGERS), _LIST_LIMIT_BYTES)))
        except WireError as error:
            raise self.error(f"field {key}: {error}") from error
        if len(numbers) > _LARGEST_RANK:
            raise self.error(f"field {key} holds {len(numbers)} numbers, expected at most {_LARGEST_RANK}")
        return numbers

    def dtype(self) -> "np.dtype[np.generic]":
        """The element type.

        Raises:
            ModelError: It is missing or unknown.
        """
        value = self._value("dtype", _DTYPE)
        if not isinstance(value, int) or value not in DTYPES:
            raise self.error(f"has the element type {value!r}", "known: int8, int32, int64, float16, float32")
        return np.dtype(DTYPES[value])

    def orders(self, count: int) -> List[Order]:
        """The layouts of the first `count` inputs: axis codes in the order in which the axes lie.

        Raises:
            ModelError: There are fewer, or one is damaged.
        """
        value = self._value("inputs_orders", _ORDERS)
        try:
            orders = [_order(part) for part in _parts(_small(value, _ORDERS_LIMIT_BYTES), 1)]
        except WireError as error:
            raise self.error(f"field inputs_orders: {error}") from error
        if len(orders) < count:
            raise self.error(f"states the layout of {len(orders)} inputs, expected {count}")
        return orders[:count]

    def constant(self) -> Array:
        """The values of a Const: a read-only view into the file, in the shape that the node states.

        Raises:
            ModelError: The shape does not match the number of bytes.
        """
        shape, dtype = self.integers("shape"), self.dtype()
        blob = self._value("values", _BLOB)
        if not isinstance(blob, memoryview):
            raise self.error("field values holds no weights")
        count = 1
        for dim in shape:
            if dim < 1:
                raise self.error(f"has the shape {list(shape)}")
            count *= dim
        if count * dtype.itemsize != len(blob):
            raise self.error(f"has the shape {list(shape)} of {dtype.name}, but {len(blob)} bytes of values")
        return np.frombuffer(blob, dtype).reshape(shape)

    def _value(self, key: str, kind: int) -> Value:
        found = self.fields.get(key)
        if found is None:
            raise self.error(f"has no field {key}", f"found {', '.join(sorted(self.fields)) or 'none'}")
        if found[0] != kind:
            raise self.error(f"field {key} holds a value of kind {found[0]}, expected {kind}")
        return found[1]


@dataclass(frozen=True)
class UffGraph:
    """A network.

    Attributes:
        nodes: By id, in file order, without the output marks.
        marked: Names of the nodes that are marked as outputs; may be empty.
    """

    nodes: Mapping[str, Node]
    marked: Tuple[str, ...]


def parse_uff(data: bytes, name: str) -> UffGraph:
    """The network in `data`; errors call it `name`. Weights are views into `data`.

    Raises:
        ModelError: It is not UFF, or damaged.
    """
    try:
        graph = _parse(data, name)
    except WireError as error:
        raise ModelError(f"{name}: damaged or no UFF file: {error}", "expected NVIDIA's UFF (MetaGraph)") from error
    if not any(node.operation == "Input" for node in graph.nodes.values()):
        raise ModelError(f"{name}: no UFF file: it holds no network with an input", "expected NVIDIA's UFF (MetaGraph)")
    return graph


def _parse(data: bytes, name: str) -> UffGraph:
    graphs, referenced = [], {}
    for number, value in fields(data):
        if number == _GRAPH:
            graphs.append(message(value))
        elif number == _REFERENCED:
            key, entry = _pair(message(value))
            referenced[key] = entry
    nodes: Dict[str, Node] = {}
    marked: List[str] = []
    for graph in graphs:
        for part in _parts(graph, _GRAPH_NODE):
            node = _node(part, referenced, name)
            if node.operation == _MARK_OUTPUT:
                marked.extend(node.inputs)
            elif nodes.setdefault(node.id, node) != node:
                raise node.error("is there twice, with different content")
    return UffGraph(nodes, tuple(dict.fromkeys(marked)))


def _node(data: memoryview, referenced: Mapping[str, Optional[_Data]], source: str) -> Node:
    name, operation = "", ""
    inputs: List[str] = []
    found: Dict[str, _Data] = {}
    for number, value in fields(data):
        if number == _NODE_ID:
            name = _name(value)
        elif number == _NODE_INPUT:
            inputs.append(_name(value))
        elif number == _NODE_OPERATION:
            operation = _name(value)
        elif number == _NODE_FIELD:
            key, entry = _pair(message(value))
            if entry is not None and entry[0] == _REFERENCE:
                target = _name(entry[1])
                if target not in referenced:
                    raise WireError(f"node {name}: field {key} refers to {target}, which is not there")
                entry = referenced[target]
            if entry is not None:
                found[key] = entry
    if not name:
        raise WireError("a node without a name")
    return Node(source, name, operation, tuple(inputs), found)


def _pair(data: memoryview) -> Tuple[str, Optional[_Data]]:
    """A key and its Data; None for a key without a value, with which the exporter encodes Python's None."""
    key, entry = "", None
    for number, value in fields(data):
        if number == 1:
            key = _name(value)
        elif number == 2:
            for kind, inner in fields(message(value)):
                entry = (kind, inner)
    return key, entry


def _parts(data: memoryview, wanted: int) -> Iterator[memoryview]:
    return (message(value) for number, value in fields(data) if number == wanted)


def _small(value: Value, limit: int) -> memoryview:
    """A message of limited size: the Python objects made from it take 30 times as much memory."""
    part = message(value)
    if len(part) > limit:
        raise WireError(f"{len(part)} bytes where at most {limit} were expected")
    return part


def _name(value: Value) -> str:
    return text(_small(value, _NAME_LIMIT_BYTES))


def _integers(data: memoryview) -> List[int]:
    numbers: List[int] = []
    for number, value in fields(data):
        if number == 1:
            numbers.extend([integer(value)] if isinstance(value, int) else integers(value))
    return numbers


def _order(data: memoryview) -> Order:
    """A layout. It is stored as a map, in which exporters write only the entry for all ranks (key -1)."""
    codes = [code for entry in _parts(data, 1) for part in _parts(entry, 2) for code in _integers(part)]
    order = tuple(code for code in codes if code != _RANGE_END)
    if len(set(order)) != len(order) or not {BATCH, CHANNELS} <= set(order) <= {BATCH, CHANNELS, SPACE}:
        raise WireError(f"the layout {codes} is unknown")
    return order
