"""ONNX graphs with known outputs, and edits of ONNX files."""

from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

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


def with_shapes(data: bytes, shapes: Mapping[str, Sequence[Any]]) -> bytes:
    """The model with other shapes for the named inputs and outputs.

    Weights among the inputs and the shapes of inner tensors are removed.
    """
    model = onnx.load_model_from_string(data)
    weights = {entry.name for entry in model.graph.initializer}
    for entries in (model.graph.input, model.graph.output):
        kept = [entry for entry in entries if entry.name not in weights]
        made = [tensor(entry.name, shapes[entry.name]) if entry.name in shapes else entry for entry in kept]
        del entries[:]
        entries.extend(made)
    del model.graph.value_info[:]
    return model.SerializeToString()


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
    """A network with CenterFace's inputs and outputs: heatmap = mean of a cell / 255, other planes constant.

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


def residual(path: Path, opset: int = 13, decomposed: bool = False) -> Path:
    """A small DetectNet_v2 of random weights with everything that quantisation must know.

    Batch norm behind convolutions (one node, or `decomposed` into a multiplication and an addition), a residual
    addition, a pool, and a transposed convolution.
    """
    rng = np.random.default_rng(7)
    nodes: List[Any] = []
    weights: List[Tuple[str, np.ndarray]] = []

    def const(name: str, values: Any) -> str:
        weights.append((name, np.asarray(values, np.float32)))
        return name

    def norm(source: str, name: str, channels: int) -> str:
        gain, shift = rng.uniform(0.5, 1.5, channels), rng.normal(0, 0.1, channels)
        if decomposed:
            gain, shift = gain.reshape(1, -1, 1, 1), shift.reshape(1, -1, 1, 1)
            nodes.append(helper.make_node("Mul", [source, const(f"{name}.g", gain)], [f"{name}/mul_1"]))
            nodes.append(helper.make_node("Add", [f"{name}/mul_1", const(f"{name}.s", shift)], [f"{name}/add_1"]))
            return f"{name}/add_1"
        rest = [const(f"{name}.m", shift), const(f"{name}.v", gain)]
        inputs = [source, const(f"{name}.g", gain), const(f"{name}.b", shift), *rest]
        nodes.append(helper.make_node("BatchNormalization", inputs, [f"{name}/norm"], epsilon=1e-3))
        return f"{name}/norm"

    def conv(source: str, name: str, shape: Sequence[int], kind: str = "Conv", **attributes: Any) -> str:
        fan = float(np.prod(shape[1:]))
        kernel = const(f"{name}.w", rng.normal(0, fan**-0.5, shape))
        nodes.append(helper.make_node(kind, [source, kernel], [f"{name}/conv"], **attributes))
        return norm(f"{name}/conv", name, shape[0] if kind == "Conv" else shape[1])

    def relu(source: str, name: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [name]))
        return name

    step = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    first = relu(conv("input_1", "one", (8, 3, 3, 3), strides=[4, 4], **step), "one/relu")
    inner = relu(conv(first, "two", (8, 8, 3, 3), strides=[4, 4], **step), "two/relu")
    main = conv(inner, "three", (8, 8, 3, 3), **step)
    side = conv(first, "side", (8, 8, 1, 1), kernel_shape=[1, 1], strides=[4, 4])
    nodes.append(helper.make_node("Add", [main, side], ["sum"]))
    top = relu("sum", "sum/relu")
    nodes.append(helper.make_node("AveragePool", [top], ["pool"], kernel_shape=[2, 2], strides=[2, 2]))
    up = relu(conv("pool", "up", (8, 8, 2, 2), "ConvTranspose", kernel_shape=[2, 2], strides=[2, 2]), "up/relu")
    for name, planes in (("output_cov", 1), ("output_bbox", 4)):
        kernel = const(f"{name}.w", rng.normal(0, 0.4, (planes, 8, 1, 1)))
        output = "output_cov/logits" if planes == 1 else "output_bbox/BiasAdd"
        nodes.append(helper.make_node("Conv", [up, kernel, const(f"{name}.b", np.full(planes, 0.1))], [output]))
    nodes.append(helper.make_node("Sigmoid", ["output_cov/logits"], ["output_cov/Sigmoid"]))
    outputs = [tensor("output_cov/Sigmoid", [1, 1, 16, 24]), tensor("output_bbox/BiasAdd", [1, 4, 16, 24])]
    save(path, nodes, [tensor("input_1", [1, 3, 256, 384])], outputs, weights)
    model = onnx.load(str(path))
    model.opset_import[0].version = opset
    onnx.save(model, str(path))
    return path


def bright(path: Path) -> Path:
    """A DetectNet_v2 of three layers whose coverage is sigmoid(24 * mean of the cell - 10), boxes always `BOX`."""
    eye = np.eye(4, dtype=np.float32)[:, :, None, None]
    weights = [
        ("mean", np.full((4, 3, 16, 16), 1 / 768, np.float32)),
        ("eye", eye),
        ("cov", np.full((1, 4, 1, 1), 6.0, np.float32)),
        ("minus", np.float32([-10.0])),
        ("bbox", np.zeros((4, 4, 1, 1), np.float32)),
        ("box", np.array(BOX, np.float32)),
    ]
    nodes = [
        helper.make_node("Conv", ["input_1", "mean"], ["cells"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Relu", ["cells"], ["cells/relu"]),
        helper.make_node("Conv", ["cells/relu", "eye"], ["same"]),
        helper.make_node("Relu", ["same"], ["same/relu"]),
        helper.make_node("Conv", ["same/relu", "cov", "minus"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output_cov/Sigmoid"]),
        helper.make_node("Conv", ["same/relu", "bbox", "box"], ["output_bbox/BiasAdd"]),
    ]
    outputs = [tensor("output_cov/Sigmoid", [1, 1, 15, 24]), tensor("output_bbox/BiasAdd", [1, 4, 15, 24])]
    return save(path, nodes, [tensor("input_1", [1, 3, 240, 384])], outputs, weights)


def slow_gridbox(path: Path, layers: int = 10) -> Path:
    """A `gridbox` that computes for seconds: so many convolutions of 128 channels, whose result hardly counts."""
    model = onnx.load(str(gridbox(path)))
    cov = next(entry.name for entry in model.graph.output if "cov" in entry.name)
    for node in model.graph.node:
        node.output[:] = ["quick" if name == cov else name for name in node.output]
    weights = np.full((128, 128, 3, 3), 1e-4, np.float32)
    arrays = {"first": weights[:, :3].copy(), "next": weights, "little": np.array([1e-9], np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    names = [model.graph.input[0].name, *(f"layer{index}" for index in range(layers))]
    for index, (source, target) in enumerate(zip(names, names[1:])):
        kernel = "next" if index else "first"
        model.graph.node.append(helper.make_node("Conv", [source, kernel], [target], pads=[1] * 4))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", [names[-1]], ["mean"], axes=[1, 2, 3], keepdims=1),
            helper.make_node("Mul", ["mean", "little"], ["nothing"]),
            helper.make_node("Add", ["quick", "nothing"], [cov]),
        ]
    )
    onnx.save(model, str(path))
    return path
