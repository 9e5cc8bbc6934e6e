"""This process: its signals, its heap and garbage collector, and its memory use."""

import ctypes
import gc
import logging
import os
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Callable, Iterator, Optional


class Signals:
    """Handles SIGINT, SIGTERM and SIGHUP from construction on, and keeps them until `connect`.

    The first SIGINT or SIGTERM calls `stop`, the second ends the process at once. Main thread only.

    Attributes:
        stop_requested: Whether SIGINT or SIGTERM has arrived.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self._reload_requested = False
        self._stop: Optional[Callable[[], None]] = None
        self._reload: Optional[Callable[[], None]] = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)

    def connect(self, stop: Callable[[], None], reload: Callable[[], None]) -> None:
        """Set the handlers, called in signal context, and call them for signals that have already arrived."""
        self._stop, self._reload = stop, reload
        if self.stop_requested:
            stop()
        if self._reload_requested:
            reload()

    def _on_stop(self, number: int, frame: Optional[FrameType]) -> None:
        if self.stop_requested:
            os._exit(128 + number)
        self.stop_requested = True
        if self._stop is not None:
            self._stop()

    def _on_hangup(self, number: int, frame: Optional[FrameType]) -> None:
        self._reload_requested = True
        if self._reload is not None:
            self._reload()


def exit_now(code: int) -> None:
    """End the process without the interpreter's own end, which would abort while threads are in native code.

    Logs and streams are flushed; the kernel frees the rest.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def trim() -> None:
    """Return free heap memory to the operating system; does nothing unless the C library is glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


@contextmanager
def exempt_from_gc() -> Iterator[None]:
    """Exclude the objects that the block creates from garbage collection, because they live as long as the process."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def rss_bytes(proc: Path = Path("/proc/self")) -> Optional[int]:
    """Resident memory of the process in bytes; None when it cannot be read."""
    try:
        return int((proc / "statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
