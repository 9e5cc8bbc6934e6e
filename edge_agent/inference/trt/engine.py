"""Networks on an NVIDIA GPU by TensorRT."""

from typing import Any, Mapping, Optional

import numpy as np

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.ports import BufferPool
from edge_agent.core.types import Array, EngineInfo
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.context import CudaContext, DeviceBuffer, PinnedBuffer
from edge_agent.inference.cuda.pool import CudaBufferPool
from edge_agent.inference.cuda.preprocess import CudaPreprocessor, DeviceTensor
from edge_agent.inference.trt.api import Logger, Shape, TensorRT, started
from edge_agent.inference.trt.runners import Runner, load_plan
from edge_agent.models.onnx.binding import Binding


class Loaded:
    """A deserialised engine and all of TensorRT that must live as long.

    Args:
        trt: The module.
        logger: For what goes wrong.
        cuda: The GPU; `free` this before it.
        plan: The serialised engine.
        binding: Names of its tensors.
        dla_core: The accelerator that it was built for, or None.

    Raises:
        EngineError: TensorRT does not take the plan, or there is no memory.
    """

    def __init__(
        self,
        trt: TensorRT,
        logger: Logger,
        cuda: CudaContext,
        plan: bytes,
        binding: Binding,
        dla_core: Optional[int] = None,
    ) -> None:
        self._cuda = cuda
        self._runtime: Any = None
        self._engine: Any = None
        self._runner: Optional[Runner] = None
        names = [binding.input, *binding.outputs.values()]
        with cuda.current("loading the engine"):
            try:
                self._runtime = started(trt.Runtime, logger)
                if dla_core is not None:
                    self._runtime.DLA_core = dla_core
                self._engine, self._runner = load_plan(trt, self._runtime, plan, logger, names)
            except EngineError as error:
                self._runtime = None
                # Its frames hold objects of TensorRT, which must go while the CUDA context is current.
                raise error.with_traceback(None) from None
        cuda.track(self)

    @property
    def runner(self) -> Runner:
        """Runs it, for as long as it is not freed."""
        if self._runner is None:
            raise EngineError("TensorRT: an engine was used after it was freed")
        return self._runner

    @property
    def engine(self) -> Any:
        """The `tensorrt.ICudaEngine`."""
        return self._engine

    def free(self) -> None:
        """Idempotent; nothing may be under way."""
        if self._runner is None:
            return
        with self._cuda.current("unloading the engine"):
            # TensorRT frees with the last reference: the context before the engine before the runtime.
            self._runner.free()
            self._runner = None
            self._engine = None
            self._runtime = None
            self._cuda.untrack(self)


class TensorRtEngine:
    """One model on the GPU. Owned, called and closed by the thread that made its CUDA context.

    Args:
        cuda: The GPU; closed with this.
        loaded: The engine.
        preprocess: Fills its input.
        binding: Names of its tensors.
        contract: What they mean.
        info: What runs.
    """

    def __init__(
        self,
        cuda: CudaContext,
        loaded: Loaded,
        preprocess: CudaPreprocessor,
        binding: Binding,
        contract: ModelContract,
        info: EngineInfo,
    ) -> None:
        self.info = info
        self.contract = contract
        self.pool: Optional[BufferPool] = CudaBufferPool(cuda)
        self._cuda, self._loaded, self._preprocess, self._binding = cuda, loaded, preprocess, binding
        self._shape: Optional[Shape] = None
        # All that the engine writes needs a place, read or not.
        self._outputs = {name: _Output(cuda) for name in loaded.runner.outputs}

    def infer(self, picture: Image) -> Mapping[str, Array]:
        """Raw outputs by role (see `core.contract`), without the batch axis; float32, valid until the next call.

        Raises:
            EngineError: CUDA or TensorRT failed, or it answered with something that is no number.
        """
        return self.run(self.prepare(picture))

    def prepare(self, picture: Image) -> DeviceTensor:
        """The first half of `infer`: put the network's input on the stream; valid until the next call."""
        return self._preprocess(picture)

    def run(self, tensor: DeviceTensor) -> Mapping[str, Array]:
        """The second half of `infer`, of what `prepare` made; may be repeated. Waits for all."""
        runner = self._loaded.runner
        with self._cuda.current("running the network"):
            if tensor.shape != self._shape:
                self._cuda.wait()
                for name, shape in runner.reshape(tensor.shape).items():
                    self._outputs[name].reshape(shape)
                self._shape = tensor.shape
            pointers = {name: output.pointer for name, output in self._outputs.items()}
            pointers[self._binding.input] = tensor.pointer
            runner.enqueue(pointers, self._cuda.stream_handle)
            for name in self._binding.outputs.values():
                self._outputs[name].fetch()
            self._cuda.wait()
        answers = {role: self._outputs[name].values[0] for role, name in self._binding.outputs.items()}
        for role, values in answers.items():
            if not np.isfinite(values).all():
                raise EngineError(f"model {self.info.model}: its {role} output holds NaN or infinity")
        return answers

    def free(self) -> None:
        """Free all but the preprocessing and the CUDA context. Idempotent.

        Raises:
            EngineError: CUDA failed.
        """
        self._cuda.wait()
        for output in self._outputs.values():
            output.free()
        self._loaded.free()

    def close(self) -> None:
        """Free everything, the CUDA context included. Idempotent."""
        # In whatever state the GPU is: the context frees what it was given, newest first.
        self._outputs.clear()
        self._cuda.close()


class _Output:
    """Where the GPU puts an output and the CPU reads it; grows with the largest so far.

    An integrated GPU writes into page-locked memory of the host; another one into its own, from where it is copied.
    """

    def __init__(self, cuda: CudaContext) -> None:
        self._cuda = cuda
        self._pinned: Optional[PinnedBuffer] = None
        self._remote: Optional[DeviceBuffer] = None
        self._shape: Shape = ()
        self._nbytes = 0

    @property
    def pointer(self) -> int:
        """For the GPU."""
        place = self._pinned if self._remote is None else self._remote
        return place.pointer if place is not None else 0

    @property
    def values(self) -> Array:
        """The output, float32, batch axis included, once the stream has come so far."""
        if self._pinned is None:
            raise EngineError("TensorRT: an output was read before it had a shape")
        return self._pinned.array[: self._nbytes].view(np.float32).reshape(self._shape)

    def reshape(self, shape: Shape) -> None:
        """Make room; nothing may be under way."""
        self._shape, self._nbytes = shape, 4 * int(np.prod(shape))
        if self._pinned is not None and self._pinned.nbytes >= self._nbytes:
            return
        self.free()
        self._pinned = self._cuda.pinned(self._nbytes)
        self._remote = None if self._cuda.integrated else self._cuda.device_buffer(self._nbytes)

    def fetch(self) -> None:
        """Enqueue what brings the values to the CPU."""
        if self._remote is not None and self._pinned is not None:
            self._cuda.download(self._pinned.array[: self._nbytes], self._remote.pointer)

    def free(self) -> None:
        """Idempotent; nothing may be under way."""
        for buffer in (self._pinned, self._remote):
            if buffer is not None:
                buffer.free()
        self._pinned = self._remote = None
