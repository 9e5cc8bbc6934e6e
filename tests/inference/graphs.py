"""ONNX graphs with known answers, built with the `onnx` package."""

from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BOX = (1.0, 0.5, 0.25, 2.0)


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[Tuple[str, np.ndarray]] = (),
    value_info: Sequence[Any] = (),
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        list(inputs),
        list(outputs),
        [numpy_helper.from_array(array, name) for name, array in weights],
        value_info=list(value_info),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="tests")
    model.ir_version = 8
    helper.set_model_props(model, {"author": "tests", "note": "café"})
    onnx.save(model, str(path))
    return path


def tensor(name: str, shape: Optional[Sequence[Any]], dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def gridbox(
    path: Path,
    *,
    net: Tuple[int, int] = (384, 240),
    stride: int = 16,
    classes: int = 1,
    channels: int = 3,
    suffix: str = "",
    batch: Any = 1,
    bbox_planes: Optional[int] = None,
    activation: str = "Sigmoid",
    slope: float = 20.0,
) -> Path:
    """A DetectNet_v2 whose coverage of class k is sigmoid(slope * mean of the cell - 10 - k), boxes always `BOX`.

    The cell's mean is that of the channels weighted 1, 0, 0 for three channels: what the first plane holds.
    """
    width, height = net
    grid_w, grid_h = width // stride, height // stride
    planes = 4 * classes if bbox_planes is None else bbox_planes
    cov = np.zeros((classes, channels, 1, 1), np.float32)
    cov[:, 0] = slope
    source, cov_name, bbox_name = f"input_1{suffix}", f"output_cov/Sigmoid{suffix}", f"output_bbox/BiasAdd{suffix}"
    nodes: List[Any] = [
        helper.make_node("AveragePool", [source], ["cells"], kernel_shape=[stride] * 2, strides=[stride] * 2),
        helper.make_node("Conv", ["cells", "cov_w", "cov_b"], ["logits"]),
        helper.make_node(activation, ["logits"], [cov_name]),
        helper.make_node("Conv", ["cells", "bbox_w", "bbox_b"], [bbox_name]),
    ]
    weights = [
        ("cov_w", cov),
        ("cov_b", -10.0 - np.arange(classes, dtype=np.float32)),
        ("bbox_w", np.zeros((planes, channels, 1, 1), np.float32)),
        ("bbox_b", np.resize(np.array(BOX, np.float32), planes)),
    ]
    return save(
        path,
        nodes,
        [tensor(source, [batch, channels, height, width])],
        [
            tensor(cov_name, [batch, classes, grid_h, grid_w]),
            tensor(bbox_name, [batch, planes, grid_h, grid_w]),
        ],
        weights,
    )


def centerface(
    path: Path,
    *,
    ids: Sequence[str] = ("537", "538", "539", "540"),
    shape: Sequence[Any] = (1, 3, "height", "width"),
    grid: Sequence[Any] = ("gh", "gw"),
    as_published: bool = False,
) -> Path:
    """A network with CenterFace's outside: heatmap = mean of a cell / 255, other planes 0.1, 0.2, ... as constants.

    `as_published` lists the weights among the inputs and claims stale inner shapes, as the published file does.
    """
    planes = (1, 2, 2, 10)
    nodes: List[Any] = [
        helper.make_node("AveragePool", ["input.1"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    weights: List[Tuple[str, np.ndarray]] = []
    for name, count in zip(ids, planes):
        kernel = np.zeros((count, 3, 1, 1), np.float32)
        if count == 1:
            kernel[0, 0] = 1 / 255.0
        bias = np.zeros(1, np.float32) if count == 1 else np.arange(1, count + 1, dtype=np.float32) / 10
        weights += [(f"{name}.w", kernel), (f"{name}.b", bias)]
        nodes.append(helper.make_node("Conv", ["cells", f"{name}.w", f"{name}.b"], [name]))
    inputs = [tensor("input.1", shape)]
    value_info = []
    if as_published:
        inputs += [tensor(name, array.shape) for name, array in weights]
        value_info = [tensor("cells", [shape[0], 3, *grid])]
    outputs = [tensor(name, [shape[0], count, *grid]) for name, count in zip(ids, planes)]
    return save(path, nodes, inputs, outputs, weights, value_info)
