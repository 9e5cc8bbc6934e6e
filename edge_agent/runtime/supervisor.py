"""Watches the workers until there is a reason to stop. Starting and stopping them is their own (see `worker`)."""

import logging
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Callable, List, Mapping, Optional, Protocol, Sequence

from edge_agent.errors import EdgeAgentError
from edge_agent.runtime.stages import CaptureStage
from edge_agent.runtime.worker import Worker

log = logging.getLogger(__name__)

LOOK_S = 0.5
EXTEND_S = 60.0
LONGEST_SETUP_S = 3600.0
"""An engine that is still being built after this long is not being built."""
LONGEST_SILENCE_S = 600.0
"""Nor is one that has told nothing for so long: while TensorRT builds, a line comes every quarter of a minute."""


class Manager(Protocol):
    """The service manager: systemd, or nobody."""

    def ready(self, status: str) -> None:
        """Started, or done with a reload."""

    def status(self, status: str) -> None:
        """One line for people."""

    def reloading(self) -> None:
        """A reload begins."""

    def stopping(self) -> None:
        """The end has begun."""

    def alive(self) -> None:
        """All that should progress does."""

    def extend(self, seconds: float) -> None:
        """Starting takes at least so much longer."""


class Watched(Protocol):
    """A thread that is not ours to start or stop, and must get on all the same."""

    @property
    def name(self) -> str:
        """For people."""

    def overdue_s(self, t: float) -> float:
        """By how many seconds it has missed its own deadline at `t`, monotonic; 0.0 when it has not."""


class Supervisor:
    """Looks at all workers twice a second, and at once when something asks for it.

    The manager's watchdog is fed only while no worker is overdue. One that waits for a camera or a broker to come back
    returns from its steps and so is not; one whose call never returns is.

    Args:
        captures: The capture stages, to see when each has tried its camera, and when every source has ended.
        manager: Told how it goes.
        status: In words, for people.
        reload: Reads the settings again, and tells by itself how that went; called by the thread that is in `watch`.
        others: Threads that the watchdog depends on too.
        upkeep: Given monotonic seconds, tells why the process should be started anew, or None.

    Attributes:
        gave_up: That reason, once there was one.
    """

    def __init__(
        self,
        captures: Mapping[str, CaptureStage],
        manager: Manager,
        status: Callable[[], str],
        reload: Callable[[], None],
        others: Sequence[Watched] = (),
        upkeep: Callable[[float], Optional[str]] = lambda t: None,
    ) -> None:
        self._others = others
        self.gave_up: Optional[str] = None
        self._upkeep = upkeep
        self._captures, self._manager, self._status, self._reload = captures, manager, status, reload
        # Not an Event: a signal handler that sets one waits for ever if it has interrupted this very thread inside it.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._stop = False
        self._reload_asked = False
        self._ready = False
        self._told = ""
        self._overdue: Optional[str] = None
        self._progress = ""
        self._progress_t = 0.0

    @property
    def faults(self) -> List[str]:
        """For health; from any thread."""
        return [self._stuck] if self._stuck else []

    @property
    def _stuck(self) -> str:
        overdue = self._overdue
        return f"{overdue} does not return" if overdue else ""

    def wake(self) -> None:
        """Look now. From any thread, and safe in a signal handler."""
        if self._wake.empty():
            self._wake.put(None)

    def progress(self, line: str) -> None:
        """Starting goes on: `line` is shown, and the manager asked for more time. From any thread."""
        self._progress, self._progress_t = line, time.monotonic()
        self.wake()

    def request_stop(self) -> None:
        """Ask for an ordered stop. Safe in a signal handler."""
        self._stop = True
        self.wake()

    def request_reload(self) -> None:
        """Ask for the settings to be read again. Safe in a signal handler."""
        self._reload_asked = True
        self.wake()

    def watch(self, workers: Sequence[Worker]) -> None:
        """Return when a stop was asked for, a worker has failed, or every source has ended."""
        started_t = time.monotonic()
        while not self._stop:
            with suppress(Empty):
                self._wake.get(timeout=LOOK_S)
            if failed(workers) is not None:
                break
            if self._captures and all(stage.ended for stage in self._captures.values()):
                log.info("every source has ended", extra={"EVENT": "source-ended"})
                break
            self._report(workers, started_t)
            # Not before: building an engine takes memory, and time.
            self.gave_up = self._upkeep(time.monotonic()) if self._ready else None
            if self.gave_up is not None:
                log.error("%s: stopping, to be started anew", self.gave_up, extra={"EVENT": "restart-needed"})
                break
            if self._reload_asked and self._ready:
                self._reload_asked = False
                self._reload_now()
        self._manager.stopping()

    def _report(self, workers: Sequence[Worker], started_t: float) -> None:
        now_t = time.monotonic()
        if not self._ready:
            setting_up = [worker.name for worker in workers if not worker.set_up]
            if setting_up:
                silent_s = now_t - max(started_t, self._progress_t)
                if now_t - started_t < LONGEST_SETUP_S and silent_s < LONGEST_SILENCE_S:
                    self._manager.extend(EXTEND_S)
                self._tell(f"starting: {self._progress or ', '.join(setting_up)}")
                return
            untried = [name for name, stage in self._captures.items() if not stage.first_open_done]
            if untried:
                self._tell(f"starting: opening {', '.join(untried)}")
                return
            self._ready = True
            self._told = self._status()
            self._manager.ready(self._told)
            log.info("ready: %s", self._told, extra={"EVENT": "ready"})
        self._feed(workers, now_t)
        self._tell(self._stuck or self._status())

    def _feed(self, workers: Sequence[Worker], now_t: float) -> None:
        for worker in workers:
            if worker.overdue_s(now_t) > 0.0:
                worker.on_overdue()
        watched: Sequence[Watched] = [*workers, *self._others]
        overdue = next((one.name for one in watched if one.overdue_s(now_t) > 0.0), None)
        if overdue is None:
            self._manager.alive()
        elif self._overdue is None:
            log.error(
                "%s has not returned from its step in time; the watchdog goes hungry until it does",
                overdue,
                extra={"EVENT": "step-overdue"},
            )
        if overdue is None and self._overdue is not None:
            log.info("%s has returned", self._overdue, extra={"EVENT": "step-returned"})
        self._overdue = overdue

    def _reload_now(self) -> None:
        self._manager.reloading()
        self._reload()
        self._told = self._status()
        self._manager.ready(self._told)

    def _tell(self, status: str) -> None:
        if status != self._told:
            self._told = status
            self._manager.status(status)


def failed(workers: Sequence[Worker]) -> Optional[Worker]:
    """The first worker that ended by an error, if any."""
    return next((worker for worker in workers if worker.error is not None), None)


def exit_code(workers: Sequence[Worker]) -> int:
    """0 after an ordered stop; the error's own code, or 1, after a failure or a worker that would not stop.

    One that is still being set up may be left behind: an engine takes minutes to build, and nothing depends on it yet.
    """
    worker = failed(workers)
    if worker is not None:
        return worker.error.exit_code if isinstance(worker.error, EdgeAgentError) else 1
    return 1 if any(worker.stuck and worker.set_up for worker in workers) else 0
