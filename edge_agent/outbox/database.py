"""The outbox's database file: schema, opening, migration, damage and lock."""

import contextlib
import fcntl
import os
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import Optional

from edge_agent.errors import InputError

OUTBOX_NAME, LOCK_NAME = "outbox.db", "outbox.lock"
"""In the state folder."""
APPLICATION_ID = 0x45414F42
"""PRAGMA application_id of the outbox: "EAOB"; distinguishes it from the file of another program."""
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
"""From the third on, each migration only adds tables, indexes, or columns with a default. So an older agent, after a
rollback, works with a newer file, and sends everything in it. A change of another kind needs a new OUTBOX_NAME, filled
from the old file."""
BUSY_S = 1.0
WAL_BYTES = 4_000_000
KEPT_DAMAGED = 3
SIDE_FILES = ("-wal", "-shm")


def open_for_writing(path: Path, synchronous: str, check: bool) -> sqlite3.Connection:
    """Open or create the file, migrate it to the newest version, and with `check` verify its integrity.

    Raises:
        OSError: The file cannot be created.
        sqlite3.Error: The file cannot be used; see `is_damage`.
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
    """Open the file read-only, without disturbing a running agent.

    Raises:
        InputError: The file does not exist or cannot be read.
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
    """Return the newest boot counter that wrote the file; 0 when it cannot be read."""
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
    """Return the schema version; 0 for an empty file. It may be newer than `MIGRATIONS`.

    Raises:
        sqlite3.DatabaseError: The file belongs to another program.
    """
    number = int(db.execute("PRAGMA user_version").fetchone()[0])
    ours = db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    if not ours and (number or db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()):
        raise sqlite3.DatabaseError("the file belongs to another program")
    return number


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is permanently unusable; other faults (disk full, read-only, locked) may pass."""
    return type(error) is sqlite3.DatabaseError or str(error).startswith("no such ")


def move_aside(path: Path, at: datetime) -> Path:
    """Rename a damaged file and its side files to a name with the time; only the newest few are kept.

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
    """Lock of the process that may write the outbox; the system releases it when that process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Optional[int] = None

    def take(self) -> None:
        """Take the lock. Idempotent.

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
        # Only for the message above: a full disk must not prevent the lock.
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _prepare(db: sqlite3.Connection, synchronous: str, check: bool) -> None:
    found = version(db)
    if found == 0:
        # Possible only before the first page is written; lets the file shrink after a backlog.
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
