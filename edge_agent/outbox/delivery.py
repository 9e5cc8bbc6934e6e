"""The order in which the outbox on disk hands out messages, and which rows it waits for while they cannot be read."""

import logging
from dataclasses import dataclass
from typing import Container, Dict, Iterable, Optional, Sequence, Tuple

from edge_agent.core.protocol.messages import Message, Stored, event_span, gap_for_events, gap_for_message, timestamp
from edge_agent.core.types import Moment
from edge_agent.outbox.retention import DiscardedCrops
from edge_agent.outbox.store import SqliteStore
from edge_agent.outbox.write_buffer import WriteBuffer

log = logging.getLogger(__name__)

HOLD_S = 60.0
"""Longer than a controller's reset or a file system check takes, shorter than an operator waits for an event. After it
the loss of unreadable messages is announced, and the others are sent."""
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class DiscardedRows:
    """Rows that are lost, crops among them, and the gaps that replace their events.

    Attributes:
        first_key: First key of the rows.
        last_key: Last key of the rows.
        gaps: Gap messages, each with the key of a row of its camera.
        count: Number of events.
    """

    first_key: int
    last_key: int
    gaps: Sequence[Tuple[int, Message]]
    count: int


@dataclass
class _Stream:
    """Newest `seq` written and handed out of one camera and boot; `key` is that of the newest written row."""

    topic: str
    written: int = 0
    key: int = 0
    taken: int = 0


class UnreadableRows:
    """Tracks in memory which events of this start are on disk and not yet handed out, in order of `seq`.

    Args:
        first_key: First key of this start's messages.

    Attributes:
        earlier: The disk may hold messages of earlier starts.
    """

    def __init__(self, first_key: int) -> None:
        self.earlier = False
        self._first_key = first_key
        self._streams: Dict[Tuple[Optional[str], Optional[int]], _Stream] = {}
        self._taken_key = self._written_key = first_key - 1
        self._since_t: Optional[float] = None

    @property
    def some(self) -> bool:
        """Whether the disk holds messages that were never handed out."""
        return self.earlier or any(stream.taken < stream.written for stream in self._streams.values())

    def is_own(self, key: int) -> bool:
        """Whether a key belongs to this start."""
        return key >= self._first_key

    def written(self, messages: Iterable[Stored]) -> None:
        """Note messages that are on disk now."""
        for stored in messages:
            self._written_key = max(self._written_key, stored.key)
            span = event_span(stored.message)
            if span is not None and self.is_own(stored.key):
                stream = self._stream(stored.message)
                if span[1] > stream.written:
                    stream.written, stream.key = span[1], stored.key

    def taken(self, messages: Iterable[Stored]) -> None:
        """Note messages that were handed out."""
        for stored in messages:
            span = event_span(stored.message)
            if span is not None and self.is_own(stored.key):
                stream = self._stream(stored.message)
                stream.taken = max(stream.taken, span[1])
                self._taken_key = max(self._taken_key, stored.key)

    def all_read(self) -> None:
        """Note that all rows were handed out."""
        self.earlier = False

    def readable(self) -> None:
        """Note that all older rows could be read."""
        self._since_t = None

    def must_wait(self, t: float) -> bool:
        """Note that older rows cannot be read; returns whether newer messages must still wait for them."""
        if self._since_t is None:
            self._since_t = t
        return t - self._since_t < HOLD_S

    def discard(self) -> Optional[DiscardedRows]:
        """Stop waiting for the rows of this start, and return them; None when there are none."""
        gaps, count = [], 0
        for (camera, boot), stream in self._streams.items():
            if stream.taken < stream.written:
                span = stream.taken + 1, stream.written
                gaps.append((stream.key, gap_for_events(stream.topic, camera, boot, span, UNREADABLE)))
                count += stream.written - stream.taken
                stream.taken = stream.written
        first_key, self._taken_key = self._taken_key + 1, max(self._taken_key, self._written_key)
        return DiscardedRows(first_key, self._written_key, gaps, count) if gaps else None

    def _stream(self, message: Message) -> _Stream:
        topic = message.topic if message.kind == "gap" else message.gap_topic or message.topic
        return self._streams.setdefault((message.camera, message.boot), _Stream(topic))


class DeliveryQueue:
    """Hands out messages: first those to send again, then those on disk, then those not yet written.

    Args:
        in_flight: Messages handed out, in that order; filled here.
        buffer: Messages not yet on disk, and obsolete rows.
        unreadable: Tracks messages that are only on disk.
        discarded_crops: Crops that must not be handed out.
    """

    def __init__(
        self,
        in_flight: Dict[int, Stored],
        buffer: WriteBuffer,
        unreadable: UnreadableRows,
        discarded_crops: DiscardedCrops,
    ) -> None:
        self._in_flight, self._buffer = in_flight, buffer
        self._unreadable, self._discarded_crops = unreadable, discarded_crops
        self._again: Dict[int, Message] = {}
        self._cursor = 0
        self._without: Container[str] = ()

    def leave_out(self, kinds: Container[str]) -> None:
        """Set the kinds of messages that must wait."""
        if kinds != self._without:
            # Skipped rows are behind the cursor.
            self._without, self._cursor = kinds, 0

    def rewind(self) -> None:
        """Read all rows again."""
        self._cursor = 0

    def again(self, stored: Stored, message: Optional[Message] = None) -> None:
        """Send a message again; `message` will replace it."""
        self._again[stored.key] = message or stored.message

    def withdraw(self, key: int, store: Optional[SqliteStore]) -> Optional[Stored]:
        """Return a message that is in flight, or waits to be sent again; None when it is neither.

        Raises:
            sqlite3.Error: The disk cannot be read.
        """
        stored = self._in_flight.pop(key, None)
        if stored is None and key in self._again:
            stored = self._buffer.messages.get(key)
            if stored is None and store is not None:
                stored = store.get(key)
        self._again.pop(key, None)
        return stored

    def take_older(self, store: Optional[SqliteStore], until: int) -> bool:
        """Hand out messages to send again, then those on disk, until `until` are in flight.

        Returns:
            False when some cannot be read.

        Raises:
            sqlite3.Error: The disk cannot be read.
        """
        return self._take_again(store, until) and self._take_stored(store, until)

    def take_unwritten(self, until: int) -> None:
        """Hand out messages that are not yet on disk, until `until` are in flight."""
        self._take_again(None, until)
        for stored in self._buffer.messages:
            if len(self._in_flight) >= until:
                return
            if stored.message.kind in self._without or stored in self._discarded_crops:
                continue
            if stored.key not in self._in_flight and stored.key not in self._again:
                self._in_flight[stored.key] = stored

    def discard_unreadable(self, now: Moment, permanent: bool) -> int:
        """Replace messages that are only on disk by gaps; with `permanent`, known messages of earlier boots, too.

        Returns:
            Number of lost events.
        """
        gaps, count = [], 0
        for key, message in list(self._again.items()):
            if self._buffer.messages.get(key) is not None or self._buffer.is_stale(key):
                continue
            del self._again[key]
            if permanent or (message.kind != "crop" and self._unreadable.is_own(key)):
                gap = message if message.kind == "gap" else gap_for_message(message, UNREADABLE)
                gaps += [(key, gap)] if gap is not None else []
                count += message.kind == "event"
        rows = self._unreadable.discard()
        if rows is not None:
            self._buffer.discarded = rows.first_key, rows.last_key
            gaps += rows.gaps
            count += rows.count
        for key, gap in gaps:
            log.error("outbox: unreadable messages are lost: %s", gap.payload.decode())
            self._buffer.replace(Stored(key, gap, now.t, timestamp(now.at), synced=now.synced), now.t)
            self._again[key] = gap
        self._cursor = 0
        return count

    def _take_again(self, store: Optional[SqliteStore], until: int) -> bool:
        for key in sorted(self._again):
            if len(self._in_flight) >= until:
                return True
            if self._again[key].kind in self._without:
                continue
            stored = self._buffer.messages.get(key)
            if stored is None and not self._buffer.is_stale(key):
                if store is None:
                    return False
                stored = store.get(key)
            if stored in self._discarded_crops:
                continue
            del self._again[key]
            if stored is not None:
                self._in_flight[key] = stored
        return True

    def _take_stored(self, store: Optional[SqliteStore], until: int) -> bool:
        if store is None:
            return not self._unreadable.some
        while len(self._in_flight) < until:
            rows = store.after(self._cursor, until - len(self._in_flight), self._without)
            if not rows:
                self._unreadable.all_read()
                break
            for stored in rows:
                self._cursor = stored.key
                if stored.key not in self._in_flight and not self._must_skip(stored):
                    self._in_flight[stored.key] = stored
        return True

    def _must_skip(self, stored: Stored) -> bool:
        return self._buffer.is_stale(stored.key) or stored.key in self._again or stored in self._discarded_crops
