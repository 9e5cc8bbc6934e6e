"""The outbox on disk: keeps messages over restarts of agent, machine and broker. See `core.ports.Outbox`.

New and acknowledged messages are buffered in memory; `flush` writes all changes in one transaction, before any of the
messages is sent. So a disk fault loses nothing: the buffer stays, within limits, until the disk works again.

Unsent messages keep their order: while older rows cannot be read, newer messages wait in memory, for at most `HOLD_S`.
Then the rows of this boot are announced as a gap, and deleted when the disk works again; those of earlier boots, which
their boot counter identifies as older, are sent late.
"""

import logging
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Container, Dict, List, Optional, Sequence

from edge_agent.core.ports import Clock
from edge_agent.core.protocol.messages import (
    Message,
    OutboxStatus,
    Stored,
    close_after_restart,
    gap_for_message,
    timestamp,
)
from edge_agent.core.types import Moment
from edge_agent.errors import InputError
from edge_agent.outbox.database import LOCK_NAME, OUTBOX_NAME, FileLock, is_damage, move_aside, open_for_writing
from edge_agent.outbox.delivery import DeliveryQueue, UnreadableRows
from edge_agent.outbox.params import OutboxParams
from edge_agent.outbox.retention import DiscardedCrops, RetentionPolicy, must_quarantine
from edge_agent.outbox.store import SqliteStore
from edge_agent.outbox.write_buffer import WriteBuffer

log = logging.getLogger(__name__)

KEY_BITS = 30
"""Bits of a key that number the messages of one boot; the boot counter above them keeps keys ordered and unique."""
RETRY_S = 5.0
HOUSEKEEPING_S = 10.0
DROPS_PER_FLUSH = 500
"""Limit of messages dropped by one flush, so that it stays short."""
FLOOR_BYTES = 4_000_000
"""Size that may always be stored, however full the disk is."""
SPARE_BYTES, SHRINK_BYTES = 4_000_000, 2_000_000
"""Free pages that the file keeps, and what it returns to the file system at a time."""


class SqliteOutbox:
    """Queue with limits of size, age and free disk space; a loss leaves a gap message in its place.

    All methods, including `open`, belong to one thread.

    Args:
        params: The limits.
        folder: Contains `outbox.db` and its lock; created when missing.
        clock: Both clocks.
        kernel: The machine's boot id, e.g. /proc/sys/kernel/random/boot_id.
        boot: The agent's boot counter. The number before it must be unused, too: it numbers, from `seq` 1 on, the ends
            of visits that a crash left open.
        lock: Lock of the folder, if it is taken already; released by `close`.
        fault: A fault of the folder that was reported already.
    """

    def __init__(
        self,
        params: OutboxParams,
        folder: Path,
        clock: Clock,
        kernel: str,
        boot: int,
        lock: Optional[FileLock] = None,
        fault: str = "",
    ) -> None:
        self._params, self._clock, self._kernel, self._boot = params, clock, kernel, boot
        self._path = folder / OUTBOX_NAME
        self._lock = lock or FileLock(folder / LOCK_NAME)
        self._policy = RetentionPolicy(params)
        self._discarded, self._crops_to_drop = DiscardedCrops(), False
        self._store: Optional[SqliteStore] = None
        self._check = True
        self._started = False
        self._fault, self._damage = fault, ""
        self._retry_t = self._housekeeping_t = float("-inf")
        self._more_to_do = False
        self._next_key = boot << KEY_BITS

        self._in_flight: Dict[int, Stored] = {}
        self._unreadable = UnreadableRows(self._next_key)
        self._read_open_visits = True
        self._open_visits: List[Stored] = []
        self._ended: Dict[Optional[str], int] = {}
        self._buffer = WriteBuffer(self._in_flight)
        self._delivery = DeliveryQueue(self._in_flight, self._buffer, self._unreadable, self._discarded)

    def open(self) -> None:
        """Open the file, or buffer in memory while it cannot be used; end the visits that a crash left open.

        Raises:
            InputError: Another agent uses the folder.
        """
        now = self._clock()
        try:
            self._connect(now)
        except (OSError, sqlite3.Error) as error:
            self._handle_fault(error, now)
            self._unreadable.earlier = self._may_exist()
        self._started = True
        self._end_open_visits()
        self.flush()
        log.info("outbox: boot %d, %d messages wait", self._boot, self.status().pending)

    @property
    def faults(self) -> Sequence[str]:
        """Faults as texts for the health message."""
        return [fault for fault in (self._damage, self._fault) if fault]

    def put(self, messages: Sequence[Message], moment: Moment) -> None:
        """Store messages in order; they are durable after the next `flush`."""
        for message in messages:
            self._add(message, moment.t, timestamp(moment.at), moment.synced)

    def batch(self, limit: int, without: Container[str] = ()) -> List[Stored]:
        """Mark the oldest waiting messages as in flight, at most `limit`, and return them in order."""
        self.flush()
        self._delivery.leave_out(without)
        before = len(self._in_flight)
        if self._take_older(before + limit):
            self._delivery.take_unwritten(before + limit)
        batch = list(self._in_flight.values())[before:]
        self._unreadable.taken(batch)
        return batch

    def accept(self, key: int) -> None:
        """Delete a message that the broker has acknowledged."""
        stored = self._withdraw(key)
        if stored is not None:
            self._buffer.remove(stored, self._clock().t)
            if not self._pending():
                self._policy.emptied()

    def reject(self, key: int, reason: str, fatal: bool) -> None:
        """Queue an undelivered message again; after a fatal or repeated failure, quarantine it."""
        stored = self._withdraw(key)
        if stored is None:
            return
        stored = replace(stored, tries=stored.tries + 1)
        self._buffer.replace(stored, self._clock().t)
        self._delivery.again(stored)
        self._crops_to_drop |= stored in self._discarded
        if must_quarantine(stored, fatal):
            self._delivery.again(stored, gap_for_message(stored.message, "quarantined"))
            log.warning("outbox: %s of %s quarantined: %s", stored.message.kind, stored.message.topic, reason)
            self._buffer.quarantine(key, reason)

    def release(self, keys: Sequence[int]) -> None:
        """Queue messages again, in order, after a failure that they did not cause."""
        for key in keys:
            stored = self._in_flight.pop(key, None)
            if stored is not None:
                self._delivery.again(stored)
                self._crops_to_drop |= stored in self._discarded

    def discard_crops(self, camera: Optional[str]) -> None:
        """Drop crops at the next `flush`, and those in flight when they are released; none is handed out meanwhile."""
        self._discarded.add(camera, self._next_key)
        self._crops_to_drop = True

    def flush(self) -> None:
        """Write all changes in one transaction; after a fault keep them, and try again later."""
        now = self._clock()
        if (
            self._fault
            or self._more_to_do
            or self._crops_to_drop
            or now.t >= self._housekeeping_t
            or self._buffer.due(now.t)
        ):
            self._flush(now)

    def status(self) -> OutboxStatus:
        """Return queue sizes and losses."""
        store = self._store
        return OutboxStatus(
            pending=self._pending(),
            in_flight=len(self._in_flight),
            bytes=self._buffer.messages.bytes
            + (max(0, store.bytes - sum(self._buffer.stale.values())) if store else 0),
            oldest_s=self._oldest_s(),
            dropped=self._policy.dropped,
            quarantined=(store.quarantined if store else 0) + self._buffer.quarantined,
        )

    def close(self) -> None:
        """Write all changes, close the file and release the lock. Idempotent."""
        if self._started:
            self._started = False
            self._retry_t = float("-inf")
            self._flush(self._clock())
            if len(self._buffer.messages):
                log.error("outbox: %d messages could not be written and are lost", len(self._buffer.messages))
        self._close_store()
        self._lock.release()

    def _add(self, message: Message, queued_t: float, queued_at: str, synced: bool) -> None:
        self._buffer.add(Stored(self._next_key, message, queued_t, queued_at, synced=synced))
        self._next_key += 1

    def _end_open_visits(self) -> None:
        """Store an end for each visit that was open at a crash, with the data of its newest event."""
        visits, self._open_visits = self._open_visits, []
        for stored in visits:
            message = stored.message
            boot, seq = self._boot - 1, self._ended.get(message.camera, 0) + 1
            try:
                payload = close_after_restart(message.payload, boot, seq)
            except (ValueError, KeyError) as error:
                log.warning("outbox: a visit of %s cannot be ended: %s", message.camera, error)
                continue
            self._ended[message.camera] = seq
            end = replace(message, payload=payload, event_type="end", boot=boot, seq=seq)
            self._add(end, stored.queued_t, stored.queued_at, stored.synced)

    def _withdraw(self, key: int) -> Optional[Stored]:
        try:
            return self._delivery.withdraw(key, self._store)
        except sqlite3.Error as error:
            self._handle_fault(error, self._clock())
            return None

    def _take_older(self, until: int) -> bool:
        """Hand out older messages; returns whether newer ones may follow."""
        now = self._clock()
        try:
            if self._delivery.take_older(self._store, until):
                self._unreadable.readable()
                return True
        except sqlite3.Error as error:
            self._handle_fault(error, now)
        if self._unreadable.must_wait(now.t):
            return False
        self._discard_unreadable(now, permanent=False)
        return True

    def _discard_unreadable(self, now: Moment, permanent: bool) -> None:
        self._policy.dropped += self._delivery.discard_unreadable(now, permanent)

    def _pending(self) -> int:
        return len(self._buffer.messages) + (max(0, self._store.count - len(self._buffer.stale)) if self._store else 0)

    def _oldest_s(self) -> float:
        oldest = next(iter(self._buffer.messages), None)
        if self._store is not None and self._store.count > len(self._buffer.stale):
            try:
                rows = self._store.after(0, len(self._buffer.stale) + 1)
                oldest = next((stored for stored in rows if stored.key not in self._buffer.stale), oldest)
            except sqlite3.Error as error:
                self._handle_fault(error, self._clock())
        return max(0.0, self._clock().t - oldest.queued_t) if oldest else 0.0

    def _flush(self, now: Moment) -> None:
        if self._fault and now.t < self._retry_t:
            self._buffer.limit(self._policy, now.t, self._params.in_memory().max_bytes)
            return
        dropped = self._policy.dropped
        try:
            store = self._store or self._connect(now)
            dropped = self._policy.dropped
            self._write(store, now)
        except (OSError, sqlite3.Error, InputError) as error:
            self._policy.dropped = dropped
            self._handle_fault(error, now)
            self._buffer.limit(self._policy, now.t, self._params.in_memory().max_bytes)
            return
        if self._fault:
            log.info("outbox: the disk works again; all messages in memory were written")
            self._fault = ""

    def _write(self, store: SqliteStore, now: Moment) -> None:
        if self._fault:
            # First and in its own transaction: on a full disk it may free the space that the other changes need.
            with store.transaction():
                self._buffer.write_removals(store)
            self._buffer.removals_written()
        with store.transaction():
            self._buffer.write(store, self._policy, self._boot)
            if self._crops_to_drop:
                for key in store.crop_keys():
                    self._policy.drop_discarded(store, filter(None, [store.get(key)]), self._discarded)
            more_to_do = not self._make_room(store, now)
        self._unreadable.written(self._buffer.messages)
        self._buffer.written()
        if self._crops_to_drop:
            # Gaps may have replaced crops that were skipped, behind the cursor.
            self._crops_to_drop = False
            self._delivery.rewind()
        self._more_to_do = more_to_do
        if now.t >= self._housekeeping_t:
            self._housekeeping_t = now.t + HOUSEKEEPING_S
            if store.free_bytes() > SPARE_BYTES + SHRINK_BYTES:
                store.shrink(SHRINK_BYTES)

    def _make_room(self, store: SqliteStore, now: Moment) -> bool:
        disk = os.statvfs(self._path.parent)
        spare = disk.f_bavail * disk.f_frsize + store.free_bytes() - self._params.min_free_bytes
        most = min(self._params.max_bytes, max(FLOOR_BYTES, store.bytes + spare))
        full = store.bytes > most or store.crop_bytes > self._params.max_crop_bytes
        if not full and now.t < self._housekeeping_t and not self._more_to_do:
            return True
        return self._policy.make_room(store, now.t, most, DROPS_PER_FLUSH)

    def _connect(self, now: Moment) -> SqliteStore:
        self._lock.take()
        try:
            store = self._opened()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._replace_file(error, now)
            store = self._opened()
        self._store, self._check, self._read_open_visits = store, False, False
        self._delivery.rewind()
        self._buffer.facts_changed = True
        if self._unreadable.earlier or not self._started:
            self._unreadable.earlier = store.count > 0
        if self._started:
            self._end_open_visits()
        return store

    def _opened(self) -> SqliteStore:
        db = open_for_writing(self._path, self._params.synchronous, self._check)
        try:
            store = SqliteStore(db, self._clock, self._kernel, self._in_flight)
            if self._read_open_visits:
                self._open_visits = store.open_visits()
            if self._check and self._started:
                with store.transaction():
                    unreadable = store.drop_unreadable()
                if unreadable:
                    self._damage = f"outbox: {unreadable} messages could not be read and were deleted"
                    log.error("%s", self._damage)
        except sqlite3.Error:
            db.close()
            raise
        return store

    def _replace_file(self, error: sqlite3.Error, now: Moment) -> None:
        """Move a damaged file aside: messages in memory are kept, those only in the file are lost."""
        aside = move_aside(self._path, now.at)
        self._damage = (
            f"outbox: {self._path.name} was damaged ({error}); moved to {aside.name} with its unsent messages"
        )
        log.error("%s", self._damage)
        self._buffer.stale.clear()
        for stored in self._in_flight.values():
            self._buffer.messages.set(stored)
        self._discard_unreadable(now, permanent=True)
        self._buffer.discarded = None

    def _handle_fault(self, error: Exception, now: Moment) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        level = logging.DEBUG if self._fault else logging.WARNING
        log.log(level, "outbox: %s: %s; messages wait in memory", self._path, reason)
        self._fault = f"outbox: {reason}; messages wait in memory only"
        self._retry_t = now.t + RETRY_S
        if self._store is None:
            return
        if isinstance(error, sqlite3.Error) and is_damage(error):
            self._check = True
            self._close_store()
            return
        try:
            self._store.recount()
        except sqlite3.Error:
            self._close_store()

    def _may_exist(self) -> bool:
        try:
            self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
