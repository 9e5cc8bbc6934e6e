"""Measures an engine alone, one image after the other, as the agent uses it."""

import itertools
import time
from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Optional, Protocol, Tuple, runtime_checkable

import numpy as np

from edge_agent.core.frame import Image
from edge_agent.core.ports import Engine
from edge_agent.core.types import Array

_IMAGES = 8  # more than the CPU's cache holds, for a camera's next frame is not in the cache either
_WARM_UP_S = 0.5


@runtime_checkable
class Divided(Protocol):
    """An engine that can run preprocessing and network separately."""

    def prepare(self, image: Image) -> Any:
        """Preprocess; returns the network's input."""

    def run(self, tensor: Any) -> Mapping[str, Array]:
        """Run the network on a prepared input; returns its raw outputs."""


@dataclass(frozen=True)
class Timing:
    """Durations of one kind of call, ms.

    Attributes:
        count: Number of calls.
        per_s: Calls per second when only these run.
        cpu_ms: CPU time of this process per call, all threads.
    """

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    per_s: float
    cpu_ms: float


@dataclass(frozen=True)
class Result:
    """A measurement.

    Attributes:
        whole: From an image in memory to raw outputs in memory.
        network: The same without preprocessing; None where the engine cannot run them separately.
        preprocess_ms: Median of the differences; on a GPU the network begins before preprocessing has ended, so it is
            no sum. None like `network`.
    """

    whole: Timing
    network: Optional[Timing]
    preprocess_ms: Optional[float]


def measure(engine: Engine, size: Tuple[int, int], seconds: float) -> Result:
    """Run random images of `size` (width, height) through the engine for `seconds`.

    Raises:
        EngineError: The engine failed.
    """
    noise = np.random.default_rng(0)
    images = [Image(noise.integers(0, 256, size[::-1], np.uint8)) for _ in range(_IMAGES)]
    feed = itertools.cycle(images)
    divided = engine if isinstance(engine, Divided) else None

    def once() -> List[Array]:
        started = _now_ms()
        if divided is None:
            engine.infer(next(feed))
            return [_now_ms() - started]
        tensor = divided.prepare(next(feed))
        divided.run(tensor)
        between = _now_ms()
        divided.run(tensor)  # alternating, so that other load on the machine affects both alike
        return [between - started, _now_ms() - between]

    _repeat(once, min(_WARM_UP_S, seconds / 4))
    samples = np.array(_repeat(once, seconds))  # (calls, kinds, 2) ms
    whole = _timing(samples[:, 0])
    if divided is None:
        return Result(whole, None, None)
    difference = float(np.median(samples[:, 0, 0] - samples[:, 1, 0]))
    return Result(whole, _timing(samples[:, 1]), max(difference, 0.0))


def _now_ms() -> Array:
    """Wall-clock time and CPU time of this process, (2,) ms."""
    return 1000.0 * np.array((time.perf_counter(), time.process_time()))


def _timing(samples: Array) -> Timing:
    """Statistics of (calls, 2) samples: duration and CPU time, ms."""
    p50, p90, p99, most = np.percentile(samples[:, 0], (50, 90, 99, 100)).tolist()
    took_ms, cpu_ms = samples.mean(axis=0).tolist()
    return Timing(len(samples), p50, p90, p99, most, 1000 / took_ms, cpu_ms)


def _repeat(once: Callable[[], List[Array]], seconds: float) -> List[List[Array]]:
    """The results of all calls within `seconds`, at least one."""
    samples: List[List[Array]] = []
    until = time.perf_counter() + seconds
    while not samples or time.perf_counter() < until:
        samples.append(once())
    return samples
