"""How a thread shows that it gets on, to a watchdog that cannot look inside."""

from typing import Callable

CONNECT_S = 600.0
"""Name lookup, TCP, TLS: each bounded by the system's or the settings' timeouts, together by this, amply."""
STEP_S = 30.0
"""Everything else returns within a second."""


class Heartbeat:
    """The thread says before each piece of work how long that may take; whoever watches sees when it is over.

    Args:
        monotonic: Seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._due_t = float("inf")

    def within(self, seconds: float) -> None:
        """By the thread: the next call comes within so many seconds."""
        self._due_t = self._monotonic() + seconds

    def end(self) -> None:
        """By the thread: no more will come, and rightly."""
        self._due_t = float("inf")

    def overdue_s(self, t: float) -> float:
        """From any thread: how late it is at `t`, monotonic seconds; 0.0 when it is not."""
        return max(0.0, t - self._due_t)
