"""What the process is told from outside, from its first moment on."""

import os
import signal
from types import FrameType
from typing import Callable, Optional


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
