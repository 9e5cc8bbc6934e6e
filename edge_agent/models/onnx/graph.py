"""An ONNX graph as operators and weights: read from a model, changed, and written again, with the `onnx` package."""

from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

from edge_agent import __version__
from edge_agent.core.types import Array
from edge_agent.errors import ModelError
from edge_agent.models.onnx.binding import Tensor
from edge_agent.models.onnx.file import DTYPES, checked_text, decode_model, onnx_package

Attribute = Union[int, float, str, Sequence[int]]

OPSET = 13
"""The first whose quantisation has one scale per channel."""

_IR_VERSION = 7  # the first that allows opset 13
_OWN_DOMAIN = ("", "ai.onnx")
_CODES = {name: code for code, name in DTYPES.items()}


@dataclass(frozen=True)
class Node:
    """An operator.

    Attributes:
        operator: Its name in ONNX.
        inputs: Names of tensors; "" for one that is left out.
        outputs: Names of tensors.
        name: Of the node.
        attributes: AttributeProto by name.
    """

    operator: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    name: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def integer(self, name: str, default: int) -> int:
        """The value of an integer attribute."""
        return int(self.attributes[name].i) if name in self.attributes else default

    def number(self, name: str, default: float) -> float:
        """The value of a float attribute."""
        return float(self.attributes[name].f) if name in self.attributes else default


@dataclass
class Graph:
    """A model's graph.

    Attributes:
        nodes: In execution order.
        weights: Constants by name.
        inputs: Names of the inputs that must be fed.
        outputs: Names of the outputs.
        opset: Version of ONNX's own operators.
        model: The ModelProto that the graph was read from. Of it, `write_graph` takes the types of inputs and outputs,
            the producer and the metadata.
    """

    nodes: List[Node]
    weights: Dict[str, Array]
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    opset: int
    model: Any

    def uses(self) -> Dict[str, int]:
        """Number of readers of each tensor; the model's outputs count as one more."""
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
        """The operator that computes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs}


def make_node(
    operator: str,
    inputs: Sequence[str],
    output: str,
    attributes: Optional[Mapping[str, Attribute]] = None,
    name: Optional[str] = None,
) -> Node:
    """A new operator of one output; its name is unlike those that exporters use, unless `name` is given."""
    make = onnx_package().helper.make_attribute
    made = {key: make(key, value) for key, value in (attributes or {}).items()}
    return Node(operator, tuple(inputs), (output,), f"{output}/{operator}" if name is None else name, made)


def renamed(node: Node, names: Mapping[str, str]) -> Node:
    """The same operator with its inputs renamed."""
    return replace(node, inputs=tuple(names.get(name, name) for name in node.inputs))


def new_graph(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    nodes: List[Node],
    weights: Dict[str, Array],
    metadata: Mapping[str, str],
) -> Graph:
    """A graph of opset 13, produced by this program."""
    onnx = onnx_package()
    model = onnx.ModelProto(producer_name="edge-agent", producer_version=__version__)
    model.graph.name = name
    for tensors, infos in ((inputs, model.graph.input), (outputs, model.graph.output)):
        infos.extend(
            onnx.helper.make_tensor_value_info(tensor.name, _CODES[tensor.dtype], tensor.shape) for tensor in tensors
        )
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return Graph(nodes, weights, _names(inputs), _names(outputs), OPSET, model)


def read_graph(data: bytes, name: str) -> Graph:
    """The graph of the model in `data`; errors call it `name`. Constant operators become weights.

    Raises:
        ModelError: It is damaged, keeps weights in another file, or uses operators that are not ONNX's own.
        MissingPackage: `onnx` is not installed.
    """
    try:
        return _graph_of(decode_model(data))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(
            f"model {name}: its graph cannot be read: {error}", "expected one ONNX file of standard operators"
        ) from error


def write_graph(graph: Graph, extra: Sequence[str] = ()) -> bytes:
    """The ONNX file. Unused weights are left out; the inner tensors named by `extra` become outputs, too."""
    onnx = onnx_package()
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.ir_version = _IR_VERSION
    del model.opset_import[:]
    model.opset_import.add(domain="", version=graph.opset)
    made = model.graph
    for stale in (made.node, made.initializer, made.value_info):
        del stale[:]
    for node in graph.nodes:
        made.node.add(
            op_type=node.operator,
            input=node.inputs,
            output=node.outputs,
            name=node.name or None,
            attribute=node.attributes.values(),
        )
    used: Set[str] = {name for node in graph.nodes for name in node.inputs}
    for name, values in graph.weights.items():
        if name in used:
            made.initializer.add().CopyFrom(onnx.numpy_helper.from_array(values, name))
    fed = [entry for entry in made.input if entry.name in graph.inputs]
    del made.input[:]
    made.input.extend(fed)
    for name in extra:
        made.output.add(name=name)
    encoded: bytes = model.SerializeToString()
    return encoded


def _graph_of(model: Any) -> Graph:
    opsets = [entry.version for entry in model.opset_import if entry.domain in _OWN_DOMAIN]
    weights = {checked_text(tensor.name): _values(tensor) for tensor in model.graph.initializer}
    nodes: List[Node] = []
    for entry in model.graph.node:
        if entry.domain not in _OWN_DOMAIN:
            raise ValueError(f"an operator of {entry.domain}")
        inputs, outputs = (tuple(map(checked_text, names)) for names in (entry.input, entry.output))
        attributes = {checked_text(attribute.name): attribute for attribute in entry.attribute}
        if entry.op_type == "Constant" and "value" in attributes:
            weights[outputs[0]] = _values(attributes["value"].t)
        else:
            nodes.append(Node(checked_text(entry.op_type), inputs, outputs, checked_text(entry.name), attributes))
    if not nodes or not opsets:
        raise ValueError("it holds no graph")
    # Old exporters list the weights among the inputs.
    fed = tuple(name for name in _names(model.graph.input) if name not in weights)
    return Graph(nodes, weights, fed, _names(model.graph.output), opsets[-1], model)


def _values(tensor: Any) -> Array:
    """The values of a TensorProto."""
    onnx = onnx_package()
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError("weights in another file")
    if tensor.data_type not in DTYPES:
        raise ValueError(f"weights of type {tensor.data_type} in {tensor.name}")
    values: Array = onnx.numpy_helper.to_array(tensor)
    return values


def _names(tensors: Sequence[Any]) -> Tuple[str, ...]:
    return tuple(checked_text(tensor.name) for tensor in tensors)
