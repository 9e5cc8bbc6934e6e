"""Where TensorRT runs: in this process, or in a worker's (`trt.remote`). Same network, same proof, same cache."""

from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Protocol

from edge_agent.core.ports import Engine
from edge_agent.core.types import EngineInfo
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.compiler import KernelCache, find_nvcc
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.preprocess import CudaPreprocessor
from edge_agent.inference.trt.api import TensorRT, is_strongly_typed, logger_of, started
from edge_agent.inference.trt.build import BuildParams, build
from edge_agent.inference.trt.engine import Loaded, TensorRtEngine
from edge_agent.inference.trt.network import Network
from edge_agent.inference.trt.precision import Capabilities, count_layers, has_fast_int8


class ReplaceableEngine(Engine, Protocol):
    """An `Engine` on trial; `close` frees the place too."""

    def free(self) -> None:
        """Free all but the place, in which another is to be built. Idempotent."""


class LoadedPlan(Protocol):
    """A plan that TensorRT has taken."""

    def layers(self) -> Dict[str, int]:
        """How many layers compute in what; empty where it keeps no account."""

    def engine(self, info: EngineInfo) -> ReplaceableEngine:
        """It at work, once."""


class TensorRtBackend(Protocol):
    """TensorRT and a GPU. Used and closed by one thread.

    Attributes:
        version: TensorRT's.
        gpu: Name.
        sm: Compute capability, "87".
        multiprocessors: How many the GPU has.
        cuda_version: The newest CUDA that the driver runs.
        worker: Interpreter of the process that runs TensorRT, or None when it is this one.
    """

    version: str
    gpu: str
    sm: str
    multiprocessors: int
    cuda_version: str
    worker: Optional[str]

    def capabilities(self) -> Capabilities:
        """What decides the precision."""

    def prepare(self, network: Network, interpolation: str, directory: Path) -> None:
        """Take what the network needs besides its engine, before the minutes that a build takes.

        Args:
            network: What is to run.
            interpolation: How pictures shrink.
            directory: The agent's cache folder.

        Raises:
            MissingPackage, InputError, EngineError: It is not to be had.
        """

    def build(self, network: Network, params: BuildParams) -> bytes:
        """A plan; see `trt.build.build`."""

    def load(self, plan: bytes, network: Network, params: BuildParams) -> LoadedPlan:
        """TensorRT's engine of a plan, after `prepare`.

        Raises:
            EngineError: TensorRT does not take it, or there is no memory.
        """

    def close(self) -> None:
        """Give the GPU back. Idempotent."""


class LocalTensorRt:
    """TensorRT of this interpreter, fed by the preprocess kernel.

    Args:
        trt: The module `tensorrt`.
        cuda: The GPU, owned by this thread; closed with this.
        environ: For finding the CUDA compiler.

    Raises:
        EngineError: TensorRT does not work with this driver, or there is no memory.
    """

    worker: Optional[str] = None

    def __init__(self, trt: TensorRT, cuda: CudaContext, environ: Mapping[str, str]) -> None:
        self.version: str = trt.__version__
        self.gpu, self.sm, self.cuda_version = cuda.name, cuda.sm, cuda.cuda_version
        self.multiprocessors = cuda.multiprocessors
        self._trt, self._cuda = trt, cuda
        self._logger = logger_of(trt)
        self._environ = environ
        self._preprocess: Optional[CudaPreprocessor] = None
        with cuda.current("starting TensorRT"):
            started(trt.Runtime, self._logger)

    def capabilities(self) -> Capabilities:
        """See `TensorRtBackend`."""
        if is_strongly_typed(self._trt):
            return Capabilities(self.gpu, has_fast_int8(self.sm), fp16=True, fixed=True)
        with self._cuda.current("asking the GPU for its precisions"):
            builder = started(self._trt.Builder, self._logger)
            return Capabilities(
                self.gpu, bool(builder.platform_has_fast_int8), bool(builder.platform_has_fast_fp16), fixed=False
            )

    def prepare(self, network: Network, interpolation: str, directory: Path) -> None:
        """See `TensorRtBackend`: the kernel is compiled here."""
        kernels = KernelCache(directory, lambda: find_nvcc(self._environ))
        self._preprocess = CudaPreprocessor(self._cuda, kernels, network.contract, interpolation)

    def build(self, network: Network, params: BuildParams) -> bytes:
        """See `TensorRtBackend`."""
        with self._cuda.current("building the engine"):
            return build(self._trt, self._logger, network, params)

    def load(self, plan: bytes, network: Network, params: BuildParams) -> "_LocalPlan":
        """See `TensorRtBackend`."""
        if self._preprocess is None:
            raise EngineError("TensorRT: an engine was loaded before its preprocessing was prepared")
        loaded = Loaded(self._trt, self._logger, self._cuda, plan, network.binding, params.dla_core)
        return _LocalPlan(self._trt, self._cuda, loaded, self._preprocess, network)

    def close(self) -> None:
        """See `TensorRtBackend`."""
        self._cuda.close()


class _LocalPlan:
    def __init__(
        self, trt: Any, cuda: CudaContext, loaded: Loaded, preprocess: CudaPreprocessor, network: Network
    ) -> None:
        self._trt, self._cuda, self._loaded, self._preprocess, self._network = trt, cuda, loaded, preprocess, network

    def layers(self) -> Dict[str, int]:
        with self._cuda.current("asking the engine for its layers"):
            inspector = self._loaded.engine.create_engine_inspector()
            if inspector is None:
                return {}
            return count_layers(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def engine(self, info: EngineInfo) -> TensorRtEngine:
        network = self._network
        return TensorRtEngine(self._cuda, self._loaded, self._preprocess, network.binding, network.contract, info)
