"""The retained truth: the newest value of each retained topic, and which of them the broker has yet to be told.

Older values are never queued: a topic that changes while the broker is away, or while its last value is in flight, is
sent once, with what is true then.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Dict, Iterable, Iterator, List

from edge_agent.core.protocol.messages import Message


class Rank(IntEnum):
    """The contract's order at every connect."""

    INFO = 0
    AVAILABILITY = 1
    PRESENCE = 2
    DISCOVERY = 3
    ONLINE = 4
    HEALTH = 5


@dataclass
class _Topic:
    message: Message
    rank: Rank
    dirty: bool = True
    in_flight: bool = False
    not_before_t: float = 0.0
    retry_t: float = 0.0
    sent_t: float = float("-inf")


class RetainedState:
    """What is true, topic by topic."""

    def __init__(self) -> None:
        self._topics: Dict[str, _Topic] = {}

    def set(self, message: Message, rank: Rank, interval_s: float = 0.0) -> None:
        """The topic's value is now this; with `interval_s`, tell it that long after the last one at the earliest."""
        known = self._topics.get(message.topic)
        if known is None:
            self._topics[message.topic] = _Topic(message, rank)
            return
        if known.message.payload != message.payload:
            known.dirty = True
        known.message, known.rank = message, rank
        known.not_before_t = max(known.retry_t, known.sent_t + interval_s)

    def skip(self, topic: str) -> None:
        """This value cannot be told in this session: wait for another value, or another session."""
        self._topics[topic].dirty = False

    def connected(self) -> None:
        """A new session: everything has to be told again, at once."""
        for topic in self._topics.values():
            topic.dirty, topic.in_flight = True, False
            topic.retry_t = topic.not_before_t = 0.0

    def due(self, t: float) -> Iterator[Message]:
        """What to send now, in order; a caller that sends one says so by `sent` before it takes the next."""
        for topic in sorted(self._topics.values(), key=lambda topic: topic.rank):
            if topic.dirty and not topic.in_flight and t >= topic.not_before_t:
                yield topic.message

    def sent(self, topic: str, t: float) -> None:
        """The newest value is in flight."""
        known = self._topics[topic]
        known.dirty, known.in_flight, known.sent_t = False, True, t

    def accepted(self, topic: str) -> None:
        """The broker has taken what was in flight."""
        known = self._topics.get(topic)
        if known is not None:
            known.in_flight = False

    def refused(self, topic: str, retry_t: float) -> None:
        """The broker has refused what was in flight; try again then."""
        known = self._topics.get(topic)
        if known is not None:
            known.in_flight, known.dirty = False, True
            known.retry_t = known.not_before_t = retry_t

    @property
    def told(self) -> bool:
        """True when the broker has acknowledged all of it."""
        return not any(topic.dirty or topic.in_flight for topic in self._topics.values())

    def is_told(self, topics: Iterable[str]) -> bool:
        """True when the broker has acknowledged these."""
        known = [self._topics[topic] for topic in topics if topic in self._topics]
        return not any(topic.dirty or topic.in_flight for topic in known)

    @property
    def topics(self) -> List[str]:
        """Those that hold something: an empty value clears its topic."""
        return [name for name, topic in self._topics.items() if topic.message.payload]
