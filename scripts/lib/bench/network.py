"""The benchmark's network: a DetectNet_v2 on a ResNet18 of 0.44 width, as large as the pruned FaceDetectIR.

Its weights are random and hardly affect the outputs; a small branch detects bright patches, so that the detections are
known beforehand, in fp32 as in INT8. Its cost depends on shapes, not on weights. It does not measure accuracy.
"""

from pathlib import Path
from typing import Any, List, NamedTuple, Tuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from edge_agent.inference.calibration.measure import make_int8, measure
from edge_agent.inference.trt.network import read_network

NET = (384, 240)  # width, height, px
STRIDE = 16
BLOCKS = ((64, 2), (128, 2), (256, 2), (512, 1))  # full width, stride; two units each, every one with a projection
WIDTH = 0.44
HALF_BOX_PX = 50.0
BOX_SCALE = 35.0


class Files(NamedTuple):
    """The same network twice."""

    fp32: Path
    int8: Path
    macs: int


class _Builder:
    def __init__(self) -> None:
        self.nodes: List[Any] = []
        self.weights: List[Any] = []
        self.macs = 0
        self._rng = np.random.default_rng(0)

    def weight(self, values: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, source: str, planes: Tuple[int, int], side: int, stride: int, cells: int) -> str:
        """A convolution with random weights (He et al., 2015); `cells` is the area of its output."""
        before, after = planes
        deviation = (2.0 / (before * side * side)) ** 0.5
        values = self._rng.normal(0, deviation, (after, before, side, side))
        self.macs += values.size * cells
        bias = self.weight(np.zeros(after))
        pads = [side // 2] * 4
        return self.node("Conv", source, self.weight(values), bias, strides=[stride] * 2, pads=pads,
                         kernel_shape=[side] * 2)  # fmt: skip


def build(path: Path, width: float = WIDTH) -> int:
    """Write the fp32 network; returns its multiply-accumulates."""
    made = _Builder()
    size, before = (NET[0] // 2, NET[1] // 2), round(64 * width)
    at = made.node("Relu", made.conv("input_1", (3, before), 7, 2, size[0] * size[1]))
    for planes, first_stride in BLOCKS:
        after = round(planes * width)
        for stride in (first_stride, 1):
            size = (size[0] // stride, size[1] // stride)
            cells = size[0] * size[1]
            inner = made.node("Relu", made.conv(at, (before, after), 3, stride, cells))
            outer = made.conv(inner, (after, after), 3, 1, cells)
            beside = made.conv(at, (before, after), 1, stride, cells)
            at = made.node("Relu", made.node("Add", outer, beside))
            before = after
    _heads(made, at, before)
    shape = [1, 3, NET[1], NET[0]]
    grid = [NET[1] // STRIDE, NET[0] // STRIDE]
    graph = helper.make_graph(
        made.nodes,
        "bench",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("output_cov/Sigmoid", TensorProto.FLOAT, [1, 1, *grid]),
            helper.make_tensor_value_info("output_bbox/BiasAdd", TensorProto.FLOAT, [1, 4, *grid]),
        ],
        made.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    save(model, str(path))
    return made.macs


def _heads(made: _Builder, features: str, planes: int) -> None:
    """Coverage follows the brightness of a cell, boxes are always of one size; the backbone adds almost nothing."""
    cells = made.node("AveragePool", "input_1", kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2)
    both = made.node("Concat", features, cells, axis=1)
    cov = np.full((1, planes + 3, 1, 1), 1e-6)
    cov[0, planes:] = 40.0 / 3.0
    bbox = np.full((4, planes + 3, 1, 1), 1e-7)
    logits = made.node("Conv", both, made.weight(cov), made.weight([-32.0]))
    made.node("Sigmoid", logits, out="output_cov/Sigmoid")
    half = made.weight([HALF_BOX_PX / BOX_SCALE] * 4)
    made.node("Conv", both, made.weight(bbox), half, out="output_bbox/BiasAdd")


def files(folder: Path, images: List[Any]) -> Files:
    """The network in fp32 and, calibrated by the product's own code on these gray images, in INT8 (Q/DQ)."""
    from edge_agent.core.frame import Image

    fp32, int8 = folder / "bench-fp32.onnx", folder / "bench-int8.onnx"
    macs = build(fp32)
    network = read_network(str(fp32), folder)
    data = make_int8(network, measure(network, [Image(image) for image in images]))
    if data is None:
        raise SystemExit("the benchmark's network has no INT8 kernels on this machine")
    int8.write_bytes(data)
    return Files(fp32, int8, macs)
