"""When to try again, and in which version of MQTT. Pure; the client's thread owns them."""

import random
from collections import deque
from dataclasses import dataclass
from typing import Deque

STABLE_S = 60.0
"""A session of this length ends a row of failures."""
HOPELESS_S = (60.0, 300.0)
FLAPS = 3
FLAP_WINDOW_S = 60.0


@dataclass(frozen=True)
class SessionResult:
    """How one attempt, or the session that came of it, ended.

    Attributes:
        reason: In words, for health and log.
        connected: There was a session.
        lasted_s: Of the session.
        answered: The broker has answered CONNECT, whatever it said.
        unsupported: It does not speak this version of MQTT.
        hopeless: Only people can mend it: it does not know us, or cannot do what we need.
        closed: We wanted it.
    """

    reason: str
    connected: bool = False
    lasted_s: float = 0.0
    answered: bool = True
    unsupported: bool = False
    hopeless: bool = False
    closed: bool = False


class Backoff:
    """Exponential with full jitter: uniform between 0 and a bound that doubles, so that a fleet does not come at once.

    Args:
        jitter: Where randomness comes from.
        first_s: The first bound.
        max_s: The last.
    """

    def __init__(self, jitter: random.Random, first_s: float = 1.0, max_s: float = 60.0) -> None:
        self._jitter, self._first_s, self._max_s = jitter, first_s, max_s
        self._failures = 0

    def after(self, ending: SessionResult) -> float:
        """Seconds to wait before the next attempt; 60 to 300 when it is for people to mend."""
        if ending.connected and ending.lasted_s >= STABLE_S:
            self._failures = 0
        if ending.hopeless:
            return self._jitter.uniform(*HOPELESS_S)
        bound = min(self._max_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self._jitter.uniform(0.0, bound)


class ProtocolFallback:
    """Which version of MQTT to speak: as set; 3.1.1 when the broker says so or twice does not answer version 5.

    A broker that answers neither is not a matter of versions, so silence turns back to 5 too; and since 3.1.1 cannot
    tell what was refused, a session that came of mere silence is followed by an attempt in 5.
    """

    def __init__(self, setting: str) -> None:
        self.version = setting
        self._fixed = setting != "5"
        self._silences = 0

    def ended(self, ending: SessionResult) -> None:
        """Learn from an attempt."""
        if self._fixed:
            return
        if ending.unsupported and self.version == "5":
            self.version, self._fixed = "3.1.1", True
        elif ending.connected:
            self.version, self._silences = "5", 0
        elif not ending.answered:
            self._silences += 1
            if self._silences == 2:
                self.version, self._silences = ("3.1.1" if self.version == "5" else "5"), 0
        else:
            self._silences = 0


class FlapDetector:
    """Notices a connection that comes and goes: more than three losses within a minute."""

    def __init__(self) -> None:
        self._lost_t: Deque[float] = deque(maxlen=FLAPS + 1)

    def lost(self, t: float) -> bool:
        """Note a loss at `t`; True when there were too many."""
        self._lost_t.append(t)
        return len(self._lost_t) > FLAPS and t - self._lost_t[0] <= FLAP_WINDOW_S
