"""The bounded queue of the publish thread: outcomes from the infer thread, events from the broker client."""

import threading
from collections import Counter, deque
from dataclasses import replace
from itertools import islice
from typing import Counter as CounterType
from typing import Deque, List, Set, Union

from edge_agent.core.types import LostEvents, Outcome

MAX_RECEIVED = 64
"""Received messages of a kind that may wait."""


class PublishQueue:
    """Never blocks the sender. When full the oldest outcome is dropped, counted, and replaced by a `LostEvents`.

    Two things are never lost: the newest report of each camera, which must end up retained, and the end, without its
    crop, of a visit whose start was taken.

    Args:
        capacity: Outcomes kept, not counting those that are never lost. Other items are bounded by their sender
            (messages in flight, commands that wait).

    Attributes:
        lost_events: Events dropped.
        lost_received: Received messages dropped.
    """

    def __init__(self, capacity: int = 2048) -> None:
        self._capacity = capacity
        self._items: Deque[Union[Outcome, LostEvents, object]] = deque()
        self._outcomes = 0
        self._condition = threading.Condition()
        self._received: CounterType[str] = Counter()
        self._open: Set[str] = set()
        self.lost_events = 0
        self.lost_received = 0

    def put_outcome(self, outcome: Outcome) -> None:
        """Queue an outcome. From the infer thread."""
        with self._condition:
            self._items.append(outcome)
            self._outcomes += 1
            if self._outcomes > self._capacity:
                self._drop_oldest()
            self._condition.notify()

    def put(self, item: object) -> None:
        """Queue a client event, a command's result, or a call for the publish thread. From any thread."""
        with self._condition:
            self._items.append(item)
            self._condition.notify()

    def put_received(self, message: object, kind: str = "") -> None:
        """Queue a received message; one that exceeds `MAX_RECEIVED` of its kind is dropped and counted."""
        with self._condition:
            if self._received[kind] >= MAX_RECEIVED:
                self.lost_received += 1
                return
            self._received[kind] += 1
            self._items.append(message)
            self._condition.notify()

    def take(self, timeout_s: float) -> List[object]:
        """Return everything that waits, oldest first; empty after `timeout_s`."""
        with self._condition:
            if not self._items:
                self._condition.wait(timeout_s)
            items = list(self._items)
            self._items.clear()
            self._outcomes = 0
            self._received.clear()
            for item in items:
                if isinstance(item, Outcome):
                    self._track_open(item)
        return items

    def _track_open(self, outcome: Outcome) -> None:
        for event in outcome.events:
            if event.event_type == "end":
                self._open.discard(event.event_id)
            else:
                self._open.add(event.event_id)

    def _drop_oldest(self) -> None:
        """Reduce the oldest outcome that holds more than what must stay."""
        for index in range(len(self._items)):
            item = self._items[index]
            if not isinstance(item, Outcome):
                continue
            parts = self._reduce(item, index)
            if len(parts) == 1 and isinstance(parts[0], Outcome):
                self._items[index] = parts[0]
                continue
            del self._items[index]
            self._outcomes += sum(isinstance(part, Outcome) for part in parts) - 1
            for part in reversed([part for part in parts if not self._join(part, index)]):
                self._items.insert(index, part)
            return

    def _reduce(self, outcome: Outcome, index: int) -> List[Union[Outcome, LostEvents]]:
        """Return what must stay of it, in order: the lost events, ends without crops, the report."""
        parts: List[Union[Outcome, LostEvents]] = []
        for event in outcome.events:
            if event.event_type == "end" and event.event_id in self._open:
                parts.append(Outcome(outcome.camera, (replace(event, crop=None),)))
                continue
            self.lost_events += 1
            before = parts[-1] if parts else None
            if isinstance(before, LostEvents):
                parts[-1] = replace(before, to_seq=event.seq)
            else:
                parts.append(LostEvents(outcome.camera, event.seq, event.seq))
        if outcome.report is not None and not self._has_newer_report(outcome.camera, index):
            last = parts.pop() if parts and isinstance(parts[-1], Outcome) else None
            parts.append(Outcome(outcome.camera, last.events if isinstance(last, Outcome) else (), outcome.report))
        return parts

    def _has_newer_report(self, camera: str, index: int) -> bool:
        newer = islice(self._items, index + 1, None)
        return any(isinstance(item, Outcome) and item.camera == camera and item.report is not None for item in newer)

    def _join(self, part: Union[Outcome, LostEvents], index: int) -> bool:
        """Extend the camera's preceding `LostEvents` by `part` where it follows directly; returns whether it did."""
        if not isinstance(part, LostEvents):
            return False
        for at in range(index - 1, -1, -1):
            before = self._items[at]
            if isinstance(before, LostEvents) and before.camera == part.camera:
                joins = before.to_seq + 1 == part.from_seq
                if joins:
                    self._items[at] = replace(before, to_seq=part.to_seq)
                return joins
        return False
