"""The outbox in memory: keeps messages while the broker is away, but not over a restart of the agent."""

import bisect
import logging
from collections import OrderedDict, deque
from dataclasses import replace
from typing import Callable, Container, Deque, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from edge_agent.core.protocol.messages import Message, OutboxStatus, Stored, gap_key, timestamp
from edge_agent.core.types import Moment
from edge_agent.outbox.params import OutboxParams
from edge_agent.outbox.retention import (
    DROP_ORDER,
    QUARANTINE,
    DiscardedCrops,
    RetentionPolicy,
    class_of,
    must_quarantine,
    size_of,
)

log = logging.getLogger(__name__)


class MemoryStore:
    """Messages in the order in which their keys were first set; implements `MessageStore`.

    Args:
        in_flight: Keys of messages that must not change.
    """

    def __init__(self, in_flight: Container[int]) -> None:
        self.bytes = self.crop_bytes = 0
        self._in_flight = in_flight
        self._entries: OrderedDict[int, Stored] = OrderedDict()
        self._by_class: Dict[str, OrderedDict[int, None]] = {name: OrderedDict() for name in DROP_ORDER}
        self._gaps: Dict[Tuple[str, ...], List[int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Stored]:
        return iter(self._entries.values())

    def get(self, key: int) -> Optional[Stored]:
        """Return the message with a key, or None."""
        return self._entries.get(key)

    def set(self, stored: Stored) -> None:
        """Insert a message, or replace the one with its key."""
        message, kind = stored.message, class_of(stored.message)
        known = self._entries.get(stored.key)
        if known is not None and (kind is None or class_of(known.message) != kind):
            self._remove_from_index(known)
        self.bytes += size_of(message) - (size_of(known.message) if known else 0)
        self.crop_bytes += _crop_bytes(message) - (_crop_bytes(known.message) if known else 0)
        self._entries[stored.key] = stored
        if kind is not None:
            self._by_class[kind][stored.key] = None
        else:
            bisect.insort(self._gaps.setdefault(gap_key(message), []), stored.key)

    def remove(self, key: int) -> None:
        """Delete a message; unknown keys are ignored."""
        stored = self._entries.pop(key, None)
        if stored is not None:
            self._remove_from_index(stored)
            self.bytes -= size_of(stored.message)
            self.crop_bytes -= _crop_bytes(stored.message)

    def clear(self) -> None:
        """Delete all messages."""
        self.bytes = self.crop_bytes = 0
        self._entries.clear()
        self._gaps.clear()
        for keys in self._by_class.values():
            keys.clear()

    def oldest(self, kind: str) -> Optional[Stored]:
        """Return the first message of a class that is not in flight."""
        key = next((key for key in self._by_class[kind] if key not in self._in_flight), None)
        return None if key is None else self._entries[key]

    def crops(self) -> List[Stored]:
        """Return all crops that are not in flight."""
        return [self._entries[key] for key in self._by_class["crop"] if key not in self._in_flight]

    def gap_before(self, gap: Stored) -> Optional[Stored]:
        """Return the next older gap of the same kind, camera and boot, unless it is in flight."""
        keys = self._gaps[gap_key(gap.message)]
        at = bisect.bisect_left(keys, gap.key)
        return self._unless_in_flight(keys[at - 1]) if at else None

    def gap_after(self, gap: Stored) -> Optional[Stored]:
        """Return the next newer gap of the same kind, camera and boot, unless it is in flight."""
        keys = self._gaps[gap_key(gap.message)]
        at = bisect.bisect_right(keys, gap.key)
        return self._unless_in_flight(keys[at]) if at < len(keys) else None

    def _unless_in_flight(self, key: int) -> Optional[Stored]:
        return None if key in self._in_flight else self._entries[key]

    def _remove_from_index(self, stored: Stored) -> None:
        kind = class_of(stored.message)
        if kind is not None:
            del self._by_class[kind][stored.key]
            return
        keys = self._gaps[gap_key(stored.message)]
        keys.remove(stored.key)
        if not keys:
            del self._gaps[gap_key(stored.message)]


class MemoryOutbox:
    """Queue with limits of size and age; a loss leaves a gap message in its place. See `core.ports.Outbox`.

    Args:
        params: The limits.
        monotonic: Returns monotonic seconds.
    """

    faults: Sequence[str] = ()

    def __init__(self, params: OutboxParams, monotonic: Callable[[], float]) -> None:
        self._params, self._monotonic = params, monotonic
        self._in_flight: Set[int] = set()
        self._store = MemoryStore(self._in_flight)
        self._policy = RetentionPolicy(params)
        self._discarded = DiscardedCrops()
        self._quarantine: Deque[Stored] = deque(maxlen=QUARANTINE)
        self._next_key = 1
        self._quarantined = 0

    def open(self) -> None:
        """Do nothing."""

    def put(self, messages: Sequence[Message], moment: Moment) -> None:
        """Store messages in order; messages dropped to make room are counted and get a gap message."""
        for message in messages:
            self._store.set(Stored(self._next_key, message, moment.t, timestamp(moment.at)))
            self._next_key += 1
        self._policy.make_room(self._store, moment.t, self._params.max_bytes)

    def batch(self, limit: int, without: Container[str] = ()) -> List[Stored]:
        """Mark the oldest waiting messages as in flight, at most `limit`, and return them in order."""
        chosen: List[Stored] = []
        for stored in self._store:
            if len(chosen) >= limit:
                break
            if stored.key not in self._in_flight and stored.message.kind not in without:
                chosen.append(stored)
        self._in_flight.update(stored.key for stored in chosen)
        return chosen

    def accept(self, key: int) -> None:
        """Delete a message that the broker has acknowledged."""
        self._store.remove(key)
        self._in_flight.discard(key)
        if not len(self._store):
            self._policy.emptied()

    def reject(self, key: int, reason: str, fatal: bool) -> None:
        """Queue an undelivered message again; after a fatal or repeated failure, quarantine it."""
        stored = self._store.get(key)
        if stored is None:
            return
        self._in_flight.discard(key)
        if stored in self._discarded:
            self._policy.drop(self._store, stored, "disabled")
            return
        stored = replace(stored, tries=stored.tries + 1)
        if not must_quarantine(stored, fatal):
            self._store.set(stored)
            return
        self._quarantine.append(stored)
        self._quarantined += 1
        log.warning("outbox: %s of %s quarantined: %s", stored.message.kind, stored.message.topic, reason)
        self._policy.drop(self._store, stored, "quarantined")

    def release(self, keys: Sequence[int]) -> None:
        """Queue messages again, in order, after a failure that they did not cause."""
        self._in_flight.difference_update(keys)
        released = [stored for stored in map(self._store.get, keys) if stored is not None]
        self._policy.drop_discarded(self._store, released, self._discarded)

    def discard_crops(self, camera: Optional[str]) -> None:
        """Drop crops now, and those in flight when they are released."""
        self._discarded.add(camera, self._next_key)
        self._policy.drop_discarded(self._store, self._store.crops(), self._discarded)

    def flush(self) -> None:
        """Do nothing: memory cannot be made more durable."""

    def status(self) -> OutboxStatus:
        """Return queue sizes and losses."""
        oldest = next(iter(self._store), None)
        return OutboxStatus(
            pending=len(self._store),
            in_flight=len(self._in_flight),
            bytes=self._store.bytes,
            oldest_s=0.0 if oldest is None else max(0.0, self._monotonic() - oldest.queued_t),
            dropped=self._policy.dropped,
            quarantined=self._quarantined,
        )

    def close(self) -> None:
        """Do nothing."""


def _crop_bytes(message: Message) -> int:
    return size_of(message) if message.kind == "crop" else 0
