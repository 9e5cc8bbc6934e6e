"""Progress deadline of a thread, for the watchdog."""

from typing import Callable

CONNECT_S = 600.0
"""Name lookup, TCP and TLS; the system or the settings limit each of them, and together they take less than this."""
STEP_S = 30.0
"""Everything else returns within a second."""


class Deadline:
    """Extended by a thread before each piece of work, for as long as that may take; checked by the watchdog.

    Args:
        monotonic: Returns monotonic seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._due_t = float("inf")

    def extend(self, seconds: float) -> None:
        """Set the deadline to `seconds` from now. Called by the monitored thread."""
        self._due_t = self._monotonic() + seconds

    def end(self) -> None:
        """Remove the deadline: the thread ended normally."""
        self._due_t = float("inf")

    def overdue_s(self, t: float) -> float:
        """Return by how many seconds the deadline is missed at `t`, monotonic; 0.0 when it is not. From any thread."""
        return max(0.0, t - self._due_t)
