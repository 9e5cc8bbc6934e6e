"""Decides which messages an outbox drops when it is full, and in which order. Each loss leaves a gap message."""

import logging
import sys
from dataclasses import replace
from typing import Dict, Iterable, Optional, Protocol

from edge_agent.core.protocol.messages import Message, Stored, gap_for_message, merge_gaps
from edge_agent.outbox.params import OutboxParams

log = logging.getLogger(__name__)

MAX_TRIES = 2
"""A message that was alone in flight at so many lost connections, after one with other messages in flight (three losses
in a row), is quarantined as their cause."""
OVERHEAD_BYTES = 256
"""Approximate cost of storing a message beside its topic and payload."""
QUARANTINE = 100
"""Maximum number of quarantined messages; the oldest are deleted."""
DROP_ORDER = ("crop", "update", "event")


def size_of(message: Message) -> int:
    """Return the bytes that a message counts against the limits."""
    return OVERHEAD_BYTES + len(message.topic) + len(message.payload)


def class_of(message: Message) -> Optional[str]:
    """Return a message's class in `DROP_ORDER`; None for a gap, which is never dropped."""
    if message.kind == "event":
        return "update" if message.event_type == "update" else "event"
    return "crop" if message.kind == "crop" else None


def must_quarantine(stored: Stored, fatal: bool) -> bool:
    """Whether a message that was rejected again must be quarantined.

    A gap is quarantined only after a fatal rejection: it is too small to do harm, and announces a loss.
    """
    return fatal or (stored.tries >= MAX_TRIES and stored.message.kind != "gap")


class DiscardedCrops:
    """Crops that must not be sent, because crops were turned off after they were stored."""

    def __init__(self) -> None:
        self._before: Dict[Optional[str], int] = {}

    def add(self, camera: Optional[str], before_key: int) -> None:
        """Add the crops of a camera, or of all (None), with keys below `before_key`."""
        self._before[camera] = before_key

    def __contains__(self, stored: object) -> bool:
        if not isinstance(stored, Stored) or stored.message.kind != "crop":
            return False
        return any(stored.key < self._before.get(camera, 0) for camera in (stored.message.camera, None))


class MessageStore(Protocol):
    """Messages by key. Those in flight are never returned for dropping or merging.

    Attributes:
        bytes: Size of all messages.
        crop_bytes: Size of the crops.
    """

    bytes: int
    crop_bytes: int

    def set(self, stored: Stored) -> None:
        """Insert a message, or replace the one with its key."""

    def remove(self, key: int) -> None:
        """Delete a message; unknown keys are ignored."""

    def oldest(self, kind: str) -> Optional[Stored]:
        """Return the first message of a class that is not in flight."""

    def gap_before(self, gap: Stored) -> Optional[Stored]:
        """Return the next older gap of the same kind, camera and boot, unless it is in flight."""

    def gap_after(self, gap: Stored) -> Optional[Stored]:
        """Return the next newer gap of the same kind, camera and boot, unless it is in flight."""


class RetentionPolicy:
    """Drops messages from a store, and replaces them by gap messages.

    Args:
        params: The limits.

    Attributes:
        dropped: Number of messages dropped for lack of room or for their age.
    """

    def __init__(self, params: OutboxParams) -> None:
        self._params = params
        self._full = False
        self.dropped = 0

    def make_room(self, store: MessageStore, now_t: float, max_bytes: int, at_most: int = sys.maxsize) -> bool:
        """Drop messages that are too old or exceed the limits, at most `at_most` of them.

        Returns:
            False when more must be dropped.
        """
        left = at_most
        for kind in DROP_ORDER:
            while left > 0:
                stored = store.oldest(kind)
                reason = None if stored is None else self._reason(store, stored, kind, now_t, max_bytes)
                if stored is None or reason is None:
                    break
                level = logging.DEBUG if self._full else logging.WARNING
                log.log(level, "outbox: %s, the oldest %s was dropped", reason, kind)
                self._full = True
                self.dropped += 1
                left -= 1
                self.drop(store, stored, reason)
        return left > 0

    def drop(self, store: MessageStore, stored: Stored, reason: str) -> None:
        """Replace a message by a gap, merged with neighbouring gaps where they are one loss."""
        message = gap_for_message(stored.message, reason)
        if message is None:
            store.remove(stored.key)
            return
        gap = replace(stored, message=message, tries=0)
        store.set(gap)
        after = store.gap_after(gap)
        if after is not None:
            gap = _merge(store, gap, after)
        before = store.gap_before(gap)
        if before is not None:
            _merge(store, before, gap)

    def drop_discarded(self, store: MessageStore, crops: Iterable[Stored], discarded: DiscardedCrops) -> None:
        """Drop those of `crops` that were discarded; none may be in flight."""
        for stored in crops:
            if stored in discarded:
                self.drop(store, stored, "disabled")

    def emptied(self) -> None:
        """Note that the outbox is empty."""
        if self._full:
            self._full = False
            log.info("outbox: empty again; %d messages were dropped since start", self.dropped)

    def _reason(self, store: MessageStore, stored: Stored, kind: str, now_t: float, max_bytes: int) -> Optional[str]:
        params = self._params
        if now_t - stored.queued_t > (params.max_crop_age_s if kind == "crop" else params.max_age_s):
            return "expired"
        if store.bytes > max_bytes or (kind == "crop" and store.crop_bytes > params.max_crop_bytes):
            return "full"
        return None


def _merge(store: MessageStore, first: Stored, second: Stored) -> Stored:
    """Merge two gaps in the place of the first, where possible; returns the gap in that place."""
    merged = merge_gaps(first.message, second.message)
    if merged is None:
        return first
    merged_gap = replace(first, message=merged)
    store.set(merged_gap)
    store.remove(second.key)
    return merged_gap
