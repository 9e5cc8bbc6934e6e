"""Loads TensorRT's Python API, detects its generation, and reports its failures.

| generation | versions | tensors | execution | precision |
|---|---|---|---|---|
| implicit batch | UFF files, up to 8.6 | numbered bindings without a batch axis | `execute_async` | builder flags |
| bindings | up to 8.4 | numbered bindings | `execute_async_v2` | builder flags |
| named | 8.5 to 10 | named tensors | `execute_async_v3` | builder flags |
| strongly typed | from 11 | named tensors | `execute_async_v3` | that of the file |

The generation is detected by the attributes that the module has, never by its version number.
"""

import logging
from typing import Any, Callable, Tuple

from edge_agent.errors import EngineError, MissingPackage
from edge_agent.inference.cuda.driver import hint_for
from edge_agent.inference.trt.worker import make_logger

_log = logging.getLogger(__name__)

TensorRT = Any
"""The module `tensorrt`, whose attributes differ by version."""

Logger = Any
"""What `make_logger` returns: TensorRT reports failures as None or False and sends the reason to its logger."""

Shape = Tuple[int, ...]


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
            "on a Jetson it comes with JetPack (sudo apt-get install python3-libnvinfer) and is found by an "
            "environment created with --system-site-packages; on a PC: pip install tensorrt; or use backend "
            "onnxruntime",
        ) from error
    return tensorrt


def is_strongly_typed(trt: TensorRT) -> bool:
    """True from TensorRT 11 on, which computes in the file's types and has no flag for others."""
    return not hasattr(trt.BuilderFlag, "FP16")


def reads_uff(trt: TensorRT) -> bool:
    """True up to TensorRT 8.6."""
    return hasattr(trt, "UffParser")


def new_logger(trt: TensorRT) -> Logger:
    """A logger that also forwards all lines to the agent's log at debug level."""
    return make_logger(trt, lambda line: _log.debug("TensorRT: %s", line))


def create(kind: Callable[[Logger], Any], logger: Logger) -> Any:
    """A `tensorrt.Runtime` or `tensorrt.Builder`. Call it inside the CUDA context.

    Raises:
        EngineError: TensorRT does not work with this driver, or there is no memory.
    """
    logger.clear()
    try:
        return kind(logger)
    except TypeError as error:  # pybind11 raises it when TensorRT returns none; the reason is logged as a warning
        reason = logger.reason()
        raise EngineError(f"TensorRT does not start: {reason}", hint_for(reason)) from error
