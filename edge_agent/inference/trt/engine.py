"""Runs a network with TensorRT in this process."""

from typing import Any, Dict, Mapping, Optional

import numpy as np

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.ports import BufferPool
from edge_agent.core.types import Array, EngineInfo
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.context import CudaContext, DeviceBuffer, PinnedBuffer
from edge_agent.inference.cuda.pool import CudaBufferPool
from edge_agent.inference.cuda.preprocess import CudaPreprocessor, DeviceTensor
from edge_agent.inference.trt.api import Logger, Shape, TensorRT, create
from edge_agent.inference.trt.precision import count_layers
from edge_agent.inference.trt.runners import Runner, load_plan
from edge_agent.models.onnx.binding import Binding


class LoadedPlan:
    """A deserialised plan: TensorRT's runtime, engine and execution context.

    Args:
        trt: The module `tensorrt`.
        logger: TensorRT's logger.
        cuda: The GPU; call `free` before closing it.
        plan: The serialised engine.
        binding: Names of the network's tensors.
        dla_core: Deep learning accelerator that the plan was built for, or None.

    Raises:
        EngineError: TensorRT rejects the plan, or there is no memory.
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
        self._trt, self._cuda = trt, cuda
        self._runtime: Any = None
        self._engine: Any = None
        self._runner: Optional[Runner] = None
        names = [binding.input, *binding.outputs.values()]
        with cuda.current("loading the engine"):
            try:
                self._runtime = create(trt.Runtime, logger)
                if dla_core is not None:
                    self._runtime.DLA_core = dla_core
                self._engine, self._runner = load_plan(trt, self._runtime, plan, logger, names)
            except EngineError as error:
                self._runtime = None
                # Its frames refer to objects of TensorRT, which must be released while the CUDA context is current.
                raise error.with_traceback(None) from None
        cuda.track(self)

    @property
    def runner(self) -> Runner:
        """Adapter that runs the engine, until `free`."""
        if self._runner is None:
            raise EngineError("TensorRT: an engine was used after it was freed")
        return self._runner

    def layers(self) -> Dict[str, int]:
        """Count of layers by precision; empty when TensorRT does not report it."""
        with self._cuda.current("inspecting the engine"):
            inspector = self._engine.create_engine_inspector()
            if inspector is None:
                return {}
            return count_layers(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def free(self) -> None:
        """Unload the plan; no enqueued work may still use it. Idempotent."""
        if self._runner is None:
            return
        with self._cuda.current("unloading the engine"):
            # TensorRT frees an object with its last reference: first the context, then the engine, then the runtime.
            self._runner.free()
            self._runner = None
            self._engine = None
            self._runtime = None
            self._cuda.untrack(self)


class TensorRtEngine:
    """One model on the GPU. Owned, called and closed by the thread that created its CUDA context.

    Args:
        cuda: The GPU; closed with this engine.
        plan: The deserialised plan.
        preprocess: Fills the network's input.
        binding: Names of the network's tensors.
        contract: Meaning of the tensors.
        info: Facts that are published of the engine.
    """

    def __init__(
        self,
        cuda: CudaContext,
        plan: LoadedPlan,
        preprocess: CudaPreprocessor,
        binding: Binding,
        contract: ModelContract,
        info: EngineInfo,
    ) -> None:
        self.info = info
        self.contract = contract
        self.pool: Optional[BufferPool] = CudaBufferPool(cuda)
        self._cuda, self._plan, self._preprocess, self._binding = cuda, plan, preprocess, binding
        self._shape: Optional[Shape] = None
        # The engine writes all outputs, also those that the contract does not name.
        self._outputs = {name: _Output(cuda) for name in plan.runner.outputs}

    def infer(self, image: Image) -> Mapping[str, Array]:
        """Raw outputs by role of the model contract, without the batch axis; float32, valid until the next call.

        Raises:
            EngineError: CUDA or TensorRT failed, or an output holds NaN or infinity.
        """
        return self.run(self.prepare(image))

    def prepare(self, image: Image) -> DeviceTensor:
        """The first half of `infer`: enqueue the preprocessing; the input, valid until the next call."""
        return self._preprocess(image)

    def run(self, tensor: DeviceTensor) -> Mapping[str, Array]:
        """The second half of `infer`, on the input of `prepare`; may be repeated. Waits for the result."""
        runner = self._plan.runner
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
        outputs = {role: self._outputs[name].values[0] for role, name in self._binding.outputs.items()}
        for role, values in outputs.items():
            if not np.isfinite(values).all():
                raise EngineError(f"model {self.info.model}: its {role} output holds NaN or infinity")
        return outputs

    def layers(self) -> Dict[str, int]:
        """Count of layers by precision; empty when TensorRT does not report it."""
        return self._plan.layers()

    def free(self) -> None:
        """Free the engine; keep the preprocessing and the CUDA context. Idempotent.

        Raises:
            EngineError: CUDA failed.
        """
        self._cuda.wait()
        for output in self._outputs.values():
            output.free()
        self._plan.free()

    def close(self) -> None:
        """Free everything, the CUDA context included. Idempotent."""
        # The GPU may have failed; the context then frees its resources, newest first.
        self._outputs.clear()
        self._cuda.close()


class _Output:
    """Memory of one output; grows with the largest shape so far.

    An integrated GPU writes into page-locked host memory; another one writes into its own, from which it is copied.
    """

    def __init__(self, cuda: CudaContext) -> None:
        self._cuda = cuda
        self._pinned: Optional[PinnedBuffer] = None
        self._device_memory: Optional[DeviceBuffer] = None
        self._shape: Shape = ()
        self._nbytes = 0

    @property
    def pointer(self) -> int:
        """Device pointer that the engine writes to."""
        buffer = self._pinned if self._device_memory is None else self._device_memory
        return buffer.pointer if buffer is not None else 0

    @property
    def values(self) -> Array:
        """The output, float32, batch axis included; valid once the stream has been waited for."""
        if self._pinned is None:
            raise EngineError("TensorRT: an output was read before it had a shape")
        return self._pinned.array[: self._nbytes].view(np.float32).reshape(self._shape)

    def reshape(self, shape: Shape) -> None:
        """Allocate memory for `shape`; no enqueued work may still use the output."""
        self._shape, self._nbytes = shape, 4 * int(np.prod(shape))
        if self._pinned is not None and self._pinned.nbytes >= self._nbytes:
            return
        self.free()
        self._pinned = self._cuda.pinned(self._nbytes)
        self._device_memory = None if self._cuda.integrated else self._cuda.device_buffer(self._nbytes)

    def fetch(self) -> None:
        """Enqueue the copy to the CPU, where one is needed."""
        if self._device_memory is not None and self._pinned is not None:
            self._cuda.download(self._pinned.array[: self._nbytes], self._device_memory.pointer)

    def free(self) -> None:
        """Free the memory; no enqueued work may still use it. Idempotent."""
        for buffer in (self._pinned, self._device_memory):
            if buffer is not None:
                buffer.free()
        self._pinned = self._device_memory = None
