"""What the process holds of memory: back to the system what is free, and no search for garbage where there is none."""

import ctypes
import gc
from contextlib import contextmanager
from typing import Iterator


def trim() -> None:
    """Return what is free at the heap's end and in whole pages; nothing where the C library is not glibc."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)


@contextmanager
def made_to_stay() -> Iterator[None]:
    """What the block makes lives as long as the process, as imported modules do: it is never looked through."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
