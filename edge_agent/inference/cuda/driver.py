"""Loading of `pycuda.driver`, and the translation of CUDA's errors to hints."""

from typing import Any

from edge_agent.errors import EngineError, MissingPackage

Driver = Any
"""The module `pycuda.driver`, which has no type information.

Its streams, events and modules are destroyed with their last reference, so that has to go while the context is current.
"""

_NO_GPU = "is there an NVIDIA GPU, and may this user open its device files? On a Jetson, join groups video and render"
_MISMATCH = "reboot after a driver update; else install the driver that belongs to this CUDA or JetPack"
_MEMORY = "stop other programs on the GPU, or choose a smaller model input; on a Jetson the GPU shares the main memory"
_TOOLKIT = "the code was compiled by another CUDA than the board's: install the toolkit of its JetPack or driver"
_BROKEN = "CUDA in this process is broken; only a restart of the agent repairs it"

# A part of the error text of CUDA (cuGetErrorString) or TensorRT, lower case, and what to do.
_HINTS = (
    ("no cuda-capable device", _NO_GPU),
    ("invalid device ordinal", _NO_GPU),
    ("unsupported display driver", _MISMATCH),
    ("driver version is insufficient", _MISMATCH),
    ("forward compatibility", _MISMATCH),
    ("not yet initialized", _MISMATCH),
    ("initialization failure with error: 2.", _MEMORY),  # TensorRT's text for cudaErrorMemoryAllocation
    ("initialization failure with error 2.", _MEMORY),
    ("cuda initialization failure", _MISMATCH),
    ("out of memory", _MEMORY),
    ("outofmemory", _MEMORY),
    ("no kernel image", _TOOLKIT),
    ("kernel image is invalid", _TOOLKIT),
    ("unsupported toolchain", _TOOLKIT),
    ("illegal memory access", _BROKEN),
    ("misaligned address", _BROKEN),
    ("launch failure", _BROKEN),
    ("invalid device context", _BROKEN),
)


def load_driver() -> Driver:
    """The module `pycuda.driver`.

    Raises:
        MissingPackage: It or NVIDIA's driver library is not installed.
    """
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise _import_failure(error) from error
    return driver


def engine_error(error: Exception, doing: str) -> EngineError:
    """The error that pycuda raised, in one line with a hint."""
    message = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return EngineError(f"CUDA: {doing}: {message}", hint_for(message))


def hint_for(message: str) -> str:
    """What to do about an error text of CUDA or TensorRT; empty when it is not known."""
    return next((hint for text, hint in _HINTS if text in message.lower()), "")


def _import_failure(error: ImportError) -> MissingPackage:
    if isinstance(error, ModuleNotFoundError):
        hint = "install it with: pip install pycuda; it compiles with CUDA"
    elif "_v2" in str(error):
        hint = "pycuda was built with a newer CUDA than the driver's: " + _MISMATCH
    elif "libcuda" in str(error):
        hint = "NVIDIA's driver is not installed, or the container was started without it (--runtime nvidia)"
    else:
        hint = "build it again against this CUDA: pip install --force-reinstall --no-cache-dir pycuda"
    return MissingPackage(f"pycuda cannot be imported: {error}", hint)
