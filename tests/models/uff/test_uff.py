"""UFF in, ONNX out: every operation against numpy, DetectNet_v2 up to the faces, malformed files."""

import tracemalloc
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.detection.detector import Decoder, DetectionParams, FaceDetector
from edge_agent.core.detection.model_contract import FACEDETECTIR
from edge_agent.core.frame import Image
from edge_agent.errors import InputError, ModelError
from edge_agent.inference.convert import convert_file
from edge_agent.inference.ort import OrtEngine
from edge_agent.inference.preprocess import Preprocessor
from edge_agent.models.onnx.binding import derive_contract
from edge_agent.models.onnx.file import read_onnx
from edge_agent.models.uff.to_onnx import Conversion, convert_uff
from tests.fakes.uff_writer import Network, Orders, UffWriter, chunk, detectnet, named

TOLERANCE = 1e-5


def random_input(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def run(conversion: Conversion, feed: np.ndarray) -> List[np.ndarray]:
    onnx.checker.check_model(onnx.load_from_string(conversion.data), full_check=True)
    session = onnxruntime.InferenceSession(conversion.data, providers=["CPUExecutionProvider"])
    return session.run(None, {conversion.inputs[0].name: feed})


def check(net: Network, *outputs: str) -> Conversion:
    """Convert and compare with what numpy computed while the network was written."""
    net.mark(*outputs)
    conversion = convert_uff(net.encode(), "net.uff")
    assert [tensor.name for tensor in conversion.outputs] == list(outputs)
    feed = net.values[conversion.inputs[0].name].astype(np.float32)
    for tensor, answer in zip(conversion.outputs, run(conversion, feed)):
        assert tensor.shape == answer.shape
        np.testing.assert_allclose(answer, net.values[tensor.name], atol=TOLERANCE, rtol=TOLERANCE)
    return conversion


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A gray image of blobs, (240, 384) uint8."""
    y, x = np.mgrid[:240, :384]
    blobs = sum(np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 800.0) for cx, cy in ((60, 50), (200, 130), (320, 190)))
    return np.clip(40 + 200 * np.asarray(blobs), 0, 255).astype(np.uint8)


def test_detectnet_gives_the_same_faces(scene: np.ndarray, tmp_path: Path) -> None:
    feed = np.array(Preprocessor(FACEDETECTIR)(Image(scene)))
    net = detectnet(feed)
    (tmp_path / "in.uff").write_bytes(net.encode())
    found = convert_file(tmp_path / "in.uff", tmp_path / "out.onnx")
    assert found.facts["contract"] == "gridbox, input 3x240x384, stride 16x16, classes 1"
    assert found.facts["operations"]["Conv"] == 1 + 8 * 3 + 2
    assert found.facts["operations"]["BatchNorm"] == 13
    assert any("tried out with ONNX Runtime" in finding for finding in found.findings)

    path = tmp_path / "out.onnx"
    engine = OrtEngine(path, derive_contract(read_onnx(path), str(path)))
    assert engine.contract == FACEDETECTIR
    wanted = {"cov": net.values["output_cov/Sigmoid"][0], "bbox": net.values["output_bbox/BiasAdd"][0]}
    answers = engine.infer(Image(scene))
    assert answers["cov"].shape == (1, 15, 24)
    for role, value in wanted.items():
        np.testing.assert_allclose(answers[role], value, atol=TOLERANCE, rtol=TOLERANCE)

    params = DetectionParams()
    faces = FaceDetector(engine, params).detect(Image(scene))
    reference = Decoder(FACEDETECTIR, params).decode(
        {role: value.astype(np.float32) for role, value in wanted.items()}, (384, 240)
    )
    assert len(faces.xyxy) == len(reference.xyxy) > 0
    np.testing.assert_allclose(faces.xyxy, reference.xyxy, atol=0.01)
    np.testing.assert_allclose(faces.confidence, reference.confidence, atol=TOLERANCE)
    engine.close()


def test_every_tensor_keeps_its_name() -> None:
    """A calibration cache made for the UFF file names inner tensors, too."""
    net = detectnet(random_input(1, 3, 32, 48), (2, 2, 2, 2, 2))
    graph = onnx.load_from_string(convert_uff(net.encode(), "net.uff").data).graph
    kept = {name for node in graph.node for name in node.output}
    assert {"block_1a_bn_1/batchnorm/mul_1", "block_1a_conv_1/BiasAdd", "add_2b/add", "bn_conv1/FusedBatchNorm"} <= kept


def test_batch_is_one_or_free() -> None:
    net = detectnet(random_input(1, 3, 32, 48), (2, 2, 2, 2, 2))
    fixed, free = convert_uff(net.encode(), "net.uff"), convert_uff(net.encode(), "net.uff", batch=None)
    assert fixed.inputs[0].shape == (1, 3, 32, 48)
    assert free.inputs[0].shape == ("batch", 3, 32, 48)
    assert free.outputs[0].shape == ("batch", 1, 2, 3)
    feed = net.values["input_1"].astype(np.float32)
    (one, _), (two, _) = run(fixed, feed), run(free, np.concatenate([feed, feed]))
    np.testing.assert_allclose(two[1], one[0], atol=1e-6)


def test_an_input_without_a_batch_axis() -> None:
    net = UffWriter()
    net.node("Input", "in", shape=[3, 4, 5], dtype=np.dtype(np.float32))
    net.node("Activation", "out", ["in"], func="relu")
    conversion = convert_uff(net.encode(), "net.uff")
    assert conversion.inputs[0].shape == (1, 3, 4, 5)
    assert [tensor.name for tensor in conversion.outputs] == ["out"]


@pytest.mark.parametrize("layout", ["NC+", "N+C"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_same_padding_is_tensorflows(layout: str, stride: int, size: int) -> None:
    for height, width in ((8, 11), (9, 7)):
        shape = (1, 3, height, width) if layout == "NC+" else (1, height, width, 3)
        net = Network(random_input(*shape), layout)
        net.conv("conv", "input_1", 4, size, stride)
        net.pool("max", "input_1", "max", size, stride, True)
        net.pool("avg", "input_1", "avg", size, stride, True)
        check(net, "conv", "max", "avg")


@pytest.mark.parametrize("layout", ["NC+", "N+C"])
def test_layers(layout: str) -> None:
    shape = (1, 4, 9, 12) if layout == "NC+" else (1, 9, 12, 4)
    net = Network(random_input(*shape), layout)
    net.conv("dilated", "input_1", 3, 3, dilation=2)
    net.conv("padded", "input_1", 3, 3, stride=2, padding=1)
    net.conv("valid", "input_1", 3, 3, padding=0)
    net.conv("depthwise", "input_1", 0, 3, stride=2, multiplier=2)
    net.pool("pool", "input_1", "max", 2, 2, False)
    fused = net.batch_norm("fused", "input_1", True)
    decomposed = net.batch_norm("decomposed", "input_1", False)
    biased = net.bias("biased", "pool")
    check(net, "dilated", "padded", "valid", "depthwise", "pool", fused, decomposed, biased)


def test_grouped_kernels() -> None:
    net = Network(random_input(1, 4, 5, 6))
    kernel = net.weights("kernel", 1, 1, 2, 6)
    value, halves = net.values["input_1"], np.split(net.values[kernel][0, 0], 2, axis=1)
    out = [np.einsum("nchw,ck->nkhw", value[:, 2 * index : 2 * index + 2], half) for index, half in enumerate(halves)]
    orders = Orders("NC+_+CK")
    net.put("Conv", "out", ["input_1", kernel], np.concatenate(out, 1), number_groups=2, inputs_orders=orders)
    check(net, "out")


UNARY: Dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda value: 1 / np.sqrt(value),
    "exp": np.exp,
    "log": np.log,
    "square": np.square,
    "floor": np.floor,
    "tan": np.tan,
}
ACTIVATION: Dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda value: np.maximum(value, 0),
    "relu6": lambda value: np.clip(value, 0, 6),
    "sigmoid": lambda value: 1 / (1 + np.exp(-value)),
    "tanh": np.tanh,
    "elu": lambda value: np.where(value > 0, value, np.exp(value) - 1),
    "softplus": lambda value: np.log(1 + np.exp(value)),
    "softsign": lambda value: value / (1 + np.abs(value)),
}


def test_elementwise_operations() -> None:
    net = Network(5 * random_input(1, 3, 4, 5))
    positive = Network(np.abs(random_input(1, 3, 4, 5)) + 0.1)
    for func, compute in ACTIVATION.items():
        net.put("Activation", func, ["input_1"], compute(net.values["input_1"]), func=func)
    for func, compute in UNARY.items():
        positive.put("Unary", func, ["input_1"], compute(positive.values["input_1"]), func=func)
    for func in ("add", "sub", "mul", "div", "min", "max"):
        net.binary(func, func, "input_1", net.weights(f"{func}/y", 3, 1, 1, around=3.0, scale=0.1))
    value = net.values["input_1"]
    net.put("LeakyRelu", "leaky", ["input_1"], np.where(value > 0, value, 0.2 * value), alpha=0.2)
    net.put("Identity", "same", ["input_1"], value)
    check(net, *ACTIVATION, "add", "sub", "mul", "div", "min", "max", "leaky", "same")
    check(positive, *UNARY)


@pytest.mark.parametrize("func", [*UNARY])
def test_operations_on_constants_are_folded(func: str) -> None:
    net = Network(random_input(1, 3))
    weights = net.const("w", np.array([0.3, 1.5, 2.5], np.float32))
    net.put("Unary", "folded", [weights], UNARY[func](net.values[weights]), func=func)
    net.binary("out", "mul", "input_1", "folded")
    conversion = check(net, "out")
    assert [node.op_type for node in onnx.load_from_string(conversion.data).graph.node] == ["Mul"]


def test_shapes_are_rearranged() -> None:
    net = Network(random_input(1, 2, 3, 4))
    value = net.values["input_1"]
    net.put("Transpose", "moved", ["input_1"], value.transpose(0, 2, 3, 1), permutation=[0, 2, 3, 1])
    net.put("Concat", "joined", ["input_1", "input_1"], np.concatenate([value, value], 3), axis=-1)
    pads = net.const("pads", np.array([[0, 0], [0, 0], [1, 2], [0, 3]], np.int32))
    net.put("Pad", "padded", ["input_1", pads], np.pad(value, ((0, 0), (0, 0), (1, 2), (0, 3))))
    net.put("Flatten", "flat", ["input_1"], value.reshape(1, 24))
    rows = net.const("rows", np.array([-1, 6, 4], np.int32))
    net.put("Reshape", "rows_out", ["input_1", rows], value.reshape(1, 6, 4))
    frozen = net.const("frozen", np.array([1, -1, 3], np.int64))
    net.put("Reshape", "frozen_out", ["input_1", frozen], value.reshape(1, 8, 3))
    net.put("ExpandDims", "wider", ["input_1"], value[:, None], axis=1)
    net.put("Squeeze", "narrower", ["wider"], value, axes=[1])
    net.put("Squeeze", "narrower_too", ["wider"], value)
    matrix = net.weights("matrix", 24, 5)
    dense = net.values["flat"] @ net.values[matrix]
    net.put("FullyConnected", "dense", ["flat", matrix], dense, inputs_orders=Orders("NC_CK"))
    turned = net.const("turned", net.values[matrix].T.astype(np.float32))
    net.put("FullyConnected", "dense_too", ["flat", turned], dense, inputs_orders=Orders("NC_KC"))
    shares = np.exp(dense) / np.exp(dense).sum()
    net.put("Softmax", "shares", ["dense"], shares, axis=0, inputs_orders=Orders("NC+"))
    outputs = ["moved", "joined", "padded", "flat", "rows_out", "frozen_out", "wider", "narrower", "narrower_too"]
    check(net, *outputs, "dense", "dense_too", "shares")


def test_only_what_the_outputs_need_is_converted() -> None:
    net = Network(random_input(1, 3, 4, 5))
    net.relu("wanted", "input_1")
    net.node("Mystery", "unwanted", ["wanted"])
    net.mark("unwanted")
    with pytest.raises(ModelError, match=r"net.uff: node unwanted \(Mystery\): this operation is not supported"):
        convert_uff(net.encode(), "net.uff")
    assert convert_uff(net.encode(), "net.uff", ["wanted"]).operations == {"Activation": 1, "Input": 1}
    with pytest.raises(InputError, match="no node is called absent") as caught:
        convert_uff(net.encode(), "net.uff", ["absent"])
    assert "unwanted" in caught.value.hint


NC = Orders("NC+_+CK")
KERNEL = np.ones((3, 3, 2, 4), np.float32)
BROKEN: Dict[str, Any] = {
    "has no field func": lambda net: net.node("Activation", "out", ["in"]),
    "function 'swish' is not supported": lambda net: net.node("Activation", "out", ["in"], func="swish"),
    "which is not there": lambda net: net.node("Activation", "out", ["absent"], func="relu"),
    "needs this node itself": lambda net: net.node("Activation", "out", ["out"], func="relu"),
    "takes 2 inputs, expected 1": lambda net: net.node("Activation", "out", ["in", "in"], func="relu"),
    "has no field inputs_orders": lambda net: net.node("Conv", "out", ["in", net.const("k", KERNEL)]),
    "takes 2 channels in 1 groups, its kernel has 5": lambda net: net.node(
        "Conv", "out", ["in", net.const("k", np.ones((3, 3, 5, 4), np.float32))], inputs_orders=NC
    ),
    "output of the impossible shape": lambda net: net.node(
        "Conv", "out", ["in", net.const("k", np.ones((9, 9, 2, 4), np.float32))], inputs_orders=NC
    ),
    r"the strides \[0, 1\]": lambda net: net.node(
        "Conv", "out", ["in", net.const("k", KERNEL)], inputs_orders=NC, strides=[0, 1]
    ),
    "kernel that is no constant": lambda net: net.node("Conv", "out", ["in", "in"], inputs_orders=NC),
    "holds NaN or infinity": lambda net: net.node(
        "Binary", "out", ["in", net.const("k", np.float32(np.nan))], func="add"
    ),
    "shapes that do not fit": lambda net: net.node(
        "Binary", "out", ["in", net.const("k", np.ones(4, np.float32))], func="add"
    ),
    "float32 and int32": lambda net: net.node("Binary", "out", ["in", net.const("k", np.int32(1))], func="add"),
    r"target shape \[-1, -1, 5\]": lambda net: net.node(
        "Reshape", "out", ["in", net.const("k", np.array([-1, -1, 5], np.int32))]
    ),
    "turns the shape Nx2x5x5 into Nx25": lambda net: net.node(
        "Reshape", "out", ["in", net.const("k", np.array([-1, 25], np.int32))]
    ),
    "pads by -1": lambda net: net.node("Pad", "out", ["in", net.const("k", np.full((4, 2), -1, np.int32))]),
    "8 bytes of values": lambda net: net.node("Const", "out", shape=[3], dtype=np.dtype(np.float32), values=bytes(8)),
    "nothing is computed there": lambda net: net.const("out", np.float32(1)),
    "holds a value of kind 7": lambda net: net.node("Activation", "out", ["in"], func=3),
    "expected at most 8|128": lambda net: net.node("Squeeze", "out", ["in"], axes=[0] * 200),
    "is there twice": lambda net: (net.const("k", np.float32(1)), net.const("k", np.ones(2, np.float32)), "out"),
}


@pytest.mark.parametrize("message", list(BROKEN))
def test_an_inconsistent_network_is_refused(message: str) -> None:
    net = UffWriter()
    net.node("Input", "in", shape=[-1, 2, 5, 5], dtype=np.dtype(np.float32))
    BROKEN[message](net)
    net.mark("out")
    with pytest.raises(ModelError, match=message) as caught:
        convert_uff(net.encode(), "net.uff")
    assert str(caught.value).startswith("net.uff: ")


@pytest.mark.parametrize("data", [b"", b"\x00", b"hello, world", bytes(range(256)), chunk(4, named(1, "main"))])
def test_a_file_that_is_not_uff(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"net\.uff: (damaged or )?no UFF"):
        convert_uff(data, "net.uff")


def small_network() -> bytes:
    net = detectnet(random_input(1, 3, 16, 16), (1, 1, 1, 1, 1))
    pads = net.const("pads", np.array([[0, 0], [0, 0], [1, 2], [0, 3]], np.int32))
    net.node("Pad", "padded", ["activation_1/Relu", pads])
    net.pool("pool", "activation_1/Relu", "avg", 2, 2, True)
    net.node("Transpose", "moved", ["pool"], permutation=[0, 2, 3, 1])
    net.node("Flatten", "flat", ["moved"])
    net.node("ExpandDims", "wide", ["flat"], axis=0)
    net.node("Squeeze", "narrow", ["wide"], axes=[0])
    net.node("FullyConnected", "dense", ["narrow", net.weights("w", 16, 2)], inputs_orders=Orders("NC_CK"))
    net.node("Softmax", "soft", ["dense"], axis=0)
    net.node("LeakyRelu", "leaky", ["dense"], alpha=0.1)
    net.node("Concat", "joined", ["soft", "leaky"], axis=1)
    net.mark("padded", "joined")
    return net.encode()


WHOLE = small_network()


def test_the_network_that_is_mutated_is_valid() -> None:
    assert len(convert_uff(WHOLE, "net.uff").outputs) == 4


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), max_size=6),
    end=st.one_of(st.just(len(WHOLE)), st.integers(0, len(WHOLE))),
)
def test_a_damaged_file_is_an_error_or_a_model(flips: Any, end: int) -> None:
    data = bytearray(WHOLE)
    for at, change in flips:
        data[at] ^= change
    try:
        conversion = convert_uff(bytes(data[:end]), "net.uff")
    except (ModelError, InputError) as error:
        assert "net.uff" in str(error)
        assert len(str(error)) < 5000
    else:
        assert conversion.outputs


def bomb_of_sums() -> UffWriter:
    net = UffWriter()
    net.node("Input", "in", shape=[-1, 2], dtype=np.dtype(np.float32))
    last = net.const("w0", np.ones(200_000, np.float32))
    for index in range(100):
        last = net.node("Binary", f"sum{index}", [last, "w0"], func="add")
    net.mark(last)
    return net


def bomb_of_products() -> UffWriter:
    net = UffWriter()
    net.node("Input", "in", shape=[-1, 2], dtype=np.dtype(np.float32))
    rows, columns = net.const("rows", np.ones((30_000, 1), np.float32)), net.const("cols", np.ones(30_000, np.float32))
    net.node("Binary", "out", [rows, columns], func="mul")
    net.mark("out")
    return net


@pytest.mark.parametrize("bomb", [bomb_of_sums, bomb_of_products])
def test_a_small_file_takes_little_memory(bomb: Callable[[], UffWriter]) -> None:
    data = bomb().encode()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=r"times the file|has an output of 900000000 values"):
            convert_uff(data, "net.uff")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * len(data) + (4 << 20)
