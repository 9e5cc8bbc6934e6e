"""What the outbox on disk has yet to write: noted in memory, written in one transaction, kept when that fails."""

from typing import Container, Dict, List, Optional, Tuple

from edge_agent.core.protocol.messages import Stored
from edge_agent.outbox.memory import MemoryStore
from edge_agent.outbox.retention import QUARANTINE, Policy, size_of
from edge_agent.outbox.store import Table

ACK_GRACE_S, ACK_GRACE = 0.5, 20
"""Acknowledged messages may stay on disk so long, so many: a crash then sends them twice, which is allowed."""


class WriteBuffer:
    """Changes since the last transaction.

    Args:
        in_flight: Keys that must stay as they are.

    Attributes:
        fresh: Messages that are new, or have changed.
        hidden: Rows that no longer count, because their message is gone or in `fresh`, with their size in bytes.
        given_up: First and last key of rows whose loss was announced: they no longer count either.
        facts_changed: Open appearances or boot are to be written.
    """

    def __init__(self, in_flight: Container[int]) -> None:
        self.fresh = MemoryStore(in_flight)
        self.hidden: Dict[int, int] = {}
        self.given_up: Optional[Tuple[int, int]] = None
        self.facts_changed = True
        self._hidden_t = 0.0
        self._convicted: Dict[int, str] = {}
        self._set_aside: List[Tuple[Stored, str]] = []
        self._open: Dict[str, Stored] = {}

    @property
    def quarantined(self) -> int:
        """Messages on their way into quarantine."""
        return len(self._convicted) + len(self._set_aside)

    def due(self, t: float) -> bool:
        """Whether there is something that should be written now."""
        if len(self.fresh) or self._set_aside or self.facts_changed:
            return True
        return bool(self.hidden) and (len(self.hidden) >= ACK_GRACE or t - self._hidden_t >= ACK_GRACE_S)

    def is_gone(self, key: int) -> bool:
        """Whether a row no longer counts."""
        return key in self.hidden or (self.given_up is not None and self.given_up[0] <= key <= self.given_up[1])

    def keep(self, stored: Stored) -> None:
        """A new message."""
        self.fresh.set(stored)
        message = stored.message
        if message.event_id is None:
            return
        self.facts_changed = True
        if message.event_type == "end":
            self._open.pop(message.event_id, None)
        else:
            self._open[message.event_id] = stored

    def forget(self, stored: Stored, t: float) -> None:
        """The message is gone."""
        self._hide(stored, t)
        self.fresh.remove(stored.key)

    def change(self, stored: Stored, t: float) -> None:
        """The message is not what it was."""
        self._hide(stored, t)
        self.fresh.set(stored)

    def quarantine(self, key: int, reason: str) -> None:
        """A changed message goes to quarantine; a gap will stand in its place."""
        self._convicted[key] = reason

    def write_gone(self, table: Table) -> None:
        """Delete what is gone for good."""
        for key in self._gone():
            table.remove(key)

    def gone_written(self) -> None:
        """`write_gone` is safe."""
        for key in self._gone():
            del self.hidden[key]

    def write(self, table: Table, policy: Policy, boot: int) -> None:
        """Everything, within the caller's transaction."""
        if self.given_up is not None:
            table.remove_between(*self.given_up)
        for key in self.hidden:
            table.remove(key)
        for stored in self.fresh:
            table.set(stored)
        for stored, reason in self._set_aside:
            table.set_aside(stored, reason)
        for key, reason in self._convicted.items():
            convicted = self.fresh.get(key)
            if convicted is not None:
                table.set_aside(convicted, reason)
                policy.lose(table, convicted, "quarantined")
        if self.facts_changed:
            table.keep_open(self._open.values())
            table.boot = max(table.boot, boot)

    def written(self) -> None:
        """`write` is safe."""
        self.fresh.clear()
        self.hidden.clear()
        self.given_up = None
        self._set_aside.clear()
        self._convicted.clear()
        self.facts_changed = False

    def bound(self, policy: Policy, t: float, max_bytes: int) -> None:
        """While nothing can be written: take no more than `max_bytes` of memory."""
        for key, reason in self._convicted.items():
            convicted = self.fresh.get(key)
            if convicted is not None:
                self._set_aside.append((convicted, reason))
                policy.lose(self.fresh, convicted, "quarantined")
        self._convicted.clear()
        del self._set_aside[:-QUARANTINE]
        policy.make_room(self.fresh, t, max_bytes)

    def _gone(self) -> List[int]:
        return [key for key in self.hidden if self.fresh.get(key) is None]

    def _hide(self, stored: Stored, t: float) -> None:
        never_written = self.fresh.get(stored.key) is not None and stored.key not in self.hidden
        if never_written:
            return
        if not self.hidden:
            self._hidden_t = t
        self.hidden.setdefault(stored.key, size_of(stored.message))
