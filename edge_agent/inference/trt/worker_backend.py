"""TensorRT 8 of another interpreter, in a worker process: JetPack 4's bindings are for Python 3.6 only.

Pictures are made the network's input on the CPU, straight into memory that both processes map; the worker copies it to
the GPU. So no kernel has to be compiled, and pycuda is not needed. UFF files are built from their ONNX form.
"""

import logging
from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple

import numpy as np

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.ports import BufferPool
from edge_agent.core.types import Array, EngineInfo
from edge_agent.errors import EdgeAgentError, EngineError, ModelError
from edge_agent.inference.cuda.driver import hint_for
from edge_agent.inference.preprocess import Preprocessor
from edge_agent.inference.trt.build import BuildParams, failed
from edge_agent.inference.trt.network import Network
from edge_agent.inference.trt.precision import Capabilities, count_layers
from edge_agent.inference.trt.process import WorkerError, WorkerProcess
from edge_agent.models.calibration_cache import CALIBRATORS, fitted

_log = logging.getLogger(__name__)

_RUN_LIMIT_S = 10.0
_LOAD_LIMIT_S = 120.0
_BUILD_LIMIT_S = 4 * 3600.0  # large networks take a Nano the better part of an hour


class WorkerTensorRt:
    """A `trt.place.TensorRtBackend` in a worker process.

    Args:
        worker: The process; closed with this.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        hello = worker.hello
        self.version: str = hello["tensorrt"]
        self.gpu: str = hello["gpu"]
        self.sm: str = hello["sm"]
        self.multiprocessors: int = hello["multiprocessors"]
        self.cuda_version: str = hello["cuda"]
        self.worker: Optional[str] = worker.python
        self._worker = worker
        self._preprocess: Optional[Preprocessor] = None

    def capabilities(self) -> Capabilities:
        """See `TensorRtBackend`."""
        hello = self._worker.hello
        return Capabilities(self.gpu, hello["int8"], hello["fp16"], fixed=False)

    def prepare(self, network: Network, interpolation: str, directory: Path) -> None:
        """See `TensorRtBackend`."""
        self._preprocess = Preprocessor(network.contract, interpolation)

    def build(self, network: Network, params: BuildParams) -> bytes:
        """See `TensorRtBackend`."""
        if params.dla_core is not None:
            raise ModelError(
                "a DLA core was asked for, but TensorRT's worker process uses the GPU only", "unset dla_core"
            )
        cache, calibrator = b"", None
        try:
            parsed, _ = self._worker.ask("parse", _LOAD_LIMIT_S, network.onnx)
            if params.calibration is not None:
                white = 255.0 * network.contract.gain
                cache = fitted(params.calibration, parsed["tensors"], network.binding.input, white, self.version)
                calibrator = CALIBRATORS[params.calibration.algorithm]
            _, plan = self._worker.ask(
                "build",
                _BUILD_LIMIT_S,
                cache,
                precision=params.precision,
                workspace_bytes=params.workspace_bytes,
                shapes=network.shapes,
                calibrator=calibrator,
            )
        except WorkerError as error:
            raise self._error(error, network.name) from error
        return plan

    def load(self, plan: bytes, network: Network, params: BuildParams) -> "_WorkerPlan":
        """See `TensorRtBackend`."""
        if self._preprocess is None:
            raise EngineError("TensorRT: an engine was loaded before its preprocessing was prepared")
        tensors = [network.binding.input, *network.binding.outputs.values()]
        try:
            loaded, _ = self._worker.ask("load", _LOAD_LIMIT_S, plan, tensors=tensors)
        except WorkerError as error:
            raise EngineError(error.why, hint_for(error.why)) from error
        return _WorkerPlan(self._worker, self._preprocess, network, loaded["layers"])

    def close(self) -> None:
        """See `TensorRtBackend`."""
        self._worker.close()

    def _error(self, error: WorkerError, name: str) -> EdgeAgentError:
        if error.kind == "build":
            return failed(self.version, name, error.why)
        if error.kind == "model":
            return ModelError(
                f"model {name}: TensorRT {self.version} cannot build it: {error.why}",
                "export it with an older ONNX opset, or run it with backend onnxruntime",
            )
        return EngineError(error.why, hint_for(error.why))


class _WorkerPlan:
    def __init__(self, worker: WorkerProcess, preprocess: Preprocessor, network: Network, layers: str) -> None:
        self._worker, self._preprocess, self._network, self._layers = worker, preprocess, network, layers

    def layers(self) -> Dict[str, int]:
        return count_layers(self._layers)

    def engine(self, info: EngineInfo) -> "WorkerEngine":
        return WorkerEngine(self._worker, self._preprocess, self._network, info)


class WorkerEngine:
    """One model in a worker process. Owned, called and closed by one thread.

    Args:
        worker: The process, with the engine loaded; closed with this.
        preprocess: Makes the input.
        network: What runs.
        info: The same, for `B/info`.
    """

    def __init__(self, worker: WorkerProcess, preprocess: Preprocessor, network: Network, info: EngineInfo) -> None:
        self.info = info
        self.contract: ModelContract = network.contract
        self.pool: Optional[BufferPool] = None
        self._worker, self._preprocess, self._binding = worker, preprocess, network.binding
        self._shape: Optional[Tuple[int, ...]] = None
        self._input: Optional[Array] = None
        self._outputs: Dict[str, Array] = {}

    def infer(self, picture: Image) -> Mapping[str, Array]:
        """Raw outputs by role (see `core.contract`), without the batch axis; float32, valid until the next call.

        Raises:
            EngineError: The worker has died or is late, CUDA or TensorRT failed, or the answer is no number.
        """
        return self.run(self.prepare(picture))

    def prepare(self, picture: Image) -> Array:
        """The first half of `infer`: the network's input, valid until the next call."""
        return self._preprocess(picture)

    def run(self, tensor: Array) -> Mapping[str, Array]:
        """The second half of `infer`, of what `prepare` made; may be repeated."""
        try:
            if tensor.shape != self._shape or self._input is None:
                self._input = self._reshape(tensor.shape)
            np.copyto(self._input, tensor)
            self._worker.ask("run", _RUN_LIMIT_S)
        except WorkerError as error:
            raise EngineError(error.why, hint_for(error.why)) from error
        answers = {role: self._outputs[name][0] for role, name in self._binding.outputs.items()}
        for role, values in answers.items():
            if not np.isfinite(values).all():
                raise EngineError(f"model {self.info.model}: its {role} output holds NaN or infinity")
        return answers

    def free(self) -> None:
        """Free the engine, not the worker. A failure is only logged: it is mostly the echo of an earlier one."""
        self._shape = self._input = None
        self._outputs = {}
        try:
            self._worker.ask("unload", _LOAD_LIMIT_S)
        except (WorkerError, EngineError) as error:
            _log.warning("at the end: %s", error)

    def close(self) -> None:
        """End the worker. Idempotent."""
        self._shape = self._input = None
        self._outputs = {}
        self._worker.close()

    def _reshape(self, shape: Tuple[int, ...]) -> Array:
        """Take inputs of `shape` from now on; where they are to be put."""
        self._shape = None
        answer, _ = self._worker.ask("shape", _RUN_LIMIT_S, shape=shape)
        tensors = {
            name: self._worker.tensor(place["offset"], tuple(place["shape"]), answer["nbytes"])
            for name, place in answer["places"].items()
        }
        self._shape, self._outputs = shape, tensors
        return tensors.pop(self._binding.input)


def open_worker(python: str) -> WorkerTensorRt:
    """TensorRT 8 of another interpreter.

    Args:
        python: Name or path of the interpreter.

    Raises:
        MissingPackage: There is no such interpreter, or TensorRT or the driver is missing there.
        EngineError: No GPU answers, or the worker does not.
    """
    return WorkerTensorRt(WorkerProcess(python))
