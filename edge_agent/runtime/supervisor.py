"""Supervises the workers: readiness, watchdog, reload, and the reasons to stop or restart the process."""

import logging
import random
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Callable, List, Mapping, Optional, Protocol, Sequence

from edge_agent.core.recovery import (
    CAMERAS,
    CHECK_INTERVAL_S,
    MEMORY,
    NVARGUS,
    CameraWatch,
    MemoryWatch,
    RecoveryParams,
    RestartBudget,
)
from edge_agent.errors import EdgeAgentError
from edge_agent.runtime.stages import CaptureStage
from edge_agent.runtime.worker import Worker

log = logging.getLogger(__name__)

SUPERVISE_S = 0.5
EXTEND_S = 60.0
LONGEST_SETUP_S = 3600.0
"""The start timeout is extended for at most so long; an engine takes minutes to build."""
LONGEST_SILENCE_S = 600.0
"""The start timeout is not extended after so long without progress; a TensorRT build reports every 15 s."""
SPREAD = 0.25
"""Restarts are late by up to this share, so that many agents do not restart at once."""


class Manager(Protocol):
    """The service manager's port: systemd, or none; see `host.systemd.ServiceManager`."""

    def ready(self, status: str) -> None: ...
    def status(self, status: str) -> None: ...
    def reloading(self) -> None: ...
    def stopping(self) -> None: ...
    def alive(self) -> None: ...
    def extend(self, seconds: float) -> None: ...


class Watched(Protocol):
    """A thread that the watchdog depends on: a `Worker`, or one that an adapter runs itself."""

    @property
    def name(self) -> str:
        """Name for people."""

    def overdue_s(self, t: float) -> float:
        """By how many seconds it has missed its deadline at monotonic `t`; 0.0 when it has not."""


class Supervisor:
    """Checks all workers twice a second, and at once when woken.

    The manager's watchdog is fed only while no worker is overdue. A worker that waits for a camera or a broker still
    returns from its steps and so is not overdue; one whose call never returns is.

    Args:
        captures: The capture stages: whether each has tried its camera, and whether every source has ended.
        manager: The service manager.
        status: Returns the status line.
        reload: Reads the settings again, and reports the result itself; called by the thread that is in `watch`.
        others: Further threads that the watchdog depends on.
        recovery: Given monotonic seconds, returns a reason to restart the process, or None.

    Attributes:
        restart_reason: The reason for a restart, once there is one.
    """

    def __init__(
        self,
        captures: Mapping[str, CaptureStage],
        manager: Manager,
        status: Callable[[], str],
        reload: Callable[[], None],
        others: Sequence[Watched] = (),
        recovery: Callable[[float], Optional[str]] = lambda t: None,
    ) -> None:
        self._others = others
        self.restart_reason: Optional[str] = None
        self._recovery = recovery
        self._captures, self._manager, self._status, self._reload = captures, manager, status, reload
        # Not an Event: a signal handler that sets one would deadlock if it interrupted this thread inside the wait.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._stop = False
        self._reload_requested = False
        self._ready = False
        self._reported = ""
        self._overdue: Optional[str] = None
        self._progress = ""
        self._progress_t = 0.0

    @property
    def faults(self) -> List[str]:
        """Name the worker that is overdue, for health. From any thread."""
        return [self._stuck] if self._stuck else []

    def wake(self) -> None:
        """Check now. From any thread, and safe in a signal handler."""
        if self._wake.empty():
            self._wake.put(None)

    def progress(self, line: str) -> None:
        """Show `line` as the start's progress, and extend the start timeout. From any thread."""
        self._progress, self._progress_t = line, time.monotonic()
        self.wake()

    def request_stop(self) -> None:
        """Ask for an ordered stop. Safe in a signal handler."""
        self._stop = True
        self.wake()

    def request_reload(self) -> None:
        """Ask for the settings to be read again. Safe in a signal handler."""
        self._reload_requested = True
        self.wake()

    def watch(self, workers: Sequence[Worker]) -> None:
        """Return when a stop was requested, a restart is due, a worker has failed, or every source has ended."""
        started_t = time.monotonic()
        while not self._stop:
            with suppress(Empty):
                self._wake.get(timeout=SUPERVISE_S)
            if failed(workers) is not None:
                break
            if self._captures and all(stage.ended for stage in self._captures.values()):
                log.info("every source has ended", extra={"EVENT": "source-ended"})
                break
            for stage in self._captures.values():
                stage.check()
            self._report(workers, started_t)
            # Only when ready: building an engine takes memory and time.
            self.restart_reason = self._recovery(time.monotonic()) if self._ready else None
            if self.restart_reason is not None:
                log.error("%s: stopping for a restart", self.restart_reason, extra={"EVENT": "restart-needed"})
                break
            if self._reload_requested and self._ready:
                self._reload_requested = False
                self._reload_now()
        self._manager.stopping()

    @property
    def _stuck(self) -> str:
        overdue = self._overdue
        return f"{overdue} does not return" if overdue else ""

    def _report(self, workers: Sequence[Worker], started_t: float) -> None:
        now_t = time.monotonic()
        if not self._ready:
            setting_up = [worker.name for worker in workers if not worker.set_up]
            if setting_up:
                silent_s = now_t - max(started_t, self._progress_t)
                if now_t - started_t < LONGEST_SETUP_S and silent_s < LONGEST_SILENCE_S:
                    self._manager.extend(EXTEND_S)
                self._report_status(f"starting: {self._progress or ', '.join(setting_up)}")
                return
            untried = [name for name, stage in self._captures.items() if not stage.first_open_done]
            if untried:
                self._report_status(f"starting: opening {', '.join(untried)}")
                return
            self._ready = True
            self._reported = self._status()
            self._manager.ready(self._reported)
            log.info("ready: %s", self._reported, extra={"EVENT": "ready"})
        self._feed_watchdog(workers, now_t)
        self._report_status(self._stuck or self._status())

    def _feed_watchdog(self, workers: Sequence[Worker], now_t: float) -> None:
        watched: Sequence[Watched] = [*workers, *self._others]
        overdue = next((one.name for one in watched if one.overdue_s(now_t) > 0.0), None)
        if overdue is None:
            self._manager.alive()
        elif self._overdue is None:
            log.error(
                "%s has not returned from its step in time; the watchdog is not fed until it does",
                overdue,
                extra={"EVENT": "step-overdue"},
            )
        if overdue is None and self._overdue is not None:
            log.info("%s has returned", self._overdue, extra={"EVENT": "step-returned"})
        self._overdue = overdue

    def _reload_now(self) -> None:
        self._manager.reloading()
        self._reload()
        self._reported = self._status()
        self._manager.ready(self._reported)

    def _report_status(self, status: str) -> None:
        if status != self._reported:
            self._reported = status
            self._manager.status(status)


def failed(workers: Sequence[Worker]) -> Optional[Worker]:
    """Return the first worker that ended by an error, or None."""
    return next((worker for worker in workers if worker.error is not None), None)


def exit_code(workers: Sequence[Worker], publisher: Worker) -> int:
    """Return 0 after an ordered stop; the error's own code, or 1, after a failure or a publisher that did not stop.

    Any other worker may be left behind in a call that takes long, such as one of a slow engine or a hung camera: the
    publisher has reported the end for it.
    """
    worker = failed(workers)
    if worker is not None:
        return worker.error.exit_code if isinstance(worker.error, EdgeAgentError) else 1
    return 1 if publisher.stuck and publisher.set_up else 0


class RecoveryPolicy:
    """Callable: a reason to restart the process, or None. Restarts NVIDIA's camera daemon before that.

    Args:
        params: The bounds.
        budget: Steps taken, and when the next is allowed.
        captures: One stage per camera.
        rss: Returns resident bytes, or None.
        restart_nvargus: Requests the camera daemon's restart; False when it cannot. None without CSI cameras.
        supervised: Whether a service manager would start a stopped agent.
        t: Monotonic seconds now.
        jitter: Spreads the restarts of many agents.
    """

    def __init__(
        self,
        params: RecoveryParams,
        budget: RestartBudget,
        captures: Mapping[str, CaptureStage],
        rss: Callable[[], Optional[int]],
        restart_nvargus: Optional[Callable[[], bool]],
        supervised: bool,
        t: float,
        jitter: Optional[random.Random] = None,
    ) -> None:
        self._budget, self._captures, self._rss = budget, captures, rss
        self._restart_nvargus, self._supervised = restart_nvargus, supervised
        self._camera_watch, self._memory_watch = CameraWatch(t), MemoryWatch(params)
        late = (jitter or random.Random()).uniform(1.0, 1.0 + SPREAD)
        self._nvargus_s, self._restart_s = params.nvargus_after_s * late, params.camera_restart_after_s * late
        self._next_memory_t = self._next_try_t = t
        self._restarting = ""

    @property
    def faults(self) -> List[str]:
        """Memory out of bounds, and a restart under way, for health. From any thread."""
        return [fault for fault in (self._memory_watch.fault, self._restarting) if fault]

    @property
    def counts(self) -> Mapping[str, int]:
        """Steps taken over all runs of the process. From any thread."""
        return self._budget.counts

    def __call__(self, t: float) -> Optional[str]:
        reason = self._check_memory(t) or self._check_cameras(t)
        if reason is not None:
            self._restarting = f"restarting: {reason}"
        return reason

    def _check_memory(self, t: float) -> Optional[str]:
        if t < self._next_memory_t:
            return None
        self._next_memory_t = t + CHECK_INTERVAL_S
        before = self._memory_watch.fault
        restart = self._memory_watch.observe(t, self._rss())
        fault = self._memory_watch.fault
        if bool(fault) != bool(before):
            log.log(
                logging.WARNING if fault else logging.INFO,
                "%s",
                fault or "memory: within its bounds again",
                extra={"EVENT": "memory"},
            )
        return fault if restart and self._take_restart(MEMORY, t) else None

    def _check_cameras(self, t: float) -> Optional[str]:
        ended = [name for name, stage in self._captures.items() if stage.ended]
        frames = {name: stage.counters.frames for name, stage in self._captures.items()}
        outage_s = self._camera_watch.outage_s(t, frames, ended)
        if t < self._next_try_t:
            return None
        if self._restart_nvargus is not None and 0 < self._nvargus_s <= outage_s:
            self._request_nvargus(t, outage_s, self._restart_nvargus)
        if 0 < self._restart_s <= outage_s and self._take_restart(CAMERAS, t):
            return f"no camera has delivered for {outage_s:.0f} s"
        return None

    def _request_nvargus(self, t: float, outage_s: float, request: Callable[[], bool]) -> None:
        # Its unit restarts the agent too, so the same limits hold as for a restart.
        if not self._take(NVARGUS, t):
            return
        if request():
            log.warning("no camera has delivered for %.0f s; requested a restart of NVIDIA's camera daemon", outage_s)
        else:
            self._next_try_t = t + CHECK_INTERVAL_S
            self._budget.revert(NVARGUS)

    def _take_restart(self, step: str, t: float) -> bool:
        return self._supervised and self._take(step, t)

    def _take(self, step: str, t: float) -> bool:
        # An unrecorded restart could loop.
        return self._budget.allows(step, t) and self._budget.record(step, t)
