"""The precision of a network's layers: chosen before the build, converted to, and counted in the built engine."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Dict, Mapping, Optional

from edge_agent.errors import ModelError
from edge_agent.inference.trt.network import Network
from edge_agent.models.calibration_cache import Calibration, scales_of
from edge_agent.models.onnx.fold import prepare
from edge_agent.models.onnx.graph import read_graph, write_graph
from edge_agent.models.onnx.quantise import Grid, for_tensorrt, halve, quantise, weighted_layers

ORDER = ("int8", "fp16", "fp32")
_NO_COMPUTE = frozenset({"Reformat", "NoOp", "Constant", "Shuffle"})
_NOT_REPORTED = "N/A"  # "... due to dynamic shapes"
_TYPES = (
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("bf16", re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE)),
    ("fp16", re.compile(r"\b(fp16|half)\b", re.IGNORECASE)),
    ("fp32", re.compile(r"\b(fp32|float)\b", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Capabilities:
    """The properties of GPU and TensorRT that decide the precision.

    Attributes:
        gpu: Name of the GPU, for messages.
        int8: Whether the GPU computes faster in INT8 than in float.
        fp16: Whether the GPU computes faster in FP16 than in FP32.
        fixed: True where TensorRT computes in the file's precision only; float files must then be converted.
    """

    gpu: str
    int8: bool
    fp16: bool
    fixed: bool


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision, and the reason for it."""

    precision: str
    why: str


def has_fast_int8(sm: str) -> bool:
    """Whether GPUs of compute capability `sm` ("87") have INT8 dot products; TensorRT 11 no longer reports it.

    Those are 6.1, and all from 7.2 on; the Nano (5.3), TX2 (6.2) and V100 (7.0) have none that TensorRT uses.
    """
    return sm == "61" or int(sm) >= 72


def choose_precision(asked: str, can: Capabilities, stored: str, calibrated: bool) -> PrecisionChoice:
    """The precision to build in.

    Args:
        asked: "auto", "int8", "fp16" or "fp32".
        can: Capabilities of GPU and TensorRT.
        stored: Precision of the model file: "int8" (quantised), "fp16" or "fp32".
        calibrated: Whether there is an INT8 calibration.

    Raises:
        ModelError: The requested precision is not available.
    """
    if stored == "int8" and not can.int8:
        raise ModelError(
            f"the model is quantised to INT8, which {can.gpu} does not have", "use the model's float version"
        )
    if stored == "int8" or (can.fixed and stored != "fp32"):
        reason = "this TensorRT computes in the file's own precision" if can.fixed else "the file is quantised"
        if asked not in ("auto", stored):
            raise ModelError(
                f"precision {asked} was asked for, but {reason}: {stored}",
                f"give a model file stored in {asked}, or ask for precision auto",
            )
        return PrecisionChoice(stored, reason)
    if asked == "auto":
        if can.int8 and calibrated:
            return PrecisionChoice("int8", f"{can.gpu} has INT8, and there is a calibration")
        missing = "there is no calibration for INT8" if can.int8 else f"{can.gpu} has no INT8"
        if can.fp16:
            return PrecisionChoice("fp16", missing)
        return PrecisionChoice("fp32", f"{missing}, and {can.gpu} has no fast FP16")
    if asked == "int8" and not can.int8:
        raise ModelError(f"precision int8 was asked for, but {can.gpu} does not have it", "ask for fp16 or auto")
    if asked == "int8" and not calibrated:
        raise ModelError(
            "precision int8 was asked for, but there is no calibration for this model",
            "make one from your own images (edge-agent model calibrate --source SOURCE), or name its calibration "
            "(setting calibration, or --calibration), or ask for fp16 or auto",
        )
    if asked == "fp16" and not can.fp16:
        raise ModelError(f"precision fp16 was asked for, but {can.gpu} is not fast at it", "ask for fp32 or auto")
    return PrecisionChoice(asked, "as asked")


@dataclass(frozen=True)
class StronglyTyped:
    """A model converted from a float one, for a TensorRT that computes in the file's types.

    Attributes:
        data: ONNX.
        layers: Count of layers with weights.
        int8_layers: How many of them compute in INT8.
    """

    data: bytes
    layers: int
    int8_layers: int = 0


def to_fp16(network: Network) -> StronglyTyped:
    """Convert a float network to FP16.

    Raises:
        ModelError: The network cannot be converted.
    """
    graph = read_graph(network.onnx, network.name)
    return StronglyTyped(write_graph(halve(graph, network.name)), len(weighted_layers(graph)))


def to_int8(network: Network, calibration: Calibration) -> StronglyTyped:
    """Convert a float network to INT8 with Q/DQ nodes; layers that the calibration does not cover stay float.

    Raises:
        ModelError: The network cannot be converted, or the calibration is another network's.
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
    return StronglyTyped(write_graph(quantise(graph, grids, placement)), layers, len(placement.layers))


def count_layers(text: str) -> Dict[str, int]:
    """Count of layers by precision in the JSON of TensorRT's engine inspector; empty when it reports none.

    Layers that only move data do not count. A layer's precision is that of its weights, else of its first input, as in
    NVIDIA's TREx. For engines with several input sizes the inspector omits the latter; such layers do not count.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    counts = Counter(found for found in map(_precision_of, layers) if found is not None)
    return {precision: counts[precision] for precision in (*ORDER, "bf16", "other") if counts[precision]}


def built_precision(layers: Mapping[str, int], planned: str) -> str:
    """The engine's precision: the smallest type that layers compute in, or `planned` when `layers` is empty."""
    return next((precision for precision in ORDER if layers.get(precision)), planned)


def require_precision(asked: str, precision: str, layers: Mapping[str, int], name: str) -> None:
    """Check that an explicit request was met; TensorRT's flags only permit a precision.

    Raises:
        ModelError: No layer computes in the requested precision.
    """
    if asked == "auto" or not layers or layers.get(precision):
        return
    counted = ", ".join(f"{kind} {count}" for kind, count in layers.items())
    raise ModelError(
        f"model {name}: precision {asked} was asked for, but TensorRT built no layer in it ({counted})",
        "ask for precision auto, or give a calibration that covers the model",
    )


def _precision_of(layer: object) -> Optional[str]:
    if not isinstance(layer, dict) or layer.get("LayerType") in _NO_COMPUTE or not layer.get("Inputs"):
        return None
    weights = layer.get("Weights")
    source = weights if isinstance(weights, dict) else layer["Inputs"][0]
    reported = str(source.get("Type") or source.get("Format/Datatype"))
    if reported.startswith(_NOT_REPORTED):
        return None
    return next((precision for precision, pattern in _TYPES if pattern.search(reported)), "other")
