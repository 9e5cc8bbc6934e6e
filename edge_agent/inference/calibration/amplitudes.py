"""Histograms of a tensor's magnitudes over many frames, and the amplitude that becomes INT8's full scale."""

from typing import Tuple

import numpy as np

from edge_agent.core.types import Array

BINS = 4096
_LEVELS = 128  # magnitudes of a symmetric int8
_STEP = 32
_KEPT = 0.999
_LOST = 50.0  # nats, for each value whose level is empty in the coarser distribution


class Amplitudes:
    """A histogram of magnitudes; its range doubles when a larger value is added, so that frames are read only once.

    Attributes:
        low: Smallest value so far.
        high: Largest value so far.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self._top = 0.0  # a power of two; bins divide [0, top)
        self._counts = np.zeros(BINS, np.int64)

    def add(self, values: Array) -> None:
        """Add the values of one frame: float32, finite, of any shape."""
        if not values.size:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        largest = max(self.high, -self.low)
        if largest == 0.0:
            self._counts[0] += values.size
            return
        self._extend(largest)
        magnitudes = np.abs(values.reshape(-1))
        magnitudes *= np.float32(BINS / self._top)
        self._counts += np.bincount(np.minimum(magnitudes, BINS - 1).astype(np.int32), minlength=BINS)

    def _extend(self, largest: float) -> None:
        top = float(2.0 ** np.ceil(np.log2(largest)))
        if not self._top:
            self._top = top
        while self._top < top:
            pairs = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[: BINS // 2], self._counts[BINS // 2 :] = pairs, 0
            self._top *= 2

    @property
    def largest(self) -> float:
        """Largest magnitude so far."""
        return max(self.high, -self.low)

    def full_scale(self) -> float:
        """The magnitude that becomes 127: the entropy method's, but clipping at most one value in a thousand.

        Entropy alone clips the first layers of CenterFace at a tenth of the values of single channels. With this bound
        its outputs are nearer to the float network than by either rule alone, by the maximum, or by least squares.
        """
        return max(self.entropy(), self.percentile(_KEPT))

    def percentile(self, share: float) -> float:
        """The magnitude that a `share` of the values does not exceed."""
        total = np.cumsum(self._counts)
        if not total[-1]:
            return 0.0
        last = int(np.searchsorted(total, share * total[-1]))
        return min(self.largest, (last + 1) * self._top / BINS)

    def entropy(self) -> float:
        """The clipping magnitude of the least Kullback-Leibler divergence, as in TensorRT's EntropyCalibration2.

        Source: S. Migacz, 8-bit inference with TensorRT, GTC 2017.
        """
        filled = np.flatnonzero(self._counts)
        used = int(filled[-1]) + 1 if filled.size else 0
        if used <= _LEVELS:
            return self.largest
        counts = self._counts[:used].astype(np.float64)
        counts[0] = counts[1]  # zeros are exact at any scale
        best: Tuple[float, int] = (np.inf, used)
        for stop in [*range(_LEVELS, used, _STEP), used]:
            best = min(best, (_divergence(counts, stop), stop))
        return min(self.largest, best[1] * self._top / BINS)


def _divergence(counts: Array, stop: int) -> float:
    """Kullback-Leibler divergence, nats, of the distribution clipped at bin `stop` from its version in 128 levels."""
    kept = counts[:stop].copy()
    level = np.arange(stop) * _LEVELS // stop
    occupied = kept > 0
    sums = np.bincount(level, kept, _LEVELS)
    filled = np.bincount(level, occupied, _LEVELS)
    coarse = np.where(occupied, (sums / np.maximum(filled, 1))[level], 0.0)
    kept[-1] += counts[stop:].sum()
    p, q = kept / kept.sum(), coarse / max(coarse.sum(), 1e-30)
    both = (p > 0) & (q > 0)
    missing = p[(p > 0) & (q <= 0)].sum()
    return float((p[both] * np.log(p[both] / q[both])).sum() + missing * _LOST)
