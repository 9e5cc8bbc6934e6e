"""Policy of the last recovery steps, which restart something: when each is due, and how often it may be repeated."""

import math
from dataclasses import dataclass
from typing import Any, Callable, Collection, Dict, Mapping, Optional

from edge_agent.core.meters import SlopeMeter
from edge_agent.core.params import param

NVARGUS, CAMERAS, MEMORY = "nvargus_requests", "camera_restarts", "memory_restarts"
RESTART_KINDS = (NVARGUS, CAMERAS, MEMORY)
MIN_INTERVAL_S = {NVARGUS: 3600.0, CAMERAS: 3600.0, MEMORY: 6 * 3600.0}
"""Minimum seconds between two restarts of one kind, also over restarts of the process."""

WARM_UP_S = 3600.0
"""Engines, caches and the allocator's arenas have reached their size by then; further growth is a leak."""
MEMORY_FAULT_HOLD_S = 120.0
"""A memory fault is reported for this long before it causes a restart."""
CHECK_INTERVAL_S = 30.0
GROWN_MB = 64
"""A process that has grown by less since its warm-up would have the same size after a restart."""
MB = 1_000_000


@dataclass(frozen=True)
class RecoveryParams:
    """When the agent asks the service manager for a restart; without a service manager it never does."""

    camera_restart_after_s: float = param(
        1800.0,
        "Seconds without a frame from any camera until the agent restarts, once an hour at most; 0 for never",
        ge=0,
        le=604800,
        restart=True,
    )
    nvargus_after_s: float = param(
        600.0,
        "Seconds without a frame from any camera, with at least one CSI camera, until the agent requests a restart of "
        "NVIDIA's camera daemon, once an hour at most; 0 for never",
        ge=0,
        le=604800,
        restart=True,
    )
    max_rss_mb: int = param(
        1800,
        "Resident memory in MB above which it is a fault; keep it below the unit's MemoryMax=",
        ge=50,
        restart=True,
    )
    max_growth_mb: int = param(
        500,
        "Growth of resident memory in MB since the first hour above which it is a fault, while it grows",
        ge=1,
        restart=True,
    )


class RestartBudget:
    """Counts restarts by kind and limits their rate. Its record survives the process.

    Times are monotonic: the clock continues over restarts of the process, restarts with the machine, and ignores
    changes of the system clock.

    Args:
        kernel: Boot id of the machine.
        t: Now.
        record: The value last given to `save`, or None.
        save: Stores the record; returns False on failure.

    Attributes:
        counts: Restarts by kind.
    """

    def __init__(self, kernel: str, t: float, record: Any, save: Callable[[Any], bool]) -> None:
        self._kernel, self._save = kernel, save
        known = record if isinstance(record, dict) else {}
        same_boot = known.get("kernel") == kernel
        last_t = _numbers(known.get("last_t")) if same_boot else {}
        # A time in the future is damage, and must not block the restart forever.
        self._last_t = {kind: min(value, t) for kind, value in last_t.items()}
        counts = _numbers(known.get("counts"))
        self.counts: Mapping[str, int] = {kind: int(counts.get(kind, 0)) for kind in RESTART_KINDS}

    def allows(self, kind: str, t: float) -> bool:
        """Whether the last restart of this kind is long enough ago."""
        return t - self._last_t.get(kind, -math.inf) >= MIN_INTERVAL_S[kind]

    def record(self, kind: str, t: float) -> bool:
        """Count a restart before it is done; False, and not counted, when the record cannot be saved.

        The caller must not restart then: unrecorded restarts could loop.
        """
        self._last_t[kind] = t
        counts = {**self.counts, kind: self.counts[kind] + 1}
        saved = self._save_record(counts)
        self.counts = counts if saved else self.counts
        return saved

    def revert(self, kind: str) -> None:
        """Remove the last restart of this kind from the record: it failed."""
        del self._last_t[kind]
        self.counts = {**self.counts, kind: self.counts[kind] - 1}
        self._save_record(self.counts)

    def _save_record(self, counts: Mapping[str, int]) -> bool:
        return self._save({"kernel": self._kernel, "last_t": self._last_t, "counts": dict(counts)})


class CameraWatch:
    """Measures for how long no camera has delivered a frame.

    Ended sources do not count. A dark or covered camera delivers frames, and so works.

    Args:
        t: Now.
    """

    def __init__(self, t: float) -> None:
        self._worked_t = t
        self._frames: Dict[str, int] = {}

    def outage_s(self, t: float, frames: Mapping[str, int], ended: Collection[str]) -> float:
        """Seconds without a frame; 0.0 while one camera works, or when all have ended.

        Args:
            t: Now.
            frames: Frames since start, by camera.
            ended: Cameras whose source has ended.
        """
        live = {camera: count for camera, count in frames.items() if camera not in ended}
        if not live or any(count != self._frames.get(camera, 0) for camera, count in live.items()):
            self._worked_t = t
        self._frames = live
        return t - self._worked_t


class MemoryWatch:
    """Compares the process's resident memory with its limits.

    Attributes:
        fault: Text for the health message; empty without a fault.
    """

    def __init__(self, params: RecoveryParams) -> None:
        self.fault = ""
        self._params = params
        self._slope = SlopeMeter()
        self._first_t: Optional[float] = None
        self._warm_mb: Optional[float] = None
        self._fault_t: Optional[float] = None

    def observe(self, t: float, rss_bytes: Optional[int]) -> bool:
        """Take a measurement; True when a restart is due and would free memory."""
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
            self.fault = f"memory: {rss_mb:.0f} MB resident, limit {self._params.max_rss_mb} MB"
        elif grown_mb > self._params.max_growth_mb and still_growing:
            self.fault = f"memory: grown by {grown_mb:.0f} MB, limit {self._params.max_growth_mb} MB"
        if not self.fault:
            self._fault_t = None
            return False
        self._fault_t = t if self._fault_t is None else self._fault_t
        return t - self._fault_t >= MEMORY_FAULT_HOLD_S and grown_mb >= min(GROWN_MB, self._params.max_growth_mb)


def _numbers(value: Any) -> Dict[str, float]:
    """The valid numbers by restart kind; the record may be damaged."""
    found = value if isinstance(value, dict) else {}
    return {
        kind: float(number)
        for kind, number in found.items()
        if kind in RESTART_KINDS and type(number) in (int, float) and math.isfinite(number) and number >= 0
    }
