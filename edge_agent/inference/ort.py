"""Runs networks on the CPU with ONNX Runtime."""

import hashlib
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type, Union

import numpy as np

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.ports import BufferPool
from edge_agent.core.types import Array, EngineInfo
from edge_agent.errors import EngineError, MissingPackage, ModelError
from edge_agent.inference.preprocess import Preprocessor, golden_image
from edge_agent.models.onnx.binding import ContractOf, Signature, Tensor, bind_tensors, require_contract
from edge_agent.models.onnx.file import read_model

_FATAL = 4  # ONNX Runtime's own log lines would only repeat our errors
_DTYPES = {"float": "float32", "double": "float64"}
# ONNX Runtime does not report a model's precision. In the encoding of onnx.proto: the op_type of a NodeProto, and the
# attribute of a Cast to float16, which every model with float32 inputs that computes in halves contains.
_INT8 = re.compile(rb"\x22[\x0b\x0e\x10](?:QLinearConv|ConvInteger|QuantizeLinear|DequantizeLinear)")
_HALF = b"\x0a\x02to\x18\x0a\xa0\x01\x02"


class OrtEngine:
    """One ONNX model on CPU cores. Owned and called by one thread.

    Args:
        path: The ONNX file.
        contract: The contract that the model must keep, or the function that derives it from the model's signature.
        threads: CPU cores that work on one frame.
        interpolation: Of `Preprocessor`.
        name: The model's name in logs and errors; the file's name when None.
        sha256: Hex sum that the file must have; any when None.

    Raises:
        MissingPackage: onnxruntime is not installed.
        ModelError: The file cannot be read, is damaged, keeps another contract, or does not run.
    """

    def __init__(
        self,
        path: Path,
        contract: Union[ModelContract, ContractOf],
        threads: int = 1,
        interpolation: str = "linear",
        name: Optional[str] = None,
        sha256: Optional[str] = None,
    ) -> None:
        data = read_model(path)
        digest = hashlib.sha256(data).hexdigest()
        if sha256 is not None and digest != sha256:
            raise ModelError(
                f"model {path}: sha256 is {digest}, expected {sha256}", "the file is damaged: fetch it again"
            )
        if not data:
            raise ModelError(f"model {path}: no ONNX file: it is empty", "fetch or export it again")
        precision = stored_precision(data)
        del data  # as large as all weights: ONNX Runtime reads its own copy
        ort = _onnxruntime()
        self._exceptions = _exceptions(ort)
        self._session: Any = _open_session(ort, str(path), f"model {path}", threads)
        signature = _signature(self._session)
        if isinstance(contract, ModelContract):
            require_contract(signature, str(path), contract)
        else:
            contract = contract(signature)
        binding = bind_tensors(signature, str(path))
        self.contract = contract
        self.pool: Optional[BufferPool] = None
        self._input = binding.input
        self._roles = tuple(binding.outputs)
        self._outputs = [binding.outputs[role] for role in self._roles]
        self._preprocess = Preprocessor(contract, interpolation)
        self.info = EngineInfo(
            backend="onnxruntime",
            precision=precision,
            model=name or path.name,
            model_sha256=digest,
            detail={"version": ort.__version__, "threads": threads, "resizer": self._preprocess.resizer},
        )
        try:
            self.infer(golden_image())
        except EngineError as error:
            raise _cannot_run(ort, f"model {path}", error) from error

    def infer(self, image: Image) -> Mapping[str, Array]:
        """Raw outputs by role (`ModelContract`), without the batch axis.

        Raises:
            EngineError: The runtime failed, or an output holds NaN or infinity.
        """
        return self.run(self.prepare(image))

    def prepare(self, image: Image) -> Array:
        """Preprocess a frame: the network's input, valid until the next call."""
        return self._preprocess(image)

    def run(self, tensor: Array) -> Mapping[str, Array]:
        """Run the network on the result of `prepare`; may be repeated.

        Raises:
            EngineError: The runtime failed, or an output holds NaN or infinity.
        """
        if self._session is None:
            raise EngineError(f"model {self.info.model}: used after it was closed")
        try:
            answers = self._session.run(self._outputs, {self._input: tensor})
        except self._exceptions as error:
            raise EngineError(f"model {self.info.model}: ONNX Runtime failed: {_first_line(error)}") from error
        outputs: Dict[str, Array] = {role: answer[0] for role, answer in zip(self._roles, answers)}
        for role, values in outputs.items():
            if not np.isfinite(values).all():
                raise EngineError(f"model {self.info.model}: its {role} output holds NaN or infinity")
        return outputs

    def close(self) -> None:
        """Free the session. Idempotent."""
        self._session = None


def stored_precision(data: bytes) -> str:
    """The precision of the ONNX file in `data`: "int8" when it is quantised, "fp16" for halves, else "fp32"."""
    return "int8" if _INT8.search(data) else "fp16" if _HALF in data else "fp32"


def trial_run(data: bytes, name: str) -> Dict[str, Tuple[int, ...]]:
    """Run a float model once on noise, with 1 for every free dimension.

    Returns:
        The shapes of its outputs by name.

    Raises:
        MissingPackage: onnxruntime is not installed.
        ModelError: It does not run, or its outputs hold NaN or infinity.
    """
    ort = _onnxruntime()
    session = _open_session(ort, data, name)
    noise = np.random.default_rng(0)
    feed = {}
    for tensor in _signature(session).inputs:
        shape = [dim if isinstance(dim, int) else 1 for dim in tensor.shape or ()]
        try:
            feed[tensor.name] = np.asarray(noise.random(shape)).astype(tensor.dtype)
        except TypeError as error:
            raise ModelError(f"{name}: takes {tensor}", "expected numbers") from error
    return {output: answer.shape for output, answer in _run(ort, session, name, feed).items()}


def run_once(data: bytes, name: str, feed: Mapping[str, Array]) -> Dict[str, Array]:
    """All outputs of a model by name, for one input by name.

    Raises:
        MissingPackage: onnxruntime is not installed.
        ModelError: It does not run, or its outputs hold NaN or infinity.
    """
    ort = _onnxruntime()
    return _run(ort, _open_session(ort, data, name), name, feed)


class Probe:
    """Runs a network repeatedly and returns all its float outputs.

    Args:
        data: The model, with its inner tensors among its outputs; their types and shapes may be missing.
        name: The model's name in errors.

    Attributes:
        tensors: Names of the float32 outputs.

    Raises:
        MissingPackage: onnxruntime is not installed.
        ModelError: It does not run.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._ort, self._name = _onnxruntime(), name
        self._session = _open_session(self._ort, data, name)
        self.tensors = [tensor.name for tensor in _signature(self._session).outputs if tensor.dtype == "float32"]

    def __call__(self, feed: Mapping[str, Array]) -> Dict[str, Array]:
        """The outputs by name for one input by name.

        Raises:
            ModelError: The runtime failed.
        """
        try:
            return dict(zip(self.tensors, self._session.run(self.tensors, dict(feed))))
        except _exceptions(self._ort) as error:
            raise _cannot_run(self._ort, self._name, error) from error


def runtime_version() -> str:
    """The version of ONNX Runtime.

    Raises:
        MissingPackage: It is not installed.
    """
    return str(_onnxruntime().__version__)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackage(
            f"onnxruntime cannot be imported: {error}", "install it with: pip install onnxruntime"
        ) from error
    onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime


def _open_session(ort: Any, model: Union[str, bytes], name: str, threads: int = 1) -> Any:
    """A session of the model in a file or in memory.

    Raises:
        ModelError: It is damaged, or ONNX Runtime cannot run it.
    """
    try:
        return ort.InferenceSession(model, sess_options=_options(ort, threads), providers=["CPUExecutionProvider"])
    except ort.capi.onnxruntime_pybind11_state.InvalidProtobuf as error:
        raise ModelError(
            f"{name}: damaged or no ONNX file: {_first_line(error)}",
            "fetch or export it again; 'edge-agent model inspect' helps",
        ) from error
    except _exceptions(ort) as error:
        raise _cannot_run(ort, name, error) from error


def _signature(session: Any) -> Signature:
    inputs, outputs = (tuple(map(_tensor, tensors)) for tensors in (session.get_inputs(), session.get_outputs()))
    return Signature(inputs, outputs)


def _tensor(entry: Any) -> Tensor:
    """A NodeArg. Its type is like "tensor(float)"; its shape is [] also where the model states none."""
    dtype = entry.type[len("tensor(") : -1] if entry.type.startswith("tensor(") else entry.type
    shape = tuple(dim or "?" for dim in entry.shape)
    return Tensor(entry.name, _DTYPES.get(dtype, dtype), shape or None)


def _run(ort: Any, session: Any, name: str, feed: Mapping[str, Array]) -> Dict[str, Array]:
    outputs = [tensor.name for tensor in session.get_outputs()]
    try:
        answers: List[Array] = session.run(outputs, dict(feed))
    except _exceptions(ort) as error:
        raise _cannot_run(ort, name, error) from error
    invalid = [output for output, answer in zip(outputs, answers) if not np.isfinite(answer).all()]
    if invalid:
        raise ModelError(f"{name}: its outputs hold NaN or infinity: {', '.join(invalid)}", "the file is damaged")
    return dict(zip(outputs, answers))


def _cannot_run(ort: Any, name: str, error: BaseException) -> ModelError:
    message = f"{name}: ONNX Runtime {ort.__version__} cannot run it: {_first_line(error)}"
    return ModelError(message, "inspect it with: edge-agent model inspect FILE")


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Between camera frames, spinning threads take 3.5 times the CPU time of the work itself.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _exceptions(ort: Any) -> Tuple[Type[BaseException], ...]:
    """ONNX Runtime's exceptions, which have no common base class."""
    names = vars(ort.capi.onnxruntime_pybind11_state).values()
    own = [entry for entry in names if isinstance(entry, type) and issubclass(entry, Exception)]
    return (*own, RuntimeError, ValueError)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
