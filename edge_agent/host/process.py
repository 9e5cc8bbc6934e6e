"""What this process costs, as Linux tells it. A figure that cannot be read is None, never a made-up zero."""

import ctypes
import gc
import os
import signal
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Callable, Iterator, Optional


class Signals:
    """Takes SIGINT, SIGTERM and SIGHUP from its construction on, and keeps them until somebody listens.

    The first request to stop stops in order, the second at once. Main thread only.

    Attributes:
        stop_asked: Since construction.
    """

    def __init__(self) -> None:
        self.stop_asked = False
        self._reload_asked = False
        self._stop: Optional[Callable[[], None]] = None
        self._reload: Optional[Callable[[], None]] = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)

    def connect(self, stop: Callable[[], None], reload: Callable[[], None]) -> None:
        """From now on these are called, in a signal handler; and now, for what has come before."""
        self._stop, self._reload = stop, reload
        if self.stop_asked:
            stop()
        if self._reload_asked:
            reload()

    def _on_stop(self, number: int, frame: Optional[FrameType]) -> None:
        if self.stop_asked:
            os._exit(128 + number)
        self.stop_asked = True
        if self._stop is not None:
            self._stop()

    def _on_hangup(self, number: int, frame: Optional[FrameType]) -> None:
        self._reload_asked = True
        if self._reload is not None:
            self._reload()


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


def rss_bytes(proc: Path = Path("/proc/self")) -> Optional[int]:
    """Resident memory now."""
    try:
        return int((proc / "statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
