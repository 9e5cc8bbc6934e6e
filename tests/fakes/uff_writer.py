"""A UFF encoder, and networks whose outputs are computed in numpy while they are written.

It shares no code with the reader under test. The layout of the bytes is that of NVIDIA's exporter: nodes from the
outputs backwards, weights and layouts by reference.
"""

import struct
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

KINDS = {"float32": 0x20020, "float16": 0x20010, "int32": 0x10020, "int64": 0x10040, "int8": 0x10008}
CODES = {"N": [0], "K": [0], "C": [1], "+": [2, 2**31 - 1]}


class Orders(str):
    """Layouts of the inputs, as NVIDIA names them: "NC+", "N+C_+CK"."""


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = b""
    while True:
        value, low = value >> 7, value & 127
        if not value:
            return out + bytes([low])
        out += bytes([low | 128])


def chunk(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def named(number: int, text: str) -> bytes:
    return chunk(number, text.encode())


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def whole_list(values: Sequence[int]) -> bytes:
    return chunk(1, b"".join(varint(value) for value in values))


class UffWriter:
    """Collects nodes and encodes them."""

    def __init__(self) -> None:
        self.nodes: List[bytes] = []
        self.marks: List[bytes] = []
        self.referenced: Dict[str, bytes] = {}

    def node(self, operation: str, name: str, inputs: Sequence[str] = (), **fields: Any) -> str:
        body = named(1, name) + b"".join(named(2, source) for source in inputs) + named(3, operation)
        for key, value in fields.items():
            body += chunk(4, named(1, key) + chunk(2, self._data(name, value)))
        self.nodes.append(chunk(2, body))
        return name

    def const(self, name: str, values: Any) -> str:
        array = np.asarray(values)
        return self.node(
            "Const", name, shape=list(array.shape), dtype=array.dtype, values=np.ascontiguousarray(array).tobytes()
        )

    def mark(self, *names: str) -> None:
        for name in names:
            mark = named(1, f"MarkOutput_{len(self.marks)}") + named(2, name) + named(3, "MarkOutput")
            self.marks.append(chunk(2, mark))

    def encode(self) -> bytes:
        graph = named(1, "main") + b"".join(reversed(self.nodes)) + b"".join(self.marks)
        parts = [whole(1, 1), whole(2, 1), chunk(3, named(1, "tensorflow_extension") + whole(2, 1)), chunk(4, graph)]
        parts += [chunk(5, named(1, key) + chunk(2, data)) for key, data in self.referenced.items()]
        return b"".join(parts)

    def _data(self, node: str, value: Any) -> bytes:
        if value is None:
            return b""
        if isinstance(value, Orders):
            return self._refer(f"orders_{value}", chunk(104, b"".join(_order(part) for part in value.split("_"))))
        if isinstance(value, bytes):
            return self._refer(f"weights_{node}", chunk(9, value))
        if isinstance(value, np.dtype):
            return whole(101, KINDS[value.name])
        if isinstance(value, str):
            return named(1, value)
        if isinstance(value, float):
            return varint(3 << 3 | 1) + struct.pack("<d", value)
        if isinstance(value, int):
            return whole(7, value)
        return chunk(8, whole_list(value))

    def _refer(self, key: str, data: bytes) -> bytes:
        self.referenced[key] = data
        return named(100, key)


def _order(text: str) -> bytes:
    codes = [code for letter in text for code in CODES[letter]]
    return chunk(1, chunk(1, whole(1, -1) + chunk(2, whole_list(codes))))


class Network(UffWriter):
    """A network that is written as UFF and run in float64 numpy at the same time, as TensorFlow defines its operations.

    Args:
        image: The input, with its batch axis.
        layout: "NC+" or "N+C", of every tensor with space.
    """

    def __init__(self, image: np.ndarray, layout: str = "NC+", name: str = "input_1", seed: int = 0) -> None:
        super().__init__()
        self.values: Dict[str, np.ndarray] = {}
        self.layout = layout
        self.random = np.random.default_rng(seed)
        self.node("Input", name, shape=[-1, *image.shape[1:]], dtype=np.dtype(np.float32))
        self.values[name] = image.astype(np.float64)

    def const(self, name: str, values: Any) -> str:
        array = np.asarray(values)
        self.values[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
        return super().const(name, array)

    def put(self, operation: str, name: str, inputs: Sequence[str], value: np.ndarray, **fields: Any) -> str:
        self.values[name] = value
        return self.node(operation, name, inputs, **fields)

    def weights(self, name: str, *shape: int, scale: float = 1.0, around: float = 0.0) -> str:
        return self.const(name, (around + scale * self.random.normal(size=shape)).astype(np.float32))

    def conv(
        self,
        name: str,
        source: str,
        filters: int,
        size: int,
        stride: int = 1,
        dilation: int = 1,
        padding: Optional[int] = None,
        multiplier: int = 0,
    ) -> str:
        """SAME unless `padding` is given; depthwise with a `multiplier`."""
        value = self._first(self.values[source])
        channels = value.shape[1]
        shape = (size, size, channels, multiplier or filters)
        kernel = self.weights(f"{name}/kernel", *shape, scale=(2 / (size * size * channels)) ** 0.5)
        fields: Dict[str, Any] = {"strides": [stride] * 2, "dilation": [dilation] * 2}
        fields["inputs_orders"] = Orders(f"{self.layout}_+CK")
        if padding is None:
            fields["implicit_padding"] = "same"
            value = same(value, size, stride, dilation)
        else:
            fields["implicit_padding"] = None
            fields["padding"] = [padding] * 2
            value = np.pad(value, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        if multiplier:
            fields["number_groups"] = channels
        out = convolve(value, self.values[kernel], stride, dilation, bool(multiplier))
        return self.put("Conv", name, [source, kernel], self._back(out), **fields)

    def pool(self, name: str, source: str, func: str, size: int, stride: int, same_size: bool) -> str:
        value = self._first(self.values[source])
        fields: Dict[str, Any] = {"implicit_padding": "same"} if same_size else {}
        if same_size:
            value = same(value, size, stride, 1, np.nan)
        reduce = np.nanmax if func == "max" else np.nanmean
        out = reduce(windows(value, size, stride, 1), axis=(-2, -1))
        return self.put(
            "Pool",
            name,
            [source],
            self._back(out),
            func=func,
            kernel=[size] * 2,
            strides=[stride] * 2,
            inputs_orders=Orders(self.layout),
            **fields,
        )

    def bias(self, name: str, source: str, values: Optional[np.ndarray] = None) -> str:
        """BiasAdd: for NCHW, NVIDIA's exporter shapes the bias [C, 1, 1]."""
        channels = self._first(self.values[source]).shape[1]
        if values is None:
            values = 0.1 * self.random.normal(size=channels)
        shape = (-1, 1, 1) if self.layout == "NC+" and self.values[source].ndim == 4 else (-1,)
        bias = self.const(f"{name}/bias", values.astype(np.float32).reshape(shape))
        return self.binary(f"{name}/BiasAdd", "add", source, bias)

    def binary(self, name: str, func: str, first: str, second: str) -> str:
        compute = {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "div": np.divide,
            "min": np.minimum,
            "max": np.maximum,
        }[func]
        return self.put("Binary", name, [first, second], compute(self.values[first], self.values[second]), func=func)

    def relu(self, name: str, source: str) -> str:
        return self.put("Activation", name, [source], np.maximum(self.values[source], 0), func="relu")

    def sigmoid(self, name: str, source: str) -> str:
        return self.put("Activation", name, [source], 1 / (1 + np.exp(-self.values[source])), func="sigmoid")

    def batch_norm(self, name: str, source: str, fused: bool) -> str:
        """Batch norm as one node, or as Keras decomposes it over reshaped constants."""
        channels = self._first(self.values[source]).shape[1]
        gamma, beta, mean = (
            self.weights(f"{name}/{part}", channels, scale=0.1, around=around)
            for part, around in (("gamma", 1.0), ("beta", 0.0), ("moving_mean", 0.0))
        )
        variance = self.const(f"{name}/moving_variance", self.random.uniform(0.5, 1.5, channels).astype(np.float32))
        if fused:
            g, b, m, v = (self._broad(self.values[part]) for part in (gamma, beta, mean, variance))
            out = (self.values[source] - m) / np.sqrt(v + 1e-3) * g + b
            return self.put(
                "BatchNorm",
                f"{name}/FusedBatchNorm",
                [source, gamma, beta, mean, variance],
                out,
                epsilon=1e-3,
                inputs_orders=Orders(self.layout),
            )
        parts = [self._reshaped(part) for part in (gamma, beta, mean, variance)]
        epsilon = self.const(f"{name}/batchnorm/add/y", np.float32(1e-3))
        total = self.binary(f"{name}/batchnorm/add", "add", parts[3], epsilon)
        root = f"{name}/batchnorm/Rsqrt"
        self.put("Unary", root, [total], 1 / np.sqrt(self.values[total]), func="rsqrt")
        scale = self.binary(f"{name}/batchnorm/mul", "mul", root, parts[0])
        scaled = self.binary(f"{name}/batchnorm/mul_1", "mul", source, scale)
        shift = self.binary(f"{name}/batchnorm/mul_2", "mul", parts[2], scale)
        rest = self.binary(f"{name}/batchnorm/sub", "sub", parts[1], shift)
        return self.binary(f"{name}/batchnorm/add_1", "add", scaled, rest)

    def _reshaped(self, part: str) -> str:
        value = self._broad(self.values[part])[None]
        shape = self.const(f"{part}/shape", np.array(value.shape, np.int32))
        return self.put("Reshape", f"{part}/Reshape", [part, shape], value)

    def _broad(self, value: np.ndarray) -> np.ndarray:
        return value.reshape((-1, 1, 1) if self.layout == "NC+" else (1, 1, -1))

    def _first(self, value: np.ndarray) -> np.ndarray:
        return value if self.layout == "NC+" or value.ndim < 4 else value.transpose(0, 3, 1, 2)

    def _back(self, value: np.ndarray) -> np.ndarray:
        return value if self.layout == "NC+" else value.transpose(0, 2, 3, 1)


def same(value: np.ndarray, size: int, stride: int, dilation: int, fill: float = 0.0) -> np.ndarray:
    """TensorFlow's SAME: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2 ."""
    widths = [(0, 0), (0, 0)]
    reach = (size - 1) * dilation + 1
    for length in value.shape[2:]:
        total = max(reach - (stride if length % stride == 0 else length % stride), 0)
        widths.append((total // 2, total - total // 2))
    return np.pad(value, widths, constant_values=fill)


def windows(value: np.ndarray, size: int, stride: int, dilation: int) -> np.ndarray:
    """(N, C, h, w, size, size) views of an (N, C, H, W) array."""
    reach = (size - 1) * dilation + 1
    view = np.lib.stride_tricks.sliding_window_view(value, (reach, reach), axis=(2, 3))
    return view[:, :, ::stride, ::stride, ::dilation, ::dilation]


def convolve(value: np.ndarray, kernel: np.ndarray, stride: int, dilation: int, depthwise: bool) -> np.ndarray:
    """(N, K, h, w), from an (N, C, H, W) array and a kernel laid out HWCK, or HWCM for depthwise."""
    view = windows(value, kernel.shape[0], stride, dilation)
    if not depthwise:
        return np.einsum("nchwij,ijck->nkhw", view, kernel, optimize=True)
    out = np.einsum("nchwij,ijcm->ncmhw", view, kernel)
    return out.reshape(out.shape[0], -1, *out.shape[3:])


def detectnet(image: np.ndarray, widths: Tuple[int, ...] = (4, 4, 6, 8, 8)) -> Network:
    """DetectNet_v2 on ResNet18 with all projections, as TAO exports it, only narrower.

    Stride 16: 3x240x384 gives 15x24. Batch norm is fused and decomposed in turn.
    """
    net = Network(image)
    fused = [False]

    def normed(name: str, source: str) -> str:
        fused[0] = not fused[0]
        return net.batch_norm(name, source, fused[0])

    def convolved(name: str, source: str, filters: int, size: int, stride: int) -> str:
        return net.bias(name, net.conv(f"{name}/convolution", source, filters, size, stride))

    last = net.relu("activation_1/Relu", normed("bn_conv1", convolved("conv1", "input_1", widths[0], 7, 2)))
    for stage, (filters, stride) in enumerate(zip(widths[1:], (2, 2, 2, 1)), 1):
        for part, step in (("a", stride), ("b", 1)):
            block = f"block_{stage}{part}"
            inner = convolved(f"{block}_conv_1", last, filters, 3, step)
            inner = net.relu(f"{block}_relu_1/Relu", normed(f"{block}_bn_1", inner))
            inner = normed(f"{block}_bn_2", convolved(f"{block}_conv_2", inner, filters, 3, 1))
            aside = convolved(f"{block}_conv_shortcut", last, filters, 1, step)
            aside = normed(f"{block}_bn_shortcut", aside)
            last = net.relu(f"{block}_relu/Relu", net.binary(f"add_{stage}{part}/add", "add", inner, aside))
    box = net.conv("output_bbox/convolution", last, 4, 1)
    cov = net.conv("output_cov/convolution", last, 1, 1)
    # Whatever the weights are: every box has an area, and the best cell is a sure face.
    net.bias("output_bbox", box, 0.3 - net.values[box].min(axis=(0, 2, 3)))
    net.bias("output_cov", cov, 1.5 - net.values[cov].max(keepdims=True).ravel())
    net.sigmoid("output_cov/Sigmoid", "output_cov/BiasAdd")
    net.mark("output_cov/Sigmoid", "output_bbox/BiasAdd")
    return net
