"""Converts UFF's element-wise and shape operations: each function adds ONNX operators to the assembly."""

from typing import Callable, Dict, List, Tuple, TypeVar

import numpy as np

from edge_agent.core.types import Array
from edge_agent.models.uff.assembly import FREE, Assembly, Operand, axis_of, broadcast, count_of
from edge_agent.models.uff.file import Node

Convert = Callable[[Assembly, Node], Operand]
Entry = TypeVar("Entry")

_LARGEST_PAD = 1 << 16

_BINARY: Dict[str, Tuple[str, Callable[[Array, Array], Array]]] = {
    "add": ("Add", np.add),
    "sub": ("Sub", np.subtract),
    "mul": ("Mul", np.multiply),
    "div": ("Div", np.divide),
    "min": ("Min", np.minimum),
    "max": ("Max", np.maximum),
    "pow": ("Pow", np.power),
}
_UNARY: Dict[str, Tuple[Tuple[str, ...], Callable[[Array], Array]]] = {
    "neg": (("Neg",), np.negative),
    "abs": (("Abs",), np.abs),
    "sqrt": (("Sqrt",), np.sqrt),
    "rsqrt": (("Sqrt", "Reciprocal"), lambda values: 1 / np.sqrt(values)),
    "exp": (("Exp",), np.exp),
    "log": (("Log",), np.log),
    "ceil": (("Ceil",), np.ceil),
    "floor": (("Floor",), np.floor),
    "sin": (("Sin",), np.sin),
    "cos": (("Cos",), np.cos),
    "tan": (("Tan",), np.tan),
    "sinh": (("Sinh",), np.sinh),
    "cosh": (("Cosh",), np.cosh),
    "asin": (("Asin",), np.arcsin),
    "acos": (("Acos",), np.arccos),
    "atan": (("Atan",), np.arctan),
    "asinh": (("Asinh",), np.arcsinh),
    "acosh": (("Acosh",), np.arccosh),
    "atanh": (("Atanh",), np.arctanh),
}
_ACTIVATION = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "elu": "Elu",
    "selu": "Selu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}


def const(assembly: Assembly, node: Node) -> Operand:
    """Weights: a view into the file."""
    return assembly.fold(node, node.constant())


def binary(assembly: Assembly, node: Node) -> Operand:
    """An operation on two tensors; two constants are folded, which composes a decomposed batch norm."""
    first, second = assembly.inputs(node, 2)
    operator, compute = _lookup(node, _BINARY)
    if first.dtype != second.dtype or first.dtype.kind != "f":
        raise node.error(f"takes {first.dtype.name} and {second.dtype.name}, expected floats of one kind")
    shape = broadcast(node, first, second)
    # An outer product of constants is not folded: the result could take any amount of memory.
    if first.values is not None and second.values is not None and shape in (first.shape, second.shape):
        with np.errstate(all="ignore"):
            return assembly.fold(node, np.asarray(compute(first.values, second.values), first.dtype))
    return assembly.add(node, operator, [first, second], shape)


def unary(assembly: Assembly, node: Node) -> Operand:
    """An operation on one tensor; a constant is folded."""
    operand = _float(assembly, node)
    if node.text("func") == "square":
        if operand.values is not None:
            with np.errstate(all="ignore"):
                return assembly.fold(node, np.asarray(np.square(operand.values), operand.dtype))
        return assembly.add(node, "Mul", [operand, operand], operand.shape)
    operators, compute = _lookup(node, _UNARY)
    if operand.values is not None:
        with np.errstate(all="ignore"):
            return assembly.fold(node, np.asarray(compute(operand.values), operand.dtype))
    for operator in operators[:-1]:
        operand = assembly.add(node, operator, [operand], operand.shape, part=operator.lower())
    return assembly.add(node, operators[-1], [operand], operand.shape)


def activation(assembly: Assembly, node: Node) -> Operand:
    """An activation function."""
    operand = _float(assembly, node)
    if node.text("func") == "relu6":
        low = assembly.constant(node, "min", np.array(0, operand.dtype))
        high = assembly.constant(node, "max", np.array(6, operand.dtype))
        return assembly.add(node, "Clip", [operand, low, high], operand.shape)
    return assembly.add(node, _lookup(node, _ACTIVATION), [operand], operand.shape)


def leaky_relu(assembly: Assembly, node: Node) -> Operand:
    """Leaky ReLU."""
    operand = _float(assembly, node)
    return assembly.add(node, "LeakyRelu", [operand], operand.shape, {"alpha": node.number("alpha")})


def softmax(assembly: Assembly, node: Node) -> Operand:
    """Softmax; axis 0 means the last one: NVIDIA's converter writes 0 where TensorFlow's operation has no axis."""
    operand = _float(assembly, node)
    axis = axis_of(node, node.integer("axis", 0) or -1, len(operand.shape))
    return assembly.add(node, "Softmax", [operand], operand.shape, {"axis": axis})


def identity(assembly: Assembly, node: Node) -> Operand:
    """A copy under another name."""
    (operand,) = assembly.inputs(node, 1)
    if operand.values is not None:
        return assembly.fold(node, operand.values[...])
    return assembly.add(node, "Identity", [operand], operand.shape)


def concat(assembly: Assembly, node: Node) -> Operand:
    """Concatenate tensors along an axis other than the batch."""
    operands = assembly.inputs(node, 0)
    first = operands[0]
    axis = axis_of(node, node.integer("axis"), len(first.shape))
    # Only the sizes along the axis may differ.
    kinds = {(len(entry.shape), entry.shape[:axis], entry.shape[axis + 1 :], entry.dtype) for entry in operands}
    if len(kinds) > 1 or any(entry.shape[axis] == FREE for entry in operands):
        raise node.error(f"joins tensors that do not fit along axis {axis}")
    total = sum(entry.shape[axis] for entry in operands)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    return assembly.add(node, "Concat", operands, shape, {"axis": axis})


def flatten(assembly: Assembly, node: Node) -> Operand:
    """Merge all axes but the batch."""
    (operand,) = assembly.inputs(node, 1)
    if not operand.shape:
        raise node.error("takes a scalar")
    return assembly.reshape(node, operand, (operand.shape[0], count_of(operand.shape[1:])))


def reshape(assembly: Assembly, node: Node) -> Operand:
    """Reshape to the constant second input; -1 is the batch, or the remaining elements."""
    operand, target = assembly.inputs(node, 2)
    if target.values is None or target.dtype.kind != "i" or target.values.ndim != 1 or target.values.size > 8:
        raise node.error("takes a shape that is no constant list of integers")
    shape = [int(dim) for dim in target.values]
    if shape.count(-1) > 1:
        raise node.error(f"has the target shape {shape}")
    if FREE in operand.shape and shape and shape[0] == 1:
        shape[0] = FREE  # exported with a fixed batch of 1
    for index, dim in enumerate(shape):
        if dim == -1 and not (index == 0 and FREE in operand.shape):
            known = count_of(tuple(shape))
            shape[index] = operand.count // known if known > 0 else 0
    return assembly.reshape(node, operand, tuple(shape))


def squeeze(assembly: Assembly, node: Node) -> Operand:
    """Remove the named axes of size 1, or all of them when none is named."""
    (operand,) = assembly.inputs(node, 1)
    rank = len(operand.shape)
    axes = {axis_of(node, axis, rank) for axis in node.integers("axes", ())}
    axes = axes or {axis for axis in range(rank) if operand.shape[axis] == 1}
    if any(operand.shape[axis] != 1 for axis in axes):
        raise node.error(f"drops axes {sorted(axes)} of {operand.shape}, which are not 1")
    return assembly.reshape(node, operand, tuple(dim for axis, dim in enumerate(operand.shape) if axis not in axes))


def expand_dims(assembly: Assembly, node: Node) -> Operand:
    """Insert an axis of size 1."""
    (operand,) = assembly.inputs(node, 1)
    axis = axis_of(node, node.integer("axis"), len(operand.shape) + 1)
    return assembly.reshape(node, operand, (*operand.shape[:axis], 1, *operand.shape[axis:]))


def transpose(assembly: Assembly, node: Node) -> Operand:
    """Reorder axes."""
    (operand,) = assembly.inputs(node, 1)
    axes = node.integers("permutation")
    if sorted(axes) != list(range(len(operand.shape))):
        raise node.error(f"has the permutation {list(axes)} for {len(operand.shape)} axes")
    return assembly.transpose(node, operand, axes)


def pad(assembly: Assembly, node: Node) -> Operand:
    """Pad with zeros; the constant second input holds (before, after) per axis."""
    operand, widths = assembly.inputs(node, 2)
    rank = len(operand.shape)
    if widths.values is None or widths.dtype.kind != "i" or widths.shape != (rank, 2):
        raise node.error(f"takes paddings that are no constant of shape {rank}x2")
    before, after = ([int(value) for value in widths.values[:, side]] for side in (0, 1))
    shape: List[int] = []
    for dim, low, high in zip(operand.shape, before, after):
        if not (0 <= low <= _LARGEST_PAD and 0 <= high <= _LARGEST_PAD) or (dim == FREE and (low or high)):
            raise node.error(f"pads by {low} and {high}")
        shape.append(dim if dim == FREE else dim + low + high)
    pads = assembly.constant(node, "pads", np.array(before + after, np.int64))
    return assembly.add(node, "Pad", [operand, pads], tuple(shape))


def _float(assembly: Assembly, node: Node) -> Operand:
    (operand,) = assembly.inputs(node, 1)
    if operand.dtype.kind != "f":
        raise node.error(f"takes {operand.dtype.name}, expected floats")
    return operand


def _lookup(node: Node, table: Dict[str, Entry]) -> Entry:
    func = node.text("func")
    if func not in table:
        raise node.error(f"its function {func!r} is not supported", f"supported: {', '.join(table)}")
    return table[func]
