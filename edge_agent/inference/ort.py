"""Networks on the CPU by ONNX Runtime."""

import hashlib
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type

import numpy as np

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.ports import BufferPool
from edge_agent.core.types import Array, EngineInfo
from edge_agent.errors import EngineError, MissingPackage, ModelError
from edge_agent.inference.preprocess import Preprocessor, golden_image
from edge_agent.models.onnx.binding import bind, require
from edge_agent.models.onnx.file import parse_onnx, read_model

_FATAL = 4  # ONNX Runtime's own log lines would only repeat what our errors say


class OrtEngine:
    """One ONNX model on CPU cores. Owned and called by one thread.

    Args:
        path: The ONNX file.
        contract: What it must keep; `onnx.contract.derive` reads it off the file.
        threads: Cores that work on one picture.
        interpolation: See `Preprocessor`.
        name: What to call the model; the file's name when None.
        sha256: Hex sum that the file must have; any when None.

    Raises:
        MissingPackage: onnxruntime is not installed.
        ModelError: The file cannot be read, is damaged, keeps another contract, or does not run.
    """

    def __init__(
        self,
        path: Path,
        contract: ModelContract,
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
        model = parse_onnx(data, str(path))
        del data  # as large as all weights: ONNX Runtime reads its own copy
        require(model, str(path), contract)
        binding = bind(model, str(path))
        ort = _onnxruntime()
        self.contract = contract
        self.pool: Optional[BufferPool] = None
        self._faults = _faults(ort)
        self._input = binding.input
        self._roles = tuple(binding.outputs)
        self._outputs = [binding.outputs[role] for role in self._roles]
        self._preprocess = Preprocessor(contract, interpolation)
        self.info = EngineInfo(
            backend="onnxruntime",
            precision=model.precision,
            model=name or path.name,
            model_sha256=digest,
            detail={"version": ort.__version__, "threads": threads, "resizer": self._preprocess.resizer},
        )
        refusals: Tuple[Type[BaseException], ...] = (*self._faults, EngineError)
        try:
            self._session: Any = ort.InferenceSession(
                str(path), sess_options=_options(ort, threads), providers=["CPUExecutionProvider"]
            )
            self.infer(golden_image())
        except refusals as error:
            raise ModelError(
                f"model {path}: ONNX Runtime {ort.__version__} cannot run it: {_first_line(error)}",
                "look into it with: edge-agent model inspect FILE",
            ) from error

    def infer(self, picture: Image) -> Mapping[str, Array]:
        """Raw outputs by role (see `core.contract`), without the batch axis.

        Raises:
            EngineError: The runtime failed, or answered with something that is no number.
        """
        return self.run(self.prepare(picture))

    def prepare(self, picture: Image) -> Array:
        """The first half of `infer`: the network's input, valid until the next call."""
        return self._preprocess(picture)

    def run(self, tensor: Array) -> Mapping[str, Array]:
        """The second half of `infer`, of what `prepare` made; may be repeated."""
        if self._session is None:
            raise EngineError(f"model {self.info.model}: used after it was closed")
        try:
            answers = self._session.run(self._outputs, {self._input: tensor})
        except self._faults as error:
            raise EngineError(f"model {self.info.model}: ONNX Runtime failed: {_first_line(error)}") from error
        outputs: Dict[str, Array] = {role: answer[0] for role, answer in zip(self._roles, answers)}
        for role, values in outputs.items():
            if not np.isfinite(values).all():
                raise EngineError(f"model {self.info.model}: its {role} output holds NaN or infinity")
        return outputs

    def close(self) -> None:
        """Free the session. Idempotent."""
        self._session = None


def try_out(data: bytes, name: str) -> Dict[str, Tuple[int, ...]]:
    """Run a float model once, on noise and with 1 for every free dim: the shapes of its outputs by name.

    Raises:
        MissingPackage: onnxruntime is not installed.
        ModelError: It does not run, or answers NaN or infinity.
    """
    noise = np.random.default_rng(0)
    feed = {}
    for tensor in parse_onnx(data, name).inputs:
        shape = [dim if isinstance(dim, int) else 1 for dim in tensor.shape or ()]
        try:
            feed[tensor.name] = np.asarray(noise.random(shape)).astype(tensor.dtype)
        except TypeError as error:
            raise ModelError(f"{name}: takes {tensor}", "expected numbers") from error
    return {output: answer.shape for output, answer in answer_once(data, name, feed).items()}


def answer_once(data: bytes, name: str, feed: Mapping[str, Array]) -> Dict[str, Array]:
    """All outputs of a model by name, for one input by name.

    Raises:
        MissingPackage: onnxruntime is not installed.
        ModelError: It does not run, or answers NaN or infinity.
    """
    outputs = [tensor.name for tensor in parse_onnx(data, name).outputs]
    ort = _onnxruntime()
    try:
        session = ort.InferenceSession(data, sess_options=_options(ort, 1), providers=["CPUExecutionProvider"])
        answers: List[Array] = session.run(outputs, dict(feed))
    except _faults(ort) as error:
        raise ModelError(f"{name}: ONNX Runtime {ort.__version__} cannot run it: {_first_line(error)}") from error
    wild = [output for output, answer in zip(outputs, answers) if not np.isfinite(answer).all()]
    if wild:
        raise ModelError(f"{name}: answers NaN or infinity in {', '.join(wild)}", "the file is damaged")
    return dict(zip(outputs, answers))


class Probe:
    """Runs a network again and again, and answers all its float tensors.

    Args:
        data: The model, with its inner tensors among its outputs, of which the shape may be untold.
        name: Says in errors which file it is.

    Attributes:
        tensors: Names of the float32 outputs.

    Raises:
        MissingPackage: onnxruntime is not installed.
        ModelError: It does not run.
    """

    def __init__(self, data: bytes, name: str) -> None:
        ort = _onnxruntime()
        self._name, self._faults = f"{name}: ONNX Runtime {ort.__version__} cannot run it", _faults(ort)
        try:
            self._session: Any = ort.InferenceSession(
                data, sess_options=_options(ort, 1), providers=["CPUExecutionProvider"]
            )
        except self._faults as error:
            raise ModelError(f"{self._name}: {_first_line(error)}") from error
        self.tensors = [tensor.name for tensor in self._session.get_outputs() if tensor.type == "tensor(float)"]

    def __call__(self, feed: Mapping[str, Array]) -> Dict[str, Array]:
        """Values by name for one input by name.

        Raises:
            ModelError: The runtime failed.
        """
        try:
            return dict(zip(self.tensors, self._session.run(self.tensors, dict(feed))))
        except self._faults as error:
            raise ModelError(f"{self._name}: {_first_line(error)}") from error


def runtime_version() -> str:
    """Of ONNX Runtime.

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


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads burn 3.5 times the CPU of the work itself between camera frames.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _faults(ort: Any) -> Tuple[Type[BaseException], ...]:
    """ONNX Runtime's exceptions have no common parent of their own."""
    names = vars(ort.capi.onnxruntime_pybind11_state).values()
    own = [entry for entry in names if isinstance(entry, type) and issubclass(entry, Exception)]
    return (*own, RuntimeError, ValueError)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
