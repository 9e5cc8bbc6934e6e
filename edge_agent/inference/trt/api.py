"""What is used of TensorRT's Python API, generation by generation, and how it says that something went wrong.

| generation | versions | tensors | execution | precision |
|---|---|---|---|---|
| implicit batch | UFF files, up to 8.6 | numbered bindings without a batch axis | `execute_async` | builder flags |
| bindings | up to 8.4 | numbered bindings | `execute_async_v2` | builder flags |
| named | 8.5 to 10 | named tensors | `execute_async_v3` | builder flags |
| strongly typed | from 11 | named tensors | `execute_async_v3` | that of the file |

What a version offers is asked of its attributes, never of its number.
"""

import logging
from typing import Any, Callable, Protocol, Sequence, Tuple

from edge_agent.errors import EngineError, MissingPackage
from edge_agent.inference.cuda.driver import hint_for
from edge_agent.inference.trt.worker import make_logger

_log = logging.getLogger(__name__)

TensorRT = Any
"""The module `tensorrt`. Its attributes differ by version, so no one protocol describes it."""

Shape = Tuple[int, ...]


class Logger(Protocol):
    """A `tensorrt.ILogger` that remembers, because TensorRT answers None and tells its reasons elsewhere."""

    def forget(self) -> None:
        """Start anew."""

    def because(self) -> str:
        """What TensorRT complained of since, to be put behind a colon."""


class BindingsContext(Protocol):
    """Runs an engine whose tensors are numbered."""

    def set_binding_shape(self, binding: int, shape: Shape) -> bool:
        """Set the shape of an input."""

    def get_binding_shape(self, binding: int) -> Sequence[int]:
        """Of an output, once the inputs' shapes are set."""

    def execute_async_v2(self, bindings: Sequence[int], stream_handle: int) -> bool:
        """Enqueue; one pointer per binding."""


class ImplicitContext(Protocol):
    """Runs an engine with implicit batch."""

    def execute_async(self, batch_size: int, bindings: Sequence[int], stream_handle: int) -> bool:
        """Enqueue; one pointer per binding."""


class BindingsEngine(Protocol):
    """An engine whose tensors are numbered."""

    num_bindings: int

    def get_binding_name(self, index: int) -> str:
        """Of a tensor."""

    def binding_is_input(self, index: int) -> bool:
        """False for outputs."""

    def get_binding_dtype(self, index: int) -> object:
        """One of `DataType`."""

    def get_binding_shape(self, index: int) -> Sequence[int]:
        """As built; -1 for a free dim; without the batch axis where that is implicit."""


class NamedContext(Protocol):
    """Runs an engine whose tensors have names."""

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        """Set the shape of an input."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Of an output, once the inputs' shapes are set."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where a tensor lies."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue."""


class NamedEngine(Protocol):
    """An engine whose tensors have names."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str:
        """Of the n-th input or output."""

    def get_tensor_mode(self, name: str) -> object:
        """One of `TensorIOMode`."""

    def get_tensor_dtype(self, name: str) -> object:
        """One of `DataType`."""


def load_tensorrt() -> TensorRT:
    """The module `tensorrt`.

    Raises:
        MissingPackage: It cannot be imported.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise MissingPackage(
            f"tensorrt cannot be imported: {error}",
            "on a Jetson it comes with JetPack (sudo apt-get install python3-libnvinfer) and is seen by an environment "
            "made with --system-site-packages; on a PC: pip install tensorrt; or use backend onnxruntime",
        ) from error
    return tensorrt


def is_strongly_typed(trt: TensorRT) -> bool:
    """True from TensorRT 11 on: it computes in the types that the file names, and has no switch for others."""
    return not hasattr(trt.BuilderFlag, "FP16")


def reads_uff(trt: TensorRT) -> bool:
    """True up to TensorRT 8.6."""
    return hasattr(trt, "UffParser")


def logger_of(trt: TensorRT) -> Logger:
    """A logger that also tells all to our own, at debug level."""
    made: Logger = make_logger(trt, lambda line: _log.debug("TensorRT: %s", line))
    return made


def started(kind: Callable[[Logger], Any], logger: Logger) -> Any:
    """A `tensorrt.Runtime` or `tensorrt.Builder`. Call it inside the CUDA context.

    Raises:
        EngineError: TensorRT does not work with this driver, or there is no memory.
    """
    logger.forget()
    try:
        return kind(logger)
    except TypeError as error:  # what pybind11 makes of none; the reason is told as a warning
        why = logger.because()
        raise EngineError(f"TensorRT does not start: {why}", hint_for(why)) from error
