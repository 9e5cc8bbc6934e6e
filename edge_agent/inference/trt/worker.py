"""Runs TensorRT 8 in a process of its own, because JetPack 4 has its Python bindings for Python 3.6 only.

Start it as `python3.6 -I worker.py SOCKET MEMORY`, with two inherited file descriptors. It needs Python 3.6, `tensorrt`
and NVIDIA's driver. The agent talks to it through `trt.process`, and imports its logger and calibrator.

- SOCKET carries frames: MAGIC, lengths of header and payload, a JSON header, a payload. The worker sends a hello first;
  every request has one answer: {"ok": true, ...}, or {"ok": false, "kind": ..., "why": ...}.
- MEMORY is a file in RAM that both processes map: the network's input, then its outputs, float32.
- The worker ends on request, or when the agent's end of SOCKET closes; it ignores signals.
"""

import ctypes
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

MAGIC = b"EATW"
PROTOCOL = 1
FRAME = struct.Struct("<4sIQ")
ALIGN = 4096
FLOAT_BYTES = 4
Header = Dict[str, Any]
Answer = Tuple[Header, bytes]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_SLEEP_UNTIMED = 3  # CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING


class Fault(Exception):
    """A failure to report to the agent: its kind ("model", "build", "engine", "missing") and reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class Driver:
    """The GPU through NVIDIA's driver library: the primary context, always current, and one stream."""

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Fault("missing", f"NVIDIA's driver cannot be loaded: {error}") from error
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._stream, self._done = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)
        self.stream = self._stream.value
        self._call("cuEventCreate", ctypes.byref(self._done), _SLEEP_UNTIMED)
        name, version, self._device = ctypes.create_string_buffer(256), ctypes.c_int(), device
        self._call("cuDeviceGetName", name, len(name), device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self.name = name.value.decode("ascii", "replace")
        self.sm = f"{self._attribute(75)}{self._attribute(76)}"  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        self.multiprocessors = self._attribute(16)  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        self.version = f"{version.value // 1000}.{version.value % 1000 // 10}"

    def alloc(self, nbytes: int) -> int:
        """Allocate GPU memory; its device pointer."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Free memory of `alloc`."""
        self._call("cuMemFree_v2", ctypes.c_uint64(pointer))

    def upload(self, pointer: int, source: int, nbytes: int) -> None:
        """Enqueue a copy from the host's address `source`."""
        copy = (ctypes.c_uint64(pointer), ctypes.c_void_p(source), ctypes.c_size_t(nbytes), self._stream)
        self._call("cuMemcpyHtoDAsync_v2", *copy)

    def download(self, target: int, pointer: int, nbytes: int) -> None:
        """Enqueue a copy to the host's address `target`."""
        copy = (ctypes.c_void_p(target), ctypes.c_uint64(pointer), ctypes.c_size_t(nbytes), self._stream)
        self._call("cuMemcpyDtoHAsync_v2", *copy)

    def wait(self) -> None:
        """Sleep until all enqueued work is done."""
        self._call("cuEventRecord", self._done, self._stream)
        self._call("cuEventSynchronize", self._done)

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            message = (text.value or b"error %d" % code).decode("ascii", "replace")
            raise Fault("engine", f"CUDA: {name}: {message}")


def make_logger(trt: Any, forward: Callable[[str], object] = lambda line: None) -> Any:
    """A `tensorrt.ILogger` that passes lines to `forward` and keeps the reason of a failure.

    `clear()` forgets it; `reason()` is the first error since, of which later ones are consequences, else the last
    warning.
    """
    severities = trt.ILogger.Severity

    class ReasonLogger(trt.ILogger):  # type: ignore[misc]
        error = warning = ""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, msg: str) -> None:
            line = (msg.splitlines() or [""])[0][:300]
            forward(line)
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                self.error = self.error or line
            elif severity == severities.WARNING:
                self.warning = line

        def clear(self) -> None:
            self.error = self.warning = ""

        def reason(self) -> str:
            return self.error or self.warning or "it gives no reason"

    return ReasonLogger()


def create(kind: Any, logger: Any) -> Any:
    """A `tensorrt.Runtime` or `tensorrt.Builder`."""
    logger.clear()
    try:
        return kind(logger)
    except TypeError as error:  # pybind11 raises it when TensorRT returns none; the reason is logged as a warning
        raise Fault("engine", f"TensorRT does not start: {logger.reason()}") from error


class Worker:
    """Handles the requests; the method's name is the request's. Objects of TensorRT live until they are replaced.

    `memory` is the file shared with the agent; it grows with the shapes.
    """

    def __init__(self, trt: Any, driver: Driver, memory: int) -> None:
        self._trt, self._driver, self._memory = trt, driver, memory
        self._map: Optional[mmap.mmap] = None
        self._base = 0  # address of the mapping
        self._logger = make_logger(trt)
        self._runtime = create(trt.Runtime, self._logger)
        self._parsed: Tuple[Any, ...] = ()  # builder, network, and the parser, which owns the weights
        self._engine: Any = None
        self._context: Any = None
        self._buffers: Dict[int, Tuple[int, int]] = {}  # by binding: pointer, bytes
        self._layout: List[Tuple[int, int, int]] = []  # binding, offset in the memory, bytes; the input first

    def hello(self) -> Header:
        """Versions and the GPU's properties."""
        builder = create(self._trt.Builder, self._logger)
        return {
            "protocol": PROTOCOL,
            "tensorrt": self._trt.__version__,
            "gpu": self._driver.name,
            "sm": self._driver.sm,
            "multiprocessors": self._driver.multiprocessors,
            "cuda": self._driver.version,
            "int8": bool(builder.platform_has_fast_int8),
            "fp16": bool(builder.platform_has_fast_fp16),
        }

    def parse(self, request: Header, payload: bytes) -> Answer:
        """Parse a network in ONNX; the names of its tensors, the input first."""
        trt, logger = self._trt, self._logger
        builder = create(trt.Builder, logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(payload):
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise Fault("model", errors[0] if errors else logger.reason())
        self._parsed = builder, network, parser
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        outputs = [layer.get_output(index).name for layer in layers for index in range(layer.num_outputs)]
        return {"tensors": [network.get_input(0).name, *outputs]}, b""

    def build(self, request: Header, payload: bytes) -> Answer:
        """Build the plan of the parsed network; `payload` is its calibration cache, or empty."""
        trt, logger = self._trt, self._logger
        builder, network, _parser = self._parsed
        config = builder.create_builder_config()
        config.max_workspace_size = request["workspace_bytes"]
        if hasattr(trt, "LayerInformationFormat"):  # 8.0 has no inspector; others report no precisions else
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        profile = None
        if min(tuple(network.get_input(0).shape)) < 0:
            profile = builder.create_optimization_profile()
            profile.set_shape(network.get_input(0).name, *(tuple(shape) for shape in request["shapes"]))
            config.add_optimization_profile(profile)
        flags = trt.BuilderFlag
        if request["precision"] == "fp32":
            config.clear_flag(flags.TF32)
        else:
            config.set_flag(flags.FP16)
        if request["precision"] == "int8":
            config.set_flag(flags.INT8)
        # Python owns the calibrator, which must outlive the build.
        calibrator = make_calibrator(getattr(trt, request["calibrator"]), payload) if payload else None
        if calibrator is not None:
            config.int8_calibrator = calibrator
            if profile is not None:
                config.set_calibration_profile(profile)
        logger.clear()
        plan = builder.build_serialized_network(network, config)
        self._parsed = ()
        if plan is None:
            raise Fault("build", logger.reason())
        return {}, bytes(plan)

    def load(self, request: Header, payload: bytes) -> Answer:
        """Load a plan; the inspector's report of its layers."""
        trt, logger = self._trt, self._logger
        self.unload(request, payload)
        logger.clear()
        engine = self._runtime.deserialize_cuda_engine(payload)
        if engine is None:
            raise Fault("engine", f"TensorRT {trt.__version__} cannot load the engine: {logger.reason()}")
        types = {engine.get_binding_name(i): engine.get_binding_dtype(i) for i in range(engine.num_bindings)}
        unfit = [name for name in request["tensors"] if types.get(name) != trt.DataType.FLOAT]
        inputs = [index for index in range(engine.num_bindings) if engine.binding_is_input(index)]
        if unfit or len(inputs) != 1:
            raise Fault("engine", f"the engine is another model's: it has {', '.join(sorted(types))}")
        context = engine.create_execution_context()
        if context is None:
            raise Fault("engine", f"TensorRT created no execution context: {logger.reason()}")
        self._engine, self._context = engine, context
        inspector = engine.create_engine_inspector() if hasattr(trt, "LayerInformationFormat") else None
        layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON) if inspector is not None else ""
        return {"layers": layers}, b""

    def shape(self, request: Header, payload: bytes) -> Answer:
        """Set the input's shape; shapes and offsets of all tensors in the memory, and its size."""
        engine, context, logger = self._engine, self._context, self._logger
        source = next(index for index in range(engine.num_bindings) if engine.binding_is_input(index))
        self._layout = []
        logger.clear()
        if not context.set_binding_shape(source, tuple(request["shape"])):
            raise Fault("engine", f"the engine takes no input of {request['shape']}: {logger.reason()}")
        places, offset = {}, 0
        for index in sorted(range(engine.num_bindings), key=lambda index: index != source):
            name, dims = engine.get_binding_name(index), [int(dim) for dim in context.get_binding_shape(index)]
            if not dims or min(dims) < 1:
                raise Fault("engine", f"the engine reports no shape for {name}: {dims}")
            nbytes = FLOAT_BYTES
            for dim in dims:
                nbytes *= dim
            self._reserve(index, nbytes)
            places[name] = {"shape": dims, "offset": offset}
            self._layout.append((index, offset, nbytes))
            offset += -(-nbytes // ALIGN) * ALIGN
        if self._map is None or len(self._map) < offset:
            os.ftruncate(self._memory, offset)
            self._map = mmap.mmap(self._memory, offset)
            self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        return {"places": places, "nbytes": offset}, b""

    def run(self, request: Header, payload: bytes) -> Answer:
        """Run the network on the input in the memory; write the outputs there."""
        driver, base = self._driver, self._base
        source, offset, nbytes = self._layout[0]
        driver.upload(self._buffers[source][0], base + offset, nbytes)
        pointers = [self._buffers[index][0] for index in range(self._engine.num_bindings)]
        self._logger.clear()
        if not self._context.execute_async_v2(pointers, driver.stream):
            raise Fault("engine", f"TensorRT did not run the network: {self._logger.reason()}")
        for index, offset, nbytes in self._layout[1:]:
            driver.download(base + offset, self._buffers[index][0], nbytes)
        driver.wait()
        return {}, b""

    def unload(self, request: Header, payload: bytes) -> Answer:
        """Free the engine and its buffers."""
        # TensorRT frees an object with its last reference: first the context, then the engine.
        self._context = None
        self._engine = None
        buffers, self._buffers = self._buffers, {}
        self._driver.wait()  # a failed run may have left work on the stream
        for pointer, _nbytes in buffers.values():
            self._driver.free(pointer)
        return {}, b""

    def _reserve(self, index: int, nbytes: int) -> None:
        pointer, size = self._buffers.get(index, (0, 0))
        if size >= nbytes:
            return
        if pointer:
            del self._buffers[index]
            self._driver.free(pointer)
        self._buffers[index] = (self._driver.alloc(nbytes), nbytes)


def make_calibrator(base: Any, cache: bytes) -> Any:
    """A calibrator that supplies only the calibration cache, no images."""

    class CachedScales(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: List[str]) -> Optional[List[int]]:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: object) -> None:
            return None

    return CachedScales()


def send(channel: socket.socket, header: Header, payload: bytes = b"") -> None:
    """Send one frame."""
    text = json.dumps(header).encode("utf-8")
    channel.sendall(FRAME.pack(MAGIC, len(text), len(payload)) + text)
    if payload:
        channel.sendall(payload)


def receive(channel: socket.socket) -> Optional[Answer]:
    """(header, payload) of one frame; None when the agent has closed the socket."""
    head = _read(channel, FRAME.size)
    if head is None or not head.startswith(MAGIC):
        return None
    _magic, text_bytes, payload_bytes = FRAME.unpack(head)
    text, payload = _read(channel, text_bytes), _read(channel, payload_bytes)
    if text is None or payload is None:
        return None
    return json.loads(text.decode("utf-8")), payload


def _read(channel: socket.socket, count: int) -> Optional[bytes]:
    data = channel.recv(count, socket.MSG_WAITALL)
    return data if len(data) == count else None


def exit_with_agent(channel: socket.socket) -> None:
    """End this process when the agent closes the socket, even during a build. Runs in its own thread."""
    poll = select.poll()
    poll.register(channel, 0)  # a hang-up is always reported
    poll.poll()
    os._exit(0)


def serve(channel: socket.socket, memory: int) -> int:
    """Send the hello, then answer requests until `quit`; the exit code."""
    try:
        try:
            import tensorrt
        except (ImportError, OSError) as error:
            raise Fault("missing", f"tensorrt cannot be imported by {sys.executable}: {error}") from error
        if not tensorrt.__version__.startswith("8."):
            raise Fault("missing", f"{sys.executable} has TensorRT {tensorrt.__version__}, and the worker is for 8")
        worker = Worker(tensorrt, Driver(), memory)
        hello = worker.hello()
    except Fault as fault:
        send(channel, {"ok": False, "protocol": PROTOCOL, "kind": fault.kind, "why": fault.reason})
        return 1
    send(channel, {**hello, "ok": True})
    while True:
        frame = receive(channel)
        if frame is None or frame[0]["do"] == "quit":
            return 0
        request, payload = frame
        try:
            found, answer = getattr(worker, request["do"])(request, payload)
        except Fault as fault:
            send(channel, {"ok": False, "kind": fault.kind, "why": fault.reason})
        else:
            send(channel, {**found, "ok": True}, answer)


def main() -> None:
    """Serve the two file descriptors of the command line."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # the whole process group gets them
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, int(sys.argv[1]))
    threading.Thread(target=exit_with_agent, args=(channel,), daemon=True).start()
    code = serve(channel, int(sys.argv[2]))
    # Skips the interpreter's shutdown, which would free TensorRT's objects in any order.
    os._exit(code)


if __name__ == "__main__":
    main()
