"""A fake of TensorRT 8.2's bindings for Python 3.6, without a GPU, with only what the worker uses.

It needs Python 3.6 and no packages; `tests.fakes.oracle` runs the networks in the tests' Python, as a process that
FAKE_TRT_ORACLE names. `trt/test_worker.py` compares the attributes with those that `tests.fakes.tensorrt` has for 8.2.

FAKE_TRT is a list of faults: "start", "parse", "build", "take", "context", "enqueue" fail as in TensorRT; "wrong"
gives wrong outputs; "crash" ends the process during a run; "hang" never returns; "slow-build" runs until it is killed.
"""

import ctypes
import enum
import hashlib
import json
import os
import signal
import struct
import subprocess
import time

__version__ = os.environ.get("FAKE_TRT_VERSION", "8.2.1.8")
_FAULTS = os.environ.get("FAKE_TRT", "").split()
_CUDA = ctypes.CDLL("libcuda.so.1")
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self):
        self.initialised = True


class IInt8EntropyCalibrator2:
    def __init__(self):
        self.initialised = True


class IInt8MinMaxCalibrator(IInt8EntropyCalibrator2):
    pass


BuilderFlag = enum.IntEnum("BuilderFlag", ["FP16", "GPU_FALLBACK", "INT8", "TF32"])
DataType = enum.IntEnum("DataType", ["FLOAT", "HALF", "INT8", "INT32"])
LayerInformationFormat = enum.IntEnum("LayerInformationFormat", ["JSON", "ONELINE"])
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", ["EXPLICIT_BATCH"], start=0)
ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", ["DETAILED", "LAYER_NAMES_ONLY", "NONE"])


class _Oracle:
    """The process that runs networks; messages are length-prefixed JSON and bytes, both ways."""

    def __init__(self):
        command = json.loads(os.environ["FAKE_TRT_ORACLE"])
        environ = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ)

    def ask(self, header, payload):
        text = json.dumps(header).encode("utf-8")
        self._process.stdin.write(struct.pack("<II", len(text), len(payload)) + text + payload)
        self._process.stdin.flush()
        sizes = struct.unpack("<II", self._process.stdout.read(8))
        return json.loads(self._process.stdout.read(sizes[0]).decode("utf-8")), self._process.stdout.read(sizes[1])


_oracle = []


def _ask(header, payload=b""):
    if not _oracle:
        _oracle.append(_Oracle())
    return _oracle[0].ask(header, payload)


def _failed(fault, logger, words):
    if fault in _FAULTS:
        logger.log(ILogger.Severity.ERROR, words)
        logger.log(ILogger.Severity.ERROR, "2: [builder.cpp] Error Code 2: the echo of it")
    return fault in _FAULTS


def _start(logger):
    """As where the driver is too old, or there is no memory: no object, and the reason as a warning."""
    assert logger.initialised
    if "start" in _FAULTS:
        logger.log(ILogger.Severity.WARNING, "CUDA initialization failure with error: 2. Please check your CUDA")
        raise TypeError("pybind11::init(): factory function returned nullptr")


class _Named:
    __slots__ = ("name", "shape")

    def __init__(self, name, shape=()):
        self.name = name
        self.shape = shape


class _Layer:
    __slots__ = ("_outputs",)

    def __init__(self, outputs):
        self._outputs = outputs

    @property
    def num_outputs(self):
        return len(self._outputs)

    def get_output(self, index):
        return _Named(self._outputs[index])


class INetworkDefinition:
    __slots__ = ("_data", "_facts")

    @property
    def num_layers(self):
        return len(self._facts["nodes"])

    def get_layer(self, index):
        return _Layer(self._facts["nodes"][index])

    def get_input(self, index):
        return _Named(self._facts["input"], tuple(self._facts["shape"]))


class _ParserError:
    def __init__(self, text):
        self._text = text

    def desc(self):
        return self._text


class OnnxParser:
    __slots__ = ("_errors", "_logger", "_network")

    def __init__(self, network, logger):
        self._network, self._logger, self._errors = network, logger, []

    def parse(self, model):
        if _failed("parse", self._logger, "No importer registered for op: Foo"):
            self._errors.append("No importer registered for op: Foo")
            return False
        facts, _ = _ask({"do": "open"}, model)
        self._network._data, self._network._facts = model, facts
        return True

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return _ParserError(self._errors[index])


class IOptimizationProfile:
    __slots__ = ("_shapes",)

    def set_shape(self, input, min, opt, max):
        assert all(isinstance(shape, tuple) for shape in (min, opt, max))
        self._shapes = [min, opt, max]


class IBuilderConfig:
    __slots__ = (
        "_calibration_profile",
        "_flags",
        "_profile",
        "int8_calibrator",
        "max_workspace_size",
        "profiling_verbosity",
    )  # fmt: skip

    def __init__(self):
        self._flags = {BuilderFlag.TF32}
        self._profile = self._calibration_profile = self.int8_calibrator = None

    def set_flag(self, flag):
        self._flags.add(flag)

    def clear_flag(self, flag):
        self._flags.discard(flag)

    def add_optimization_profile(self, profile):
        self._profile = profile
        return 0

    def set_calibration_profile(self, profile):
        self._calibration_profile = profile
        return True


class IHostMemory:
    __slots__ = ("_data",)

    def __init__(self, data):
        self._data = data

    def __bytes__(self):
        return self._data


class Builder:
    __slots__ = ("_logger",)

    platform_has_fast_fp16 = True
    platform_has_fast_int8 = "int8" in _FAULTS  # a Xavier has it, a Nano does not
    num_DLA_cores = 0

    def __init__(self, logger):
        _start(logger)
        self._logger = logger

    def create_network(self, flags):
        assert flags == 1, "the ONNX parser needs an explicit batch"
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        while "slow-build" in _FAULTS:
            time.sleep(0.05)
        if _failed("build", self._logger, "10: Could not find any implementation for node conv_1"):
            return None
        shape = network._facts["shape"]
        assert (min(shape) < 0) == (config._profile is not None), "a free dim needs a profile, others take none"
        scales = {}
        if BuilderFlag.INT8 in config._flags:
            first, *lines = config.int8_calibrator.read_calibration_cache().decode("ascii").splitlines()
            if not first.startswith("TRT-8201-"):
                self._logger.log(ILogger.Severity.ERROR, "Calibration table does not match calibrator algorithm type.")
                return None
            scales = dict(line.rsplit(": ", 1) for line in lines)
            assert (config._profile is None) == (config._calibration_profile is None)
        head = {
            "version": __version__,
            "facts": network._facts,
            "profile": config._profile._shapes if config._profile else [shape] * 3,
            "half": BuilderFlag.FP16 in config._flags,
            "scale": scales.get(network._facts["input"]),
            "scaled": sorted(scales),
            "workspace": config.max_workspace_size,
        }
        text = json.dumps(head).encode("utf-8")
        body = struct.pack("<II", len(text), len(network._data)) + text + network._data
        return IHostMemory(hashlib.sha256(body).digest() + body)


class Runtime:
    __slots__ = ("_logger",)

    def __init__(self, logger):
        _start(logger)
        self._logger = logger

    def deserialize_cuda_engine(self, plan):
        if len(plan) < 40 or hashlib.sha256(plan[32:]).digest() != plan[:32]:
            self._logger.log(ILogger.Severity.ERROR, "1: [stdArchiveReader.cpp] Serialization assertion failed.")
            return None
        if _failed("take", self._logger, "1: [defaultAllocator.cpp] Cuda Runtime (out of memory)"):
            return None
        sizes = struct.unpack_from("<II", plan, 32)
        return ICudaEngine(self._logger, json.loads(plan[40 : 40 + sizes[0]].decode("utf-8")), plan[40 + sizes[0] :])


class ICudaEngine:
    __slots__ = ("_head", "_key", "_logger", "_names")

    def __init__(self, logger, head, data):
        self._logger, self._head = logger, head
        facts, _ = _ask({"do": "open"}, data)
        self._key = facts["key"]
        # The input is not always the first binding.
        self._names = [*facts["outputs"][:1], facts["input"], *facts["outputs"][1:]]

    @property
    def num_bindings(self):
        return len(self._names)

    def get_binding_name(self, index):
        return self._names[index]

    def binding_is_input(self, index):
        return index == 1

    def get_binding_dtype(self, index):
        return DataType.FLOAT

    def create_execution_context(self):
        return None if _failed("context", self._logger, "2: out of memory") else IExecutionContext(self)

    def create_engine_inspector(self):
        return EngineInspector(self._head)


class EngineInspector:
    __slots__ = ("_head",)

    def __init__(self, head):
        self._head = head

    def get_engine_information(self, format):
        assert format == LayerInformationFormat.JSON
        described = "Half" if self._head["half"] else "Row major linear FP32"
        if self._head["scaled"]:
            described = "Thirty-two wide channel vectorized row major Int8 format"
        weights = {"Type": "Int8" if "Int8" in described else "Half" if described == "Half" else "Float", "Count": 9}
        if min(self._head["facts"]["shape"]) < 0:
            described = "N/A due to dynamic shapes"
        inputs = [{"Format/Datatype": described}]
        layers = [{"Name": "l", "LayerType": "Conv", "Inputs": inputs, "Outputs": [], "Weights": weights}]
        return json.dumps({"Layers": layers * len(self._head["facts"]["nodes"]), "Bindings": []})


class IExecutionContext:
    __slots__ = ("_engine", "_keep", "_shapes")

    def __init__(self, engine):
        self._engine, self._shapes, self._keep = engine, None, None

    def set_binding_shape(self, binding, shape):
        engine = self._engine
        low, _, high = engine._head["profile"]
        if binding != 1 or not all(a <= b <= c for a, b, c in zip(low, shape, high)):
            engine._logger.log(ILogger.Severity.ERROR, "3: [executionContext.cpp] Parameter check failed")
            return False
        answer, _ = _ask({"do": "run", "key": engine._key, "shape": shape}, b"\0" * 4 * _count(shape))
        self._shapes = dict(answer["shapes"], **{engine._names[1]: list(shape)})
        return True

    def get_binding_shape(self, binding):
        return tuple(self._shapes[self._engine._names[binding]])

    def execute_async_v2(self, bindings, stream_handle):
        engine = self._engine
        if _failed(
            "enqueue", engine._logger, "1: [reformat.cu] Cuda Runtime (an illegal memory access was encountered)"
        ):
            return False
        if "crash" in _FAULTS:
            os.kill(os.getpid(), signal.SIGSEGV)
        while "hang" in _FAULTS:
            time.sleep(0.05)
        sizes = [4 * _count(self._shapes[name]) for name in engine._names]
        for pointer, size in zip(bindings, sizes):
            if not _CUDA.fakeIsDevice(ctypes.c_void_p(pointer), ctypes.c_size_t(size)):
                return False

        def work(_argument):
            feed = ctypes.string_at(bindings[1], sizes[1])
            request = {"do": "run", "key": engine._key, "shape": self._shapes[engine._names[1]]}
            request.update(half=engine._head["half"], scale=engine._head["scale"], wrong="wrong" in _FAULTS)
            _answer, data = _ask(request, feed)
            offset = 0
            for name, pointer, size in zip(engine._names, bindings, sizes):
                if name != engine._names[1]:
                    ctypes.memmove(pointer, data[offset : offset + size], size)
                    offset += size

        self._keep = _WORK(work)
        return _CUDA.fakeEnqueue(self._keep, None, ctypes.c_void_p(stream_handle)) == 0


def _count(shape):
    count = 1
    for dim in shape:
        count *= dim
    return count


if __version__.startswith("8.0"):  # JetPack 4.6.0: before the inspector
    ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", ["DEFAULT", "NONE", "VERBOSE"])
    del LayerInformationFormat, ICudaEngine.create_engine_inspector
