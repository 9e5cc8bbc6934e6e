"""A float network made into INT8 for CPU cores."""

import platform
from typing import Dict, Mapping, Optional

from edge_agent.inference.calibration.amplitudes import Amplitudes
from edge_agent.inference.calibration.cpu_int8 import cpu_facts
from edge_agent.inference.trt.network import Network
from edge_agent.models.onnx.fold import prepare
from edge_agent.models.onnx.graph import read_graph, write_graph
from edge_agent.models.onnx.quantise import Grid, for_cpu, quantise

# Instructions that add four products of 8 bits at once without an intermediate of 16 bits that could overflow.
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def make_int8(network: Network, amplitudes: Mapping[str, Amplitudes]) -> Optional[bytes]:
    """ONNX in Q/DQ for ONNX Runtime's CPU kernels; None where these have none for any of its layers.

    Raises:
        ModelError: It cannot be quantised.
    """
    graph = prepare(read_graph(network.onnx, network.name), network.name)
    grids: Dict[str, Grid] = {}
    for name, values in amplitudes.items():
        reach = values.chosen()
        low, high = max(values.low, -reach), min(values.high, reach)
        if name == network.binding.input:
            low, high = 0.0, 255.0 * network.contract.gain
        if high > low:
            scale = (high - low) / 255.0
            grids[name] = Grid(scale, round(-low / scale), "uint8")
    placement = for_cpu(graph, grids, half_weights=_overflows())
    return write_graph(quantise(graph, grids, placement)) if placement.layers else None


def _overflows() -> bool:
    """Whether products of full 8-bit numbers overflow: x86 without dot product instructions."""
    if platform.machine() not in ("x86_64", "AMD64", "i686"):
        return False
    flags = set(" ".join(value for key, value in cpu_facts() if key == "flags").split())
    return not flags & _DOT_PRODUCTS
