"""Calibrates a float network on frames: measures the amplitudes of its tensors, and quantises it for the CPU."""

import platform
from typing import Dict, Iterable, Mapping, Optional

from edge_agent.core.frame import Image
from edge_agent.errors import ModelError
from edge_agent.inference.calibration.amplitudes import Amplitudes
from edge_agent.inference.calibration.cpu_int8 import cpu_facts
from edge_agent.inference.ort import Probe
from edge_agent.inference.preprocess import Preprocessor
from edge_agent.inference.trt.network import Network
from edge_agent.models.onnx.fold import prepare
from edge_agent.models.onnx.graph import read_graph, write_graph
from edge_agent.models.onnx.quantise import Grid, for_cpu, quantise

# Instructions that add four products of 8 bits without a 16-bit intermediate that could overflow.
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def measure(network: Network, images: Iterable[Image]) -> Dict[str, Amplitudes]:
    """The amplitudes of all float tensors by name: the input first, then in execution order.

    Args:
        network: A float network.
        images: The calibration frames, in the form that the engine gets; each is read once.

    Raises:
        ModelError: The network is quantised or in half precision already, or does not run.
        MissingPackage: onnxruntime or `onnx` is not installed.
    """
    if network.precision != "fp32":
        raise ModelError(f"model {network.name}: is stored in {network.precision}", "calibrate the float version of it")
    graph = read_graph(network.onnx, network.name)
    inner = [name for node in graph.nodes for name in node.outputs if name and name not in graph.outputs]
    probe = Probe(write_graph(graph, inner), network.name)
    measured = set(probe.tensors)
    order = [network.binding.input]
    order += [name for node in graph.nodes for name in node.outputs if name in measured]
    found = {name: Amplitudes() for name in order}
    preprocess = Preprocessor(network.contract)
    for image in images:
        feed = preprocess(image)
        found[network.binding.input].add(feed)
        for name, values in probe({network.binding.input: feed}).items():
            found[name].add(values)
    return found


def reached(network: Network, amplitudes: Dict[str, Amplitudes]) -> Dict[str, float]:
    """By tensor, the amplitude that becomes 127; of the input that is white, as in NVIDIA's calibrations.

    All-zero tensors are omitted.
    """
    found = {name: values.full_scale() for name, values in amplitudes.items()}
    found[network.binding.input] = 255.0 * network.contract.gain
    return {name: value for name, value in found.items() if value > 0.0}


def make_int8(network: Network, amplitudes: Mapping[str, Amplitudes]) -> Optional[bytes]:
    """The network in Q/DQ for ONNX Runtime's CPU kernels; None where no layer can be quantised.

    Raises:
        ModelError: It cannot be quantised.
    """
    graph = prepare(read_graph(network.onnx, network.name), network.name)
    grids: Dict[str, Grid] = {}
    for name, values in amplitudes.items():
        reach = values.full_scale()
        low, high = max(values.low, -reach), min(values.high, reach)
        if name == network.binding.input:
            low, high = 0.0, 255.0 * network.contract.gain
        if high > low:
            scale = (high - low) / 255.0
            grids[name] = Grid(scale, round(-low / scale), "uint8")
    placement = for_cpu(graph, grids, half_weights=_products_overflow())
    return write_graph(quantise(graph, grids, placement)) if placement.layers else None


def _products_overflow() -> bool:
    """Whether sums of 8-bit products overflow on this CPU: x86 without dot product instructions."""
    if platform.machine() not in ("x86_64", "AMD64", "i686"):
        return False
    flags = set(" ".join(value for key, value in cpu_facts() if key == "flags").split())
    return not flags & _DOT_PRODUCTS
