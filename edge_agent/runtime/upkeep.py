"""Looks after the process as a whole: memory, and cameras of which none works. Belongs to the supervisor's thread."""

import logging
import random
from typing import Callable, List, Mapping, Optional

from edge_agent.core.recovery import CAMERAS, LOOK_S, MEMORY, NVARGUS, CameraWatch, MemoryWatch, RecoveryParams, Steps
from edge_agent.runtime.stages import CaptureStage

log = logging.getLogger(__name__)

SPREAD = 0.25
"""Up to so much later, as a share: a house full of agents does not restart all at once."""


class Upkeep:
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
        steps: Steps,
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
        self._next_memory_t = t + LOOK_S
        before = self._memory_watch.fault
        restart = self._memory_watch.look(t, self._rss())
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
        idle_s = self._camera_watch.idle_s(t, frames, ended)
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
            self._next_try_t = t + LOOK_S
            self._steps.take_back(NVARGUS)

    def _take_restart(self, step: str, t: float) -> bool:
        return self._supervised and self._take(step, t)

    def _take(self, step: str, t: float) -> bool:
        # One that nobody remembers could follow the other for ever.
        return self._steps.may(step, t) and self._steps.note(step, t)
