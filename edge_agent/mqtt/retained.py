"""The newest value of each retained topic, and whether the broker has acknowledged it.

Older values are never queued: a topic that changes while the broker is away, or while its last value is in flight, is
sent once, with its newest value.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Dict, Iterable, Iterator, List

from edge_agent.core.protocol.messages import Message


class Rank(IntEnum):
    """Order of publication at every connect, as the protocol defines it."""

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
    """All retained topics of the agent."""

    def __init__(self) -> None:
        self._topics: Dict[str, _Topic] = {}

    @property
    def acknowledged(self) -> bool:
        """True when the broker has acknowledged all topics."""
        return not any(topic.dirty or topic.in_flight for topic in self._topics.values())

    @property
    def topics(self) -> List[str]:
        """Topics that have a value; an empty one clears its topic."""
        return [name for name, topic in self._topics.items() if topic.message.payload]

    def is_acknowledged(self, topics: Iterable[str]) -> bool:
        """Whether the broker has acknowledged these topics."""
        known = [self._topics[topic] for topic in topics if topic in self._topics]
        return not any(topic.dirty or topic.in_flight for topic in known)

    def set(self, message: Message, rank: Rank, interval_s: float = 0.0) -> None:
        """Set a topic's value; it is sent at the earliest `interval_s` after the last one."""
        known = self._topics.get(message.topic)
        if known is None:
            self._topics[message.topic] = _Topic(message, rank)
            return
        if known.message.payload != message.payload:
            known.dirty = True
        known.message, known.rank = message, rank
        known.not_before_t = max(known.retry_t, known.sent_t + interval_s)

    def connected(self) -> None:
        """Mark all topics for sending, at once: a new session has begun."""
        for topic in self._topics.values():
            topic.dirty, topic.in_flight = True, False
            topic.retry_t = topic.not_before_t = 0.0

    def due(self, t: float) -> Iterator[Message]:
        """Yield the messages to send, in order; `sent` must be called for each before the next is taken."""
        for topic in sorted(self._topics.values(), key=lambda topic: topic.rank):
            if topic.dirty and not topic.in_flight and t >= topic.not_before_t:
                yield topic.message

    def sent(self, topic: str, t: float) -> None:
        """Note that the newest value is in flight."""
        known = self._topics[topic]
        known.dirty, known.in_flight, known.sent_t = False, True, t

    def skip(self, topic: str) -> None:
        """Do not send this value in this session."""
        self._topics[topic].dirty = False

    def accepted(self, topic: str) -> None:
        """Note that the broker has acknowledged the value in flight."""
        known = self._topics.get(topic)
        if known is not None:
            known.in_flight = False

    def refused(self, topic: str, retry_t: float) -> None:
        """Note that the broker has refused the value in flight; send it again at `retry_t`."""
        known = self._topics.get(topic)
        if known is not None:
            known.in_flight, known.dirty = False, True
            known.retry_t = known.not_before_t = retry_t
