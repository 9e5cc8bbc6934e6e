"""A fake of the Python bindings of TensorRT 8.2, 8.4, 8.6, 10.3 and 11.4 without a GPU.

- Reading or writing an attribute that a version lacks raises AttributeError. The lists are from the bindings' source
  (github.com/NVIDIA/TensorRT, python/src); `trt/test_drift.py` compares them with the wheels.
- Tensors are addresses on the fake GPU (`tests.fakes.pycuda`): read and written when the stream is waited for.
- Failures are reported as TensorRT does: an error to the logger, and None or False.
- A plan belongs to one version, GPU and compute capability. The network inside is run by ONNX Runtime; INT8 rounds the
  input by the calibration's scale, FP16 rounds the outputs.
"""

import enum
import json
import struct
import types
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import onnx
import onnxruntime

from edge_agent.models.uff.to_onnx import convert_uff
from tests.fakes.pycuda import FakeCuda, Misuse

VERSIONS = {"8.2": "8.2.1.8", "8.4": "8.4.1.5", "8.6": "8.6.1", "10.3": "10.3.0", "11.4": "11.4.0.106"}
NUMBERS = {
    "8.2": 8201,
    "8.4": 8401,
    "8.6": 8601,
    "10.3": 100300,
}  # in the first line of calibration caches
_ALGORITHMS = {"EntropyCalibration2": "IInt8EntropyCalibrator2", "MinMaxCalibration": "IInt8MinMaxCalibrator"}
_ALL = tuple(VERSIONS)
_MAGIC = b"FAKEPLAN"


class Board(NamedTuple):
    """Properties of a GPU."""

    name: str
    capability: Tuple[int, int]
    int8: bool
    fp16: bool = True
    dla_cores: int = 0
    integrated: bool = True


BOARDS = {
    "nano": Board("NVIDIA Tegra X1", (5, 3), False),
    "xavier-nx": Board("Xavier NX", (7, 2), True, dla_cores=2),
    "agx-xavier": Board("AGX Xavier", (7, 2), True, dla_cores=2),
    "orin": Board("Orin", (8, 7), True, dla_cores=2),
    "orin-nano": Board("Orin Nano", (8, 7), True),
    "thor": Board("NVIDIA Thor", (11, 0), True),
    "t4": Board("Tesla T4", (7, 5), True, integrated=False),
}


def _table() -> Dict[str, Dict[str, FrozenSet[str]]]:
    """By version and class, the attributes that the fake implements."""
    old, named, weak = ("8.2", "8.4", "8.6"), ("8.6", "10.3", "11.4"), ("8.2", "8.4", "8.6", "10.3")
    pooled = ("8.4", *named)
    rows: List[Tuple[Tuple[str, ...], str, str]] = [
        (_ALL, "module", "ILogger Builder Runtime OnnxParser DataType BuilderFlag NetworkDefinitionCreationFlag"),
        (_ALL, "module", "ProfilingVerbosity LayerInformationFormat DeviceType"),
        (old, "module", "UffParser"),
        (pooled, "module", "MemoryPoolType"),
        (named, "module", "TensorIOMode"),
        (weak, "module", "IInt8EntropyCalibrator2 IInt8MinMaxCalibrator"),
        (_ALL, "Builder", "create_builder_config create_network create_optimization_profile num_DLA_cores"),
        (_ALL, "Builder", "build_serialized_network"),
        (weak, "Builder", "platform_has_fast_int8 platform_has_fast_fp16"),
        (_ALL, "IBuilderConfig", "profiling_verbosity add_optimization_profile set_flag clear_flag get_flag"),
        (_ALL, "IBuilderConfig", "default_device_type DLA_core"),
        (old, "IBuilderConfig", "max_workspace_size"),
        (pooled, "IBuilderConfig", "set_memory_pool_limit"),
        (weak, "IBuilderConfig", "int8_calibrator set_calibration_profile"),
        (_ALL, "IOptimizationProfile", "set_shape"),
        (_ALL, "INetworkDefinition", "num_inputs get_input num_layers get_layer"),
        (_ALL, "ILayer", "num_outputs get_output name"),
        (_ALL, "ITensor", "name shape"),
        (_ALL, "OnnxParser", "parse num_errors get_error"),
        (_ALL, "ParserError", "desc"),
        (old, "UffParser", "register_input register_output parse_buffer"),
        (_ALL, "IHostMemory", "nbytes"),
        (_ALL, "Runtime", "deserialize_cuda_engine DLA_core"),
        (_ALL, "ICudaEngine", "create_execution_context create_engine_inspector"),
        (weak, "ICudaEngine", "has_implicit_batch_dimension"),
        (old, "ICudaEngine", "num_bindings get_binding_name binding_is_input get_binding_dtype get_binding_shape"),
        (named, "ICudaEngine", "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype"),
        (old, "IExecutionContext", "execute_async execute_async_v2 set_binding_shape get_binding_shape"),
        (named, "IExecutionContext", "execute_async_v3 set_input_shape get_tensor_shape set_tensor_address"),
        (_ALL, "EngineInspector", "get_engine_information"),
        (_ALL, "BuilderFlag", "TF32 GPU_FALLBACK"),
        (weak, "BuilderFlag", "FP16 INT8"),
        (weak, "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
        (("10.3", "11.4"), "NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        (_ALL, "ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED"),
        (_ALL, "LayerInformationFormat", "ONELINE JSON"),
        (_ALL, "DataType", "FLOAT HALF INT8 INT32"),
        (_ALL, "DeviceType", "GPU DLA"),
        (pooled, "MemoryPoolType", "WORKSPACE"),
        (named, "TensorIOMode", "NONE INPUT OUTPUT"),
    ]
    table: Dict[str, Dict[str, FrozenSet[str]]] = {version: {} for version in VERSIONS}
    for versions, kind, names in rows:
        for version in versions:
            table[version][kind] = table[version].get(kind, frozenset()) | set(names.split())
    return table


ATTRIBUTES = _table()


class ILogger:
    """`tensorrt.ILogger`: to be subclassed, with the base initialised explicitly."""

    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.initialised = True


class _Calibrator:
    def __init__(self) -> None:
        self.initialised = True


class FakeTensorRT(types.ModuleType):
    """Stands in for the module `tensorrt`.

    Args:
        version: One of `VERSIONS`.
        board: The GPU.
        cuda: The fake driver, of the same capability.

    Attributes:
        fail: By call ("start", "parse", "build", "context", "enqueue"), the error that TensorRT logs when it fails.
        wrong: True makes outputs wrong; `nan` makes them NaN.
        stubborn: True builds every layer in FP32, against the flags.
        calls: Names of the execution calls made.
        built: Count of engines built.
        configs: Workspace, flags and device of each build.
    """

    def __init__(self, version: str, board: Board, cuda: FakeCuda) -> None:
        super().__init__("tensorrt")
        self.__version__ = VERSIONS[version]
        self.version, self.board, self.cuda = version, board, cuda
        self.attributes = ATTRIBUTES[version]
        self.fail: Dict[str, str] = {}
        self.wrong = self.nan = self.stubborn = False
        self.calls: List[str] = []
        self.built = 0
        self.configs: List[Dict[str, Any]] = []
        self.residents = 0
        self.misuses: List[str] = []
        parts: Dict[str, Any] = {
            "ILogger": ILogger,
            "IInt8EntropyCalibrator2": type("IInt8EntropyCalibrator2", (_Calibrator,), {}),
            "IInt8MinMaxCalibrator": type("IInt8MinMaxCalibrator", (_Calibrator,), {}),
            "Builder": lambda logger: self.start(_Builder, logger),
            "Runtime": lambda logger: self.start(_Runtime, logger),
            "OnnxParser": lambda network, logger: _OnnxParser(self, network, logger),
            "UffParser": lambda: _UffParser(self),
        }
        for name in self.attributes["module"]:
            setattr(self, name, parts[name] if name in parts else enum.IntEnum(name, sorted(self.attributes[name])))

    def log(self, logger: Any, message: str) -> None:
        """Log an error as TensorRT does."""
        logger.log(ILogger.Severity.ERROR, message)

    def assert_clean(self) -> None:
        """Check that everything was dropped, inside the context."""
        assert not self.misuses, self.misuses
        assert self.residents == 0, f"{self.residents} objects of TensorRT outlived the CUDA context"

    def start(self, kind: Any, logger: Any) -> Any:
        """A builder or runtime; on failure, the warnings and the TypeError of pybind11."""
        if "start" in self.fail:
            logger.log(ILogger.Severity.WARNING, "Unable to determine GPU memory usage")
            logger.log(ILogger.Severity.WARNING, self.fail["start"])
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return kind(self, logger)

    def failed(self, call: str, logger: Any) -> bool:
        if call in self.fail:
            self.log(logger, self.fail[call])
            self.log(logger, "2: [builder.cpp] Error Code 2: the echo of it")
        return call in self.fail

    def require_context(self, call: str) -> None:
        if not self.cuda.stack:
            raise Misuse(f"{call} without a current CUDA context: TensorRT would take any that it finds")


class _Native:
    """An object of the bindings, with only the attributes that its version has."""

    _kind = ""

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            _require(self, name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            _require(self, name)
        object.__setattr__(self, name, value)


def _require(native: _Native, name: str) -> None:
    if name not in native._trt.attributes.get(native._kind, ()):
        raise AttributeError(f"'tensorrt.tensorrt.{native._kind}' object has no attribute {name!r}")


class _Resident(_Native):
    """An object on the GPU, which must be dropped inside the CUDA context."""

    def __init__(self, trt: FakeTensorRT) -> None:
        super().__init__(trt)
        trt.require_context(self._kind)
        trt.residents += 1

    def __del__(self) -> None:
        self._trt.residents -= 1
        if not self._trt.cuda.stack:
            self._trt.misuses.append(f"{self._kind} was dropped without a current CUDA context")


class _Tensor(_Native):
    _kind = "ITensor"

    def __init__(self, trt: FakeTensorRT, name: str, shape: Tuple[int, ...]) -> None:
        super().__init__(trt)
        self.name, self.shape = name, shape


class _Layer(_Native):
    _kind = "ILayer"

    def __init__(self, trt: FakeTensorRT, node: Any) -> None:
        super().__init__(trt)
        self.name, self.num_outputs = node.name, len(node.output)
        self._node = node

    def get_output(self, index: int) -> _Tensor:
        return _Tensor(self._trt, self._node.output[index], ())


class _Network(_Native):
    _kind = "INetworkDefinition"

    def __init__(self, trt: FakeTensorRT, implicit: bool) -> None:
        super().__init__(trt)
        self._implicit = implicit
        self._onnx = b""
        self._model: Any = None

    def _fill(self, data: bytes) -> None:
        self._onnx, self._model = data, onnx.load_from_string(data)

    @property
    def num_inputs(self) -> int:
        return 1

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_layer(self, index: int) -> _Layer:
        return _Layer(self._trt, self._model.graph.node[index])

    def get_input(self, index: int) -> _Tensor:
        value = self._model.graph.input[index]
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)
        return _Tensor(self._trt, value.name, shape[1:] if self._implicit else shape)


class _OnnxParser(_Native):
    _kind = "OnnxParser"

    def __init__(self, trt: FakeTensorRT, network: _Network, logger: Any) -> None:
        super().__init__(trt)
        if network._implicit and trt.version.startswith("8."):
            raise Misuse("the ONNX parser needs an explicit batch")
        self._network, self._logger, self._errors = network, logger, []

    def parse(self, model: bytes) -> bool:
        if self._trt.failed("parse", self._logger):
            self._errors.append(self._trt.fail["parse"])
            return False
        self._network._fill(model)
        self._errors += _unfit_pairs(self._network._model)
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> "_ParserError":
        return _ParserError(self._trt, self._errors[index])


def _unfit_pairs(model: Any) -> List[str]:
    """Q/DQ pairs that TensorRT rejects: types other than symmetric int8, activations per channel, variable scales.

    TensorRT computes a transposed convolution with a scale per output channel wrongly.
    """
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    wrong = []
    for node in model.graph.node:
        if node.op_type == "ConvTranspose" and node.input[1] in makers:
            scale = weights.get(makers[node.input[1]].input[1])
            if scale is not None and scale.size > 1 and scale.size != weights[makers[node.input[1]].input[0]].shape[0]:
                wrong.append(f"{node.name}: a scale per output channel")
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, zero = (weights.get(name) for name in node.input[1:3])
        if scale is None or zero is None or not (scale > 0).all():
            wrong.append(f"{node.name}: scale and zero point must be constant, and scales above 0")
        elif zero.dtype != np.int8 or zero.any():
            wrong.append(f"{node.name}: zero points must be int8 and 0")
        elif scale.ndim and node.input[0] not in weights:
            wrong.append(f"{node.name}: activations take one scale")
    return wrong


class _ParserError(_Native):
    _kind = "ParserError"

    def __init__(self, trt: FakeTensorRT, text: str) -> None:
        super().__init__(trt)
        self._text = text

    def desc(self) -> str:
        return self._text


class _UffParser(_Native):
    _kind = "UffParser"

    def __init__(self, trt: FakeTensorRT) -> None:
        super().__init__(trt)
        self._inputs: Dict[str, Tuple[int, ...]] = {}
        self._outputs: List[str] = []

    def register_input(self, name: str, shape: Sequence[int]) -> bool:
        self._inputs[name] = tuple(shape)
        return len(shape) == 3

    def register_output(self, name: str) -> bool:
        self._outputs.append(name)
        return True

    def parse_buffer(self, buffer: bytes, network: _Network) -> bool:
        if not network._implicit:
            raise Misuse("the UFF parser supports implicit batch only")
        if "parse" in self._trt.fail:
            return False
        made = convert_uff(buffer, "fake", self._outputs)
        network._fill(made.data)
        return {tensor.name: tensor.shape[1:] for tensor in made.inputs} == self._inputs


class _Profile(_Native):
    _kind = "IOptimizationProfile"

    def __init__(self, trt: FakeTensorRT) -> None:
        super().__init__(trt)
        self._shapes: Dict[str, List[Tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        self._shapes[input] = [tuple(min), tuple(opt), tuple(max)]


class _Config(_Native):
    _kind = "IBuilderConfig"

    def __init__(self, trt: FakeTensorRT) -> None:
        super().__init__(trt)
        self._flags = {"TF32"}
        self._profiles: List[_Profile] = []
        self._calibration_profile: Optional[_Profile] = None
        self._workspace = 0
        for name, value in (("int8_calibrator", None), ("default_device_type", None), ("DLA_core", -1)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "profiling_verbosity", trt.ProfilingVerbosity.LAYER_NAMES_ONLY)
        object.__setattr__(self, "max_workspace_size", 0)

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert pool.name == "WORKSPACE"
        self._workspace = pool_size

    def add_optimization_profile(self, profile: _Profile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_calibration_profile(self, profile: _Profile) -> bool:
        self._calibration_profile = profile
        return True


class _Builder(_Native):
    _kind = "Builder"

    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        super().__init__(trt)
        trt.require_context("Builder")
        assert logger.initialised
        self._logger = logger

    @property
    def platform_has_fast_int8(self) -> bool:
        return self._trt.board.int8

    @property
    def platform_has_fast_fp16(self) -> bool:
        return self._trt.board.fp16

    @property
    def num_DLA_cores(self) -> int:
        return self._trt.board.dla_cores

    def create_builder_config(self) -> _Config:
        return _Config(self._trt)

    def create_optimization_profile(self) -> _Profile:
        return _Profile(self._trt)

    def create_network(self, flags: int = 0) -> _Network:
        flag = getattr(self._trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        explicit = self._trt.version in ("10.3", "11.4") or (flag is not None and bool(flags & 1 << int(flag)))
        return _Network(self._trt, not explicit)

    def build_serialized_network(self, network: _Network, config: _Config) -> "Optional[_HostMemory]":
        trt, logger = self._trt, self._logger
        trt.require_context("build_serialized_network")
        if trt.failed("build", logger):
            return None
        old = object.__getattribute__(config, "max_workspace_size")
        device = object.__getattribute__(config, "default_device_type")
        trt.configs.append(
            {
                "flags": set(config._flags),
                "workspace": old or config._workspace,
                "dla": config.DLA_core if device == trt.DeviceType.DLA else None,
                "calibration_profile": config._calibration_profile is not None,
            }
        )
        source = network.get_input(0)
        if -1 in source.shape and not config._profiles:
            trt.log(logger, "4: [network.cpp::validate] Network has dynamic inputs, but no optimization profile")
            return None
        scales: Dict[str, float] = {}
        quantised = any(node.op_type == "QuantizeLinear" for node in network._model.graph.node)
        if "INT8" in config._flags and not quantised:
            cache = _read_cache(trt, logger, object.__getattribute__(config, "int8_calibrator"))
            if cache is None:
                trt.log(logger, "Calibration failure occurred with no scaling factors detected.")
                return None
            scales = cache
        layers = _layers(network, config, scales, trt.stubborn)
        if config.profiling_verbosity != trt.ProfilingVerbosity.DETAILED:
            layers = [layer["Name"] for layer in layers]
        head = {
            "version": trt.__version__,
            "gpu": trt.board.name,
            "capability": list(trt.board.capability),
            "implicit": network._implicit,
            "profile": config._profiles[0]._shapes[source.name] if config._profiles else [list(source.shape)] * 3,
            "layers": layers,
            "dla": trt.configs[-1]["dla"],
            "scale": scales.get(source.name),
            "half": "FP16" in config._flags,
        }
        trt.built += 1
        text = json.dumps(head).encode()
        return _HostMemory(trt, _MAGIC + struct.pack("<II", len(text), len(network._onnx)) + text + network._onnx)


def _read_cache(trt: FakeTensorRT, logger: Any, calibrator: Any) -> Optional[Dict[str, float]]:
    """The scales; None where images would be needed, as for a cache of another version or algorithm."""
    assert calibrator is None or calibrator.initialised
    cache = calibrator.read_calibration_cache() if calibrator is not None else None
    lines = bytes(cache or b"").decode("ascii").splitlines()
    kind = next((kind for kind, name in _ALGORITHMS.items() if isinstance(calibrator, getattr(trt, name))), "")
    if lines and lines[0] != f"TRT-{NUMBERS[trt.version]}-{kind}":
        trt.log(logger, "Calibration table does not match calibrator algorithm type.")
        lines = []
    if not lines:
        assert calibrator is None or calibrator.get_batch(["input"]) is None
        return None
    pairs = [line.rpartition(":") for line in lines[1:]]
    return {name.strip(): struct.unpack(">f", bytes.fromhex(code.strip()))[0] for name, _, code in pairs}


def _layers(network: _Network, config: _Config, scales: Dict[str, float], stubborn: bool) -> List[Any]:
    """Layers as `get_engine_information` reports them; the first converts the input.

    If the input may have several sizes, only weights have a type.
    """
    types = {"int8": "Int8", "fp16": "Half", "half": "Half", "fp32": "Float"}

    def layer(name: str, kind: str, source: str, precision: str) -> Dict[str, Any]:
        seen = "N/A due to dynamic shapes" if config._profiles else precision
        inputs = [{"Name": source, "Location": "Device", "Dimensions": [], "Format/Datatype": seen}]
        weights = next(kind for word, kind in types.items() if word in precision.lower())
        more = {"Weights": {"Type": weights, "Count": 9}} if kind == "CaskConvolution" else {}
        return {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": [], **more}

    stored = {1: "fp32", 10: "half", 3: "int8"}
    weights = {stored.get(tensor.data_type) for tensor in network._model.graph.initializer}
    quantised = any(node.op_type == "QuantizeLinear" for node in network._model.graph.node)
    found = [layer("Reformatting CopyNode", "Reformat", "input", "Row major linear FP32")]
    makers = {name: node.op_type for node in network._model.graph.node for name in node.output}
    for node in network._model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
            continue  # fused, or a reformat
        precision = "Row major linear FP32"
        if quantised and makers.get(node.input[0] if node.input else "") == "DequantizeLinear":
            precision = "Int8"
        elif quantised:
            pass
        elif "FP16" in config._flags or "half" in weights:
            precision = (
                "Half"
                if network._trt.version in ("10.3", "11.4")
                else "Two wide channel vectorized row major FP16 format"
            )
        if scales and any(name in scales for name in node.input):
            precision = "Thirty-two wide channel vectorized row major Int8 format"
        kind = "CaskConvolution" if node.op_type in ("Conv", "ConvTranspose") else "PointWise"
        source = node.input[0] if node.input else ""
        found.append(layer(node.name, kind, source, "Row major linear FP32" if stubborn else precision))
    return found


class _HostMemory(_Native):
    _kind = "IHostMemory"

    def __init__(self, trt: FakeTensorRT, data: bytes) -> None:
        super().__init__(trt)
        self._data = data

    @property
    def nbytes(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data


class _Runtime(_Resident):
    _kind = "Runtime"

    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        super().__init__(trt)
        self._logger = logger
        self.DLA_core = -1

    def deserialize_cuda_engine(self, plan: bytes) -> "Optional[_Engine]":
        trt = self._trt
        trt.require_context("deserialize_cuda_engine")
        sizes = struct.unpack_from("<II", plan, 8) if len(plan) >= 16 and plan.startswith(_MAGIC) else (0, 0)
        if not sizes[0] or len(plan) != 16 + sum(sizes):
            trt.log(self._logger, "1: [stdArchiveReader.cpp::StdArchiveReader] Serialization assertion failed.")
            return None
        head = json.loads(plan[16 : 16 + sizes[0]])
        if head["version"] != trt.__version__:
            trt.log(
                self._logger,
                "6: The engine plan file is not compatible with this version of TensorRT, expecting library version "
                f"{trt.__version__} got {head['version']}, please rebuild.",
            )
            return None
        if tuple(head["capability"]) != trt.board.capability:
            want, got = (".".join(map(str, pair)) for pair in (trt.board.capability, head["capability"]))
            trt.log(
                self._logger,
                "6: The engine plan file is generated on an incompatible device, expecting compute "
                f"{want} got compute {got}, please rebuild.",
            )
            return None
        if head["dla"] is not None and head["dla"] != self.DLA_core:
            trt.log(self._logger, "2: [runtime.cpp] the engine was built for another DLA core")
            return None
        return _Engine(trt, self._logger, head, plan[16 + sizes[0] :])


class _Engine(_Resident):
    _kind = "ICudaEngine"

    def __init__(self, trt: FakeTensorRT, logger: Any, head: Dict[str, Any], data: bytes) -> None:
        super().__init__(trt)
        self._logger, self._head = logger, head
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._names = [self._input, *(output.name for output in self._session.get_outputs())]
        self._known: Dict[Tuple[int, ...], Dict[str, Tuple[int, ...]]] = {}

    def _answers(self, feed: np.ndarray) -> Dict[str, np.ndarray]:
        answers = self._session.run(None, {self._input: feed})
        return dict(zip(self._names[1:], answers))

    def _shapes(self, shape: Tuple[int, ...]) -> Dict[str, Tuple[int, ...]]:
        if shape not in self._known:
            answers = self._answers(np.zeros(shape, np.float32))
            self._known[shape] = {self._input: shape, **{name: value.shape for name, value in answers.items()}}
        return self._known[shape]

    @property
    def has_implicit_batch_dimension(self) -> bool:
        return bool(self._head["implicit"])

    def create_execution_context(self) -> "Optional[_Context]":
        self._trt.require_context("create_execution_context")
        return None if self._trt.failed("context", self._logger) else _Context(self._trt, self)

    def create_engine_inspector(self) -> "_Inspector":
        return _Inspector(self._trt, self._head["layers"])

    @property
    def num_bindings(self) -> int:
        return len(self._names)

    num_io_tensors = num_bindings

    def get_binding_name(self, index: int) -> str:
        return self._names[index]

    get_tensor_name = get_binding_name

    def binding_is_input(self, index: int) -> bool:
        return index == 0

    def get_binding_dtype(self, index: int) -> Any:
        return self._trt.DataType.FLOAT

    def get_binding_shape(self, index: int) -> Tuple[int, ...]:
        if not self._head["implicit"]:
            return (-1, -1, -1, -1)
        return self._shapes((1, *self._head["profile"][0]))[self._names[index]][1:]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name == self._input else self._trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType.FLOAT


class _Inspector(_Native):
    _kind = "EngineInspector"

    def __init__(self, trt: FakeTensorRT, layers: List[Any]) -> None:
        super().__init__(trt)
        self._layers = layers

    def get_engine_information(self, format: Any) -> str:
        assert format.name == "JSON"
        return json.dumps({"Layers": self._layers, "Bindings": []})


class _Context(_Resident):
    _kind = "IExecutionContext"

    def __init__(self, trt: FakeTensorRT, engine: _Engine) -> None:
        super().__init__(trt)
        self._engine = engine
        self._shape: Optional[Tuple[int, ...]] = None
        self._addresses: Dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._trt.require_context("set_input_shape")
        low, _, high = self._engine._head["profile"]
        if name != self._engine._input or not all(a <= b <= c for a, b, c in zip(low, shape, high)):
            self._trt.log(self._engine._logger, "3: [executionContext.cpp] Parameter check failed: satisfyProfile")
            return False
        self._shape = tuple(shape)
        return True

    def set_binding_shape(self, binding: int, shape: Sequence[int]) -> bool:
        if self._engine._head["implicit"]:
            raise Misuse("set_binding_shape on an engine with implicit batch")
        return _Context.set_input_shape.__get__(self)(self._engine._names[binding], shape)

    def get_tensor_shape(self, name: str) -> Tuple[int, ...]:
        return self._engine._shapes(self._shape)[name] if self._shape else (-1,)

    def get_binding_shape(self, binding: int) -> Tuple[int, ...]:
        return _Context.get_tensor_shape.__get__(self)(self._engine._names[binding])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine._names

    def execute_async(self, batch_size: int, bindings: Sequence[int], stream_handle: int) -> bool:
        if not self._engine._head["implicit"]:
            raise Misuse("execute_async on an engine with explicit batch")
        if batch_size != 1:
            return False
        self._shape = (1, *self._engine._head["profile"][0])
        return self._enqueue("execute_async", dict(zip(self._engine._names, bindings)), stream_handle)

    def execute_async_v2(self, bindings: Sequence[int], stream_handle: int) -> bool:
        if self._engine._head["implicit"]:
            raise Misuse("execute_async_v2 on an engine with implicit batch")
        return self._enqueue("execute_async_v2", dict(zip(self._engine._names, bindings)), stream_handle)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._engine._head["implicit"]:
            raise Misuse("execute_async_v3 on an engine with implicit batch")
        return self._enqueue("execute_async_v3", dict(self._addresses), stream_handle)

    def _enqueue(self, call: str, addresses: Dict[str, int], stream_handle: int) -> bool:
        trt, engine, shape = self._trt, self._engine, self._shape
        trt.calls.append(call)
        if trt.failed("enqueue", engine._logger):
            return False
        if shape is None or set(addresses) != set(engine._names) or not all(addresses.values()):
            trt.log(
                engine._logger, "3: [executionContext.cpp] Parameter check failed: a tensor has no shape or address"
            )
            return False

        def work() -> None:
            count = int(np.prod(shape))
            feed = trt.cuda.at(addresses[engine._input], 4 * count).view(np.float32).reshape(shape)
            for name, value in _rounded(engine, np.array(feed)).items():
                if trt.wrong or trt.nan:
                    value = value * np.float32(np.nan if trt.nan else 0.3) + 1
                flat = np.ascontiguousarray(value, np.float32).view(np.uint8).reshape(-1)
                trt.cuda.at(addresses[name], flat.size)[:] = flat

        trt.cuda.enqueue(stream_handle, work)
        return True


def _rounded(engine: _Engine, feed: np.ndarray) -> Dict[str, np.ndarray]:
    scale = engine._head["scale"]
    if scale:
        feed = (np.clip(np.rint(feed / np.float32(scale)), -128, 127) * np.float32(scale)).astype(np.float32)
    answers = engine._answers(feed)
    if engine._head["half"]:
        answers = {name: value.astype(np.float16).astype(np.float32) for name, value in answers.items()}
    return answers
