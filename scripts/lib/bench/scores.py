"""Computes figures from the camera's schedule and the received events. Pure."""

import statistics
from typing import Dict, NamedTuple, Optional, Sequence, Tuple


class Onset(NamedTuple):
    """A visit from `t` (its first image was sent) to `until_t`, at one place."""

    t: float
    until_t: float
    slot: int


class Heard(NamedTuple):
    """An event at the subscriber; `slot` is None without a box."""

    t: float
    slot: Optional[int]


class Sample(NamedTuple):
    """Resources and counts of an arm at one time."""

    t: float
    cpu_s: float
    processed: int
    read: int


class Score(NamedTuple):
    """Latencies of the onsets, and counts of missed and stale ones."""

    latencies_ms: Tuple[float, ...]
    missed: int
    stale: int


def judge(onsets: Sequence[Onset], events: Sequence[Heard]) -> Score:
    """Return the latency of every onset: from its first image to its first event.

    An event with a place belongs to the last visit to that place, however late it arrives; it is stale when that visit
    had ended, and its latency counts all the same. An event without a place belongs to the last onset, which favours
    an arm that lags. An onset without an event is missed.
    """
    first: Dict[int, float] = {}
    stale = 0
    for event in events:
        shown = [n for n, onset in enumerate(onsets) if onset.t <= event.t and event.slot in (None, onset.slot)]
        if shown and shown[-1] not in first:
            first[shown[-1]] = event.t
            stale += event.t > onsets[shown[-1]].until_t
    late = tuple(1e3 * (first[n] - onset.t) for n, onset in enumerate(onsets) if n in first)
    return Score(late, len(onsets) - len(late), stale)


class Work(NamedTuple):
    """Rates over the time between an arm's first sample and its last."""

    seconds: float
    processed: int
    read: int
    cpu_s: float

    @property
    def cpu_per_frame_ms(self) -> float:
        return 1e3 * self.cpu_s / self.processed if self.processed else float("nan")

    @property
    def processed_fps(self) -> float:
        return self.processed / self.seconds if self.seconds else 0.0


def work(rounds: Sequence[Sequence[Sample]]) -> Work:
    """Return the sum over rounds."""
    whole = [(samples[0], samples[-1]) for samples in rounds if len(samples) > 1]
    return Work(
        sum(last.t - first.t for first, last in whole),
        sum(last.processed - first.processed for first, last in whole),
        sum(last.read - first.read for first, last in whole),
        sum(last.cpu_s - first.cpu_s for first, last in whole),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the nearest of the values; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def median(values: Sequence[float]) -> float:
    """Return the median; NaN without values."""
    return statistics.median(values) if values else float("nan")
