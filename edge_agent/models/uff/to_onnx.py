"""Converts UFF to ONNX, because TensorRT's UFF parser, the only reader of UFF, ended with TensorRT 8.6."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from edge_agent.errors import InputError, ModelError
from edge_agent.models.onnx.binding import Dim, Tensor
from edge_agent.models.onnx.graph import new_graph, write_graph
from edge_agent.models.uff import layers as uff_layers
from edge_agent.models.uff import ops as uff_ops
from edge_agent.models.uff.assembly import FREE, Assembly, Operand
from edge_agent.models.uff.file import Node, UffGraph, parse_uff

FREE_BATCH = "batch"

_OPERATIONS: Dict[str, uff_ops.Convert] = {
    "Activation": uff_ops.activation,
    "BatchNorm": uff_layers.batch_norm,
    "Binary": uff_ops.binary,
    "Concat": uff_ops.concat,
    "Const": uff_ops.const,
    "Conv": uff_layers.conv,
    "ExpandDims": uff_ops.expand_dims,
    "Flatten": uff_ops.flatten,
    "FullyConnected": uff_layers.fully_connected,
    "Identity": uff_ops.identity,
    "LeakyRelu": uff_ops.leaky_relu,
    "Pad": uff_ops.pad,
    "Pool": uff_layers.pool,
    "Reshape": uff_ops.reshape,
    "Softmax": uff_ops.softmax,
    "Squeeze": uff_ops.squeeze,
    "Transpose": uff_ops.transpose,
    "Unary": uff_ops.unary,
}


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Attributes:
        data: The ONNX file.
        inputs: Its inputs.
        outputs: Its outputs, under the names of the UFF file.
        operations: Number of UFF nodes by operation, of the nodes that the outputs depend on.
    """

    data: bytes
    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]
    operations: Mapping[str, int]


def convert_uff(data: bytes, name: str, outputs: Sequence[str] = (), batch: Optional[int] = 1) -> Conversion:
    """Convert a UFF network to ONNX, opset 13.

    Args:
        data: The UFF file.
        name: Its name in errors.
        outputs: Names of the outputs; when empty those marked in the file, else the nodes that no other node reads.
        batch: Size of the batch axis where the file leaves it free; None leaves it free in ONNX, too.

    Raises:
        ModelError: It is not UFF, is damaged, or holds an operation that cannot be converted.
        InputError: There is no such output.
        MissingPackage: `onnx` is not installed.
    """
    graph = parse_uff(data, name)
    wanted = _outputs(graph, name, outputs)
    nodes = _sorted(graph, name, wanted)
    assembly = Assembly(name, len(data), graph.nodes)
    for node in nodes:
        if node.operation == "Input":
            _add_input(assembly, node)
        elif node.operation in _OPERATIONS:
            _OPERATIONS[node.operation](assembly, node)
        else:
            raise node.error("this operation is not supported", f"supported: Input, {', '.join(_OPERATIONS)}")
    sources = [_tensor(assembly.operands[node.id], batch) for node in nodes if node.operation == "Input"]
    results = [_output_tensor(assembly, graph.nodes[output], batch) for output in wanted]
    if not sources:
        raise ModelError(f"{name}: no output depends on an input", f"outputs: {', '.join(wanted)}")
    metadata = {"uff_sha256": hashlib.sha256(data).hexdigest()}
    made = new_graph("main", sources, results, assembly.nodes, assembly.weights, metadata)
    operations = Counter(node.operation for node in nodes)
    return Conversion(write_graph(made), tuple(sources), tuple(results), dict(sorted(operations.items())))


def _outputs(graph: UffGraph, name: str, asked: Sequence[str]) -> List[str]:
    for output in asked:
        if output not in graph.nodes:
            ends = ", ".join(graph.marked or _ends(graph))
            raise InputError(f"{name}: no node is called {output}", f"its outputs: {ends}")
    return list(dict.fromkeys(asked or graph.marked)) or _ends(graph)


def _ends(graph: UffGraph) -> List[str]:
    taken = {source for node in graph.nodes.values() for source in node.inputs}
    return [
        node.id for node in graph.nodes.values() if node.id not in taken and node.operation not in ("Const", "Input")
    ]


def _sorted(graph: UffGraph, name: str, outputs: Sequence[str]) -> List[Node]:
    """The nodes that the outputs depend on, in topological order."""
    done: List[Node] = []
    state: Dict[str, bool] = {}  # False while a node's inputs are visited, True afterwards
    stack = list(reversed(outputs))
    while stack:
        current = stack[-1]
        node = graph.nodes.get(current)
        if node is None:
            raise ModelError(f"{name}: a node takes {current}, which is not there", "the file is damaged")
        if current in state:
            stack.pop()
            if not state[current]:
                state[current] = True
                done.append(node)
            continue
        state[current] = False
        for source in reversed(node.inputs):
            if source not in state:
                stack.append(source)
            elif not state[source]:
                raise node.error(f"takes {source}, which needs this node itself", "the file is damaged")
    return done


def _add_input(assembly: Assembly, node: Node) -> None:
    """Add an input. NVIDIA's own exporters omit the batch: three numbers are then channels, height and width."""
    shape = node.integers("shape")
    if len(shape) == 3 and min(shape) > 0:
        shape = (FREE, *shape)
    if not shape or any(dim < 1 for dim in shape[1:]) or (shape[0] < 1 and shape[0] != FREE):
        raise node.error(f"has the shape {list(shape)}", "expected fixed sizes; only the batch may be -1")
    assembly.add_input(node, shape, node.dtype())


def _output_tensor(assembly: Assembly, node: Node, batch: Optional[int]) -> Tensor:
    operand = assembly.operands[node.id]
    if operand.values is not None or node.operation == "Input":
        raise node.error("is an output, but nothing is computed there", "name the outputs with --output")
    return _tensor(operand, batch)


def _tensor(operand: Operand, batch: Optional[int]) -> Tensor:
    free: Dim = FREE_BATCH if batch is None else batch
    return Tensor(operand.name, operand.dtype.name, tuple(free if dim == FREE else dim for dim in operand.shape))
