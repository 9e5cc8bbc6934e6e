"""Decides when to reconnect, and with which version of MQTT."""

import random
from collections import deque
from dataclasses import dataclass
from typing import Deque

STABLE_S = 60.0
"""A session of this length resets the delay."""
OPERATOR_S = (60.0, 300.0)
FLAPS = 3
FLAP_WINDOW_S = 60.0


@dataclass(frozen=True)
class SessionResult:
    """How an attempt to connect, or the session that followed, ended.

    Attributes:
        reason: Text for the health message and the log.
        connected: There was a session.
        lasted_s: Length of the session, seconds.
        answered: The broker has answered CONNECT.
        unsupported: The broker does not support this version of MQTT.
        needs_operator: Somebody must change something: the broker refuses the credentials, or lacks a feature.
        closed: The agent closed the connection.
    """

    reason: str
    connected: bool = False
    lasted_s: float = 0.0
    answered: bool = True
    unsupported: bool = False
    needs_operator: bool = False
    closed: bool = False


class Backoff:
    """Exponential backoff with full jitter: uniform between 0 and a bound that doubles, so that a fleet spreads out.

    Args:
        jitter: Random numbers.
        first_s: The first bound.
        max_s: The largest bound.
    """

    def __init__(self, jitter: random.Random, first_s: float = 1.0, max_s: float = 60.0) -> None:
        self._jitter, self._first_s, self._max_s = jitter, first_s, max_s
        self._failures = 0

    def after(self, result: SessionResult) -> float:
        """Return the seconds to wait before the next attempt; 60 to 300 when an operator is needed."""
        if result.connected and result.lasted_s >= STABLE_S:
            self._failures = 0
        if result.needs_operator:
            return self._jitter.uniform(*OPERATOR_S)
        bound = min(self._max_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self._jitter.uniform(0.0, bound)


class ProtocolFallback:
    """Chooses the MQTT version: the setting; 3.1.1 when the broker refuses version 5, or twice does not answer it.

    A broker that answers neither has another problem, so silence also switches back to 5. Since 3.1.1 cannot report
    refusals, a session that followed mere silence is followed by an attempt with 5.

    Args:
        setting: The configured version.

    Attributes:
        version: "5" or "3.1.1", for the next attempt.
    """

    def __init__(self, setting: str) -> None:
        self.version = setting
        self._fixed = setting != "5"
        self._silences = 0

    def ended(self, result: SessionResult) -> None:
        """Choose the version after an attempt."""
        if self._fixed:
            return
        if result.unsupported and self.version == "5":
            self.version, self._fixed = "3.1.1", True
        elif result.connected:
            self.version, self._silences = "5", 0
        elif not result.answered:
            self._silences += 1
            if self._silences == 2:
                self.version, self._silences = ("3.1.1" if self.version == "5" else "5"), 0
        else:
            self._silences = 0


class FlapDetector:
    """Detects more than three lost connections within a minute."""

    def __init__(self) -> None:
        self._lost_t: Deque[float] = deque(maxlen=FLAPS + 1)

    def lost(self, t: float) -> bool:
        """Record a loss at `t`; returns True when there were too many."""
        self._lost_t.append(t)
        return len(self._lost_t) > FLAPS and t - self._lost_t[0] <= FLAP_WINDOW_S
