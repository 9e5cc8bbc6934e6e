"""Executes engines: one adapter per generation of TensorRT's execution API."""

from typing import Any, Dict, Mapping, Optional, Protocol, Sequence, Tuple

from edge_agent.errors import EngineError
from edge_agent.inference.cuda.driver import hint_for
from edge_agent.inference.trt.api import Logger, Shape, TensorRT


class Runner(Protocol):
    """An execution context of an engine. Call it inside the CUDA context, in its thread.

    Attributes:
        outputs: Names of the outputs, in the engine's order.
    """

    outputs: Tuple[str, ...]

    def reshape(self, shape: Shape) -> Dict[str, Shape]:
        """Set the input's shape; the outputs' shapes by name. All have the batch axis.

        Raises:
            EngineError: The engine does not take inputs of this shape.
        """

    def enqueue(self, pointers: Mapping[str, int], stream_handle: int) -> None:
        """Enqueue one run; `pointers` are device pointers by tensor name.

        Raises:
            EngineError: TensorRT did not enqueue it.
        """

    def free(self) -> None:
        """Drop the execution context, even while frames of a raised error still refer to this object."""


class ImplicitBatchRunner:
    """Runs engines built from UFF, whose shapes are fixed and lack the batch axis."""

    def __init__(self, engine: Any, context: Any, logger: Logger) -> None:
        self._context, self._logger = context, logger
        self._names = _binding_names(engine)
        self._shapes = {
            name: (1, *(int(dim) for dim in engine.get_binding_shape(index))) for index, name in enumerate(self._names)
        }
        self._input = _input_of(engine)
        self.outputs = tuple(name for name in self._names if name != self._input)

    def reshape(self, shape: Shape) -> Dict[str, Shape]:
        if shape != self._shapes[self._input]:
            raise EngineError(f"the engine takes inputs of {self._shapes[self._input]}, not of {shape}")
        return {name: self._shapes[name] for name in self.outputs}

    def enqueue(self, pointers: Mapping[str, int], stream_handle: int) -> None:
        self._logger.clear()
        if not self._context.execute_async(1, [pointers[name] for name in self._names], stream_handle):
            raise _run_error(self._logger)

    def free(self) -> None:
        del self._context


class BindingsRunner:
    """Runs engines with numbered bindings and an explicit batch axis."""

    def __init__(self, engine: Any, context: Any, logger: Logger) -> None:
        self._context, self._logger = context, logger
        self._names = _binding_names(engine)
        self._input = self._names.index(_input_of(engine))
        self.outputs = tuple(name for index, name in enumerate(self._names) if index != self._input)

    def reshape(self, shape: Shape) -> Dict[str, Shape]:
        self._logger.clear()
        if not self._context.set_binding_shape(self._input, shape):
            raise _shape_error(shape, self._logger)
        return {name: _fixed(name, self._context.get_binding_shape(self._names.index(name))) for name in self.outputs}

    def enqueue(self, pointers: Mapping[str, int], stream_handle: int) -> None:
        self._logger.clear()
        if not self._context.execute_async_v2([pointers[name] for name in self._names], stream_handle):
            raise _run_error(self._logger)

    def free(self) -> None:
        del self._context


class NamedRunner:
    """Runs engines with named tensors."""

    def __init__(self, engine: Any, context: Any, logger: Logger, input_mode: object) -> None:
        self._context, self._logger = context, logger
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == input_mode]
        self._input = _single(inputs)
        self.outputs = tuple(name for name in names if name != self._input)

    def reshape(self, shape: Shape) -> Dict[str, Shape]:
        self._logger.clear()
        if not self._context.set_input_shape(self._input, shape):
            raise _shape_error(shape, self._logger)
        return {name: _fixed(name, self._context.get_tensor_shape(name)) for name in self.outputs}

    def enqueue(self, pointers: Mapping[str, int], stream_handle: int) -> None:
        self._logger.clear()
        for name, pointer in pointers.items():
            if not self._context.set_tensor_address(name, pointer):
                raise _run_error(self._logger)
        if not self._context.execute_async_v3(stream_handle):
            raise _run_error(self._logger)

    def free(self) -> None:
        del self._context


def load_plan(trt: TensorRT, runtime: Any, plan: bytes, logger: Logger, names: Sequence[str]) -> Tuple[Any, Runner]:
    """Deserialise a plan: the engine and its adapter. Call it inside the CUDA context.

    Args:
        trt: The module `tensorrt`.
        runtime: A `tensorrt.Runtime`, which the caller keeps for as long as the engine.
        plan: A serialised engine.
        logger: The runtime's logger.
        names: Tensors that the engine must have; all must be float32.

    Raises:
        EngineError: The plan is damaged, or of another TensorRT, GPU or model; or there is no memory.
    """
    logger.clear()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise _error(f"TensorRT {trt.__version__} cannot load the engine", logger)
    types = _types(engine)
    unfit = [name for name in names if types.get(name) != trt.DataType.FLOAT]
    if unfit:
        raise EngineError(
            f"the engine is another model's: {', '.join(unfit)} is missing or not float32", f"it has {', '.join(types)}"
        )
    context = engine.create_execution_context()
    if context is None:
        raise _error("TensorRT created no execution context", logger)
    return engine, _runner(trt, engine, context, logger)


def _runner(trt: TensorRT, engine: Any, context: Any, logger: Logger) -> Runner:
    if _is_implicit(engine):
        return ImplicitBatchRunner(engine, context, logger)
    if hasattr(engine, "num_io_tensors"):
        return NamedRunner(engine, context, logger, trt.TensorIOMode.INPUT)
    return BindingsRunner(engine, context, logger)


def _is_implicit(engine: Any) -> bool:
    """Must be checked first: 8.5 and 8.6 have named tensors too, but not for engines with implicit batch."""
    return bool(getattr(engine, "has_implicit_batch_dimension", False))


def _types(engine: Any) -> Dict[str, object]:
    if hasattr(engine, "num_io_tensors") and not _is_implicit(engine):
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {name: engine.get_tensor_dtype(name) for name in names}
    return {engine.get_binding_name(index): engine.get_binding_dtype(index) for index in range(engine.num_bindings)}


def _binding_names(engine: Any) -> Tuple[str, ...]:
    return tuple(engine.get_binding_name(index) for index in range(engine.num_bindings))


def _input_of(engine: Any) -> str:
    inputs = [index for index in range(engine.num_bindings) if engine.binding_is_input(index)]
    return _single([engine.get_binding_name(index) for index in inputs])


def _single(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise EngineError(f"the engine has {len(names)} inputs, expected one")
    return names[0]


def _fixed(name: str, shape: Optional[Sequence[int]]) -> Shape:
    dims = tuple(int(dim) for dim in shape or ())
    if not dims or min(dims) < 1:
        raise EngineError(f"the engine reports no shape for {name}: {dims}")
    return dims


def _shape_error(shape: Shape, logger: Logger) -> EngineError:
    return _error(f"the engine takes no input of {shape}", logger)


def _run_error(logger: Logger) -> EngineError:
    return _error("TensorRT did not run the network", logger)


def _error(message: str, logger: Logger) -> EngineError:
    reason = logger.reason()
    return EngineError(f"{message}: {reason}", hint_for(reason))
