"""Gives memory back to the system that the C library keeps for later."""

import ctypes


def trim() -> None:
    """Return what is free at the heap's end and in whole pages; nothing where the C library is not glibc."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
