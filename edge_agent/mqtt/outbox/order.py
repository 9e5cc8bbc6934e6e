"""What lies on disk and nowhere else: while it cannot be read, it holds back what is newer, but not for ever."""

from dataclasses import dataclass
from typing import Dict, Iterable, Optional, Sequence, Tuple

from edge_agent.core.protocol.messages import Message, Stored, gap_of_events, span_of

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


class Unread:
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
            span = span_of(stored.message)
            if span is not None and self.is_own(stored.key):
                stream = self._stream(stored.message)
                if span[1] > stream.written:
                    stream.written, stream.key = span[1], stored.key

    def taken(self, messages: Iterable[Stored]) -> None:
        """These were handed out."""
        for stored in messages:
            span = span_of(stored.message)
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
                gaps.append((stream.key, gap_of_events(stream.topic, camera, boot, span, UNREADABLE)))
                count += stream.written - stream.taken
                stream.taken = stream.written
        first_key, self._taken_key = self._taken_key + 1, max(self._taken_key, self._written_key)
        return GivenUp(first_key, self._written_key, gaps, count) if gaps else None

    def _stream(self, message: Message) -> _Stream:
        topic = message.topic if message.kind == "gap" else message.gap_topic or message.topic
        return self._streams.setdefault((message.camera, message.boot), _Stream(topic))
