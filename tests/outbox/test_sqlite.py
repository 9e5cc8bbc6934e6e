"""The outbox on disk over restarts, crashes, and faults of the disk and the clock."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, List

import pytest

from edge_agent.core.protocol.messages import Message, stamp_delivery
from edge_agent.core.types import Moment
from edge_agent.errors import InputError
from edge_agent.outbox.delivery import HOLD_S
from edge_agent.outbox.params import OutboxParams
from edge_agent.outbox.sqlite import KEY_BITS, RETRY_S, SqliteOutbox
from tests.fakes.clock import FakeClock
from tests.fakes.mqtt_agent import event as face_event
from tests.fakes.mqtt_agent import fake_jpeg
from tests.fakes.schemas import validate
from tests.outbox.contract import EVENTS, OutboxContract, contents, message

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"synchronous": "normal"}


class OutboxFactory:
    """Makes outboxes on one folder, one after the other, as restarts do: boots 1, 3, 5 ..."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.boot, self.kernel = folder, FakeClock(), -1, "kernel-1"
        self.outbox: Any = None
        self.all: List[SqliteOutbox] = []

    def __call__(self, **params: Any) -> SqliteOutbox:
        self.boot += 2
        outbox = SqliteOutbox(OutboxParams(**{**QUICK, **params}), self.folder, self.clock, self.kernel, self.boot)
        self.all.append(outbox)
        outbox.open()
        return outbox

    @property
    def file(self) -> Path:
        return self.folder / "outbox.db"

    def rows(self, query: str = "SELECT count(*) FROM messages") -> Any:
        """As another process sees the file."""
        with contextlib.closing(sqlite3.connect(str(self.file))) as db:
            return db.execute(query).fetchall()


@pytest.fixture
def make(tmp_path: Path):
    factory = OutboxFactory(tmp_path / "state")
    yield factory
    for outbox in factory.all:
        outbox.close()


class TestSqliteOutbox(OutboxContract):
    @pytest.fixture(autouse=True)
    def factory(self, make: OutboxFactory) -> None:
        self.factory = make

    def make(self, max_bytes: int = 1_000_000, max_crop_bytes: int = 1_000_000) -> SqliteOutbox:
        return self.factory(max_bytes=max_bytes, max_crop_bytes=max_crop_bytes)


def visit(seq: int, kind: str, number: int = 1, boot: int = 1, camera: str = "door") -> Message:
    """A real event's message."""
    from edge_agent.core.presence.crops import CropParams
    from edge_agent.core.protocol.topics import Topics
    from edge_agent.mqtt.encoder import EventEncoder

    encoder = EventEncoder(Topics("edge-agent", "lobby"), boot, CropParams(), fake_jpeg)
    event = face_event(seq, kind, visit=number, camera=camera)
    return encoder.of_event(event, event.info.moment)[-1]


# Over restarts


def test_everything_comes_back_in_order_after_a_restart(make):
    outbox = make(max_bytes=65_536 * 2)
    outbox.put([message(1), message(2, "crop"), message(2, event_type="end")], make.clock())
    outbox.put([message(3)], make.clock())
    first = outbox.batch(2)
    outbox.accept(first[0].key)
    outbox.reject(first[1].key, "connection lost", fatal=False)
    outbox.batch(1)
    outbox.close()
    outbox = make()
    again = outbox.batch(10)
    assert [(s.message.kind, s.message.seq, s.tries) for s in again] == [
        ("crop", 2, 1),
        ("event", 2, 0),
        ("event", 3, 0),
    ]
    assert again[0].message == message(2, "crop")
    outbox.put([message(1)], make.clock())
    assert outbox.batch(1)[0].key > again[-1].key and outbox.batch(1) == []


def test_gaps_and_quarantine_survive_a_restart(make):
    outbox = make(max_bytes=65_536)
    for seq in range(1, 101):
        outbox.put([message(seq)], make.clock())
    outbox.reject(outbox.batch(2)[1].key, "Payload format invalid", fatal=True)
    before = contents(outbox)
    assert before[0][0] == "events" and outbox.status().quarantined == 1
    outbox.close()
    outbox = make(max_bytes=65_536)
    assert contents(outbox)[-len(before) + 2 :] == before[2:]
    assert outbox.status().quarantined == 1
    ((reason, topic),) = make.rows("SELECT reason, topic FROM quarantine")
    assert (reason, topic) == ("Payload format invalid", EVENTS)


def test_nothing_is_handed_out_before_it_is_committed_and_one_flush_is_one_transaction(make):
    outbox = make()
    seen = sqlite3.connect(str(make.file))
    with contextlib.closing(seen):
        version = seen.execute("PRAGMA data_version").fetchone()
        outbox.put([message(seq) for seq in range(1, 51)], make.clock())
        for seq in range(51, 101):
            outbox.put([message(seq)], make.clock())
        assert seen.execute("SELECT count(*) FROM messages").fetchone() == (0,)
        assert seen.execute("PRAGMA data_version").fetchone() == version
        assert len(outbox.batch(1)) == 1
        assert seen.execute("SELECT count(*) FROM messages").fetchone() == (100,)
    log = make.file.with_name("outbox.db-wal").read_bytes()
    salt = log[16:24]
    commits = 0
    for at in range(32, len(log) - 24, 24 + 4096):
        frame = log[at : at + 24]
        commits += frame[8:16] == salt and frame[4:8] != b"\0\0\0\0"
    assert commits <= 8, "schema, boot, and one for the hundred"


def test_acknowledged_messages_are_deleted_soon_and_others_stay(make):
    outbox = make()
    outbox.put([message(seq) for seq in range(1, 6)], make.clock())
    for stored in outbox.batch(5)[:3]:
        outbox.accept(stored.key)
    assert outbox.status().pending == 2
    outbox.flush()
    make.clock.advance(1.0)
    outbox.flush()
    assert make.rows("SELECT count(*) FROM messages") == [(2,)]


def test_the_file_is_for_its_owner_alone_and_one_agent_only(make):
    outbox = make()
    outbox.put([message(1)], make.clock())
    outbox.flush()
    for name in ("outbox.db", "outbox.db-wal", "outbox.lock"):
        assert stat.S_IMODE((make.folder / name).stat().st_mode) & 0o077 == 0, name
    with pytest.raises(InputError) as refused:
        make()
    assert str(os.getpid()) in refused.value.message and "EDGE_AGENT_STATE_DIR" in refused.value.hint
    outbox.close()
    assert make().status().pending == 1


CHILD = """
    import sys, signal
    from pathlib import Path
    from edge_agent.outbox.sqlite import SqliteOutbox
    from edge_agent.outbox.params import OutboxParams
    from tests.fakes.clock import FakeClock
    from tests.outbox.contract import message

    folder, boot, synchronous = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    clock = FakeClock()
    outbox = SqliteOutbox(OutboxParams(synchronous=synchronous), folder, clock, "k", boot)
    outbox.open()
    seq = 0
"""


def child(body: str, *arguments: Any, **more: Any) -> "subprocess.Popen[str]":
    code = textwrap.dedent(CHILD) + textwrap.dedent(body)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **more)


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_flushed(tmp_path):
    """The child prints each seq after `flush` has returned, and is killed during thousands of transactions."""
    rng = random.Random(3)
    promised = set()
    for boot in range(1, 7):
        body = """
            while True:
                seq += 1
                outbox.put([message(seq, size=400)], clock())
                outbox.flush()
                print(seq, flush=True)
        """
        with child(body, tmp_path, boot, "full" if boot == 1 else "normal") as process:
            last = 0
            for line in process.stdout:
                last = int(line)
                if last > rng.randint(100, 1500):
                    break
            process.send_signal(signal.SIGKILL)
            last = max([last, *(int(line) for line in process.stdout if line.endswith("\n"))])
        promised |= {(boot, seq) for seq in range(1, last + 1)}
        with contextlib.closing(sqlite3.connect(str(tmp_path / "outbox.db"))) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            rows = db.execute("SELECT key, meta FROM messages")
            found = {(key >> KEY_BITS, json.loads(meta)["seq"]) for key, meta in rows}
        assert promised <= found
        assert len(found) <= len(promised) + boot, "at most the one in the making"
    assert len(promised) > 600


def test_discarded_crops_of_earlier_runs_are_dropped_and_none_is_sent_while_the_disk_fails(make):
    outbox = make()
    outbox.put([message(1, "crop"), message(1), message(2, "crop", camera="yard")], make.clock())
    outbox.close()
    outbox = make()
    with contextlib.closing(sqlite3.connect(str(make.file), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outbox.put([message(2, "crop"), message(2)], make.clock())
        outbox.discard_crops("door")
        assert contents(outbox) == [1, ("crop", 2), 2] and outbox.faults
        other.execute("ROLLBACK")
    make.clock.advance(RETRY_S)
    sent = [stored.message for stored in outbox.batch(10)]
    assert [s.seq for s in sent if s.kind == "event"] == [1, 2] and not outbox.faults
    assert [s.topic for s in sent if s.kind == "crop"] == [message(2, "crop", camera="yard").topic]
    assert sum(json.loads(s.payload)["count"] for s in sent if s.kind == "gap") == 2
    assert make.rows("SELECT count(*) FROM messages WHERE class = 'crop'") == [(1,)]


# Clocks


def ages(make: OutboxFactory, outbox: SqliteOutbox) -> List[float]:
    batch = outbox.batch(10)
    outbox.release([s.key for s in batch])
    return [make.clock.t - s.queued_t for s in batch]


def test_lateness_is_right_after_a_restart_of_the_agent_whatever_the_wall_clock_does(make):
    outbox = make()
    outbox.put([message(1)], make.clock())
    outbox.close()
    make.clock.advance(20.0)
    make.clock.step_wall(-86_400.0)
    assert ages(make, make()) == [20.0]
    make.clock.step_wall(30 * 86_400.0)
    make.clock.advance(11.0)
    make.all[-1].close()
    assert ages(make, make()) == [31.0]


def test_a_message_kept_over_a_reboot_is_late_by_the_wall_clock(make):
    outbox = make()
    outbox.put([message(1)], make.clock())
    make.clock.advance(10.0)
    outbox.put([message(2)], make.clock())
    outbox.close()
    make.kernel = "kernel-2"
    make.clock.t, at = 15.0, make.clock().at
    make.clock.step_wall((at - make.clock().at).total_seconds() + 3600.0)
    outbox = make()
    assert ages(make, outbox) == [pytest.approx(3610.0), pytest.approx(3600.0)]
    outbox.close()
    make.clock.step_wall(-2 * 86_400.0)
    assert all(age > 30.0 for age in ages(make, make())), "a clock that went back does not make old events new"


@pytest.mark.parametrize("then", [False, True])
def test_a_clock_that_was_or_is_wrong_drops_nothing_for_its_age(make, then):
    """Queued in 1970 by a board without a battery and sent with the right time, and the reverse."""
    make.clock.step_wall(0.0)
    outbox = make()
    early = Moment(make.clock.t, datetime(1970, 1, 1, tzinfo=timezone.utc), synced=then)
    outbox.put([message(1)], early)
    outbox.close()
    make.kernel = "kernel-2"
    if then:
        real = make.clock
        unsynced = FakeClock(20.0)
        make.clock = lambda: Moment(unsynced.t, real().at + timedelta(days=9000), False)  # type: ignore[assignment]
    outbox = make()
    assert contents(outbox) == [1]
    now = outbox._clock()
    assert now.t - outbox.batch(1)[0].queued_t > 30.0


def test_crops_expire_after_a_day_and_events_after_a_week(make):
    outbox = make()
    outbox.put([message(1, "crop"), message(1, event_type="end")], make.clock())
    make.clock.advance(86_400.0 - 1)
    assert contents(outbox) == [("crop", 1), 1]
    make.clock.advance(20.0)
    assert contents(outbox) == [("crops", 1, 1, 1, "expired"), 1]
    make.clock.advance(6 * 86_400.0)
    assert contents(outbox) == [("crops", 1, 1, 1, "expired"), ("events", 1, 1, 1, "expired")]
    assert outbox.status().dropped == 2


# Visits that a crash has left open


def crash(outbox: SqliteOutbox) -> None:
    """Stop as in a crash: committed rows stay, the kernel releases the lock."""
    outbox.flush()
    outbox._started = False
    outbox.close()


def test_visits_left_open_are_ended_at_the_next_start(make):
    outbox = make()
    outbox.put([visit(1, "start", 1), visit(2, "start", 2), visit(1, "start", 3, camera="yard")], make.clock())
    outbox.put([visit(3, "update", 1), visit(4, "end", 2)], make.clock())
    for stored in outbox.batch(10):
        outbox.accept(stored.key)
    make.clock.advance(1.0)
    crash(outbox)
    make.clock.advance(39.0)
    outbox = make()
    sent = outbox.batch(10)
    ends = [validate(stamp_delivery(s.message.payload, make.clock().at, 40_000, True)) for s in sent]
    assert [(e["camera"], e["boot"], e["seq"], e["event_type"]) for e in ends] == [
        ("yard", 2, 1, "end"),
        ("door", 2, 1, "end"),
    ]
    door = ends[1]
    assert door["event_id"].endswith("1") and door["end_reason"] == "restart" and door["crop"] is None
    assert door["end_ts"] == door["ts"] and door["duration_ms"] == 2000
    assert all(s.message.event_type == "end" and s.message.gap_topic == s.message.topic for s in sent)
    assert make.clock.t - sent[0].queued_t == 40.0, "as late as the last that was known"
    crash(outbox)
    outbox = make()
    assert len(outbox.batch(10)) == 2, "closed once, and still to be sent"


def test_a_backlog_is_sent_before_the_ends_of_its_visits(make):
    outbox = make()
    outbox.put([visit(1, "start"), visit(2, "update")], make.clock())
    crash(outbox)
    outbox = make()
    outbox.put([visit(1, "start", 2, boot=3)], make.clock())
    shown = [json.loads(s.message.payload) for s in outbox.batch(10)]
    assert [(e["boot"], e["seq"], e["event_type"]) for e in shown] == [
        (1, 1, "start"),
        (1, 2, "update"),
        (2, 1, "end"),
        (3, 1, "start"),
    ]


DYING = """
    import json, resource
    from tests.outbox.test_sqlite import visit

    sent = []
    for seq, kind, number in [(1, "start", 1), (2, "start", 2), (3, "update", 1), (4, "end", 2), (5, "start", 3)]:
        if seq == 3:
            # From here on the kernel refuses to let any file grow.
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        outbox.put([visit(seq, kind, number, boot=boot)], clock())
        sent += [stored.message for stored in outbox.batch(10)]
    assert outbox.faults
    print(json.dumps([[m.boot, m.seq, m.event_id] for m in sent]), flush=True)
    signal.pause()
"""


def test_no_number_is_used_twice_though_the_disk_failed_before_kill_9(tmp_path):
    """Events sent from memory alone are not on disk; the ends of the next start must not use their numbers."""
    with child(DYING, tmp_path, 1, "full") as process:
        sent = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    assert [(boot, seq) for boot, seq, _ in sent] == [(1, seq) for seq in range(1, 6)], "sent all the same"
    numbers = {(boot, seq) for boot, seq, _ in sent}
    opened = {sent[0][2], sent[1][2]}
    for boot in (3, 5):
        outbox = SqliteOutbox(OutboxParams(**QUICK), tmp_path, FakeClock(), "k", boot)
        outbox.open()
        ends = [stored.message for stored in outbox.batch(10) if stored.message.event_type == "end"]
        assert {end.event_id for end in ends} == opened, "closed once"
        numbers_of_ends = [(end.boot, end.seq) for end in ends]
        assert numbers_of_ends == [(2, 1), (2, 2)], "the first start's that closed them, from 1 on"
        assert not numbers & set(numbers_of_ends)
        assert all(json.loads(end.payload)["boot"] == end.boot for end in ends)
        crash(outbox)


def test_a_visit_is_ended_once_however_often_the_disk_fails(make):
    outbox = make()
    outbox.put([visit(1, "start")], make.clock())
    crash(outbox)
    with contextlib.closing(sqlite3.connect(str(make.file), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outbox = make()
        assert outbox.faults
        outbox._close_store()
        other.execute("ROLLBACK")
    make.clock.advance(RETRY_S)
    shown = [json.loads(stored.message.payload) for stored in outbox.batch(10)]
    assert [(e["boot"], e["seq"], e["event_type"]) for e in shown] == [(1, 1, "start"), (2, 1, "end")]


def test_a_file_of_the_first_version_is_brought_up_to_date(make):
    outbox = make()
    outbox.put([visit(1, "start")], make.clock())
    crash(outbox)
    with contextlib.closing(sqlite3.connect(str(make.file))) as db:
        db.execute("CREATE TABLE last_seq (camera TEXT PRIMARY KEY, boot INTEGER NOT NULL, seq INTEGER NOT NULL)")
        db.execute("PRAGMA user_version=1")
    outbox = make()
    assert [stored.message.event_type for stored in outbox.batch(10)] == ["start", "end"] and not outbox.faults
    assert make.rows("SELECT 1 FROM sqlite_master WHERE name = 'last_seq'") == []


def test_a_clean_stop_leaves_nothing_open(make):
    outbox = make()
    outbox.put([visit(1, "start"), visit(2, "end")], make.clock())
    outbox.close()
    assert [s.message.seq for s in make().batch(10)] == [1, 2]


# Damage


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database at all " * 1000)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def header(path: Path) -> None:
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(4096, len(data), 4096):
        data[at : at + 64] = os.urandom(64)
    path.write_bytes(bytes(data))


def one_page(path: Path) -> None:
    """A leaf page that is not read at the start."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 4096 // 2 * 4096
    data[middle : middle + 4096] = os.urandom(4096)
    path.write_bytes(bytes(data))


def foreign(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")


def stripped(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        db.execute("DROP TABLE quarantine")


@pytest.mark.parametrize("harm", [garbage, truncated, header, pages, one_page, foreign, stripped])
def test_a_damaged_file_is_moved_aside_and_reported(make, harm, caplog):
    outbox = make()
    outbox.put([message(seq) for seq in range(1, 101)], make.clock())
    outbox.close()
    harm(make.file)
    harmed = make.file.read_bytes()
    outbox = make()
    (fault,) = outbox.faults
    (aside,) = make.folder.glob("outbox.db.corrupt-*Z")
    assert aside.name in fault and aside.read_bytes() == harmed
    assert fault in caplog.text
    outbox.put([message(1)], make.clock())
    outbox.close()
    outbox = make()
    assert contents(outbox) == [1] and outbox.faults == []


def test_after_a_rollback_the_file_of_a_newer_version_is_used_as_it_is(make):
    outbox = make()
    outbox.put([message(1), message(2)], make.clock())
    outbox.close()
    with contextlib.closing(sqlite3.connect(str(make.file))) as db:
        db.executescript(
            "CREATE TABLE letters (id INTEGER PRIMARY KEY);"
            "ALTER TABLE messages ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm';"
            "UPDATE messages SET meta = json_set(meta, '$.mood', 'calm'); PRAGMA user_version=99;"
        )
    outbox = make()
    assert outbox.faults == []
    outbox.put([message(3)], make.clock())
    outbox.close()
    outbox = make()
    assert contents(outbox) == [1, 2, 3] and outbox.faults == []
    with contextlib.closing(sqlite3.connect(str(make.file))) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 99, "the newer one finds it as it left it"


def test_only_the_newest_damaged_files_are_kept(make):
    for _ in range(6):
        make().close()
        make.clock.advance(1.0)
        garbage(make.file)
    make().close()
    kept = sorted(make.folder.glob("outbox.db.corrupt-*Z"))
    assert len(kept) == 3


def test_damage_while_running_loses_nothing_that_is_in_memory(make):
    outbox = make()
    # More than SQLite keeps in memory.
    outbox.put([message(seq, size=20_000) for seq in range(1, 400)], make.clock())
    flying = outbox.batch(20)
    for name in ("outbox.db", "outbox.db-wal"):
        with (make.folder / name).open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            file.write(os.urandom(size))
    outbox.put([message(1000)], make.clock())
    for _ in range(6):
        outbox.flush()
        outbox.batch(0)
        make.clock.advance(RETRY_S)
    assert outbox.faults and "moved to" in outbox.faults[0] and len(outbox.faults) == 1
    outbox.release([stored.key for stored in flying])
    lost = ("events", 21, 399, 379, "unreadable")
    assert contents(outbox) == [*range(1, 21), lost, 1000], "and what is not is announced"
    assert outbox.status().dropped == 379
    outbox.put([message(1001)], make.clock())
    outbox.close()
    assert contents(make()) == [*range(1, 21), lost, 1000, 1001]


def test_a_row_that_cannot_be_decoded_does_not_stop_the_others(make):
    outbox = make()
    outbox.put([message(seq) for seq in range(1, 4)], make.clock())
    outbox.flush()
    with contextlib.closing(sqlite3.connect(str(make.file))) as db:
        db.execute("UPDATE messages SET meta = '{\"bits' WHERE key = (SELECT min(key) + 1 FROM messages)")
        db.commit()
    outbox.batch(3)
    make.clock.advance(RETRY_S)
    outbox.flush()
    rest = [s.message.seq for s in [*outbox.batch(3), *outbox._in_flight.values()]]
    assert sorted(set(rest)) == [1, 3]
    assert outbox.faults == ["outbox: 1 messages could not be read and were deleted"]


# Disk faults


def test_a_folder_that_cannot_be_created_is_retried(make, caplog):
    caplog.set_level("INFO")
    make.folder.write_text("in the way")
    outbox = make()
    assert outbox.faults
    outbox.put([message(1), message(2), message(3)], make.clock())
    first = outbox.batch(2)
    assert [s.message.seq for s in first] == [1, 2], "memory serves as well"
    outbox.accept(first[0].key)
    make.clock.advance(60.0)
    outbox.flush()
    assert outbox.status().pending == 2 and len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    make.folder.unlink()
    outbox.flush()
    assert outbox.faults, "not at every step"
    make.clock.advance(RETRY_S)
    outbox.flush()
    assert not outbox.faults and "works again" in caplog.text
    outbox.close()
    assert contents(make()) == [2, 3]


class Unplugged:
    """Removes the disk for the length of a block: open files fail, and none can be opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(link) in (str(self.folder / "outbox.db"), str(self.folder / "outbox.db-wal")):
                    # Open for writing only, so that every read fails, as with a disk that does not answer.
                    dead = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(dead, int(link.name))
                    os.close(dead)
        (self.folder / "outbox.db").rename(self.folder / "unplugged")
        (self.folder / "outbox.db").mkdir()

    def __exit__(self, *error: object) -> None:
        (self.folder / "outbox.db").rmdir()
        (self.folder / "unplugged").rename(self.folder / "outbox.db")


def backlog(make: OutboxFactory, *seqs: int) -> SqliteOutbox:
    """Store more on disk than SQLite keeps in memory."""
    outbox = make()
    for seq in seqs:
        outbox.put([message(seq, size=40_000)], make.clock())
    outbox.flush()
    with contextlib.closing(sqlite3.connect(str(make.file))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return outbox


def seqs_and_gaps(outbox: SqliteOutbox, limit: int = 20) -> List[Any]:
    """Acknowledge and return the messages handed out now."""
    shown = []
    for stored in outbox.batch(limit):
        outbox.accept(stored.key)
        gap = json.loads(stored.message.payload) if stored.message.kind == "gap" else None
        shown.append((gap["from_seq"], gap["to_seq"], gap["reason"]) if gap else stored.message.seq)
    return shown


def test_newer_messages_wait_while_older_ones_cannot_be_read(make):
    outbox = backlog(make, *range(1, 201))
    shown = seqs_and_gaps(outbox)
    flying = outbox.batch(5)
    with Unplugged(make.folder):
        for seq in range(201, 240):
            outbox.put([message(seq)], make.clock())
            shown += seqs_and_gaps(outbox)
            make.clock.advance(1.0)
        assert outbox.faults and shown[-1] < 201, "some older may be left in SQLite's memory, never a newer one"
        outbox.release([stored.key for stored in flying])
        assert seqs_and_gaps(outbox) == [], "nor before what is to be sent again"
    make.clock.advance(RETRY_S)
    while outbox.status().pending:
        shown += seqs_and_gaps(outbox)
    again = {stored.message.seq for stored in flying}
    assert not outbox.faults
    first = list(dict.fromkeys(shown))
    assert first == list(range(1, 240)) and again <= set(shown), "each, and in order"


def test_every_fault_has_its_own_wait(make):
    outbox = backlog(make, *range(1, 201))
    shown = seqs_and_gaps(outbox)
    for _ in range(3):
        with Unplugged(make.folder):
            shown += seqs_and_gaps(outbox)
            make.clock.advance(HOLD_S / 2)
            shown += seqs_and_gaps(outbox)
        make.clock.advance(RETRY_S)
        shown += seqs_and_gaps(outbox)
    while outbox.status().pending:
        shown += seqs_and_gaps(outbox)
    assert shown == list(range(1, 201))


@pytest.mark.parametrize("readable", [True, False])
def test_unreadable_messages_are_announced_as_lost_after_a_while_and_never_sent(make, readable):
    outbox = backlog(make, *range(1, 201))
    shown = seqs_and_gaps(outbox)
    outbox.release([stored.key for stored in outbox.batch(1)])
    with Unplugged(make.folder):
        outbox.put([message(201), message(1, camera="yard")], make.clock())
        for _ in range(3):
            shown += seqs_and_gaps(outbox)
            make.clock.advance(HOLD_S / 2 + 1)
        assert [one for one in shown if not isinstance(one, int)][-1][2] == "unreadable"
        assert shown[-2:] == [201, 1], "what is new goes on"
        outbox.put([message(202)], make.clock())
        assert seqs_and_gaps(outbox) == [202], "at once, from now on"
        outbox.put([message(203)], make.clock())
        if not readable:
            outbox.close()
    if readable:
        make.clock.advance(RETRY_S)
        assert seqs_and_gaps(outbox) == [203], "what was announced as lost comes no more"
        make.clock.advance(1.0)
        outbox.flush()
        assert outbox.status().pending == 0 and make.rows() == [(0,)]
    reported: List[int] = []
    for one in shown[:-1]:
        reported += range(one[0], one[1] + 1) if isinstance(one, tuple) else [one]
    assert reported == list(range(1, 202)), "every number came or was announced, in order and once"
    assert outbox.status().dropped == sum(one[1] - one[0] + 1 for one in shown if isinstance(one, tuple))


@pytest.mark.parametrize("within", [True, False])
def test_a_file_that_cannot_be_opened_at_the_start_may_hold_older_messages(make, within):
    backlog(make, 1, 2, 3).close()
    with Unplugged(make.folder):
        outbox = make()
        outbox.put([message(1, camera="yard")], make.clock())
        assert outbox.faults and seqs_and_gaps(outbox) == []
        make.clock.advance(RETRY_S if within else HOLD_S)
        shown = [] if within else seqs_and_gaps(outbox)
    make.clock.advance(RETRY_S)
    assert shown + seqs_and_gaps(outbox) == ([1, 2, 3, 1] if within else [1, 1, 2, 3]), "an earlier boot's come late"


def test_a_file_that_another_program_locks_is_retried(make):
    outbox = make()
    outbox.put([message(1)], make.clock())
    outbox.flush()
    with contextlib.closing(sqlite3.connect(str(make.file), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outbox.put([message(2)], make.clock())
        assert [s.message.seq for s in outbox.batch(5)] == [1, 2], "what is on disk first"
        assert "locked" in outbox.faults[0]
        outbox.put([message(3)], make.clock())
        (third,) = outbox.batch(5)
        outbox.accept(third.key)
        assert outbox.status().pending == 2
        other.execute("ROLLBACK")
    make.clock.advance(RETRY_S)
    outbox.flush()
    assert not outbox.faults
    outbox.close()
    assert contents(make()) == [1, 2]


def test_memory_is_bounded_while_the_disk_fails_and_the_loss_is_announced(make):
    make.folder.write_text("in the way")
    outbox = make(memory_bytes=65_536)
    for seq in range(1, 501):
        outbox.put([message(seq)], make.clock())
        outbox.flush()
    status = outbox.status()
    assert status.bytes <= 65_536 and status.dropped == 500 - (status.pending - 1)
    make.folder.unlink()
    make.clock.advance(RETRY_S)
    shown = contents(outbox)
    assert shown[0] == ("events", 1, status.dropped, status.dropped, "full")
    assert shown[1:] == list(range(status.dropped + 1, 501))


FULL = """
    import random, resource, json
    rng = random.Random(int(sys.argv[4]))
    delivered, faults, calm = [], 0, 0

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def short(stored):
        return stored.message.seq

    def answer(batch, lose=0.2):
        if rng.random() < lose:
            for stored in batch:
                if stored.tries < 1:
                    outbox.reject(stored.key, "connection lost", False)
                else:
                    outbox.release([stored.key])
            return
        for stored in batch:
            assert stored.message.kind == "event", stored
            outbox.accept(stored.key)
            delivered.append(stored.message.seq)

    for round in range(40):
        full = rng.random() < 0.5
        limit(rng.choice([0, 4096, 40_000, 400_000]) if full else -1)
        for _ in range(rng.randint(1, 40)):
            seq += 1
            outbox.put([message(seq, size=rng.randint(100, 9000))], clock())
            clock.advance(rng.choice([0.0, 0.1, 3.0]))
            if rng.random() < 0.5:
                answer(outbox.batch(rng.randint(1, 20)))
            else:
                outbox.flush()
        faults += bool(outbox.faults)
        calm += not outbox.faults
    limit(-1)
    clock.advance(10.0)
    outbox.flush()
    assert not outbox.faults, outbox.faults
    half = outbox.batch(5)
    outbox.release([s.key for s in half])
    outbox.close()
    outbox = SqliteOutbox(OutboxParams(synchronous=synchronous), folder, clock, "k", boot + 1)
    outbox.open()
    while True:
        batch = outbox.batch(20)
        if not batch:
            break
        answer(batch, lose=0.0)
    print(json.dumps([seq, delivered, faults, calm, outbox.status().pending, outbox.status().bytes]))
"""


@pytest.mark.parametrize("seed", range(4))
def test_a_disk_that_is_repeatedly_full_loses_nothing(tmp_path, seed):
    """The kernel refuses to let the file grow (RLIMIT_FSIZE), at random moments of a random run."""
    with child(FULL, tmp_path, 1, "normal", seed, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    seq, delivered, faults, calm, pending, size = json.loads(out)
    assert faults > 5 and calm > 5, "the story must have both"
    assert delivered == sorted(delivered), "in order"
    assert delivered == list(range(1, seq + 1)), "each once: no crash, no duplicate"
    assert (pending, size) == (0, 0)


def test_little_free_disk_leaves_a_floor(make):
    outbox = make(min_free_bytes=10**18)
    for seq in range(1, 61):
        outbox.put([message(seq, "crop", size=100_000), message(seq, event_type="end")], make.clock())
        outbox.flush()
    assert 3_000_000 < outbox.status().bytes <= 4_000_000
    shown = contents(outbox)
    assert [s for s in shown if isinstance(s, int)] == list(range(1, 61)), "crops go first"
    assert shown[0][0] == "crops"


def test_quarantine_is_bounded(make):
    outbox = make()
    outbox.put([message(seq) for seq in range(1, 131)], make.clock())
    for stored in outbox.batch(130):
        outbox.reject(stored.key, "no", fatal=True)
    outbox.flush()
    assert outbox.status().quarantined == 100
    assert make.rows("SELECT count(*) FROM quarantine") == [(100,)]
    assert contents(outbox) == [("events", 1, 130, 130, "quarantined")]


@pytest.mark.slow
def test_a_day_of_visits_stays_bounded(make):
    """8,640 visits with crops, the broker away at times, on a fake clock."""
    fds = Path("/proc/self/fd")
    outbox = make(max_bytes=3_000_000, max_crop_bytes=1_500_000)
    open_before = open_after = 0
    sizes, seen, gone = [], 0, 0
    seq = 0
    for number in range(8640):
        for kind in ("start", "end"):
            seq += 1
            crop = [message(seq, "crop", size=5_000)] if kind == "end" else []
            event = visit(1, kind, number % 1000)
            outbox.put([*crop, Message(**{**vars(event), "seq": seq})], make.clock())
            make.clock.advance(5.0)
            outbox.flush()
        if number % 2000 < 1400:
            for stored in outbox.batch(20):
                outbox.accept(stored.key)
                kind = stored.message.kind
                seen += kind == "event"
                if kind == "gap":
                    gap = json.loads(stored.message.payload)
                    gone += gap["count"] if gap["of"] == "events" else 0
        if number == 100:
            open_before = len(list(fds.iterdir()))
        sizes.append(sum(p.stat().st_size for p in make.folder.iterdir()))
    open_after = len(list(fds.iterdir()))
    rest = contents(outbox, 100_000)
    gone += sum(one[3] for one in rest if isinstance(one, tuple) and one[0] == "events")
    assert seen + gone + len([one for one in rest if isinstance(one, int)]) == seq
    assert open_after <= open_before
    assert max(sizes) < 16_000_000, "bound, free pages, write-ahead log"
    assert make.rows("SELECT count(*) FROM open_appearances") == [(0,)]
    while outbox.batch(100):
        for key in list(outbox._in_flight):
            outbox.accept(key)
    for _ in range(60):
        make.clock.advance(10.0)
        outbox.flush()
    outbox.close()
    assert make.file.stat().st_size < 6_500_000, "gives room back"
