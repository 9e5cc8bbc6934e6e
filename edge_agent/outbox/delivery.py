"""In which order the outbox on disk hands its messages out."""

import logging
from dataclasses import dataclass
from typing import Container, Dict, Iterable, Optional, Sequence, Tuple

from edge_agent.core.protocol.messages import Message, Stored, event_span, gap_for_events, gap_for_message, timestamp
from edge_agent.core.types import Moment
from edge_agent.outbox.retention import DiscardedCrops
from edge_agent.outbox.store import Table
from edge_agent.outbox.write_buffer import WriteBuffer

HOLD_S = 60.0
"""More than a controller's reset or a file system's check takes; less than an operator waits for an event. Then the
loss of what cannot be read is announced, and the rest goes on."""
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class GivenUp:
    """Rows that are lost, crops among them, and the gaps that stand in for their events.

    Attributes:
        first_key: Of the rows.
        last_key: Of the rows.
        gaps: Each with the key of a row of its camera.
        count: Events.
    """

    first_key: int
    last_key: int
    gaps: Sequence[Tuple[int, Message]]
    count: int


@dataclass
class _Stream:
    """What was written and what was handed out, by `seq`; `key` is the newest written row's."""

    topic: str
    written: int = 0
    key: int = 0
    taken: int = 0


class UnreadableRows:
    """Knows, without the disk, which events of this start lie there unsent. They are handed out in order of `seq`.

    Args:
        first_key: Of this start's messages.

    Attributes:
        earlier: Something of earlier starts may lie there.
    """

    def __init__(self, first_key: int) -> None:
        self.earlier = False
        self._first_key = first_key
        self._streams: Dict[Tuple[Optional[str], Optional[int]], _Stream] = {}
        self._taken_key = self._written_key = first_key - 1
        self._since_t: Optional[float] = None

    @property
    def some(self) -> bool:
        """Whether anything lies there that was never handed out."""
        return self.earlier or any(stream.taken < stream.written for stream in self._streams.values())

    def is_own(self, key: int) -> bool:
        """Whether it is of this start."""
        return key >= self._first_key

    def written(self, messages: Iterable[Stored]) -> None:
        """These are on disk now."""
        for stored in messages:
            self._written_key = max(self._written_key, stored.key)
            span = event_span(stored.message)
            if span is not None and self.is_own(stored.key):
                stream = self._stream(stored.message)
                if span[1] > stream.written:
                    stream.written, stream.key = span[1], stored.key

    def taken(self, messages: Iterable[Stored]) -> None:
        """These were handed out."""
        for stored in messages:
            span = event_span(stored.message)
            if span is not None and self.is_own(stored.key):
                stream = self._stream(stored.message)
                stream.taken = max(stream.taken, span[1])
                self._taken_key = max(self._taken_key, stored.key)

    def all_read(self) -> None:
        """Nothing is left there that was not handed out."""
        self.earlier = False

    def works(self) -> None:
        """Nothing keeps what is newer back."""
        self._since_t = None

    def holds(self, t: float) -> bool:
        """Something cannot be read: whether what is newer shall still wait for it."""
        if self._since_t is None:
            self._since_t = t
        return t - self._since_t < HOLD_S

    def give_up(self) -> Optional[GivenUp]:
        """Do not wait any more for what is this start's; None when there is nothing."""
        gaps, count = [], 0
        for (camera, boot), stream in self._streams.items():
            if stream.taken < stream.written:
                span = stream.taken + 1, stream.written
                gaps.append((stream.key, gap_for_events(stream.topic, camera, boot, span, UNREADABLE)))
                count += stream.written - stream.taken
                stream.taken = stream.written
        first_key, self._taken_key = self._taken_key + 1, max(self._taken_key, self._written_key)
        return GivenUp(first_key, self._written_key, gaps, count) if gaps else None

    def _stream(self, message: Message) -> _Stream:
        topic = message.topic if message.kind == "gap" else message.gap_topic or message.topic
        return self._streams.setdefault((message.camera, message.boot), _Stream(topic))


log = logging.getLogger(__name__)


class DeliveryQueue:
    """First what is to be sent again, then what lies on disk, then what is new.

    Args:
        in_flight: What was handed out, in that order; filled here.
        notes: What is not on disk yet, and what no longer counts there.
        unread: What lies there alone.
        unwanted: Crops that are handed out no more.
    """

    def __init__(
        self, in_flight: Dict[int, Stored], notes: WriteBuffer, unread: UnreadableRows, unwanted: DiscardedCrops
    ) -> None:
        self._in_flight, self._notes, self._unread, self._unwanted = in_flight, notes, unread, unwanted
        self._again: Dict[int, Message] = {}
        self._cursor = 0
        self._without: Container[str] = ()

    def leave_out(self, kinds: Container[str]) -> None:
        """Kinds of messages that stay behind from now on."""
        if kinds != self._without:
            # What was passed over lies behind the cursor.
            self._without, self._cursor = kinds, 0

    def rewind(self) -> None:
        """Look at all rows again."""
        self._cursor = 0

    def again(self, stored: Stored, message: Optional[Message] = None) -> None:
        """It is to be sent once more; `message` is what will stand in its place."""
        self._again[stored.key] = message or stored.message

    def take_back(self, key: int, table: Optional[Table]) -> Optional[Stored]:
        """What was in flight, or is to be sent again: an answer may come late. None for a key that is long gone.

        Raises:
            sqlite3.Error: It cannot be read.
        """
        stored = self._in_flight.pop(key, None)
        if stored is None and key in self._again:
            stored = self._notes.fresh.get(key)
            if stored is None and table is not None:
                stored = table.get(key)
        self._again.pop(key, None)
        return stored

    def take_older(self, table: Optional[Table], until: int) -> bool:
        """What is to be sent again and what lies on disk, until so many are in flight; False when some is not readable.

        Raises:
            sqlite3.Error: Likewise.
        """
        return self._take_again(table, until) and self._take_stored(table, until)

    def take_fresh(self, until: int) -> None:
        """What is not on disk, until so many are in flight."""
        self._take_again(None, until)
        for stored in self._notes.fresh:
            if len(self._in_flight) >= until:
                return
            if stored.message.kind in self._without or stored in self._unwanted:
                continue
            if stored.key not in self._in_flight and stored.key not in self._again:
                self._in_flight[stored.key] = stored

    def give_up_unread(self, now: Moment, for_good: bool) -> int:
        """Announce what lies on disk alone; with `for_good` also what earlier boots left there, as far as it is known.

        Returns:
            How many events are lost.
        """
        gaps, count = [], 0
        for key, message in list(self._again.items()):
            if self._notes.fresh.get(key) is not None or self._notes.is_gone(key):
                continue
            del self._again[key]
            if for_good or (message.kind != "crop" and self._unread.is_own(key)):
                gap = message if message.kind == "gap" else gap_for_message(message, UNREADABLE)
                gaps += [(key, gap)] if gap is not None else []
                count += message.kind == "event"
        given_up = self._unread.give_up()
        if given_up is not None:
            self._notes.given_up = given_up.first_key, given_up.last_key
            gaps += given_up.gaps
            count += given_up.count
        for key, gap in gaps:
            log.error("outbox: what cannot be read is given up: %s", gap.payload.decode())
            self._notes.change(Stored(key, gap, now.t, timestamp(now.at), synced=now.synced), now.t)
            self._again[key] = gap
        self._cursor = 0
        return count

    def _take_again(self, table: Optional[Table], until: int) -> bool:
        for key in sorted(self._again):
            if len(self._in_flight) >= until:
                return True
            if self._again[key].kind in self._without:
                continue
            stored = self._notes.fresh.get(key)
            if stored is None and not self._notes.is_gone(key):
                if table is None:
                    return False
                stored = table.get(key)
            if stored in self._unwanted:
                continue
            del self._again[key]
            if stored is not None:
                self._in_flight[key] = stored
        return True

    def _take_stored(self, table: Optional[Table], until: int) -> bool:
        if table is None:
            return not self._unread.some
        while len(self._in_flight) < until:
            rows = table.after(self._cursor, until - len(self._in_flight), self._without)
            if not rows:
                self._unread.all_read()
                break
            for stored in rows:
                self._cursor = stored.key
                if stored.key not in self._in_flight and not self._waits_its_turn(stored):
                    self._in_flight[stored.key] = stored
        return True

    def _waits_its_turn(self, stored: Stored) -> bool:
        return self._notes.is_gone(stored.key) or stored.key in self._again or stored in self._unwanted
