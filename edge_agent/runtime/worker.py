"""A named thread that repeats a bounded step. Returning from it is progress; the end of the thread is reported."""

import logging
import threading
import time
from types import TracebackType
from typing import Callable, Optional, Type

from edge_agent.errors import EdgeAgentError

log = logging.getLogger(__name__)

DEADLINE_S = 20.0
"""More than the longest regular step: opening a network camera takes up to 7 s, longer on a busy machine."""


def _nothing() -> None:
    return None


class Worker:
    """Calls `step` until it is stopped. A context manager: entering starts the thread, leaving stops it.

    Args:
        name: The thread's; appears in logs and health.
        step: One bounded piece of work.
        setup: Called first, in the thread.
        teardown: Called last, in the thread, also after a fault.
        on_exit: Called when the thread ends for any reason; wakes the supervisor.
        stop_within_s: How long the thread has to end once it is asked to; may be changed before.
        deadline_s: Seconds after which a step is overdue.

    Attributes:
        error: The error that ended the thread, or None.
        stuck: True when the thread did not end within `stop_within_s`.
        set_up: True once `setup` has returned.
        progress_t: Monotonic seconds of the last return from a step, or of the start before the first.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], None],
        setup: Callable[[], None] = _nothing,
        teardown: Callable[[], None] = _nothing,
        on_exit: Callable[[], None] = _nothing,
        stop_within_s: float = 1.0,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.name = name
        self.deadline_s = deadline_s
        self.error: Optional[BaseException] = None
        self.stuck = False
        self.set_up = False
        self.progress_t = time.monotonic()
        self._step, self._setup, self._teardown, self._on_exit = step, setup, teardown, on_exit
        self.stop_within_s = stop_within_s
        self._stop = threading.Event()
        self._stop_t: Optional[float] = None
        # A call that never returns must not keep the process alive after an ordered stop.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        until_t = self.stop() + self.stop_within_s
        self._thread.join(max(0.0, until_t - time.monotonic()))
        self.stuck = self._thread.is_alive()
        if self.stuck:
            log.error("%s did not stop within %.1f s; left running", self.name, self.stop_within_s)

    def stop(self) -> float:
        """End after the current step. Returns the monotonic seconds of the first such call."""
        if self._stop_t is None:
            self._stop_t = time.monotonic()
        self._stop.set()
        return self._stop_t

    def wait(self, seconds: float) -> None:
        """Sleep, at most until the worker is stopped. For use inside `step`."""
        self._stop.wait(seconds)

    def overdue_s(self, t: float) -> float:
        """Return by how many seconds the current step has missed its deadline, or 0.0. `setup` has no deadline.

        Args:
            t: Monotonic seconds now.
        """
        if not self.set_up or not self.alive:
            return 0.0
        return max(0.0, t - self.progress_t - self.deadline_s)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        for part in (self._work, self._leave):
            try:
                part()
            except EdgeAgentError as error:
                self.error = self.error or error
                log.error("%s stopped: %s", self.name, error, extra={"EVENT": "worker-failed"})
            # One of two broad excepts: a thread must not die silently.
            except Exception as error:
                self.error = self.error or error
                log.exception("%s stopped by a defect", self.name, extra={"EVENT": "worker-failed"})
        self._on_exit()

    def _work(self) -> None:
        self._setup()
        self.progress_t = time.monotonic()
        self.set_up = True
        while not self._stop.is_set():
            self._step()
            self.progress_t = time.monotonic()

    def _leave(self) -> None:
        try:
            self._teardown()
        except EdgeAgentError as error:
            log.warning("%s: while stopping: %s", self.name, error)
