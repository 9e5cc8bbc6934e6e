"""Logging to systemd's journal, in separate processes because logging is global."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

from edge_agent.host import journal

PROGRAM = """
import logging, os, sys
sys.modules["systemd"] = None  # this is how a machine without systemd-python looks
from edge_agent.host import journal
stat = os.fstat(2)
if sys.argv[1] == "journal":
    os.environ["JOURNAL_STREAM"] = f"{stat.st_dev}:{stat.st_ino}"
journal.configure("info", os.environ)
log = logging.getLogger("part")
log.debug("hidden")
log.info("started")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
journal.set_level("error")
log.warning("hidden too")
"""


def output(where: str, **environ: str) -> list:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, where],
        cwd=Path(__file__).parents[2], env={**os.environ, **environ}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stderr.splitlines()


def test_every_line_for_the_journal_has_a_priority():
    lines = output("journal")
    assert lines[0] == "<6>part: started" and lines[1] == "<3>part: failed"
    assert len(lines) > 3 and all(line.startswith("<3>") for line in lines[1:])
    assert "ZeroDivisionError" in lines[-1]


def test_stderr_gets_times_also_when_redirected_away_from_the_journal():
    for lines in (output("terminal", JOURNAL_STREAM=""), output("terminal", JOURNAL_STREAM="1:2")):
        assert lines[0].endswith("INFO    part: started") and lines[0][:2] == "20"


def test_records_of_a_camera_thread_have_its_id_unless_given():
    def record(thread: str, **more: str) -> logging.LogRecord:
        made = logging.LogRecord("n", logging.INFO, "p", 1, "m", (), None)
        made.threadName = thread
        made.__dict__.update(more)
        assert journal.add_camera_id(made)
        return made

    assert record("capture-door").CAMERA_ID == "door"
    assert record("capture-door", CAMERA_ID="yard").CAMERA_ID == "yard"
    assert not hasattr(record("publish"), "CAMERA_ID")


def test_every_logged_event_has_a_message_id_and_is_documented():
    root = Path(__file__).parents[2]
    used = set()
    for path in (root / "edge_agent").rglob("*.py"):
        used |= set(re.findall(r'"EVENT": "([a-z-]+)"', path.read_text("utf-8")))
    assert used == set(journal.MESSAGE_IDS)
    assert len(set(journal.MESSAGE_IDS.values())) == len(used)
    page = (root / "systemd" / "README.md").read_text("utf-8")
    assert dict(re.findall(r"^\| `([a-z-]+)` \| `([0-9a-f]{32})` \|", page, re.MULTILINE)) == journal.MESSAGE_IDS


def test_a_record_with_an_event_gets_its_message_id():
    record = logging.LogRecord("n", logging.INFO, "p", 1, "m", (), None)
    assert journal.add_message_id(record) and not hasattr(record, "MESSAGE_ID")
    record.EVENT = "ready"
    assert journal.add_message_id(record) and journal.MESSAGE_IDS["ready"] == record.MESSAGE_ID
