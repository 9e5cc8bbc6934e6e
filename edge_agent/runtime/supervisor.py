"""Watches the workers until there is a reason to stop. Starting and stopping them is their own (see `worker`)."""

import logging
import random
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Callable, Dict, List, Mapping, Optional, Protocol, Sequence

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
from edge_agent.core.types import Outcome, Presence, Sight
from edge_agent.errors import EdgeAgentError
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.stages import CaptureStage
from edge_agent.runtime.worker import Worker


class Link(Protocol):
    """What the broker client says of itself."""

    @property
    def connected(self) -> bool:
        """True only after an accepting CONNACK."""

    @property
    def fault(self) -> str:
        """What is wrong now, in words; empty when nothing is known to be."""


class StatusLine:
    """Callable: the line as of now, from any thread.

    Args:
        captures: One stage per camera.
        mailbox: Their sights.
        link: To the broker.
    """

    def __init__(self, captures: Mapping[str, CaptureStage], mailbox: FrameMailbox, link: Callable[[], Link]) -> None:
        self._captures, self._mailbox, self._link = captures, mailbox, link
        self._presence: Dict[str, Presence] = {}

    def note(self, outcome: Outcome) -> None:
        """What the infer thread has found."""
        if outcome.report is not None:
            self._presence[outcome.camera] = outcome.report.presence

    def __call__(self) -> str:
        blind: List[str] = []
        count = {Presence.YES: 0, Presence.NO: 0, Presence.UNKNOWN: 0}
        for camera, sight in self._mailbox.sights().items():
            if sight.can_see:
                count[self._presence.get(camera, Presence.UNKNOWN)] += 1
            else:
                fault = self._captures[camera].counters.last_fault if sight is Sight.LOST else ""
                blind.append(f"{camera} ({fault or sight.value})")
        total = len(self._captures)
        parts = [f"{total} camera{'' if total == 1 else 's'}"]
        parts += [f"{count[Presence.YES]} with a face"] if count[Presence.YES] else []
        parts += [f"{count[Presence.NO]} without a face"] if count[Presence.NO] else []
        parts += [f"{count[Presence.UNKNOWN]} not known yet"] if count[Presence.UNKNOWN] else []
        parts += [f"{len(blind)} cannot see: {', '.join(blind)}"] if blind else []
        link = self._link()
        fault = f" ({link.fault})" if link.fault else ""
        return f"{', '.join(parts)}; broker {'connected' if link.connected else 'not connected' + fault}"


SPREAD = 0.25
"""Up to so much later, as a share: a house full of agents does not restart all at once."""


class RecoveryPolicy:
    """Callable: a reason to stop in order, so that the service manager starts the agent anew; or None.

    Args:
        params: The bounds.
        steps: Which were taken when.
        captures: One stage per camera.
        rss: Resident bytes, or None.
        restart_nvargus: Asks for it; False when nobody can be asked. None where no camera is NVIDIA's.
        supervised: Whether somebody would start the agent anew.
        t: Now.
        jitter: Spreads the restarts of many agents.
    """

    def __init__(
        self,
        params: RecoveryParams,
        steps: RestartBudget,
        captures: Mapping[str, CaptureStage],
        rss: Callable[[], Optional[int]],
        restart_nvargus: Optional[Callable[[], bool]],
        supervised: bool,
        t: float,
        jitter: Optional[random.Random] = None,
    ) -> None:
        self._steps, self._captures, self._rss = steps, captures, rss
        self._restart_nvargus, self._supervised = restart_nvargus, supervised
        self._camera_watch, self._memory_watch = CameraWatch(t), MemoryWatch(params)
        late = (jitter or random.Random()).uniform(1.0, 1.0 + SPREAD)
        self._nvargus_s, self._restart_s = params.nvargus_after_s * late, params.camera_restart_after_s * late
        self._next_memory_t = self._next_try_t = t
        self._stopping = ""

    @property
    def faults(self) -> List[str]:
        """For health; from any thread."""
        return [fault for fault in (self._memory_watch.fault, self._stopping) if fault]

    @property
    def counts(self) -> Mapping[str, int]:
        """Steps taken, over all runs of the process; from any thread."""
        return self._steps.counts

    def __call__(self, t: float) -> Optional[str]:
        reason = self._memory(t) or self._all_cameras(t)
        if reason is not None:
            self._stopping = f"restarting: {reason}"
        return reason

    def _memory(self, t: float) -> Optional[str]:
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

    def _all_cameras(self, t: float) -> Optional[str]:
        ended = [name for name, stage in self._captures.items() if stage.ended]
        frames = {name: stage.counters.frames for name, stage in self._captures.items()}
        idle_s = self._camera_watch.outage_s(t, frames, ended)
        if t < self._next_try_t:
            return None
        if self._restart_nvargus is not None and 0 < self._nvargus_s <= idle_s:
            self._ask_nvargus(t, idle_s, self._restart_nvargus)
        if 0 < self._restart_s <= idle_s and self._take_restart(CAMERAS, t):
            return f"no camera has delivered for {idle_s:.0f} s"
        return None

    def _ask_nvargus(self, t: float, idle_s: float, ask: Callable[[], bool]) -> None:
        # It takes the agent with it, so what holds for a restart holds for this.
        if not self._take(NVARGUS, t):
            return
        if ask():
            log.warning("no camera has delivered for %.0f s; asked for NVIDIA's camera daemon to restart", idle_s)
        else:
            self._next_try_t = t + CHECK_INTERVAL_S
            self._steps.revert(NVARGUS)

    def _take_restart(self, step: str, t: float) -> bool:
        return self._supervised and self._take(step, t)

    def _take(self, step: str, t: float) -> bool:
        # One that nobody remembers could follow the other for ever.
        return self._steps.allows(step, t) and self._steps.record(step, t)


log = logging.getLogger(__name__)

SUPERVISE_S = 0.5
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
                self._wake.get(timeout=SUPERVISE_S)
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
