"""The port of TensorRT and a GPU, and its implementation in this process; `worker_backend` has the other one."""

from pathlib import Path
from typing import Dict, Mapping, Optional, Protocol

from edge_agent.core.ports import Engine
from edge_agent.core.types import EngineInfo
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.compiler import KernelCache, find_nvcc
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.preprocess import CudaPreprocessor
from edge_agent.inference.trt.api import TensorRT, create, is_strongly_typed, new_logger
from edge_agent.inference.trt.build import BuildParams, build
from edge_agent.inference.trt.engine import LoadedPlan, TensorRtEngine
from edge_agent.inference.trt.network import Network
from edge_agent.inference.trt.precision import Capabilities, has_fast_int8


class ReplaceableEngine(Engine, Protocol):
    """An `Engine` that can be freed without its backend; `close` closes the backend too."""

    def layers(self) -> Dict[str, int]:
        """Count of layers by precision; empty when TensorRT does not report it."""

    def free(self) -> None:
        """Free the engine and keep the GPU context, so that another engine can be loaded. Idempotent."""


class TensorRtBackend(Protocol):
    """TensorRT and a GPU. Used and closed by one thread.

    Attributes:
        version: Version of TensorRT.
        gpu: Name of the GPU.
        sm: Compute capability, "87".
        multiprocessors: Count of the GPU's multiprocessors.
        cuda_version: Newest CUDA version that the driver runs.
        worker: Interpreter of the process that runs TensorRT; None when it is this process.
    """

    version: str
    gpu: str
    sm: str
    multiprocessors: int
    cuda_version: str
    worker: Optional[str]

    def capabilities(self) -> Capabilities:
        """The properties of GPU and TensorRT that decide the precision."""

    def prepare(self, network: Network, interpolation: str, directory: Path) -> None:
        """Create the preprocessing, so that its failures are found before a build of minutes.

        Args:
            network: The network to run.
            interpolation: How images are shrunk.
            directory: The agent's cache folder.

        Raises:
            MissingPackage, InputError, EngineError: The preprocessing cannot be created.
        """

    def build(self, network: Network, params: BuildParams) -> bytes:
        """A plan, as `trt.build.build` returns it."""

    def load(self, plan: bytes, network: Network, params: BuildParams, info: EngineInfo) -> ReplaceableEngine:
        """The engine of a plan; call `prepare` first.

        Raises:
            EngineError: TensorRT rejects the plan, or there is no memory.
        """

    def close(self) -> None:
        """Release the GPU. Idempotent."""


class LocalTensorRt:
    """The `TensorRtBackend` of this interpreter, with preprocessing on the GPU.

    Args:
        trt: The module `tensorrt`.
        cuda: The GPU, owned by this thread; closed with this object.
        environ: Names the folder of the CUDA compiler.

    Raises:
        EngineError: TensorRT does not work with this driver, or there is no memory.
    """

    worker: Optional[str] = None

    def __init__(self, trt: TensorRT, cuda: CudaContext, environ: Mapping[str, str]) -> None:
        self.version: str = trt.__version__
        self.gpu, self.sm, self.cuda_version = cuda.name, cuda.sm, cuda.cuda_version
        self.multiprocessors = cuda.multiprocessors
        self._trt, self._cuda = trt, cuda
        self._logger = new_logger(trt)
        self._environ = environ
        self._preprocess: Optional[CudaPreprocessor] = None
        with cuda.current("starting TensorRT"):
            create(trt.Runtime, self._logger)

    def capabilities(self) -> Capabilities:
        if is_strongly_typed(self._trt):
            return Capabilities(self.gpu, has_fast_int8(self.sm), fp16=True, fixed=True)
        with self._cuda.current("reading the GPU's precisions"):
            builder = create(self._trt.Builder, self._logger)
            return Capabilities(
                self.gpu, bool(builder.platform_has_fast_int8), bool(builder.platform_has_fast_fp16), fixed=False
            )

    def prepare(self, network: Network, interpolation: str, directory: Path) -> None:
        kernels = KernelCache(directory, lambda: find_nvcc(self._environ))
        self._preprocess = CudaPreprocessor(self._cuda, kernels, network.contract, interpolation)

    def build(self, network: Network, params: BuildParams) -> bytes:
        with self._cuda.current("building the engine"):
            return build(self._trt, self._logger, network, params)

    def load(self, plan: bytes, network: Network, params: BuildParams, info: EngineInfo) -> TensorRtEngine:
        if self._preprocess is None:
            raise EngineError("TensorRT: an engine was loaded before its preprocessing was prepared")
        loaded = LoadedPlan(self._trt, self._logger, self._cuda, plan, network.binding, params.dla_core)
        return TensorRtEngine(self._cuda, loaded, self._preprocess, network.binding, network.contract, info)

    def close(self) -> None:
        self._cuda.close()
