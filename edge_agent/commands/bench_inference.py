"""How fast an engine is by itself: one picture after the other, each waited for, as the agent does it."""

import itertools
import time
from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Optional, Protocol, Tuple, runtime_checkable

import numpy as np

from edge_agent.core.frame import Picture
from edge_agent.core.ports import Engine
from edge_agent.core.types import Array

_PICTURES = 8  # so that they do not all stay in the CPU's cache: a camera's next frame is not there either
_WARM_UP_S = 0.5


@runtime_checkable
class Divided(Protocol):
    """An engine that tells preprocessing from the network."""

    def prepare(self, picture: Picture) -> Any:
        """The network's input."""

    def run(self, tensor: Any) -> Mapping[str, Array]:
        """The network, on an input that is there already."""


@dataclass(frozen=True)
class Timing:
    """Durations of one kind of call, ms.

    Attributes:
        count: How many there were.
        per_s: Calls per second, over all of the time.
        cpu_ms: Processor time of this process per call, all threads.
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
    """What was measured.

    Attributes:
        whole: From a picture in memory to raw outputs in memory.
        network: The same without preprocessing; None where the engine does not tell them apart.
    """

    whole: Timing
    network: Optional[Timing]

    @property
    def preprocess_ms(self) -> Optional[float]:
        """The difference of the medians, since on a GPU the network begins before preprocessing has ended."""
        return None if self.network is None else max(self.whole.p50_ms - self.network.p50_ms, 0.0)


def measure(engine: Engine, size: Tuple[int, int], seconds: float) -> Result:
    """Run pictures of `size` (width, height) through the engine, for so long altogether.

    Raises:
        EngineError: The engine failed.
    """
    noise = np.random.default_rng(0)
    pictures = [Picture(noise.integers(0, 256, size[::-1], np.uint8)) for _ in range(_PICTURES)]
    feed = itertools.cycle(pictures)
    if not isinstance(engine, Divided):
        return Result(_timed(lambda: engine.infer(next(feed)), seconds), None)
    whole = _timed(lambda: engine.infer(next(feed)), seconds / 2)
    tensor = engine.prepare(pictures[0])
    return Result(whole, _timed(lambda: engine.run(tensor), seconds / 2))


def _timed(call: Callable[[], object], seconds: float) -> Timing:
    _repeat(call, min(_WARM_UP_S, seconds / 4))
    cpu, started = time.process_time(), time.perf_counter()
    took_ms = _repeat(call, seconds)
    elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    p50, p90, p99, most = np.percentile(took_ms, (50, 90, 99, 100)).tolist()
    count = len(took_ms)
    return Timing(count, p50, p90, p99, most, count / elapsed_s, 1000 * cpu_s / count)


def _repeat(call: Callable[[], object], seconds: float) -> List[float]:
    """Durations in ms, of one call at least."""
    took_ms: List[float] = []
    until = time.perf_counter() + seconds
    now = time.perf_counter()
    while not took_ms or now < until:
        call()
        before, now = now, time.perf_counter()
        took_ms.append(1000 * (now - before))
    return took_ms
