"""`edge-agent outbox`, as its own process, on a file that an outbox has written."""

import hashlib
import json
from pathlib import Path

import pytest

from edge_agent.core.types import Moment
from edge_agent.host.clock import SystemClock
from edge_agent.host.identity import kernel_boot
from edge_agent.outbox.params import OutboxParams
from edge_agent.outbox.sqlite import SqliteOutbox
from tests.fakes.agent import edge_agent
from tests.outbox.contract import contents, message


def opened(folder: Path, boot: int) -> SqliteOutbox:
    outbox = SqliteOutbox(OutboxParams(synchronous="normal"), folder, SystemClock(), kernel_boot(), boot)
    outbox.open()
    return outbox


def filled(folder: Path) -> SqliteOutbox:
    """Four events and a crop are queued, one event is quarantined; the outbox is still open."""
    outbox = opened(folder, 7)
    now = SystemClock()()
    outbox.put([message(1)], now)
    outbox.reject(outbox.batch(1)[0].key, "Payload format invalid", fatal=True)
    outbox.put([message(2), message(3, event_type="update"), message(4, "crop")], Moment(now.t - 90.0, now.at))
    outbox.put([message(4, event_type="end")], now)
    outbox.flush()
    return outbox


def outbox_command(folder: Path, *arguments: object, code: int = 0):
    done = edge_agent("outbox", *arguments, state_dir=folder)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def running(tmp_path):
    outbox = filled(tmp_path)
    yield tmp_path, outbox
    outbox.close()


def test_status_beside_a_running_agent(running):
    folder, _ = running
    status = json.loads(outbox_command(folder, "status", "--json").stdout)
    assert status["pending"] == 5 and status["pending_gaps"] == 1 and status["pending_crops"] == 1
    assert (status["pending_events"], status["pending_updates"]) == (2, 1)
    assert status["quarantined"] == 1 and status["boot"] == 7 and status["bytes"] > 4000
    assert status["file_bytes"] > status["bytes"], "the newest lie in the write-ahead log"
    assert status["oldest_s"] <= 60 and status["oldest_at"].endswith("Z")
    lines = outbox_command(folder, "status").stdout.splitlines()
    assert any(line.split() == ["pending", "5"] for line in lines)


def test_list_shows_the_order_of_sending(running):
    folder, _ = running
    rows = [json.loads(line) for line in outbox_command(folder, "list", "--json").stdout.splitlines()]
    assert [(row["kind"], row["seq"]) for row in rows] == [
        ("gap", None), ("event", 2), ("event", 3), ("crop", 4), ("event", 4)
    ]  # fmt: skip
    assert 90 <= rows[1]["age_s"] < 200
    lines = outbox_command(folder, "list").stdout.splitlines()
    assert len(lines) == 6 and "41/2" in lines[2] and lines[2].endswith("edge-agent/lobby/door/events")


def test_export_writes_every_payload_and_an_index(running, tmp_path):
    folder, outbox = running
    target = tmp_path / "copy" / "here"
    outbox_command(folder, "export", target)
    rows = [json.loads(line) for line in (target / "index.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 6 == len(list(target.iterdir())) - 1
    for row in rows:
        assert hashlib.sha256((target / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    assert [row["quarantined"] for row in rows] == [None] * 5 + ["Payload format invalid"]
    assert rows[5]["seq"] == 1
    again = outbox_command(folder, "export", target, code=1)
    assert "not empty" in again.stderr
    assert outbox.status().pending == 5


def test_purge_is_refused_while_the_agent_runs_and_without_yes(running):
    folder, outbox = running
    refused = outbox_command(folder, "purge", "--all", "--yes", code=1)
    assert "in use by another edge-agent" in refused.stderr
    assert outbox.status().pending == 5
    outbox.close()
    asked = outbox_command(folder, "purge", "--all", code=1)
    assert "5 queued ones" in asked.stderr and "--yes" in asked.stderr
    assert "required" in outbox_command(folder, "purge", "--yes", code=2).stderr


def test_purging_the_quarantine_keeps_queued_messages(running):
    folder, outbox = running
    outbox.close()
    outbox_command(folder, "purge", "--quarantine", "--yes")
    outbox = opened(folder, 8)
    assert (outbox.status().quarantined, outbox.status().pending) == (0, 5)
    outbox.close()


def test_purging_all_announces_the_loss(running):
    folder, outbox = running
    outbox.close()
    outbox_command(folder, "purge", "--all", "--yes")
    outbox = opened(folder, 8)
    assert outbox.status().quarantined == 0
    assert sorted(contents(outbox)) == [
        ("crops", 4, 4, 1, "purged"), ("events", 1, 1, 1, "quarantined"), ("events", 2, 4, 3, "purged")
    ]  # fmt: skip
    outbox.close()


@pytest.mark.slow
def test_a_missing_or_damaged_outbox_is_reported(tmp_path):
    for action in (["status"], ["list"], ["export", tmp_path / "x"], ["purge", "--all", "--yes"]):
        assert "there is no outbox" in outbox_command(tmp_path, *action, code=1).stderr
    (tmp_path / "outbox.db").write_bytes(b"nothing of the kind" * 1000)
    for action in (["status"], ["list"], ["export", tmp_path / "x"], ["purge", "--all", "--yes"]):
        assert "outbox.db: file is not a database" in outbox_command(tmp_path, *action, code=1).stderr
