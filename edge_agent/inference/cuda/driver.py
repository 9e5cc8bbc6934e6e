"""What is used of `pycuda.driver`, as protocols, and what its errors mean.

A thin seam on purpose: another binding of CUDA's driver API takes its place by keeping these protocols.
"""

from typing import Any, Callable, Protocol, Sequence, Tuple, Type

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import EngineError, MissingPackage

Grid = Tuple[int, int]
Block = Tuple[int, int, int]


class HostAllocation(Protocol):
    """Page-locked memory: the `base` of the array that lies in it."""

    def get_device_pointer(self) -> int:
        """Where the GPU sees it."""

    def free(self) -> None:
        """Once; arrays over it dangle from then on."""


class DeviceAllocation(Protocol):
    """Memory of the GPU."""

    def __int__(self) -> int:
        """Its device pointer."""

    def free(self) -> None:
        """Once."""


class DriverStream(Protocol):
    """Work in order. Destroyed with its last reference."""

    @property
    def handle(self) -> int:
        """The CUstream."""


class DriverEvent(Protocol):
    """A point in a stream. Destroyed with its last reference."""

    def record(self, stream: DriverStream) -> object:
        """Set it behind all that was enqueued so far."""

    def synchronize(self) -> object:
        """Wait for it, without the interpreter's lock."""


class Function(Protocol):
    """A kernel's entry point."""

    def prepare(self, arg_types: Sequence[str]) -> object:
        """Set the arguments' layout, in the notation of `struct`."""

    def prepared_async_call(self, grid: Grid, block: Block, stream: DriverStream, *args: bytes) -> object:
        """Enqueue it; the arguments are copied at once."""


class Module(Protocol):
    """Loaded machine code. Unloaded with its last reference."""

    def get_function(self, name: str) -> Function:
        """An entry point by name."""


class Context(Protocol):
    """A hold on the device's primary context, which CUDA's runtime, jetson-utils and TensorRT use too."""

    def push(self) -> object:
        """Make it current in this thread."""

    def pop(self) -> object:
        """Undo this thread's last push. A thread that ends without it aborts the process."""

    def detach(self) -> object:
        """Let it go."""


class DriverDevice(Protocol):
    """One GPU."""

    def name(self) -> str:
        """As the vendor calls it."""

    def compute_capability(self) -> Tuple[int, int]:
        """Major and minor."""

    def get_attribute(self, attribute: Any) -> int:
        """One of `device_attribute`."""

    def retain_primary_context(self) -> Context:
        """Hold it; it is not current yet."""


class Driver(Protocol):
    """The module `pycuda.driver`."""

    Error: Type[Exception]
    event_flags: Any
    host_alloc_flags: Any
    device_attribute: Any

    @property
    def Device(self) -> Callable[[int], DriverDevice]:
        """By number."""

    @property
    def Stream(self) -> Callable[[int], DriverStream]:
        """With CUstream_flags."""

    @property
    def Event(self) -> Callable[[int], DriverEvent]:
        """With `event_flags`."""

    def init(self) -> object:
        """First of all; any number of times."""

    def get_driver_version(self) -> int:
        """12060 for CUDA 12.6: the newest that the kernel driver runs."""

    def mem_alloc(self, nbytes: int) -> DeviceAllocation:
        """Memory of the GPU."""

    def pagelocked_empty(self, shape: int, dtype: "np.dtype[Any]", order: str, mem_flags: int) -> Array:
        """Page-locked memory of the host."""

    def module_from_buffer(self, image: bytes) -> Module:
        """Load a cubin."""

    def memcpy_htod_async(self, dest: int, src: Array, stream: DriverStream) -> object:
        """Enqueue a copy to the GPU."""

    def memcpy_dtoh_async(self, dest: Array, src: int, stream: DriverStream) -> object:
        """Enqueue a copy from the GPU."""


_NO_GPU = "is there an NVIDIA GPU, and may this user open its device files? On a Jetson, join groups video and render"
_MISMATCH = "reboot after a driver update; else install the driver that belongs to this CUDA or JetPack"
_MEMORY = "stop other programs on the GPU, or choose a smaller model input; on a Jetson the GPU shares the main memory"
_TOOLKIT = "the code was compiled by another CUDA than the board's: install the toolkit of its JetPack or driver"
_BROKEN = "CUDA in this process is broken; only a restart of the agent repairs it"

# CUDA's own words (cuGetErrorString), or TensorRT's, lower case, and what to do.
_HINTS = (
    ("no cuda-capable device", _NO_GPU),
    ("invalid device ordinal", _NO_GPU),
    ("unsupported display driver", _MISMATCH),
    ("driver version is insufficient", _MISMATCH),
    ("forward compatibility", _MISMATCH),
    ("not yet initialized", _MISMATCH),
    ("initialization failure with error: 2.", _MEMORY),  # TensorRT's words, with cudaErrorMemoryAllocation
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
    """`pycuda.driver`.

    Raises:
        MissingPackage: It is not installed, or NVIDIA's driver library is not there.
    """
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise _unimportable(error) from error
    loaded: Driver = driver
    return loaded


def engine_error(error: Exception, doing: str) -> EngineError:
    """What pycuda raised, in one line with a hint."""
    said = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return EngineError(f"CUDA: {doing}: {said}", hint_for(said))


def hint_for(said: str) -> str:
    """What to do about an error in CUDA's own words; empty where nothing is known."""
    return next((hint for words, hint in _HINTS if words in said.lower()), "")


def _unimportable(error: ImportError) -> MissingPackage:
    if isinstance(error, ModuleNotFoundError):
        hint = "install it with: pip install pycuda; it compiles with CUDA"
    elif "_v2" in str(error):
        hint = "pycuda was built with a newer CUDA than the driver's: " + _MISMATCH
    elif "libcuda" in str(error):
        hint = "NVIDIA's driver is not installed, or the container was started without it (--runtime nvidia)"
    else:
        hint = "build it anew against this CUDA: pip install --force-reinstall --no-cache-dir pycuda"
    return MissingPackage(f"pycuda cannot be imported: {error}", hint)
