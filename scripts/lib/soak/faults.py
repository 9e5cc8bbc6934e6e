"""The soak's random faults: cameras that lose sight by script, and faults of broker, disk and settings."""

import random
import resource
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Tuple

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker
from tests.fakes.proxy import RecordingProxy

BLINDNESS = {"dark": "dark", "cover": "covered", "freeze": "frozen", "lose": "lost"}
"""The keyword in the scene's script, and the camera's sight that follows."""
DETECT_S = 0.5
MAX_BYTES = 65_536
SIGHT = {"DARK_AFTER_S": DETECT_S, "COVERED_AFTER_S": DETECT_S, "FROZEN_AFTER_S": DETECT_S}


@dataclass(frozen=True)
class Blind:
    """One interval without sight, scene seconds."""

    kind: str
    start_s: float
    end_s: float


def blind_windows(chance: random.Random, until_s: float) -> List[Blind]:
    """Return random intervals, far enough apart for the camera to see again between them."""
    windows: List[Blind] = []
    t_s = chance.uniform(4.0, 8.0)
    while t_s < until_s:
        windows.append(Blind(chance.choice(list(BLINDNESS)), round(t_s, 2), round(t_s + chance.uniform(1.8, 3.0), 2)))
        t_s = windows[-1].end_s + chance.uniform(3.0, 8.0)
    return windows


def as_query(windows: List[Blind]) -> str:
    """Return the intervals as the query of a `test://` URI."""
    spans = {kind: [f"{w.start_s:g}-{w.end_s:g}" for w in windows if w.kind == kind] for kind in BLINDNESS}
    return "".join(f"&{kind}={','.join(found)}" for kind, found in spans.items() if found)


@dataclass
class Struck:
    """The faults so far: counts by name, and (from, to, name) in seconds."""

    counts: Dict[str, int] = field(default_factory=dict)
    spans: List[Tuple[float, float, str]] = field(default_factory=list)


class Trouble:
    """Causes one fault at a time and repairs it. Never waits: the caller calls `step` repeatedly.

    Args:
        chance: What and when.
        agent: Running.
        broker: Likewise.
        proxy: Between them.
        env_file: Read by the agent at a reload.
    """

    def __init__(
        self, chance: random.Random, agent: AgentProcess, broker: Broker, proxy: RecordingProxy, env_file: Path
    ) -> None:
        self.struck = Struck()
        self._chance, self._agent, self._broker, self._proxy, self._env_file = chance, agent, broker, proxy, env_file
        self._deck: List[str] = []
        self._mend: Callable[[], None] = lambda: None
        self._until_t = self._next_t = 0.0
        self._limits = resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE)

    def step(self, t_s: float) -> None:
        """Repair the fault that is over, or cause the next one."""
        if self._until_t:
            if t_s >= self._until_t:
                self._rest(t_s)
        elif t_s >= self._next_t:
            self._deck = self._deck or self._chance.sample(list(FAULTS), len(FAULTS))
            name = self._deck.pop()
            least_s, most_s = FAULTS[name]
            self._until_t = t_s + self._chance.uniform(least_s, most_s)
            self.struck.counts[name] = self.struck.counts.get(name, 0) + 1
            self.struck.spans.append((t_s, self._until_t, name))
            getattr(self, "_" + name.replace("-", "_"))()

    def end(self, t_s: float) -> None:
        """Repair the current fault."""
        if self._until_t:
            self._rest(t_s)

    def _rest(self, t_s: float) -> None:
        self._mend()
        self._until_t, self._next_t, self._mend = 0.0, t_s + self._chance.uniform(0.5, 3.0), lambda: None

    def _broker_killed(self) -> None:
        self._broker.kill()
        self._mend = self._broker_started

    def _broker_started(self) -> None:
        self._broker.start()

    def _broker_slow(self) -> None:
        self._broker.send_signal(signal.SIGSTOP)
        self._mend = lambda: self._broker.send_signal(signal.SIGCONT)

    def _outbox_full(self) -> None:
        """Cut the network for long enough that the outbox reaches its bound."""
        self._proxy.cut()
        self._mend = self._proxy.mend

    def _disk_full(self) -> None:
        resource.prlimit(self._agent.process.pid, resource.RLIMIT_FSIZE, (4096, self._limits[1]))
        self._mend = self._disk_free

    def _disk_free(self) -> None:
        resource.prlimit(self._agent.process.pid, resource.RLIMIT_FSIZE, self._limits)

    def _reload_valid(self) -> None:
        self._reload(self._chance.choice((0.05, 0.06, 0.07)))

    def _reload_invalid(self) -> None:
        self._reload(-1.0)

    def _reload(self, delay_off_s: float) -> None:
        self._env_file.write_text(f"EDGE_AGENT_PRESENCE__DELAY_OFF_S={delay_off_s}\n")
        self._agent.process.send_signal(signal.SIGHUP)


FAULTS = {
    "broker-killed": (0.5, 3.0),
    "broker-slow": (0.5, 3.0),
    "outbox-full": (5.0, 7.0),
    "disk-full": (1.0, 3.0),
    "reload-valid": (1.5, 2.0),
    "reload-invalid": (1.5, 2.0),
}
"""How long each lasts, seconds."""
