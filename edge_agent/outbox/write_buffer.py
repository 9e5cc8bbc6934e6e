"""Changes that the outbox on disk has yet to write: buffered in memory, written in one transaction, kept on failure."""

from typing import Container, Dict, List, Optional, Tuple

from edge_agent.core.protocol.messages import Stored
from edge_agent.outbox.memory import MemoryStore
from edge_agent.outbox.retention import QUARANTINE, RetentionPolicy, size_of
from edge_agent.outbox.store import SqliteStore

ACK_GRACE_S, ACK_GRACE = 0.5, 20
"""Time and number for which acknowledged messages may stay on disk; a crash sends them twice, which is allowed."""


class WriteBuffer:
    """Changes since the last transaction.

    Args:
        in_flight: Keys of messages that must not change.

    Attributes:
        messages: New or changed messages.
        stale: Size in bytes of rows on disk that are obsolete, because their message is deleted or in `messages`.
        discarded: First and last key of rows whose loss was announced; they are obsolete, too.
        facts_changed: Open visits or the boot counter must be written.
    """

    def __init__(self, in_flight: Container[int]) -> None:
        self.messages = MemoryStore(in_flight)
        self.stale: Dict[int, int] = {}
        self.discarded: Optional[Tuple[int, int]] = None
        self.facts_changed = True
        self._stale_t = 0.0
        self._to_quarantine: Dict[int, str] = {}
        self._quarantine: List[Tuple[Stored, str]] = []
        self._open: Dict[str, Stored] = {}

    @property
    def quarantined(self) -> int:
        """Number of messages that are not yet in the quarantine on disk."""
        return len(self._to_quarantine) + len(self._quarantine)

    def due(self, t: float) -> bool:
        """Whether something must be written now."""
        if len(self.messages) or self._quarantine or self.facts_changed:
            return True
        return bool(self.stale) and (len(self.stale) >= ACK_GRACE or t - self._stale_t >= ACK_GRACE_S)

    def is_stale(self, key: int) -> bool:
        """Whether a row on disk is obsolete."""
        return key in self.stale or (self.discarded is not None and self.discarded[0] <= key <= self.discarded[1])

    def add(self, stored: Stored) -> None:
        """Add a new message."""
        self.messages.set(stored)
        message = stored.message
        if message.event_id is None:
            return
        self.facts_changed = True
        if message.event_type == "end":
            self._open.pop(message.event_id, None)
        else:
            self._open[message.event_id] = stored

    def remove(self, stored: Stored, t: float) -> None:
        """Delete a message."""
        self._mark_stale(stored, t)
        self.messages.remove(stored.key)

    def replace(self, stored: Stored, t: float) -> None:
        """Replace a message."""
        self._mark_stale(stored, t)
        self.messages.set(stored)

    def quarantine(self, key: int, reason: str) -> None:
        """Quarantine a replaced message at the next write, and put a gap in its place."""
        self._to_quarantine[key] = reason

    def write_removals(self, store: SqliteStore) -> None:
        """Delete the rows of deleted messages, within the caller's transaction."""
        for key in self._removed():
            store.remove(key)

    def removals_written(self) -> None:
        """Note that the transaction of `write_removals` was committed."""
        for key in self._removed():
            del self.stale[key]

    def write(self, store: SqliteStore, policy: RetentionPolicy, boot: int) -> None:
        """Write all changes, within the caller's transaction."""
        if self.discarded is not None:
            store.remove_between(*self.discarded)
        for key in self.stale:
            store.remove(key)
        for stored in self.messages:
            store.set(stored)
        for stored, reason in self._quarantine:
            store.quarantine(stored, reason)
        for key, reason in self._to_quarantine.items():
            message = self.messages.get(key)
            if message is not None:
                store.quarantine(message, reason)
                policy.drop(store, message, "quarantined")
        if self.facts_changed:
            store.set_open_visits(self._open.values())
            store.boot = max(store.boot, boot)

    def written(self) -> None:
        """Note that the transaction of `write` was committed."""
        self.messages.clear()
        self.stale.clear()
        self.discarded = None
        self._quarantine.clear()
        self._to_quarantine.clear()
        self.facts_changed = False

    def limit(self, policy: RetentionPolicy, t: float, max_bytes: int) -> None:
        """Drop messages beyond `max_bytes`, while nothing can be written."""
        for key, reason in self._to_quarantine.items():
            message = self.messages.get(key)
            if message is not None:
                self._quarantine.append((message, reason))
                policy.drop(self.messages, message, "quarantined")
        self._to_quarantine.clear()
        del self._quarantine[:-QUARANTINE]
        policy.make_room(self.messages, t, max_bytes)

    def _removed(self) -> List[int]:
        return [key for key in self.stale if self.messages.get(key) is None]

    def _mark_stale(self, stored: Stored, t: float) -> None:
        never_written = self.messages.get(stored.key) is not None and stored.key not in self.stale
        if never_written:
            return
        if not self.stale:
            self._stale_t = t
        self.stale.setdefault(stored.key, size_of(stored.message))
