"""The outbox in memory: survives the broker's absence, not the agent's. See `core.ports.Outbox`."""

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
    Policy,
    class_of,
    must_quarantine,
    size_of,
)

log = logging.getLogger(__name__)


class MemoryStore:
    """See `outbox.policy.MessageStore`. Keeps the order in which keys first came.

    Args:
        in_flight: Keys that must stay as they are.
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
        """The message, or None."""
        return self._entries.get(key)

    def set(self, stored: Stored) -> None:
        """Insert, or replace in its place."""
        message, kind = stored.message, class_of(stored.message)
        known = self._entries.get(stored.key)
        if known is not None and (kind is None or class_of(known.message) != kind):
            self._unfile(known)
        self.bytes += size_of(message) - (size_of(known.message) if known else 0)
        self.crop_bytes += _crop_bytes(message) - (_crop_bytes(known.message) if known else 0)
        self._entries[stored.key] = stored
        if kind is not None:
            self._by_class[kind][stored.key] = None
        else:
            bisect.insort(self._gaps.setdefault(gap_key(message), []), stored.key)

    def remove(self, key: int) -> None:
        """Forget; unknown keys are ignored."""
        stored = self._entries.pop(key, None)
        if stored is not None:
            self._unfile(stored)
            self.bytes -= size_of(stored.message)
            self.crop_bytes -= _crop_bytes(stored.message)

    def clear(self) -> None:
        """Forget all."""
        self.bytes = self.crop_bytes = 0
        self._entries.clear()
        self._gaps.clear()
        for keys in self._by_class.values():
            keys.clear()

    def oldest(self, kind: str) -> Optional[Stored]:
        """The first of a class that is not in flight."""
        key = next((key for key in self._by_class[kind] if key not in self._in_flight), None)
        return None if key is None else self._entries[key]

    def crops(self) -> List[Stored]:
        """All that are not in flight."""
        return [self._entries[key] for key in self._by_class["crop"] if key not in self._in_flight]

    def gap_before(self, gap: Stored) -> Optional[Stored]:
        """The next older gap of the same stream, unless it is in flight."""
        keys = self._gaps[gap_key(gap.message)]
        at = bisect.bisect_left(keys, gap.key)
        return self._still(keys[at - 1]) if at else None

    def gap_after(self, gap: Stored) -> Optional[Stored]:
        """The next newer gap of the same stream, unless it is in flight."""
        keys = self._gaps[gap_key(gap.message)]
        at = bisect.bisect_right(keys, gap.key)
        return self._still(keys[at]) if at < len(keys) else None

    def _still(self, key: int) -> Optional[Stored]:
        return None if key in self._in_flight else self._entries[key]

    def _unfile(self, stored: Stored) -> None:
        kind = class_of(stored.message)
        if kind is not None:
            del self._by_class[kind][stored.key]
            return
        keys = self._gaps[gap_key(stored.message)]
        keys.remove(stored.key)
        if not keys:
            del self._gaps[gap_key(stored.message)]


class MemoryOutbox:
    """Bounded by bytes and age; order by key; a loss leaves a gap message in its place.

    Args:
        params: The bounds.
        monotonic: For the age in `status`.
    """

    faults: Sequence[str] = ()

    def __init__(self, params: OutboxParams, monotonic: Callable[[], float]) -> None:
        self._params, self._monotonic = params, monotonic
        self._in_flight: Set[int] = set()
        self._shelf = MemoryStore(self._in_flight)
        self._policy = Policy(params)
        self._unwanted = DiscardedCrops()
        self._quarantine: Deque[Stored] = deque(maxlen=QUARANTINE)
        self._next_key = 1
        self._quarantined = 0

    def open(self) -> None:
        """Nothing to take."""

    def put(self, messages: Sequence[Message], moment: Moment) -> None:
        """Keep messages, in order; what must be dropped to make room is counted and announced."""
        for message in messages:
            self._shelf.set(Stored(self._next_key, message, moment.t, timestamp(moment.at)))
            self._next_key += 1
        self._policy.make_room(self._shelf, moment.t, self._params.max_bytes)

    def batch(self, limit: int, without: Container[str] = ()) -> List[Stored]:
        """The oldest messages that are not in flight, in order, marked in flight; at most `limit`."""
        chosen: List[Stored] = []
        for stored in self._shelf:
            if len(chosen) >= limit:
                break
            if stored.key not in self._in_flight and stored.message.kind not in without:
                chosen.append(stored)
        self._in_flight.update(stored.key for stored in chosen)
        return chosen

    def accept(self, key: int) -> None:
        """The broker has acknowledged it: forget it."""
        self._shelf.remove(key)
        self._in_flight.discard(key)
        if not len(self._shelf):
            self._policy.emptied()

    def reject(self, key: int, reason: str, fatal: bool) -> None:
        """It was not delivered: send again, or (fatal, or too often) put it into quarantine."""
        stored = self._shelf.get(key)
        if stored is None:
            return
        self._in_flight.discard(key)
        if stored in self._unwanted:
            self._policy.lose(self._shelf, stored, "disabled")
            return
        stored = replace(stored, tries=stored.tries + 1)
        if not must_quarantine(stored, fatal):
            self._shelf.set(stored)
            return
        self._quarantine.append(stored)
        self._quarantined += 1
        log.warning("outbox: %s of %s set aside: %s", stored.message.kind, stored.message.topic, reason)
        self._policy.lose(self._shelf, stored, "quarantined")

    def release(self, keys: Sequence[int]) -> None:
        """They are no longer in flight, through no fault of theirs: send again, in order."""
        self._in_flight.difference_update(keys)
        back = [stored for stored in map(self._shelf.get, keys) if stored is not None]
        self._policy.discard(self._shelf, back, self._unwanted)

    def discard_crops(self, camera: Optional[str]) -> None:
        """Give them up now; what is in flight, when it comes back."""
        self._unwanted.add(camera, self._next_key)
        self._policy.discard(self._shelf, self._shelf.crops(), self._unwanted)

    def flush(self) -> None:
        """Memory is as safe as it gets."""

    def status(self) -> OutboxStatus:
        """Sizes and losses."""
        oldest = next(iter(self._shelf), None)
        return OutboxStatus(
            pending=len(self._shelf),
            in_flight=len(self._in_flight),
            bytes=self._shelf.bytes,
            oldest_s=0.0 if oldest is None else max(0.0, self._monotonic() - oldest.queued_t),
            dropped=self._policy.dropped,
            quarantined=self._quarantined,
        )

    def close(self) -> None:
        """Nothing to give back."""


def _crop_bytes(message: Message) -> int:
    return size_of(message) if message.kind == "crop" else 0
