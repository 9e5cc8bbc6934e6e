"""The network as TensorRT 11 wants it: a file whose own types are the precision that was chosen."""

from dataclasses import dataclass

from edge_agent.errors import ModelError
from edge_agent.inference.onnx.fold import prepare
from edge_agent.inference.onnx.graph import read_graph, write_graph
from edge_agent.inference.onnx.half import halve
from edge_agent.inference.onnx.quantise import Grid, for_tensorrt, quantise, weighted_layers
from edge_agent.inference.trt.calibration import Calibration, scales_of
from edge_agent.inference.trt.source import Network


@dataclass(frozen=True)
class Typed:
    """A model file made from a float one.

    Attributes:
        data: ONNX.
        layers: How many layers have weights.
        int8_layers: How many of them compute in INT8.
    """

    data: bytes
    layers: int
    int8_layers: int = 0


def half(network: Network) -> Typed:
    """In FP16.

    Raises:
        ModelError: It cannot be.
    """
    graph = read_graph(network.onnx, network.name)
    return Typed(write_graph(halve(graph, network.name)), len(weighted_layers(graph)))


def quantised(network: Network, calibration: Calibration) -> Typed:
    """In INT8, as Q/DQ; layers of which the calibration says nothing stay float.

    Raises:
        ModelError: It cannot be, or the calibration is another network's.
    """
    original = read_graph(network.onnx, network.name)
    tensors = [*original.inputs, *(name for node in original.nodes for name in node.outputs)]
    scales = scales_of(calibration, tensors, network.binding.input, 255.0 * network.contract.gain)
    grids = {name: Grid(scale) for name, scale in scales.items() if scale > 0.0}
    graph = prepare(original, network.name)
    placement = for_tensorrt(graph, grids)
    layers = len(weighted_layers(graph))
    if not placement.layers:
        raise ModelError(
            f"model {network.name}: the calibration fits none of its {layers} layers",
            "make one with: edge-agent model calibrate, or ask for precision fp16",
        )
    return Typed(write_graph(quantise(graph, grids, placement)), layers, len(placement.layers))
