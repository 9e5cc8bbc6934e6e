"""Registers host memory that CUDA did not allocate with the GPU, through the driver library.

`pycuda.driver.register_host_memory` is not used: it ties the registration to the life of a numpy array and releases it
in the thread that drops the array.
"""

import ctypes
from typing import Callable, Optional

from edge_agent.core.types import Array
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.driver import engine_error

_LIBRARY = "libcuda.so.1"
_DEVICEMAP = 2  # CU_MEMHOSTREGISTER_DEVICEMAP


class DriverLibrary:
    """The registration calls of CUDA's driver API; each needs a current context. Pointers are 64 bits wide.

    Raises:
        EngineError: The library is missing or too old.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(_LIBRARY)
            self._register = _call(library, "cuMemHostRegister_v2", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
            self._pointer = _call(
                library,
                "cuMemHostGetDevicePointer_v2",
                ctypes.POINTER(ctypes.c_uint64),
                ctypes.c_void_p,
                ctypes.c_uint,
            )
            self._unregister = _call(library, "cuMemHostUnregister", ctypes.c_void_p)
            self._error_string = _call(library, "cuGetErrorString", ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
        except (OSError, AttributeError) as error:
            raise EngineError(f"CUDA: {_LIBRARY} cannot be used: {error}") from error

    def register(self, address: int, nbytes: int) -> None:
        """Lock memory and map it for the GPU."""
        self._require("cuMemHostRegister", self._register(address, nbytes, _DEVICEMAP))

    def pointer(self, address: int) -> int:
        """Device pointer of registered memory."""
        found = ctypes.c_uint64()
        self._require("cuMemHostGetDevicePointer", self._pointer(ctypes.byref(found), address, 0))
        return found.value

    def unregister(self, address: int) -> None:
        """Release memory that `register` locked."""
        self._require("cuMemHostUnregister", self._unregister(address))

    def _require(self, name: str, code: int) -> None:
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._error_string(code, ctypes.byref(text))
        message = (text.value or b"").decode("ascii", "replace") or f"error {code}"
        raise engine_error(RuntimeError(f"{name} failed: {message}"), "registering a camera's buffers with the GPU")


class RegisteredBuffer:
    """Host memory that CUDA did not allocate, while it is registered with the GPU.

    Attributes:
        array: (nbytes,) uint8; deleted by `free`, so that its owner can unmap the memory.
        pointer: The same memory for the GPU.

    Raises:
        EngineError: The GPU cannot map it (before Xavier), or there is not enough memory.
    """

    def __init__(self, context: CudaContext, library: DriverLibrary, array: Array) -> None:
        self._context, self._library = context, library
        self._address: Optional[int] = None
        address = array.ctypes.data
        with context.current("registering a camera's buffers with the GPU"):
            library.register(address, array.nbytes)
            self._address = address
            context.track(self)
            try:
                self.pointer = library.pointer(address)
            except EngineError:
                self.free()
                raise
        self.array = array

    def free(self) -> None:
        """Unregister the memory; no enqueued work may still use it. Idempotent."""
        if self._address is not None:
            with self._context.current("unregistering a camera's buffers from the GPU"):
                address, self._address = self._address, None
                self._context.untrack(self)
                self._library.unregister(address)
        self.__dict__.pop("array", None)


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> Callable[..., int]:
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, ctypes.c_int
    call: Callable[..., int] = function
    return call
