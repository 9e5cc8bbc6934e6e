"""One adapter per generation of TensorRT's execution: from shapes and pointers to work on a stream."""

from typing import Any, Dict, Mapping, Optional, Protocol, Sequence, Tuple

from edge_agent.errors import EngineError
from edge_agent.inference.cuda.driver import hint_for
from edge_agent.inference.trt.api import (
    BindingsContext,
    BindingsEngine,
    ImplicitContext,
    Logger,
    NamedContext,
    NamedEngine,
    Shape,
    TensorRT,
)


class Runner(Protocol):
    """An engine with its execution context. All calls inside the CUDA context, in its thread.

    Attributes:
        outputs: Names of the outputs, in the engine's order.
    """

    outputs: Tuple[str, ...]

    def reshape(self, shape: Shape) -> Dict[str, Shape]:
        """Take inputs of `shape` from now on; the outputs' shapes by name. Both with the batch axis.

        Raises:
            EngineError: The engine does not take such inputs.
        """

    def enqueue(self, pointers: Mapping[str, int], stream_handle: int) -> None:
        """Put one run on the stream, from and to device memory by tensor name.

        Raises:
            EngineError: TensorRT refused.
        """

    def free(self) -> None:
        """Let the execution context go, once, for good: frames of a raised error may hold this object longer."""


class ImplicitBatchRunner:
    """Engines made by the UFF parser: their shapes lack the batch axis and are fixed."""

    def __init__(self, engine: BindingsEngine, context: ImplicitContext, logger: Logger) -> None:
        self._context, self._logger = context, logger
        self._names = _binding_names(engine)
        self._shapes = {
            name: (1, *(int(dim) for dim in engine.get_binding_shape(index))) for index, name in enumerate(self._names)
        }
        self._input = _input_of(engine)
        self.outputs = tuple(name for name in self._names if name != self._input)

    def reshape(self, shape: Shape) -> Dict[str, Shape]:
        """See `Runner`."""
        if shape != self._shapes[self._input]:
            raise EngineError(f"the engine takes inputs of {self._shapes[self._input]}, not of {shape}")
        return {name: self._shapes[name] for name in self.outputs}

    def enqueue(self, pointers: Mapping[str, int], stream_handle: int) -> None:
        """See `Runner`."""
        self._logger.forget()
        if not self._context.execute_async(1, [pointers[name] for name in self._names], stream_handle):
            raise _refused(self._logger)

    def free(self) -> None:
        """See `Runner`."""
        del self._context


class BindingsRunner:
    """Engines with numbered bindings and an explicit batch axis."""

    def __init__(self, engine: BindingsEngine, context: BindingsContext, logger: Logger) -> None:
        self._context, self._logger = context, logger
        self._names = _binding_names(engine)
        self._input = self._names.index(_input_of(engine))
        self.outputs = tuple(name for index, name in enumerate(self._names) if index != self._input)

    def reshape(self, shape: Shape) -> Dict[str, Shape]:
        """See `Runner`."""
        self._logger.forget()
        if not self._context.set_binding_shape(self._input, shape):
            raise _misshapen(shape, self._logger)
        return {name: _known(name, self._context.get_binding_shape(self._names.index(name))) for name in self.outputs}

    def enqueue(self, pointers: Mapping[str, int], stream_handle: int) -> None:
        """See `Runner`."""
        self._logger.forget()
        if not self._context.execute_async_v2([pointers[name] for name in self._names], stream_handle):
            raise _refused(self._logger)

    def free(self) -> None:
        """See `Runner`."""
        del self._context


class NamedRunner:
    """Engines with named tensors."""

    def __init__(self, engine: NamedEngine, context: NamedContext, logger: Logger, input_mode: object) -> None:
        self._context, self._logger = context, logger
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == input_mode]
        self._input = _only(inputs)
        self.outputs = tuple(name for name in names if name != self._input)

    def reshape(self, shape: Shape) -> Dict[str, Shape]:
        """See `Runner`."""
        self._logger.forget()
        if not self._context.set_input_shape(self._input, shape):
            raise _misshapen(shape, self._logger)
        return {name: _known(name, self._context.get_tensor_shape(name)) for name in self.outputs}

    def enqueue(self, pointers: Mapping[str, int], stream_handle: int) -> None:
        """See `Runner`."""
        self._logger.forget()
        for name, pointer in pointers.items():
            if not self._context.set_tensor_address(name, pointer):
                raise _refused(self._logger)
        if not self._context.execute_async_v3(stream_handle):
            raise _refused(self._logger)

    def free(self) -> None:
        """See `Runner`."""
        del self._context


def load_plan(trt: TensorRT, runtime: Any, plan: bytes, logger: Logger, wanted: Sequence[str]) -> Tuple[Any, Runner]:
    """The engine in `plan`, and the adapter that fits it. Call it inside the CUDA context.

    Args:
        trt: The module.
        runtime: A `tensorrt.Runtime`, kept by the caller for as long as the engine.
        plan: A serialised engine.
        logger: The runtime's.
        wanted: Names of the tensors that it must have; all must be float32.

    Raises:
        EngineError: It is damaged, was made by another TensorRT or for another GPU or model, or there is no memory.
    """
    logger.forget()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise _fault(f"TensorRT {trt.__version__} does not take the engine", logger)
    types = _types(engine)
    odd = [name for name in wanted if types.get(name) != trt.DataType.FLOAT]
    if odd:
        raise EngineError(
            f"the engine is another model's: {', '.join(odd)} is missing or not float32", f"it has {', '.join(types)}"
        )
    context = engine.create_execution_context()
    if context is None:
        raise _fault("TensorRT made no execution context", logger)
    return engine, _runner(trt, engine, context, logger)


def _runner(trt: TensorRT, engine: Any, context: Any, logger: Logger) -> Runner:
    if _is_implicit(engine):
        return ImplicitBatchRunner(engine, context, logger)
    if hasattr(engine, "num_io_tensors"):
        return NamedRunner(engine, context, logger, trt.TensorIOMode.INPUT)
    return BindingsRunner(engine, context, logger)


def _is_implicit(engine: Any) -> bool:
    """Asked first: 8.5 and 8.6 have named tensors, too, but not for such engines."""
    return bool(getattr(engine, "has_implicit_batch_dimension", False))


def _types(engine: Any) -> Dict[str, object]:
    if hasattr(engine, "num_io_tensors") and not _is_implicit(engine):
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {name: engine.get_tensor_dtype(name) for name in names}
    return {engine.get_binding_name(index): engine.get_binding_dtype(index) for index in range(engine.num_bindings)}


def _binding_names(engine: BindingsEngine) -> Tuple[str, ...]:
    return tuple(engine.get_binding_name(index) for index in range(engine.num_bindings))


def _input_of(engine: BindingsEngine) -> str:
    inputs = [index for index in range(engine.num_bindings) if engine.binding_is_input(index)]
    return _only([engine.get_binding_name(index) for index in inputs])


def _only(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise EngineError(f"the engine has {len(names)} inputs, expected one")
    return names[0]


def _known(name: str, shape: Optional[Sequence[int]]) -> Shape:
    dims = tuple(int(dim) for dim in shape or ())
    if not dims or min(dims) < 1:
        raise EngineError(f"the engine does not know the shape of {name}: {dims}")
    return dims


def _misshapen(shape: Shape, logger: Logger) -> EngineError:
    return _fault(f"the engine takes no input of {shape}", logger)


def _refused(logger: Logger) -> EngineError:
    return _fault("TensorRT did not run the network", logger)


def _fault(what: str, logger: Logger) -> EngineError:
    why = logger.because()
    return EngineError(f"{what}: {why}", hint_for(why))
