"""Memory that CUDA has not made, locked and shown to the GPU, by the driver library itself.

Not by pycuda, whose `register_host_memory` ties the registration to the life of a numpy array, and frees at its end, in
whichever thread that is.
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
    """The calls of CUDA's driver API for it; each needs a current context. Pointers are 64 bits wide.

    Raises:
        EngineError: The library is not there, or too old.
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
            self._words = _call(library, "cuGetErrorString", ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
        except (OSError, AttributeError) as error:
            raise EngineError(f"CUDA: {_LIBRARY} cannot be used: {error}") from error

    def register(self, address: int, nbytes: int) -> None:
        """Lock memory and map it for the GPU."""
        self._require("cuMemHostRegister", self._register(address, nbytes, _DEVICEMAP))

    def pointer(self, address: int) -> int:
        """Where the GPU sees registered memory."""
        found = ctypes.c_uint64()
        self._require("cuMemHostGetDevicePointer", self._pointer(ctypes.byref(found), address, 0))
        return found.value

    def unregister(self, address: int) -> None:
        """Undo `register`."""
        self._require("cuMemHostUnregister", self._unregister(address))

    def _require(self, name: str, code: int) -> None:
        if code == 0:
            return
        words = ctypes.c_char_p()
        self._words(code, ctypes.byref(words))
        said = (words.value or b"").decode("ascii", "replace") or f"error {code}"
        raise engine_error(RuntimeError(f"{name} failed: {said}"), "showing a camera's buffers to the GPU")


class RegisteredBuffer:
    """Memory that CUDA has not made, for as long as the GPU sees it.

    Attributes:
        array: (nbytes,) uint8; gone after `free`, so that its owner can unmap it, or it goes with its last view.
        pointer: The same memory for the GPU.

    Raises:
        EngineError: The GPU cannot (before Xavier), or there is not so much memory.
    """

    def __init__(self, context: CudaContext, library: DriverLibrary, array: Array) -> None:
        self._context, self._library = context, library
        self._address: Optional[int] = None
        address = array.ctypes.data
        with context.current("showing a camera's buffers to the GPU"):
            library.register(address, array.nbytes)
            self._address = address
            context.adopt(self)
            try:
                self.pointer = library.pointer(address)
            except EngineError:
                self.free()
                raise
        self.array = array

    def free(self) -> None:
        """Hide it from the GPU; nothing enqueued may still use it. Idempotent."""
        if self._address is not None:
            with self._context.current("hiding a camera's buffers from the GPU"):
                address, self._address = self._address, None
                self._context.disown(self)
                self._library.unregister(address)
        self.__dict__.pop("array", None)


def _call(library: ctypes.CDLL, name: str, *arguments: object) -> Callable[..., int]:
    function = getattr(library, name)
    function.argtypes, function.restype = arguments, ctypes.c_int
    called: Callable[..., int] = function
    return called
