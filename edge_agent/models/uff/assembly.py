"""Assembles an ONNX graph from UFF nodes; tracks the tensors, their shapes, and which of them are constant.

The output of every UFF node keeps its name, so that an INT8 calibration cache made for the UFF file fits the ONNX file.
"""

from dataclasses import dataclass
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import ModelError
from edge_agent.models.onnx.graph import Attribute, make_node
from edge_agent.models.onnx.graph import Node as OnnxNode
from edge_agent.models.uff.file import BATCH, CHANNELS, SPACE, Node, Order

FREE = -1  # the size of the batch axis
Shape = Tuple[int, ...]
DType = np.dtype

_LARGEST_TENSOR = 1 << 26
_LARGEST_RANK = 8
_COPIES = 8
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Operand:
    """A tensor.

    Attributes:
        name: In the ONNX graph.
        shape: With `FREE` for the batch.
        dtype: Of its elements.
        values: Of a constant, read only; else None.
    """

    name: str
    shape: Shape
    dtype: DType
    values: Optional[Array] = None

    @property
    def count(self) -> int:
        """Number of elements of one batch entry."""
        return count_of(self.shape)


class Assembly:
    """An ONNX graph under construction; nodes are added one by one, inputs first.

    Args:
        source: The file's name, for errors.
        size_bytes: Of the file; limits the memory that constants may take to a few times that.
        names: Of all UFF nodes; inner tensors get other names.

    Attributes:
        nodes: The ONNX operators so far, in execution order.
        weights: The constants that they read, by name.
        operands: The tensors so far, by name.
    """

    def __init__(self, source: str, size_bytes: int, names: Iterable[str]) -> None:
        self.nodes: List[OnnxNode] = []
        self.weights: Dict[str, Array] = {}
        self.operands: Dict[str, Operand] = {}
        self._source = source
        self._budget_bytes = _COPIES * size_bytes + _SPARE_BYTES
        self._names = set(names)

    def inputs(self, node: Node, count: int) -> Sequence[Operand]:
        """The tensors that a node reads.

        Raises:
            ModelError: Their number is not `count` (or there is none, when `count` is 0).
        """
        if len(node.inputs) != count if count else not node.inputs:
            raise node.error(f"takes {len(node.inputs)} inputs, expected {count or 'at least one'}")
        return [self.operands[name] for name in node.inputs]

    def add_input(self, node: Node, shape: Shape, dtype: DType) -> Operand:
        """Add an input of the network.

        Raises:
            ModelError: The shape is empty or too large.
        """
        return self._register(node, Operand(node.id, shape, dtype))

    def fold(self, node: Node, values: Array) -> Operand:
        """Add a constant.

        Raises:
            ModelError: The constants have grown to more than a few times the file.
        """
        if values.base is None:
            self._spend(values.nbytes)
        return self._register(node, Operand(node.id, values.shape, values.dtype, values))

    def add(
        self,
        node: Node,
        operator: str,
        inputs: Sequence[Operand],
        shape: Shape,
        attributes: Optional[Mapping[str, Attribute]] = None,
        part: str = "",
    ) -> Operand:
        """Add an operator.

        Args:
            node: The UFF node; the output gets its name and the type of the first input.
            operator: ONNX's name.
            inputs: What it reads.
            shape: Of its output.
            attributes: ONNX's.
            part: Suffix of an inner tensor's name, when the node becomes several ONNX operators.

        Raises:
            ModelError: The output is empty or too large, or constants hold NaN or infinity.
        """
        name = self._unique_name(f"{node.id}:{part}") if part else node.id
        made = self._register(node, Operand(name, shape, inputs[0].dtype))
        sources = [self._name(node, operand) for operand in inputs]
        self.nodes.append(make_node(operator, sources, name, attributes, name))
        return made

    def constant(self, node: Node, part: str, values: Array) -> Operand:
        """A constant beside the node's own inputs; it becomes part of the graph when an operator reads it."""
        return Operand(self._unique_name(f"{node.id}:{part}"), values.shape, values.dtype, values)

    def reshape(self, node: Node, operand: Operand, shape: Shape) -> Operand:
        """Change the shape; the batch stays an axis of its own.

        Raises:
            ModelError: The numbers of elements differ, or the batch is mixed with other axes.
        """
        fits = count_of(shape) == operand.count and len(shape) <= _LARGEST_RANK
        if not fits or shape.count(FREE) != (FREE in operand.shape) or any(dim < 0 and dim != FREE for dim in shape):
            raise node.error(f"turns the shape {_plain(operand.shape)} into {_plain(shape)}")
        if operand.values is not None:
            return self.fold(node, operand.values.reshape(shape))
        return self.add(node, "Reshape", [operand, self.constant(node, "shape", np.array(shape, np.int64))], shape)

    def transpose(self, node: Node, operand: Operand, axes: Sequence[int], part: str = "") -> Operand:
        """Reorder axes; `axes` is a permutation of them."""
        shape = tuple(operand.shape[axis] for axis in axes)
        if operand.values is not None and not part:
            return self.fold(node, operand.values.transpose(axes))
        return self.add(node, "Transpose", [operand], shape, {"perm": tuple(axes)}, part)

    def _register(self, node: Node, operand: Operand) -> Operand:
        if any(dim < 1 and dim != FREE for dim in operand.shape) and operand.values is None:
            raise node.error(f"has an output of the impossible shape {_plain(operand.shape)}")
        if operand.count > _LARGEST_TENSOR:
            raise node.error(f"has an output of {operand.count} values", f"expected at most {_LARGEST_TENSOR}")
        self.operands[operand.name] = operand
        return operand

    def _name(self, node: Node, operand: Operand) -> str:
        if operand.values is not None and operand.name not in self.weights:
            if operand.dtype.kind == "f" and not np.isfinite(operand.values).all():
                raise node.error(f"takes a constant that holds NaN or infinity ({operand.name})", "the file is damaged")
            self._spend(operand.values.nbytes)
            self.weights[operand.name] = operand.values
        return operand.name

    def _spend(self, size_bytes: int) -> None:
        self._budget_bytes -= size_bytes
        if self._budget_bytes < 0:
            raise ModelError(
                f"{self._source}: its constants grow to more than {_COPIES} times the file", "the file is damaged"
            )

    def _unique_name(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def count_of(shape: Shape) -> int:
    """Number of elements of one batch entry."""
    count = 1
    for dim in shape:
        count *= dim if dim != FREE else 1
    return count


def broadcast(node: Node, first: Operand, second: Operand) -> Shape:
    """The common shape of two tensors, by numpy's broadcasting rules.

    Raises:
        ModelError: They cannot be broadcast.
    """
    rank = max(len(first.shape), len(second.shape))
    pairs = zip((1,) * (rank - len(first.shape)) + first.shape, (1,) * (rank - len(second.shape)) + second.shape)
    shape = []
    for one, other in pairs:
        if one != other and 1 not in (one, other):
            raise node.error(f"takes shapes that do not fit: {_plain(first.shape)} and {_plain(second.shape)}")
        shape.append(other if one == 1 else one)
    return tuple(shape)


def axis_of(node: Node, value: int, rank: int) -> int:
    """The axis as a non-negative number.

    Raises:
        ModelError: There is no such axis.
    """
    if not -rank <= value < rank:
        raise node.error(f"works on axis {value} of {rank}")
    return value % rank


def channels_first(node: Node, order: Order, rank: int) -> Tuple[int, ...]:
    """The permutation from a layout to batch (or filters), channels, space.

    Raises:
        ModelError: The layout has another number of axes.
    """
    space = rank - len([code for code in order if code != SPACE])
    if space < 0 or (space > 0) != (SPACE in order):
        raise node.error(f"takes a tensor of {rank} axes, its layout has another number")
    spans: Dict[int, Tuple[int, ...]] = {SPACE: ()}
    at = 0
    for code in order:
        width = space if code == SPACE else 1
        spans[code] = tuple(range(at, at + width))
        at += width
    return spans[BATCH] + spans[CHANNELS] + spans[SPACE]


def inverse(axes: Sequence[int]) -> Tuple[int, ...]:
    """The inverse permutation."""
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def _plain(shape: Shape) -> str:
    return "x".join("N" if dim == FREE else str(dim) for dim in shape) or "scalar"
