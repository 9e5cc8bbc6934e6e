"""Calibration without TensorRT: what every tensor of a float network reaches on real pictures."""

from typing import Dict, Iterable

from edge_agent.core.frame import Image
from edge_agent.errors import ModelError
from edge_agent.inference.calibration.amplitudes import Amplitudes
from edge_agent.inference.ort import Probe
from edge_agent.inference.preprocess import Preprocessor
from edge_agent.inference.trt.network import Network
from edge_agent.models.onnx.graph import read_graph, write_graph


def measure(network: Network, pictures: Iterable[Image]) -> Dict[str, Amplitudes]:
    """By name, the amplitudes of all float tensors, the input first, then in the order in which they are made.

    Args:
        network: A float one.
        pictures: As the engine will get them; each is looked at once.

    Raises:
        ModelError: The network is quantised or half-precision already, or does not run.
        MissingPackage: onnxruntime is not installed.
    """
    if network.precision != "fp32":
        raise ModelError(
            f"model {network.name}: is stored in {network.precision}", "calibrate the float version that it was"
        )
    graph = read_graph(network.onnx, network.name)
    inner = [name for node in graph.nodes for name in node.outputs if name and name not in graph.outputs]
    probe = Probe(write_graph(graph, inner), network.name)
    answered = set(probe.tensors)
    order = [network.binding.input]
    order += [name for node in graph.nodes for name in node.outputs if name in answered]
    found = {name: Amplitudes() for name in order}
    preprocess = Preprocessor(network.contract)
    for picture in pictures:
        feed = preprocess(picture)
        found[network.binding.input].add(feed)
        for name, values in probe({network.binding.input: feed}).items():
            found[name].add(values)
    return found


def reached(network: Network, amplitudes: Dict[str, Amplitudes]) -> Dict[str, float]:
    """By name, what becomes 127: of the input white, as in NVIDIA's own calibrations; tensors always 0 are left out."""
    found = {name: values.chosen() for name, values in amplitudes.items()}
    found[network.binding.input] = 255.0 * network.contract.gain
    return {name: value for name, value in found.items() if value > 0.0}
