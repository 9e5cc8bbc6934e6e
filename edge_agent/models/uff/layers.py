"""Converts UFF's layers with weights or windows: convolution, pooling, batch norm, fully connected."""

from typing import Dict, NamedTuple, Sequence, Tuple

from edge_agent.core.types import Array
from edge_agent.models.onnx.graph import Attribute
from edge_agent.models.uff.assembly import Assembly, Operand, channels_first, inverse
from edge_agent.models.uff.file import SPACE, Node

_POOLS = {"max": "MaxPool", "avg": "AveragePool"}
_LARGEST_STEP = 1 << 16


class _Window(NamedTuple):
    """A sliding window: ONNX's attributes, and the spatial shape of the output."""

    attributes: Dict[str, Attribute]
    shape: Tuple[int, ...]


def conv(assembly: Assembly, node: Node) -> Operand:
    """A convolution, grouped or depthwise according to `number_groups`."""
    operand, kernel = assembly.inputs(node, 2)
    left, right = node.orders(2)
    if kernel.values is None:
        raise node.error("takes a kernel that is no constant")
    if operand.dtype != kernel.dtype or operand.dtype.kind != "f":
        raise node.error(f"takes {operand.dtype.name} and a kernel of {kernel.dtype.name}, expected floats of one kind")
    axes = channels_first(node, left, len(operand.shape))
    if SPACE not in left or len(kernel.shape) != len(operand.shape):
        raise node.error(f"takes {len(operand.shape)} axes and a kernel of {len(kernel.shape)}")
    source = _arranged(assembly, node, operand, axes)
    filters = kernel.values.transpose(channels_first(node, right, len(kernel.shape)))
    groups = node.integer("number_groups", 1)
    filters = _grouped(node, filters, source.shape[1], groups)
    window = _window(node, source.shape[2:], filters.shape[2:])
    weights = assembly.constant(node, "kernel", filters)
    shape = (source.shape[0], filters.shape[0], *window.shape)
    return _restored(assembly, node, "Conv", [source, weights], shape, {**window.attributes, "group": groups}, axes)


def pool(assembly: Assembly, node: Node) -> Operand:
    """Maximum or average pooling; the average excludes the padding, as TensorFlow's does."""
    (operand,) = assembly.inputs(node, 1)
    func = node.text("func")
    if func not in _POOLS:
        raise node.error(f"its function {func!r} is not supported", f"supported: {', '.join(_POOLS)}")
    (left,) = node.orders(1)
    axes = channels_first(node, left, len(operand.shape))
    kernel = node.integers("kernel")
    if len(kernel) != len(operand.shape) - 2 or any(not 1 <= size <= _LARGEST_STEP for size in kernel):
        raise node.error(f"has the window {list(kernel)} on {len(operand.shape)} axes")
    source = _arranged(assembly, node, operand, axes)
    window = _window(node, source.shape[2:], kernel)
    attributes = {**window.attributes, "kernel_shape": kernel}
    dilations = attributes.pop("dilations")
    if dilations != (1,) * len(kernel):
        raise node.error("has a dilated window, which is not supported")
    return _restored(assembly, node, _POOLS[func], [source], source.shape[:2] + window.shape, attributes, axes)


def batch_norm(assembly: Assembly, node: Node) -> Operand:
    """Inference-time batch norm: inputs are the tensor, gamma, beta, mean, variance."""
    operand, *constants = assembly.inputs(node, 5)
    (left,) = node.orders(1)
    axes = channels_first(node, left, len(operand.shape))
    channels = operand.shape[axes[1]]
    parts = []
    for name, constant in zip(("gamma", "beta", "mean", "variance"), constants):
        if constant.values is None or constant.values.size != channels or constant.dtype != operand.dtype:
            raise node.error(f"takes a {name} that is no constant of {channels} values")
        parts.append(assembly.constant(node, name, constant.values.reshape(channels)))
    source = _arranged(assembly, node, operand, axes)
    epsilon = node.number("epsilon")
    if epsilon < 0:
        raise node.error(f"has the epsilon {epsilon}")
    return _restored(assembly, node, "BatchNormalization", [source, *parts], source.shape, {"epsilon": epsilon}, axes)


def fully_connected(assembly: Assembly, node: Node) -> Operand:
    """A matrix product with constant weights."""
    operand, weights = assembly.inputs(node, 2)
    left, right = node.orders(2)
    if weights.values is None or len(weights.shape) != 2 or len(operand.shape) != 2:
        raise node.error("takes no matrix and constant matrix")
    if operand.dtype != weights.dtype or operand.dtype.kind != "f":
        raise node.error(f"takes {operand.dtype.name} and {weights.dtype.name}, expected floats of one kind")
    source = _arranged(assembly, node, operand, channels_first(node, left, 2))
    # Filters by channels, as `channels_first` gives them; a product needs channels by filters.
    matrix = weights.values.transpose(channels_first(node, right, 2)).T
    if matrix.shape[0] != source.shape[1]:
        raise node.error(f"takes {source.shape[1]} channels, its weights {matrix.shape[0]}")
    factors = [source, assembly.constant(node, "weights", matrix)]
    return assembly.add(node, "MatMul", factors, (source.shape[0], matrix.shape[1]))


def _grouped(node: Node, filters: Array, channels: int, groups: int) -> Array:
    """The kernel as ONNX expects it: filters by channels *of a group* by space.

    TensorFlow's depthwise kernel is laid out as channels by multiplier, and its filter number is their product.
    """
    count, width = filters.shape[:2]
    if groups > 1 and groups == channels == width:
        return filters.swapaxes(0, 1).reshape(channels * count, 1, *filters.shape[2:])
    if groups < 1 or width * groups != channels or count % groups:
        raise node.error(
            f"takes {channels} channels in {groups} groups, its kernel has {width} channels, {count} filters"
        )
    return filters


def _window(node: Node, space: Sequence[int], kernel: Sequence[int]) -> _Window:
    """The window with explicit padding.

    TensorFlow's SAME gives ceil(size / stride); the extra pixel of an odd padding is at the bottom and right.
    """
    ones = (1,) * len(space)
    strides, dilations = node.integers("strides", ones), node.integers("dilation", ones)
    padding = node.integers("padding", (0,) * len(space))
    implicit = node.text("implicit_padding", "")
    sized = bool(space) and min(space) > 0
    for name, steps, least in (("strides", strides, 1), ("dilation", dilations, 1), ("padding", padding, 0)):
        if not sized or len(steps) != len(space) or any(not least <= step <= _LARGEST_STEP for step in steps):
            raise node.error(f"has the {name} {list(steps)} on {len(space)} spatial axes")
    if implicit not in ("", "same"):
        raise node.error(f"its padding {implicit!r} is not supported", "supported: same, or numbers")
    before, after, shape = [], [], []
    for size, width, stride, dilation, pad in zip(space, kernel, strides, dilations, padding):
        reach = (width - 1) * dilation + 1
        if implicit:
            out = -(-size // stride)
            total = max((out - 1) * stride + reach - size, 0)
            pads = (total // 2, total - total // 2)
        else:
            pads = (pad, pad)
            out = (size + 2 * pad - reach) // stride + 1
        before.append(pads[0])
        after.append(pads[1])
        shape.append(out)
    attributes: Dict[str, Attribute] = {
        "strides": strides,
        "dilations": dilations,
        "pads": (*before, *after),
    }
    return _Window(attributes, tuple(shape))


def _arranged(assembly: Assembly, node: Node, operand: Operand, axes: Tuple[int, ...]) -> Operand:
    """The tensor transposed to channels first."""
    if axes == tuple(range(len(axes))):
        return operand
    return assembly.transpose(node, operand, axes, "channels_first")


def _restored(
    assembly: Assembly,
    node: Node,
    operator: str,
    inputs: Sequence[Operand],
    shape: Tuple[int, ...],
    attributes: Dict[str, Attribute],
    axes: Tuple[int, ...],
) -> Operand:
    """Add an operator on channels-first tensors, and transpose its output to the layout of the node."""
    if axes == tuple(range(len(axes))):
        return assembly.add(node, operator, inputs, shape, attributes)
    made = assembly.add(node, operator, inputs, shape, attributes, operator.lower())
    return assembly.transpose(node, made, inverse(axes))
