"""Log lines for whoever reads them: systemd's journal gets fields or priorities, a person gets times."""

import logging
import os
import sys
from typing import Mapping, Optional

# sd-daemon(3): the priority prefix that journald takes off the line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
IDENTIFIER = "edge-agent"
CAMERA_THREAD = "capture-"


class _PriorityFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        # Every line of a traceback needs its own, or journald files the rest under the default priority.
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def configure(level: str, environ: Mapping[str, str]) -> None:
    """Send all logging to systemd's journal when stderr leads there, else to stderr, at `level`.

    With systemd-python every entry has fields: `LOGGER`, `THREAD_NAME`, the place in the code, a traceback, and
    `CAMERA_ID` for what a camera's own thread says. Without it, it has its priority.
    """
    handler: logging.Handler
    if not leads_to_journal(environ):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    else:
        handler = _fields() or _priorities()
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def set_level(level: str) -> None:
    """From now on."""
    logging.getLogger().setLevel(level.upper())


def leads_to_journal(environ: Mapping[str, str], descriptor: int = 2) -> bool:
    """Whether `descriptor` is still the stream that systemd opened, and not redirected since (systemd.exec(5))."""
    try:
        stat = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{stat.st_dev}:{stat.st_ino}"


def name_camera(record: logging.LogRecord) -> bool:
    """A filter that keeps every record: what a camera's own thread says gets `CAMERA_ID`, unless it has one already."""
    thread = record.threadName or ""
    if thread.startswith(CAMERA_THREAD):
        record.__dict__.setdefault("CAMERA_ID", thread[len(CAMERA_THREAD) :])
    return True


def _priorities() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PriorityFormatter("%(name)s: %(message)s"))
    return handler


def _fields() -> Optional[logging.Handler]:
    try:
        from systemd.journal import JournalHandler
    except ImportError:
        return None
    handler: logging.Handler = JournalHandler(SYSLOG_IDENTIFIER=IDENTIFIER)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    # It sends every attribute of a record whose name is a valid field's.
    handler.addFilter(name_camera)
    return handler
