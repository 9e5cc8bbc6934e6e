"""The messages in the outbox's database: queue, quarantine, open visits and counters.

Every method may raise `sqlite3.Error`; transactions are the caller's.
"""

import json
import sqlite3
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Container, Dict, Iterable, Iterator, List, Optional, Tuple

from edge_agent.core.ports import Clock
from edge_agent.core.protocol.messages import Message, Stored, gap_key
from edge_agent.core.types import Moment
from edge_agent.outbox.retention import QUARANTINE, class_of, size_of

QUARANTINE_BYTES = 16_000_000
LATE_S = 60.0
"""A message that waited through a restart of the machine is published as at least this late."""
_META = {f.name: f.default for f in fields(Message) if f.name not in ("topic", "payload")}
_TIMES = "kernel, queued_t, queued_at, synced"
_COLUMNS = f"key, tries, {_TIMES}, topic, meta, payload"


class SqliteStore:
    """Messages on disk; implements `MessageStore`.

    Args:
        db: Open, in autocommit mode.
        clock: Both clocks.
        kernel: The machine's boot id, e.g. /proc/sys/kernel/random/boot_id; monotonic times compare within one only.
        in_flight: Keys of messages that must not change.

    Attributes:
        counts: Number of messages by class, gaps among them.
        bytes: Size of all messages.
        crop_bytes: Size of the crops.
        quarantined: Number of quarantined messages.
    """

    def __init__(self, db: sqlite3.Connection, clock: Clock, kernel: str, in_flight: Container[int]) -> None:
        self._db, self._clock, self._kernel, self._in_flight = db, clock, kernel, in_flight
        self.recount()

    def recount(self) -> None:
        """Read the totals from the database, e.g. after a failed transaction."""
        self.counts: Dict[str, int] = {}
        self.bytes = self.crop_bytes = 0
        for kind, count, size in self._db.execute("SELECT class, COUNT(*), SUM(size) FROM messages GROUP BY class"):
            self._count(kind, size, count)
        self.quarantined = int(self._db.execute("SELECT COUNT(*) FROM quarantine").fetchone()[0])

    @property
    def count(self) -> int:
        """Number of messages of all classes."""
        return sum(self.counts.values())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all of the block or nothing; with synchronous full, it is durable at the end of the block."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error:
            # Some faults, such as a full disk, have already rolled back.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def after(self, key: int, limit: int, without: Container[str] = ()) -> List[Stored]:
        """Return up to `limit` messages after `key`, in order, without crops if `without` contains them."""
        condition = " AND class != 'crop'" if "crop" in without else ""
        return self._read(f"WHERE key > ?{condition} ORDER BY key LIMIT ?", key, limit)

    def get(self, key: int) -> Optional[Stored]:
        """Return the message with a key, or None."""
        return _first(self._read("WHERE key = ?", key))

    def set(self, stored: Stored) -> None:
        """Insert a message, or replace the one with its key."""
        self.remove(stored.key)
        message = stored.message
        kind, size = class_of(message) or "gap", size_of(message)
        merge_key = json.dumps(gap_key(message)) if message.kind == "gap" else None
        self._db.execute(
            f"INSERT INTO messages ({_COLUMNS}, class, size, stream) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            (stored.key, stored.tries, *self._times(stored), *_packed(message), kind, size, merge_key),
        )
        self._count(kind, size, 1)

    def remove(self, key: int) -> None:
        """Delete a message; unknown keys are ignored."""
        row = self._db.execute("SELECT class, size FROM messages WHERE key = ?", (key,)).fetchone()
        if row is not None:
            self._db.execute("DELETE FROM messages WHERE key = ?", (key,))
            self._count(row[0], -row[1], -1)

    def oldest(self, kind: str) -> Optional[Stored]:
        """Return the first message of a class that is not in flight."""
        keys = self._db.execute("SELECT key FROM messages WHERE class = ? ORDER BY key", (kind,))
        key = next((key for (key,) in keys if key not in self._in_flight), None)
        return None if key is None else self.get(key)

    def crop_keys(self) -> List[int]:
        """Return the keys of all crops that are not in flight."""
        keys = self._db.execute("SELECT key FROM messages WHERE class = 'crop' ORDER BY key").fetchall()
        return [key for (key,) in keys if key not in self._in_flight]

    def gap_before(self, gap: Stored) -> Optional[Stored]:
        """Return the next older gap of the same kind, camera and boot, unless it is in flight."""
        return self._neighbour("WHERE stream = ? AND key < ? ORDER BY key DESC LIMIT 1", gap)

    def gap_after(self, gap: Stored) -> Optional[Stored]:
        """Return the next newer gap of the same kind, camera and boot, unless it is in flight."""
        return self._neighbour("WHERE stream = ? AND key > ? ORDER BY key LIMIT 1", gap)

    def quarantine(self, stored: Stored, reason: str) -> None:
        """Store a message in the quarantine, which keeps only the newest."""
        self._db.execute(
            "INSERT INTO quarantine (reason, queued_at, topic, meta, payload) VALUES (?,?,?,?,?)",
            (reason, stored.queued_at, *_packed(stored.message)),
        )
        self._db.execute(
            "DELETE FROM quarantine WHERE id IN ("
            " SELECT a.id FROM quarantine a JOIN quarantine b ON b.id >= a.id GROUP BY a.id"
            " HAVING COUNT(*) > ? OR SUM(LENGTH(b.payload)) > ?)",
            (QUARANTINE, QUARANTINE_BYTES),
        )
        self.quarantined = int(self._db.execute("SELECT COUNT(*) FROM quarantine").fetchone()[0])

    def quarantined_messages(self) -> Iterator[Tuple[str, Stored]]:
        """Yield reason and message, oldest first; the keys are those of the quarantine."""
        rows = self._db.execute("SELECT id, reason, queued_at, topic, meta, payload FROM quarantine ORDER BY id")
        now = self._clock()
        for key, reason, queued_at, *message in rows:
            yield reason, self._unpacked((key, 0, "", 0.0, queued_at, False, *message), now)

    def empty_quarantine(self) -> None:
        """Delete all quarantined messages."""
        self._db.execute("DELETE FROM quarantine")
        self.quarantined = 0

    def drop_unreadable(self) -> int:
        """Delete rows that cannot be decoded; returns their number."""
        unreadable = []
        now = self._clock()
        for row in self._db.execute(f"SELECT {_COLUMNS} FROM messages"):
            try:
                self._unpacked(row, now)
            except sqlite3.DatabaseError:
                unreadable.append(row[0])
        for key in unreadable:
            self.remove(key)
        return len(unreadable)

    def remove_between(self, first: int, last: int) -> None:
        """Delete the messages with keys from `first` to `last`."""
        self._db.execute("DELETE FROM messages WHERE key BETWEEN ? AND ?", (first, last))
        self.recount()

    def set_open_visits(self, visits: Iterable[Stored]) -> None:
        """Replace the newest message of every open visit; they are ended at the next start after a crash."""
        self._db.execute("DELETE FROM open_appearances")
        self._db.executemany(
            f"INSERT INTO open_appearances (event_id, {_TIMES}, topic, meta, payload) VALUES (?,?,?,?,?,?,?,?)",
            [(s.message.event_id, *self._times(s), *_packed(s.message)) for s in visits],
        )

    def open_visits(self) -> List[Stored]:
        """Return the newest message of every open visit, in order."""
        rows = self._db.execute(f"SELECT 0, 0, {_TIMES}, topic, meta, payload FROM open_appearances").fetchall()
        now = self._clock()
        found = (self._unpacked(row, now) for row in rows)
        return sorted(found, key=lambda stored: (stored.message.boot or 0, stored.message.seq or 0))

    def open_visit_count(self) -> int:
        """Number of visits that are open, or were when the agent crashed."""
        return int(self._db.execute("SELECT COUNT(*) FROM open_appearances").fetchone()[0])

    @property
    def boot(self) -> int:
        """The newest boot counter that wrote the file; 0 for a new file."""
        row = self._db.execute("SELECT value FROM facts WHERE name = 'boot'").fetchone()
        return 0 if row is None else int(row[0])

    @boot.setter
    def boot(self, boot: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts (name, value) VALUES ('boot', ?)", (boot,))

    def free_bytes(self) -> int:
        """Return the size of the file's free pages, which are used before it grows."""
        return int(self._pragma("freelist_count")) * int(self._pragma("page_size"))

    def shrink(self, most_bytes: int) -> None:
        """Return up to `most_bytes` of free pages to the file system."""
        self._db.execute(f"PRAGMA incremental_vacuum({most_bytes // int(self._pragma('page_size'))})").fetchall()

    def close(self) -> None:
        """Close the database; the write-ahead log is merged if possible."""
        self._db.close()

    def _pragma(self, name: str) -> Any:
        return self._db.execute(f"PRAGMA {name}").fetchone()[0]

    def _count(self, kind: str, size: int, count: int) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.bytes += size
        self.crop_bytes += size if kind == "crop" else 0

    def _neighbour(self, where: str, gap: Stored) -> Optional[Stored]:
        found = _first(self._read(where, json.dumps(gap_key(gap.message)), gap.key))
        return None if found is None or found.key in self._in_flight else found

    def _read(self, where: str, *values: Any) -> List[Stored]:
        now = self._clock()
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM messages {where}", values)
        return [self._unpacked(row, now) for row in rows]

    def _times(self, stored: Stored) -> Tuple[str, float, str, int]:
        return self._kernel, stored.queued_t, stored.queued_at, int(stored.synced)

    def _unpacked(self, row: Tuple[Any, ...], now: Moment) -> Stored:
        key, tries, kernel, queued_t, queued_at, synced, topic, meta, payload = row
        try:
            if kernel != self._kernel:
                queued_t = before_reboot(queued_at, bool(synced), now)
            return Stored(key, _unpacked(topic, meta, payload), queued_t, queued_at, tries, bool(synced))
        except (TypeError, ValueError) as error:
            raise sqlite3.DatabaseError(f"message {key} cannot be read: {error}") from None


def before_reboot(queued_at: str, synced: bool, now: Moment) -> float:
    """Return when a message of before the machine's last start was queued, on the current monotonic clock.

    That clock began at the start, so the message is older; only synchronised wall clocks show by how much.

    Raises:
        ValueError: `queued_at` is not a time.
    """
    at = datetime.strptime(queued_at, "%Y-%m-%dT%H:%M:%S.%f%z")
    age = now.at - at if synced and now.synced else timedelta(0)
    return min(-LATE_S, now.t - age.total_seconds())


def _packed(message: Message) -> Tuple[str, str, bytes]:
    meta = {name: getattr(message, name) for name, default in _META.items() if getattr(message, name) != default}
    return message.topic, json.dumps(meta), message.payload


def _unpacked(topic: str, meta: str, payload: bytes) -> Message:
    rest: Dict[str, Any] = json.loads(meta)
    # Ignore fields that a newer version has added.
    rest = {name: value for name, value in rest.items() if name in _META}
    if "properties" in rest:
        rest["properties"] = tuple((key, value) for key, value in rest["properties"])
    return Message(topic, bytes(payload), **rest)


def _first(found: List[Stored]) -> Optional[Stored]:
    return found[0] if found else None
