"""A clock that advances only on request."""

from datetime import datetime, timedelta, timezone

from edge_agent.core.types import Moment

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class FakeClock:
    """Callable like the real one; `advance` moves both clocks, `step_wall` only the one that people see."""

    def __init__(self, t: float = 100.0) -> None:
        self.t = t
        self._wall_s = 0.0

    def __call__(self) -> Moment:
        return Moment(self.t, START + timedelta(seconds=self.t + self._wall_s), True)

    def advance(self, seconds: float) -> Moment:
        self.t += seconds
        return self()

    def step_wall(self, seconds: float) -> None:
        self._wall_s += seconds
