"""The last steps when nothing else has helped: how long to wait, how seldom to take them, and how often they were."""

import math
from dataclasses import dataclass
from typing import Any, Callable, Collection, Dict, Mapping, Optional

from edge_agent.core.meters import SlopeMeter
from edge_agent.core.params import param

NVARGUS, CAMERAS, MEMORY = "nvargus_requests", "camera_restarts", "memory_restarts"
RESTART_KINDS = (NVARGUS, CAMERAS, MEMORY)
MIN_INTERVAL_S = {NVARGUS: 3600.0, CAMERAS: 3600.0, MEMORY: 6 * 3600.0}
"""A step is taken once in so many seconds at most, over all restarts of the process."""

WARM_UP_S = 3600.0
"""Engines, caches and the allocator's arenas have their size by then; what grows on is a leak."""
MEMORY_FAULT_HOLD_S = 120.0
"""Memory's fault is told for so long before anything follows from it."""
CHECK_INTERVAL_S = 30.0
GROWN_MB = 64
"""A process that has not grown by this much since it was warm would be as large again after a restart."""
MB = 1_000_000


@dataclass(frozen=True)
class RecoveryParams:
    """When the agent has itself started anew: the last step, and only under a service manager that does so."""

    camera_restart_after_s: float = param(
        1800.0,
        "Seconds without a frame from any camera until the agent restarts, once an hour at most; 0 for never",
        ge=0,
        le=604800,
        restart=True,
    )
    nvargus_after_s: float = param(
        600.0,
        "Seconds without a frame from any camera, a CSI camera among them, until a restart of NVIDIA's camera daemon "
        "is asked for, once an hour at most; 0 for never",
        ge=0,
        le=604800,
        restart=True,
    )
    max_rss_mb: int = param(
        1800, "Resident memory in MB from which on it is a fault; stay below the unit's MemoryMax=", ge=50, restart=True
    )
    max_growth_mb: int = param(
        500, "The same, as growth since the agent has run for an hour, while it still grows", ge=1, restart=True
    )


class RestartBudget:
    """How often each step was taken, and when last. What it knows survives the process, and the rations with it.

    Times are the monotonic clock's, which goes on over restarts of the process but not of the machine; so no step of
    the clock that people see matters.

    Args:
        kernel: This run of the machine.
        t: Now.
        kept: As `save` had it, or None.
        save: Keeps it; False when it could not.
    """

    def __init__(self, kernel: str, t: float, kept: Any, save: Callable[[Any], bool]) -> None:
        self._kernel, self._save = kernel, save
        known = kept if isinstance(kept, dict) else {}
        same_run = known.get("kernel") == kernel
        last_t = _numbers(known.get("last_t")) if same_run else {}
        # One from the future is damage, and must not forbid the step for ever.
        self._last_t = {step: min(value, t) for step, value in last_t.items()}
        counts = _numbers(known.get("counts"))
        self.counts: Mapping[str, int] = {step: int(counts.get(step, 0)) for step in RESTART_KINDS}

    def allows(self, step: str, t: float) -> bool:
        """Whether its ration allows it now."""
        return t - self._last_t.get(step, -math.inf) >= MIN_INTERVAL_S[step]

    def record(self, step: str, t: float) -> bool:
        """It is about to be taken; False, and not counted, when nobody would remember it after a restart: do not."""
        self._last_t[step] = t
        counts = {**self.counts, step: self.counts[step] + 1}
        kept = self._keep(counts)
        self.counts = counts if kept else self.counts
        return kept

    def revert(self, step: str) -> None:
        """It could not be taken after all."""
        del self._last_t[step]
        self.counts = {**self.counts, step: self.counts[step] - 1}
        self._keep(self.counts)

    def _keep(self, counts: Mapping[str, int]) -> bool:
        return self._save({"kernel": self._kernel, "last_t": self._last_t, "counts": dict(counts)})


class CameraWatch:
    """For how long no camera has delivered a frame.

    One that has ended does not count, and neither does what a frame shows: a dark or covered camera works.

    Args:
        t: Now.
    """

    def __init__(self, t: float) -> None:
        self._worked_t = t
        self._frames: Dict[str, int] = {}

    def outage_s(self, t: float, frames: Mapping[str, int], ended: Collection[str]) -> float:
        """Seconds; 0.0 while one works, or when all have ended.

        Args:
            t: Now.
            frames: Counted since start, by camera.
            ended: Those whose source has truthfully ended.
        """
        live = {camera: count for camera, count in frames.items() if camera not in ended}
        if not live or any(count != self._frames.get(camera, 0) for camera, count in live.items()):
            self._worked_t = t
        self._frames = live
        return t - self._worked_t


class MemoryWatch:
    """Whether the process grows beyond its bounds.

    Attributes:
        fault: In words, for health; empty when all is well.
    """

    def __init__(self, params: RecoveryParams) -> None:
        self.fault = ""
        self._params = params
        self._slope = SlopeMeter()
        self._first_t: Optional[float] = None
        self._warm_mb: Optional[float] = None
        self._fault_t: Optional[float] = None

    def observe(self, t: float, rss_bytes: Optional[int]) -> bool:
        """Take a measurement; True when a restart is called for and would help."""
        if rss_bytes is None:
            return False
        rss_mb = rss_bytes / MB
        self._first_t = t if self._first_t is None else self._first_t
        slope = self._slope.sample(t, float(rss_bytes))
        if self._warm_mb is None and t - self._first_t >= WARM_UP_S:
            self._warm_mb = rss_mb
        grown_mb = 0.0 if self._warm_mb is None else rss_mb - self._warm_mb
        still_growing = slope is not None and slope > 0
        self.fault = ""
        if rss_mb > self._params.max_rss_mb:
            self.fault = f"memory: {rss_mb:.0f} MB are resident, of {self._params.max_rss_mb} MB at most"
        elif grown_mb > self._params.max_growth_mb and still_growing:
            self.fault = f"memory: has grown by {grown_mb:.0f} MB, of {self._params.max_growth_mb} MB at most"
        if not self.fault:
            self._fault_t = None
            return False
        self._fault_t = t if self._fault_t is None else self._fault_t
        return t - self._fault_t >= MEMORY_FAULT_HOLD_S and grown_mb >= min(GROWN_MB, self._params.max_growth_mb)


def _numbers(value: Any) -> Dict[str, float]:
    """What of a damaged or foreign record can be used."""
    found = value if isinstance(value, dict) else {}
    return {
        step: float(number)
        for step, number in found.items()
        if step in RESTART_KINDS and type(number) in (int, float) and math.isfinite(number) and number >= 0
    }
