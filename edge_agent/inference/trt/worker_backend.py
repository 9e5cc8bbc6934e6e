"""TensorRT 8 of another interpreter, in a worker process; JetPack 4's bindings are for Python 3.6 only.

Preprocessing runs on the CPU and writes to memory that both processes map; the worker copies it to the GPU. Hence no
kernel has to be compiled, and pycuda is not needed. UFF models are built from their ONNX form.
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
from edge_agent.inference.trt.build import BuildParams, build_error
from edge_agent.inference.trt.network import Network
from edge_agent.inference.trt.precision import Capabilities, count_layers
from edge_agent.inference.trt.process import WorkerError, WorkerProcess
from edge_agent.models.calibration_cache import CALIBRATORS, fitted

_log = logging.getLogger(__name__)

_RUN_LIMIT_S = 10.0
_LOAD_LIMIT_S = 120.0
_BUILD_LIMIT_S = 4 * 3600.0  # a Nano needs most of an hour for large networks


class WorkerTensorRt:
    """A `TensorRtBackend` in a worker process, which is closed with it."""

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
        hello = self._worker.hello
        return Capabilities(self.gpu, hello["int8"], hello["fp16"], fixed=False)

    def prepare(self, network: Network, interpolation: str, directory: Path) -> None:
        self._preprocess = Preprocessor(network.contract, interpolation)

    def build(self, network: Network, params: BuildParams) -> bytes:
        if params.dla_core is not None:
            raise ModelError(
                "a DLA core was asked for, but TensorRT's worker process uses the GPU only", "unset dla_core"
            )
        cache, calibrator = b"", None
        try:
            parsed, _ = self._worker.request("parse", _LOAD_LIMIT_S, network.onnx)
            if params.calibration is not None:
                white = 255.0 * network.contract.gain
                cache = fitted(params.calibration, parsed["tensors"], network.binding.input, white, self.version)
                calibrator = CALIBRATORS[params.calibration.algorithm]
            _, plan = self._worker.request(
                "build",
                _BUILD_LIMIT_S,
                cache,
                precision=params.precision,
                workspace_bytes=params.workspace_bytes,
                shapes=network.shapes,
                calibrator=calibrator,
            )
        except WorkerError as error:
            raise self._build_error(error, network.name) from error
        return plan

    def load(self, plan: bytes, network: Network, params: BuildParams, info: EngineInfo) -> "WorkerEngine":
        if self._preprocess is None:
            raise EngineError("TensorRT: an engine was loaded before its preprocessing was prepared")
        tensors = [network.binding.input, *network.binding.outputs.values()]
        try:
            loaded, _ = self._worker.request("load", _LOAD_LIMIT_S, plan, tensors=tensors)
        except WorkerError as error:
            raise EngineError(error.reason, hint_for(error.reason)) from error
        return WorkerEngine(self._worker, self._preprocess, network, info, loaded["layers"])

    def close(self) -> None:
        self._worker.close()

    def _build_error(self, error: WorkerError, name: str) -> EdgeAgentError:
        if error.kind == "build":
            return build_error(self.version, name, error.reason)
        if error.kind == "model":
            return ModelError(
                f"model {name}: TensorRT {self.version} cannot build it: {error.reason}",
                "export it with an older ONNX opset, or run it with backend onnxruntime",
            )
        return EngineError(error.reason, hint_for(error.reason))


class WorkerEngine:
    """One model in a worker process. Owned, called and closed by one thread.

    Args:
        worker: The process, which has loaded the engine; closed with this engine.
        preprocess: Fills the network's input.
        network: The network.
        info: Facts that are published of the engine.
        inspection: TensorRT's report of the layers, JSON; may be empty.
    """

    def __init__(
        self, worker: WorkerProcess, preprocess: Preprocessor, network: Network, info: EngineInfo, inspection: str
    ) -> None:
        self.info = info
        self._inspection = inspection
        self.contract: ModelContract = network.contract
        self.pool: Optional[BufferPool] = None
        self._worker, self._preprocess, self._binding = worker, preprocess, network.binding
        self._shape: Optional[Tuple[int, ...]] = None
        self._input: Optional[Array] = None
        self._outputs: Dict[str, Array] = {}

    def infer(self, image: Image) -> Mapping[str, Array]:
        """Raw outputs by role of the model contract, without the batch axis; float32, valid until the next call.

        Raises:
            EngineError: The worker has ended or is late, CUDA or TensorRT failed, or an output holds NaN or infinity.
        """
        return self.run(self.prepare(image))

    def prepare(self, image: Image) -> Array:
        """The first half of `infer`: the network's input, valid until the next call."""
        return self._preprocess(image)

    def run(self, tensor: Array) -> Mapping[str, Array]:
        """The second half of `infer`, on the input of `prepare`; may be repeated."""
        try:
            if tensor.shape != self._shape or self._input is None:
                self._input = self._reshape(tensor.shape)
            np.copyto(self._input, tensor)
            self._worker.request("run", _RUN_LIMIT_S)
        except WorkerError as error:
            raise EngineError(error.reason, hint_for(error.reason)) from error
        outputs = {role: self._outputs[name][0] for role, name in self._binding.outputs.items()}
        for role, values in outputs.items():
            if not np.isfinite(values).all():
                raise EngineError(f"model {self.info.model}: its {role} output holds NaN or infinity")
        return outputs

    def layers(self) -> Dict[str, int]:
        """Count of layers by precision; empty when TensorRT does not report it."""
        return count_layers(self._inspection)

    def free(self) -> None:
        """Free the engine and keep the worker. A failure is only logged; most often, an earlier failure caused it."""
        self._shape = self._input = None
        self._outputs = {}
        try:
            self._worker.request("unload", _LOAD_LIMIT_S)
        except (WorkerError, EngineError) as error:
            _log.warning("freeing the engine: %s", error)

    def close(self) -> None:
        """End the worker. Idempotent."""
        self._shape = self._input = None
        self._outputs = {}
        self._worker.close()

    def _reshape(self, shape: Tuple[int, ...]) -> Array:
        """Set the input's shape; the array in shared memory that holds the input."""
        self._shape = None
        answer, _ = self._worker.request("shape", _RUN_LIMIT_S, shape=shape)
        tensors = {
            name: self._worker.tensor(place["offset"], tuple(place["shape"]), answer["nbytes"])
            for name, place in answer["places"].items()
        }
        self._shape, self._outputs = shape, tensors
        return tensors.pop(self._binding.input)


def open_worker(python: str) -> WorkerTensorRt:
    """Start TensorRT 8 in the interpreter `python`, a name or path.

    Raises:
        MissingPackage: The interpreter does not exist, or lacks TensorRT or the driver.
        EngineError: The GPU or the worker does not answer.
    """
    return WorkerTensorRt(WorkerProcess(python))
