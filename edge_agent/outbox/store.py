"""The outbox's tables as Python sees them. Every call may raise `sqlite3.Error`; transactions are the caller's."""

import contextlib
import fcntl
import json
import os
import sqlite3
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Container, Dict, Iterable, Iterator, List, Optional, Tuple

from edge_agent.core.ports import Clock
from edge_agent.core.protocol.messages import Message, Stored, gap_key
from edge_agent.core.types import Moment
from edge_agent.errors import InputError
from edge_agent.outbox.retention import QUARANTINE, class_of, size_of

OUTBOX_NAME, LOCK_NAME = "outbox.db", "outbox.lock"
"""In the state folder."""
APPLICATION_ID = 0x45414F42
"""Tells our file from another program's (PRAGMA application_id): "EAOB"."""
MIGRATIONS = (
    """
    CREATE TABLE messages (
        key INTEGER PRIMARY KEY,   -- boot << 30 | counter: the order of sending
        class TEXT NOT NULL,       -- crop, update, event or gap: what is dropped first
        size INTEGER NOT NULL,
        stream TEXT,               -- of a gap: others of the same may be joined with it
        kernel TEXT NOT NULL,      -- the machine's boot, on whose monotonic clock queued_t is
        queued_t REAL NOT NULL,
        queued_at TEXT NOT NULL,
        synced INTEGER NOT NULL,   -- whether queued_at can be believed
        tries INTEGER NOT NULL,
        topic TEXT NOT NULL,
        meta TEXT NOT NULL,        -- JSON: the rest of the message
        payload BLOB NOT NULL
    );
    CREATE INDEX messages_by_class ON messages (class, key, size);
    CREATE INDEX messages_by_stream ON messages (stream, key) WHERE stream IS NOT NULL;
    CREATE TABLE quarantine (
        id INTEGER PRIMARY KEY, reason TEXT NOT NULL, queued_at TEXT NOT NULL,
        topic TEXT NOT NULL, meta TEXT NOT NULL, payload BLOB NOT NULL
    );
    CREATE TABLE open_appearances (
        event_id TEXT PRIMARY KEY, kernel TEXT NOT NULL, queued_t REAL NOT NULL, queued_at TEXT NOT NULL,
        synced INTEGER NOT NULL, topic TEXT NOT NULL, meta TEXT NOT NULL, payload BLOB NOT NULL
    );
    CREATE TABLE last_seq (camera TEXT PRIMARY KEY, boot INTEGER NOT NULL, seq INTEGER NOT NULL);
    CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    """,
    "DROP TABLE last_seq;",
)
"""From the third on each only adds: tables, indexes, columns that have a default. So an older agent, after a rollback,
goes on with a newer file, and nothing of it waits in vain. What cannot be added takes a new OUTBOX_NAME, filled from
the old file."""
BUSY_S = 1.0
WAL_BYTES = 4_000_000
KEPT_DAMAGED = 3
SIDE_FILES = ("-wal", "-shm")


def open_for_writing(path: Path, synchronous: str, check: bool) -> sqlite3.Connection:
    """Open or create the file, bring it to the newest version, and with `check` read it through.

    Raises:
        OSError: It cannot be created.
        sqlite3.Error: It cannot be used; `is_damage` tells whether it ever can.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    db = sqlite3.connect(str(path), timeout=BUSY_S, isolation_level=None)
    try:
        _prepare(db, synchronous, check)
    except sqlite3.Error:
        db.close()
        raise
    return db


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open beside a running agent, which is not disturbed.

    Raises:
        InputError: There is no outbox, or it cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no outbox", "it is made when the agent first runs with this state folder")
    db: Optional[sqlite3.Connection] = None
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None)
        found = version(db)
    except sqlite3.Error as error:
        if db is not None:
            db.close()
        hint = "the agent moves a damaged file aside at its next start" if is_damage(error) else "run as its owner"
        raise InputError(f"{path}: {error}", hint) from None
    if found < len(MIGRATIONS):
        db.close()
        raise InputError(f"{path}: is of version {found}", "run the agent once, which brings it up to date")
    return db


def recorded_boot(path: Path) -> int:
    """The newest boot counter that wrote the file; 0 when it cannot be told."""
    try:
        db = open_for_reading(path)
    except InputError:
        return 0
    try:
        row = db.execute("SELECT value FROM facts WHERE name = 'boot'").fetchone()
    except sqlite3.Error:
        return 0
    finally:
        db.close()
    return 0 if row is None else int(row[0])


def version(db: sqlite3.Connection) -> int:
    """The schema's version; 0 for an empty file. May be newer than ours.

    Raises:
        sqlite3.DatabaseError: It is not our file.
    """
    number = int(db.execute("PRAGMA user_version").fetchone()[0])
    ours = db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    if not ours and (number or db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()):
        raise sqlite3.DatabaseError("the file belongs to another program")
    return number


def is_damage(error: sqlite3.Error) -> bool:
    """True when the file itself is no use any more; else the fault (disk full, read-only, locked) may pass."""
    return type(error) is sqlite3.DatabaseError or str(error).startswith("no such ")


def move_aside(path: Path, at: datetime) -> Path:
    """Rename a damaged file, and what belongs to it, to a name that tells when; the newest few are kept.

    Raises:
        OSError: The folder cannot be written.
    """
    stamp = at.strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    path.replace(aside)
    for suffix in SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).replace(aside.with_name(aside.name + suffix))
    damaged = sorted(p for p in path.parent.glob(f"{path.name}.corrupt-*Z"))
    for old in damaged[:-KEPT_DAMAGED]:
        for suffix in ("", *SIDE_FILES):
            with contextlib.suppress(FileNotFoundError):
                old.with_name(old.name + suffix).unlink()
    return aside


class FileLock:
    """Held by the one process that may write the outbox; the system frees it when that process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Optional[int] = None

    def take(self) -> None:
        """Idempotent.

        Raises:
            InputError: Another process holds it.
            OSError: The folder cannot be written.
        """
        if self._file is not None:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            raise InputError(
                f"{self._path.parent}: in use by another edge-agent (process {holder})",
                "stop that one, or give each its own folder by EDGE_AGENT_STATE_DIR",
            ) from None
        except OSError:
            os.close(file)
            raise
        self._file = file
        # Only for the message above: a full disk must not keep the lock from being taken.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _prepare(db: sqlite3.Connection, synchronous: str, check: bool) -> None:
    found = version(db)
    if found == 0:
        # Only before the first page is written; lets the file shrink when a backlog has gone.
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    elif check:
        verdict = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(f"PRAGMA synchronous={synchronous}")
    db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
    for number, script in enumerate(MIGRATIONS[found:], found + 1):
        db.executescript(
            f"BEGIN IMMEDIATE; {script} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={number}; COMMIT;"
        )


QUARANTINE_BYTES = 16_000_000
LATE_S = 60.0
"""What waited through a restart of the machine is told as at least this late."""
_META = {f.name: f.default for f in fields(Message) if f.name not in ("topic", "payload")}
_TIMES = "kernel, queued_t, queued_at, synced"
_COLUMNS = f"key, tries, {_TIMES}, topic, meta, payload"


class Table:
    """See `outbox.policy.MessageStore`: the messages on disk; beside them quarantine, open appearances and counters.

    Args:
        db: Open, in autocommit mode.
        clock: Both clocks.
        kernel: The machine's boot, e.g. /proc/sys/kernel/random/boot_id: monotonic times compare within one only.
        in_flight: Keys that must stay as they are.

    Attributes:
        counts: Messages by class, gaps among them.
        bytes: Of all messages.
        crop_bytes: Of the crops.
        quarantined: Messages set aside.
    """

    def __init__(self, db: sqlite3.Connection, clock: Clock, kernel: str, in_flight: Container[int]) -> None:
        self._db, self._clock, self._kernel, self._in_flight = db, clock, kernel, in_flight
        self.recount()

    def recount(self) -> None:
        """Read the totals anew, after a transaction that failed."""
        self.counts: Dict[str, int] = {}
        self.bytes = self.crop_bytes = 0
        for kind, count, size in self._db.execute("SELECT class, COUNT(*), SUM(size) FROM messages GROUP BY class"):
            self._count(kind, size, count)
        self.quarantined = int(self._db.execute("SELECT COUNT(*) FROM quarantine").fetchone()[0])

    @property
    def count(self) -> int:
        """Messages of all classes."""
        return sum(self.counts.values())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block or nothing; safe on disk (with synchronous full) when it has ended."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error:
            # Some faults, a full disk among them, have already rolled back.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def after(self, key: int, limit: int, without: Container[str] = ()) -> List[Stored]:
        """Messages behind `key`, in order; crops only where they are wanted."""
        wanted = " AND class != 'crop'" if "crop" in without else ""
        return self._read(f"WHERE key > ?{wanted} ORDER BY key LIMIT ?", key, limit)

    def get(self, key: int) -> Optional[Stored]:
        """The message, or None."""
        return _first(self._read("WHERE key = ?", key))

    def set(self, stored: Stored) -> None:
        """Insert, or replace in its place."""
        self.remove(stored.key)
        message = stored.message
        kind, size = class_of(message) or "gap", size_of(message)
        joint = json.dumps(gap_key(message)) if message.kind == "gap" else None
        self._db.execute(
            f"INSERT INTO messages ({_COLUMNS}, class, size, stream) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            (stored.key, stored.tries, *self._times(stored), *_packed(message), kind, size, joint),
        )
        self._count(kind, size, 1)

    def remove(self, key: int) -> None:
        """Forget; unknown keys are ignored."""
        row = self._db.execute("SELECT class, size FROM messages WHERE key = ?", (key,)).fetchone()
        if row is not None:
            self._db.execute("DELETE FROM messages WHERE key = ?", (key,))
            self._count(row[0], -row[1], -1)

    def oldest(self, kind: str) -> Optional[Stored]:
        """The first of a class that is not in flight."""
        keys = self._db.execute("SELECT key FROM messages WHERE class = ? ORDER BY key", (kind,))
        key = next((key for (key,) in keys if key not in self._in_flight), None)
        return None if key is None else self.get(key)

    def crop_keys(self) -> List[int]:
        """Of all that are not in flight."""
        keys = self._db.execute("SELECT key FROM messages WHERE class = 'crop' ORDER BY key").fetchall()
        return [key for (key,) in keys if key not in self._in_flight]

    def gap_before(self, gap: Stored) -> Optional[Stored]:
        """The next older gap of the same stream, unless it is in flight."""
        return self._neighbour("WHERE stream = ? AND key < ? ORDER BY key DESC LIMIT 1", gap)

    def gap_after(self, gap: Stored) -> Optional[Stored]:
        """The next newer gap of the same stream, unless it is in flight."""
        return self._neighbour("WHERE stream = ? AND key > ? ORDER BY key LIMIT 1", gap)

    def set_aside(self, stored: Stored, reason: str) -> None:
        """Keep in quarantine, of which the newest are kept."""
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

    def quarantine(self) -> Iterator[Tuple[str, Stored]]:
        """Why and what, oldest first; keys are those of the quarantine."""
        rows = self._db.execute("SELECT id, reason, queued_at, topic, meta, payload FROM quarantine ORDER BY id")
        now = self._clock()
        for key, reason, queued_at, *message in rows:
            yield reason, self._unpacked((key, 0, "", 0.0, queued_at, False, *message), now)

    def empty_quarantine(self) -> None:
        """Forget what was set aside."""
        self._db.execute("DELETE FROM quarantine")
        self.quarantined = 0

    def drop_unreadable(self) -> int:
        """Delete rows that make no sense; returns how many there were."""
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
        """Forget all from the one key to the other."""
        self._db.execute("DELETE FROM messages WHERE key BETWEEN ? AND ?", (first, last))
        self.recount()

    def keep_open(self, visits: Iterable[Stored]) -> None:
        """What would have to be closed if the agent died now; replaces what was there."""
        self._db.execute("DELETE FROM open_appearances")
        self._db.executemany(
            f"INSERT INTO open_appearances (event_id, {_TIMES}, topic, meta, payload) VALUES (?,?,?,?,?,?,?,?)",
            [(s.message.event_id, *self._times(s), *_packed(s.message)) for s in visits],
        )

    def left_open(self) -> List[Stored]:
        """What `keep_open` kept, in order."""
        rows = self._db.execute(f"SELECT 0, 0, {_TIMES}, topic, meta, payload FROM open_appearances").fetchall()
        now = self._clock()
        found = (self._unpacked(row, now) for row in rows)
        return sorted(found, key=lambda stored: (stored.message.boot or 0, stored.message.seq or 0))

    def open_count(self) -> int:
        """Appearances that are open, or were when the agent died."""
        return int(self._db.execute("SELECT COUNT(*) FROM open_appearances").fetchone()[0])

    @property
    def boot(self) -> int:
        """The newest boot counter that wrote here; 0 when none did."""
        row = self._db.execute("SELECT value FROM facts WHERE name = 'boot'").fetchone()
        return 0 if row is None else int(row[0])

    @boot.setter
    def boot(self, boot: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts (name, value) VALUES ('boot', ?)", (boot,))

    def free_bytes(self) -> int:
        """Inside the file: pages that will be used before it grows."""
        return int(self._pragma("freelist_count")) * int(self._pragma("page_size"))

    def shrink(self, most_bytes: int) -> None:
        """Give free pages back to the file system."""
        self._db.execute(f"PRAGMA incremental_vacuum({most_bytes // int(self._pragma('page_size'))})").fetchall()

    def close(self) -> None:
        """Leave one file behind, where that can be."""
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
    """When a message was queued that waits since before the machine's last start, on the monotonic clock of now.

    That clock began at the start, so the message is older; how much, only two clocks that were right can tell.

    Raises:
        ValueError: `queued_at` is no time.
    """
    at = datetime.strptime(queued_at, "%Y-%m-%dT%H:%M:%S.%f%z")
    age = now.at - at if synced and now.synced else timedelta(0)
    return min(-LATE_S, now.t - age.total_seconds())


def _packed(message: Message) -> Tuple[str, str, bytes]:
    meta = {name: getattr(message, name) for name, default in _META.items() if getattr(message, name) != default}
    return message.topic, json.dumps(meta), message.payload


def _unpacked(topic: str, meta: str, payload: bytes) -> Message:
    rest: Dict[str, Any] = json.loads(meta)
    # Fields that a newer version has added are passed over.
    rest = {name: value for name, value in rest.items() if name in _META}
    if "properties" in rest:
        rest["properties"] = tuple((key, value) for key, value in rest["properties"])
    return Message(topic, bytes(payload), **rest)


def _first(found: List[Stored]) -> Optional[Stored]:
    return found[0] if found else None
