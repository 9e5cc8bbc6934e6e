"""What an outbox gives up when it may hold no more, and in which order. Each loss leaves a gap message in its place."""

import logging
import sys
from dataclasses import replace
from typing import Dict, Iterable, Optional, Protocol

from edge_agent.core.protocol.messages import Message, Stored, gap_for_message, merge_gaps
from edge_agent.outbox.params import OutboxParams

log = logging.getLogger(__name__)

MAX_TRIES = 2
"""A message that was alone in flight at so many lost connections, after one that it shared with others, hence at three
in a row, is taken for their cause."""
OVERHEAD_BYTES = 256
"""What keeping one message costs beside topic and payload, about."""
QUARANTINE = 100
"""Messages set aside that are kept; the oldest go."""
DROP_ORDER = ("crop", "update", "event")


def size_of(message: Message) -> int:
    """What a message counts against the bounds, bytes."""
    return OVERHEAD_BYTES + len(message.topic) + len(message.payload)


def class_of(message: Message) -> Optional[str]:
    """Which of `DROP_ORDER` a message is; None for what is never dropped (a gap)."""
    if message.kind == "event":
        return "update" if message.event_type == "update" else "event"
    return "crop" if message.kind == "crop" else None


def must_quarantine(stored: Stored, fatal: bool) -> bool:
    """Whether a message that was rejected once more goes to quarantine.

    A gap is small and plain: it is nobody's fault, and without it a loss would go unannounced.
    """
    return fatal or (stored.tries >= MAX_TRIES and stored.message.kind != "gap")


class DiscardedCrops:
    """Crops that shall not be sent any more, since somebody has turned them off after they were put."""

    def __init__(self) -> None:
        self._before: Dict[Optional[str], int] = {}

    def add(self, camera: Optional[str], before_key: int) -> None:
        """Of this camera, or of all (None), those with smaller keys."""
        self._before[camera] = before_key

    def __contains__(self, stored: object) -> bool:
        if not isinstance(stored, Stored) or stored.message.kind != "crop":
            return False
        return any(stored.key < self._before.get(camera, 0) for camera in (stored.message.camera, None))


class MessageStore(Protocol):
    """Where messages lie, by key.

    Attributes:
        bytes: Of all.
        crop_bytes: Of the crops.
    """

    bytes: int
    crop_bytes: int

    def set(self, stored: Stored) -> None:
        """Insert, or replace in its place."""

    def remove(self, key: int) -> None:
        """Forget; unknown keys are ignored."""

    def oldest(self, kind: str) -> Optional[Stored]:
        """The first of a class that is not in flight."""

    def gap_before(self, gap: Stored) -> Optional[Stored]:
        """The next older gap of the same stream, unless it is in flight."""

    def gap_after(self, gap: Stored) -> Optional[Stored]:
        """The next newer gap of the same stream, unless it is in flight."""


class Policy:
    """Decides what goes.

    Args:
        params: The bounds.

    Attributes:
        dropped: Messages given up for want of room or for their age.
    """

    def __init__(self, params: OutboxParams) -> None:
        self._params = params
        self._full = False
        self.dropped = 0

    def make_room(self, shelf: MessageStore, now_t: float, max_bytes: int, at_most: int = sys.maxsize) -> bool:
        """Give up what is too old and what is too much, but `at_most` so many messages.

        Returns:
            False when there is more to give up.
        """
        left = at_most
        for kind in DROP_ORDER:
            while left > 0:
                stored = shelf.oldest(kind)
                reason = None if stored is None else self._reason(shelf, stored, kind, now_t, max_bytes)
                if stored is None or reason is None:
                    break
                level = logging.DEBUG if self._full else logging.WARNING
                log.log(level, "outbox: %s, the oldest %s was dropped", reason, kind)
                self._full = True
                self.dropped += 1
                left -= 1
                self.lose(shelf, stored, reason)
        return left > 0

    def lose(self, shelf: MessageStore, stored: Stored, reason: str) -> None:
        """Put a gap in a message's place, joined with its neighbours where that is one loss."""
        message = gap_for_message(stored.message, reason)
        if message is None:
            shelf.remove(stored.key)
            return
        gap = replace(stored, message=message, tries=0)
        shelf.set(gap)
        after = shelf.gap_after(gap)
        if after is not None:
            gap = _join(shelf, gap, after)
        before = shelf.gap_before(gap)
        if before is not None:
            _join(shelf, before, gap)

    def discard(self, shelf: MessageStore, crops: Iterable[Stored], unwanted: DiscardedCrops) -> None:
        """Give up what is unwanted of `crops`, none of which may be in flight."""
        for stored in crops:
            if stored in unwanted:
                self.lose(shelf, stored, "disabled")

    def emptied(self) -> None:
        """Nothing waits any more."""
        if self._full:
            self._full = False
            log.info("outbox: empty again; %d messages were dropped since start", self.dropped)

    def _reason(self, shelf: MessageStore, stored: Stored, kind: str, now_t: float, max_bytes: int) -> Optional[str]:
        params = self._params
        if now_t - stored.queued_t > (params.max_crop_age_s if kind == "crop" else params.max_age_s):
            return "expired"
        if shelf.bytes > max_bytes or (kind == "crop" and shelf.crop_bytes > params.max_crop_bytes):
            return "full"
        return None


def _join(shelf: MessageStore, first: Stored, second: Stored) -> Stored:
    """Two gaps as one, in the place of the first, where they may be one; returns what stands in the first's place."""
    merged = merge_gaps(first.message, second.message)
    if merged is None:
        return first
    joined = replace(first, message=merged)
    shelf.set(joined)
    shelf.remove(second.key)
    return joined
