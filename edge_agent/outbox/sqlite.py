"""The outbox on disk: survives agent, machine and broker. See `core.ports.Outbox`.

What is put, and what is acknowledged, is first noted in memory; `flush` writes all of it in one transaction, before
anything of it is sent. So a fault of the disk loses nothing: the notes stay, bounded, until it works again.

What has still to be sent keeps its order: while older rows cannot be read, newer messages wait in memory, for `HOLD_S`
at most. Then the rows of this boot are given up and announced as a gap, and are deleted when the disk works again;
those of earlier boots, whose number says that they are older, come late.
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
from edge_agent.outbox.delivery import DeliveryQueue, UnreadableRows
from edge_agent.outbox.params import OutboxParams
from edge_agent.outbox.retention import DiscardedCrops, Policy, must_quarantine
from edge_agent.outbox.store import LOCK_NAME, OUTBOX_NAME, FileLock, Table, is_damage, move_aside, open_for_writing
from edge_agent.outbox.write_buffer import WriteBuffer

log = logging.getLogger(__name__)

KEY_BITS = 30
"""Messages of one boot; above them the boot, so that keys are in order and unique without a look at the file."""
RETRY_S = 5.0
HOUSEKEEPING_S = 10.0
DROPS_PER_FLUSH = 500
"""So that a flush stays short when much must go."""
FLOOR_BYTES = 4_000_000
"""May wait however full the disk is."""
SPARE_BYTES, SHRINK_BYTES = 4_000_000, 2_000_000
"""Free pages that the file keeps for later; what it gives back at a time."""


class SqliteOutbox:
    """Bounded by bytes, age and free disk; order by key; a loss leaves a gap message in its place.

    All of it, `open` included, belongs to one thread.

    Args:
        params: The bounds.
        folder: Where `outbox.db` and its lock lie; made when missing.
        clock: Both clocks.
        kernel: The machine's boot, e.g. /proc/sys/kernel/random/boot_id.
        boot: The agent's boot counter. The number before it must be nobody else's: with it, and numbers from 1 on, go
            the ends of appearances that a crash has left open.
        lock: Over the folder, when it has been taken already; released by `close`.
        fault: What is known to be wrong with the folder, when that has been told.
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
        self._policy = Policy(params)
        self._unwanted, self._discard = DiscardedCrops(), False
        self._table: Optional[Table] = None
        self._check = True
        self._started = False
        self._fault, self._damage = fault, ""
        self._retry_t = self._housekeeping_t = float("-inf")
        self._more_to_do = False
        self._next_key = boot << KEY_BITS

        self._in_flight: Dict[int, Stored] = {}
        self._unread = UnreadableRows(self._next_key)
        self._look_back = True
        self._left_open: List[Stored] = []
        self._closed: Dict[Optional[str], int] = {}
        self._notes = WriteBuffer(self._in_flight)
        self._turns = DeliveryQueue(self._in_flight, self._notes, self._unread, self._unwanted)

    def open(self) -> None:
        """Take the file, or go on without while it cannot be used; close the appearances that a crash left open.

        Raises:
            InputError: Another agent holds it.
        """
        now = self._clock()
        try:
            self._connect(now)
        except (OSError, sqlite3.Error) as error:
            self._failed(error, now)
            self._unread.earlier = self._may_exist()
        self._started = True
        self._close_left_open()
        self.flush()
        log.info("outbox: boot %d, %d messages wait", self._boot, self.status().pending)

    @property
    def faults(self) -> Sequence[str]:
        """What is wrong, in words, for health."""
        return [fault for fault in (self._damage, self._fault) if fault]

    def put(self, messages: Sequence[Message], moment: Moment) -> None:
        """Keep messages, in order; they are safe after the next `flush`."""
        for message in messages:
            self._keep(message, moment.t, timestamp(moment.at), moment.synced)

    def batch(self, limit: int, without: Container[str] = ()) -> List[Stored]:
        """The oldest messages that are not in flight, in order, marked in flight; at most `limit`."""
        self.flush()
        self._turns.leave_out(without)
        before = len(self._in_flight)
        if self._take_older(before + limit):
            self._turns.take_fresh(before + limit)
        batch = list(self._in_flight.values())[before:]
        self._unread.taken(batch)
        return batch

    def accept(self, key: int) -> None:
        """The broker has acknowledged it: forget it."""
        stored = self._taken_back(key)
        if stored is not None:
            self._notes.forget(stored, self._clock().t)
            if not self._pending():
                self._policy.emptied()

    def reject(self, key: int, reason: str, fatal: bool) -> None:
        """It was not delivered: send again, or (fatal, or too often) put it into quarantine."""
        stored = self._taken_back(key)
        if stored is None:
            return
        stored = replace(stored, tries=stored.tries + 1)
        self._notes.change(stored, self._clock().t)
        self._turns.again(stored)
        self._discard |= stored in self._unwanted
        if must_quarantine(stored, fatal):
            self._turns.again(stored, gap_for_message(stored.message, "quarantined"))
            log.warning("outbox: %s of %s set aside: %s", stored.message.kind, stored.message.topic, reason)
            self._notes.quarantine(key, reason)

    def release(self, keys: Sequence[int]) -> None:
        """They are no longer in flight, through no fault of theirs: send again, in order."""
        for key in keys:
            stored = self._in_flight.pop(key, None)
            if stored is not None:
                self._turns.again(stored)
                self._discard |= stored in self._unwanted

    def discard_crops(self, camera: Optional[str]) -> None:
        """Give them up at the next `flush`, and hand out none before; what is in flight, when it comes back."""
        self._unwanted.add(camera, self._next_key)
        self._discard = True

    def flush(self) -> None:
        """Write what is not yet on disk, in one transaction; on a fault keep it, and try again after a while."""
        now = self._clock()
        if self._fault or self._more_to_do or self._discard or now.t >= self._housekeeping_t or self._notes.due(now.t):
            self._flush(now)

    def status(self) -> OutboxStatus:
        """Sizes and losses."""
        table = self._table
        return OutboxStatus(
            pending=self._pending(),
            in_flight=len(self._in_flight),
            bytes=self._notes.fresh.bytes + (max(0, table.bytes - sum(self._notes.hidden.values())) if table else 0),
            oldest_s=self._oldest_s(),
            dropped=self._policy.dropped,
            quarantined=(table.quarantined if table else 0) + self._notes.quarantined,
        )

    def close(self) -> None:
        """Idempotent."""
        if self._started:
            self._started = False
            self._retry_t = float("-inf")
            self._flush(self._clock())
            if len(self._notes.fresh):
                log.error("outbox: %d messages could not be written and are lost", len(self._notes.fresh))
        self._drop_table()
        self._lock.release()

    def _keep(self, message: Message, queued_t: float, queued_at: str, synced: bool) -> None:
        self._notes.keep(Stored(self._next_key, message, queued_t, queued_at, synced=synced))
        self._next_key += 1

    def _close_left_open(self) -> None:
        """An appearance that was open when its agent died ends where it was last told of."""
        left, self._left_open = self._left_open, []
        for stored in left:
            message = stored.message
            boot, seq = self._boot - 1, self._closed.get(message.camera, 0) + 1
            try:
                payload = close_after_restart(message.payload, boot, seq)
            except (ValueError, KeyError) as error:
                log.warning("outbox: an appearance of %s cannot be closed: %s", message.camera, error)
                continue
            self._closed[message.camera] = seq
            end = replace(message, payload=payload, event_type="end", boot=boot, seq=seq)
            self._keep(end, stored.queued_t, stored.queued_at, stored.synced)

    def _taken_back(self, key: int) -> Optional[Stored]:
        try:
            return self._turns.take_back(key, self._table)
        except sqlite3.Error as error:
            self._failed(error, self._clock())
            return None

    def _take_older(self, until: int) -> bool:
        """Whether what is newer may follow."""
        now = self._clock()
        try:
            if self._turns.take_older(self._table, until):
                self._unread.works()
                return True
        except sqlite3.Error as error:
            self._failed(error, now)
        if self._unread.holds(now.t):
            return False
        self._give_up_unread(now, for_good=False)
        return True

    def _give_up_unread(self, now: Moment, for_good: bool) -> None:
        self._policy.dropped += self._turns.give_up_unread(now, for_good)

    def _pending(self) -> int:
        return len(self._notes.fresh) + (max(0, self._table.count - len(self._notes.hidden)) if self._table else 0)

    def _oldest_s(self) -> float:
        oldest = next(iter(self._notes.fresh), None)
        if self._table is not None and self._table.count > len(self._notes.hidden):
            try:
                rows = self._table.after(0, len(self._notes.hidden) + 1)
                oldest = next((stored for stored in rows if stored.key not in self._notes.hidden), oldest)
            except sqlite3.Error as error:
                self._failed(error, self._clock())
        return max(0.0, self._clock().t - oldest.queued_t) if oldest else 0.0

    def _flush(self, now: Moment) -> None:
        if self._fault and now.t < self._retry_t:
            self._notes.bound(self._policy, now.t, self._params.in_memory().max_bytes)
            return
        dropped = self._policy.dropped
        try:
            table = self._table or self._connect(now)
            dropped = self._policy.dropped
            self._write(table, now)
        except (OSError, sqlite3.Error, InputError) as error:
            self._policy.dropped = dropped
            self._failed(error, now)
            self._notes.bound(self._policy, now.t, self._params.in_memory().max_bytes)
            return
        if self._fault:
            log.info("outbox: the disk works again; all that waited in memory is written")
            self._fault = ""

    def _write(self, table: Table, now: Moment) -> None:
        if self._fault:
            # First and by itself: on a full disk it may make the room that the rest needs.
            with table.transaction():
                self._notes.write_gone(table)
            self._notes.gone_written()
        with table.transaction():
            self._notes.write(table, self._policy, self._boot)
            if self._discard:
                for key in table.crop_keys():
                    self._policy.discard(table, filter(None, [table.get(key)]), self._unwanted)
            more_to_do = not self._make_room(table, now)
        self._unread.written(self._notes.fresh)
        self._notes.written()
        if self._discard:
            # Gaps may now stand behind the cursor, where crops were passed over.
            self._discard = False
            self._turns.rewind()
        self._more_to_do = more_to_do
        if now.t >= self._housekeeping_t:
            self._housekeeping_t = now.t + HOUSEKEEPING_S
            if table.free_bytes() > SPARE_BYTES + SHRINK_BYTES:
                table.shrink(SHRINK_BYTES)

    def _make_room(self, table: Table, now: Moment) -> bool:
        disk = os.statvfs(self._path.parent)
        spare = disk.f_bavail * disk.f_frsize + table.free_bytes() - self._params.min_free_bytes
        most = min(self._params.max_bytes, max(FLOOR_BYTES, table.bytes + spare))
        full = table.bytes > most or table.crop_bytes > self._params.max_crop_bytes
        if not full and now.t < self._housekeeping_t and not self._more_to_do:
            return True
        return self._policy.make_room(table, now.t, most, DROPS_PER_FLUSH)

    def _connect(self, now: Moment) -> Table:
        self._lock.take()
        try:
            table = self._opened()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._give_up_file(error, now)
            table = self._opened()
        self._table, self._check, self._look_back = table, False, False
        self._turns.rewind()
        self._notes.facts_changed = True
        if self._unread.earlier or not self._started:
            self._unread.earlier = table.count > 0
        if self._started:
            self._close_left_open()
        return table

    def _opened(self) -> Table:
        db = open_for_writing(self._path, self._params.synchronous, self._check)
        try:
            table = Table(db, self._clock, self._kernel, self._in_flight)
            if self._look_back:
                self._left_open = table.left_open()
            if self._check and self._started:
                with table.transaction():
                    unreadable = table.drop_unreadable()
                if unreadable:
                    self._damage = f"outbox: {unreadable} messages could not be read and were deleted"
                    log.error("%s", self._damage)
        except sqlite3.Error:
            db.close()
            raise
        return table

    def _give_up_file(self, error: sqlite3.Error, now: Moment) -> None:
        """What is in memory is kept; what was in the file only stays there, unsent."""
        aside = move_aside(self._path, now.at)
        self._damage = f"outbox: {self._path.name} was damaged ({error}); moved to {aside.name} with what was unsent"
        log.error("%s", self._damage)
        self._notes.hidden.clear()
        for stored in self._in_flight.values():
            self._notes.fresh.set(stored)
        self._give_up_unread(now, for_good=True)
        self._notes.given_up = None

    def _failed(self, error: Exception, now: Moment) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        level = logging.DEBUG if self._fault else logging.WARNING
        log.log(level, "outbox: %s: %s; messages wait in memory", self._path, reason)
        self._fault = f"outbox: {reason}; messages wait in memory only"
        self._retry_t = now.t + RETRY_S
        if self._table is None:
            return
        if isinstance(error, sqlite3.Error) and is_damage(error):
            self._check = True
            self._drop_table()
            return
        try:
            self._table.recount()
        except sqlite3.Error:
            self._drop_table()

    def _may_exist(self) -> bool:
        try:
            self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def _drop_table(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None
