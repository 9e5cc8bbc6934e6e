"""The outbox in memory: survives the broker's absence, not the agent's. See `core.ports.Outbox`."""

import bisect
import logging
from collections import OrderedDict, deque
from dataclasses import replace
from typing import Callable, Deque, Dict, List, Optional, Sequence, Set, Tuple

from edge_agent.core.gaps import gap_for, merge_gaps, stream
from edge_agent.core.messages import Message, OutboxStatus, Stored, timestamp
from edge_agent.core.types import Moment
from edge_agent.mqtt.params import OutboxParams

log = logging.getLogger(__name__)

MAX_TRIES = 3
"""A message in flight at so many lost connections is taken for their cause."""
QUARANTINE = 100
OVERHEAD_BYTES = 256
"""What keeping one message costs beside topic and payload, about."""
DROP_ORDER = ("crop", "update", "event")


def size_of(message: Message) -> int:
    """What a message counts against the bounds, bytes."""
    return OVERHEAD_BYTES + len(message.topic) + len(message.payload)


def class_of(message: Message) -> Optional[str]:
    """Which of `DROP_ORDER` a message is; None for what is never dropped (a gap)."""
    if message.kind == "event":
        return "update" if message.event_type == "update" else "event"
    return "crop" if message.kind == "crop" else None


class MemoryOutbox:
    """Bounded by bytes; order by key; a loss leaves a gap message in its place.

    Args:
        params: The bounds.
        monotonic: For the age in `status`.
    """

    def __init__(self, params: OutboxParams, monotonic: Callable[[], float]) -> None:
        self._params, self._monotonic = params, monotonic
        self._entries: OrderedDict[int, Stored] = OrderedDict()
        self._by_class: Dict[str, OrderedDict[int, None]] = {name: OrderedDict() for name in DROP_ORDER}
        self._gaps: Dict[Tuple[str, ...], List[int]] = {}
        self._in_flight: Set[int] = set()
        self._quarantine: Deque[Stored] = deque(maxlen=QUARANTINE)
        self._next_key = 1
        self._bytes = self._crop_bytes = self._dropped = self._quarantined = 0
        self._full = False

    def put(self, messages: Sequence[Message], moment: Moment) -> None:
        """Keep messages, in order; what must be dropped to make room is counted and announced."""
        for message in messages:
            self._set(Stored(self._next_key, message, moment.t, timestamp(moment.at)))
            self._next_key += 1
        self._make_room()

    def batch(self, limit: int) -> List[Stored]:
        """The oldest messages that are not in flight, in order, marked in flight; at most `limit`."""
        chosen: List[Stored] = []
        for key, stored in self._entries.items():
            if len(chosen) >= limit:
                break
            if key not in self._in_flight:
                chosen.append(stored)
        self._in_flight.update(stored.key for stored in chosen)
        return chosen

    def accept(self, key: int) -> None:
        """The broker has acknowledged it: forget it."""
        if key in self._entries:
            self._remove(key)
        if self._full and not self._entries:
            self._full = False
            log.info("outbox: empty again; %d messages were dropped since start", self._dropped)

    def reject(self, key: int, reason: str, fatal: bool) -> None:
        """It was not delivered: send again, or (fatal, or too often) put it into quarantine."""
        stored = self._entries.get(key)
        if stored is None:
            return
        self._in_flight.discard(key)
        stored = replace(stored, tries=stored.tries + 1)
        # A gap is small and plain: it is nobody's fault, and without it a loss would go unannounced.
        if not fatal and (stored.tries < MAX_TRIES or stored.message.kind == "gap"):
            self._entries[key] = stored
            return
        self._quarantine.append(stored)
        self._quarantined += 1
        log.warning("outbox: %s of %s set aside: %s", stored.message.kind, stored.message.topic, reason)
        self._lose(key, "quarantined")

    def release(self, keys: Sequence[int]) -> None:
        """They are no longer in flight, through no fault of theirs: send again, in order."""
        self._in_flight.difference_update(keys)

    def status(self) -> OutboxStatus:
        """Sizes and losses."""
        oldest = next(iter(self._entries.values()), None)
        return OutboxStatus(
            pending=len(self._entries),
            in_flight=len(self._in_flight),
            bytes=self._bytes,
            oldest_s=0.0 if oldest is None else max(0.0, self._monotonic() - oldest.queued_t),
            dropped=self._dropped,
            quarantined=self._quarantined,
        )

    def close(self) -> None:
        """Nothing to give back."""

    def _set(self, stored: Stored) -> None:
        """Insert, or replace in its place."""
        if stored.key in self._entries:
            self._forget(self._entries[stored.key])
        self._entries[stored.key] = stored
        message = stored.message
        self._bytes += size_of(message)
        kind = class_of(message)
        if kind is not None:
            self._by_class[kind][stored.key] = None
            self._crop_bytes += size_of(message) if kind == "crop" else 0
        else:
            bisect.insort(self._gaps.setdefault(stream(message), []), stored.key)

    def _remove(self, key: int) -> None:
        self._forget(self._entries.pop(key))
        self._in_flight.discard(key)

    def _forget(self, stored: Stored) -> None:
        message = stored.message
        self._bytes -= size_of(message)
        kind = class_of(message)
        if kind is not None:
            del self._by_class[kind][stored.key]
            self._crop_bytes -= size_of(message) if kind == "crop" else 0
        else:
            keys = self._gaps[stream(message)]
            keys.remove(stored.key)
            if not keys:
                del self._gaps[stream(message)]

    def _make_room(self) -> None:
        while self._crop_bytes > self._params.max_crop_bytes and self._drop_oldest("crop"):
            pass
        for kind in DROP_ORDER:
            while self._bytes > self._params.max_bytes and self._drop_oldest(kind):
                pass

    def _drop_oldest(self, kind: str) -> bool:
        key = next((key for key in self._by_class[kind] if key not in self._in_flight), None)
        if key is None:
            return False
        log.log(logging.DEBUG if self._full else logging.WARNING, "outbox: full, the oldest %s was dropped", kind)
        self._full = True
        self._dropped += 1
        self._lose(key, "full")
        return True

    def _lose(self, key: int, reason: str) -> None:
        """Put a gap in a message's place, joined with its neighbours where that is one loss."""
        stored = self._entries[key]
        gap = gap_for(stored.message, reason)
        if gap is None:
            self._remove(key)
            return
        self._set(replace(stored, message=gap, tries=0))
        keys = self._gaps[stream(gap)]
        at = bisect.bisect_left(keys, key)
        after = keys[at + 1] if at + 1 < len(keys) else None
        before = keys[at - 1] if at else None
        if after is not None:
            self._join(key, after)
        if before is not None:
            self._join(before, key)

    def _join(self, first: int, second: int) -> None:
        if first in self._in_flight or second in self._in_flight:
            return
        merged = merge_gaps(self._entries[first].message, self._entries[second].message)
        if merged is not None:
            self._set(replace(self._entries[first], message=merged))
            self._remove(second)
