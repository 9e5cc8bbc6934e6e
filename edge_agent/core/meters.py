"""Meters for the health message: rates, latencies, slopes. Bounded memory; one writer each."""

from collections import deque
from typing import Deque, Dict, Optional, Tuple


class RateMeter:
    """Events per second over the last `window_s` seconds, from samples of a growing counter."""

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._samples: Deque[Tuple[float, int]] = deque(maxlen=256)

    def sample(self, t: float, count: int) -> float:
        """Rate between now and the oldest sample inside the window; 0.0 until two samples exist."""
        self._samples.append((t, count))
        while len(self._samples) > 2 and t - self._samples[1][0] >= self._window_s:
            self._samples.popleft()
        t0, n0 = self._samples[0]
        return (count - n0) / (t - t0) if t > t0 else 0.0


class LatencyMeter:
    """Percentiles of the last `size` durations."""

    def __init__(self, size: int = 1024) -> None:
        self._values: Deque[float] = deque(maxlen=size)

    def add(self, seconds: float) -> None:
        """One duration. Atomic, so that another thread may read."""
        self._values.append(seconds)

    def percentiles_ms(self) -> Dict[str, Optional[float]]:
        """p50, p95, p99 in ms (nearest rank), or None while nothing was measured."""
        values = sorted(self._values)
        if not values:
            return {"p50": None, "p95": None, "p99": None}
        return {
            f"p{p}": round(1000.0 * values[min(len(values) - 1, int(len(values) * p / 100.0))], 2) for p in (50, 95, 99)
        }


class SlopeMeter:
    """Least-squares slope per hour of a value, such as resident memory; None for the first 15 minutes.

    One sample per 30 s is kept, for a little over four hours.
    """

    MIN_SPAN_S = 900.0
    EVERY_S = 30.0

    def __init__(self, size: int = 512) -> None:
        self._slope: Optional[float] = None
        self._samples: Deque[Tuple[float, float]] = deque(maxlen=size)

    def sample(self, t: float, value: float) -> Optional[float]:
        """Slope per hour over the kept samples, or None while they span less than `MIN_SPAN_S`."""
        if self._samples and t - self._samples[-1][0] < self.EVERY_S:
            return self._slope
        self._samples.append((t, value))
        if t - self._samples[0][0] < self.MIN_SPAN_S:
            return None
        n = len(self._samples)
        mean_t = sum(s[0] for s in self._samples) / n
        mean_v = sum(s[1] for s in self._samples) / n
        spread = sum((s[0] - mean_t) ** 2 for s in self._samples)
        self._slope = 3600.0 * sum((s[0] - mean_t) * (s[1] - mean_v) for s in self._samples) / spread
        return self._slope
