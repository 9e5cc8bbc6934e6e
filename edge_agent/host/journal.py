"""Logging: to systemd's journal with fields or priorities, else to stderr with times."""

import logging
import os
import sys
from typing import Mapping, Optional

# sd-daemon(3): the priority prefix that journald removes from the line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
IDENTIFIER = "edge-agent"
CAMERA_THREAD = "capture-"
MESSAGE_IDS: Mapping[str, str] = {
    "started": "4172776b3a864003a12eb6db2f3e6d65",
    "ready": "31acdf3fe9fd4b2f829b3546831f4f39",
    "stopped": "cc5434d70d814927940821399305c806",
    "source-ended": "e74d4d8d4d494298b10c272c7df591f8",
    "camera-lost": "536f9d9386824e608a6fefb4d6868594",
    "camera-back": "0985b0972cd542dcbbc652a3384a14f2",
    "sight-changed": "955e4265676a480085a2a535f167d026",
    "broker-connected": "0d476d72aaa642d89c1c0b2f17e4409f",
    "broker-lost": "bec137110e5e4f38968ab45ed28f9389",
    "settings-read": "0689b3dbd90446afbe259e6a292fd2ac",
    "settings-refused": "cf22877b00ce4310bab111b8d7f506f8",
    "restart-needed": "cc6c4cb4be854fee9b8ed9ca39604623",
    "step-overdue": "eb7a7b068cd74855ae30a33f110a44ad",
    "step-returned": "c77037c4148c488aa0d8a8e17241ad1a",
    "worker-failed": "4be2fc7a6f004c998fe81a328a2e5db9",
    "memory": "19f536fce34b42ef987670ed190eb693",
}
"""Message id by a record's `EVENT`. Stable: searches and message catalogues depend on them."""


class _PriorityFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        # Each line of a traceback needs the prefix; journald gives other lines the default priority.
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def configure(level: str, environ: Mapping[str, str]) -> None:
    """Log to systemd's journal when stderr is connected to it, else to stderr, at `level`.

    With systemd-python every entry has fields: `LOGGER`, `THREAD_NAME`, the code location, a traceback, `CAMERA_ID`
    for records of a camera's thread, `EVENT` and its `MESSAGE_ID` for changes of state. Without it, an entry has only
    its priority.
    """
    handler: logging.Handler
    if not is_journal_stream(environ):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    else:
        handler = _journal_handler() or _priority_handler()
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def set_level(level: str) -> None:
    """Set the level of the root logger."""
    logging.getLogger().setLevel(level.upper())


def is_journal_stream(environ: Mapping[str, str], descriptor: int = 2) -> bool:
    """Whether `descriptor` is the journal stream that systemd opened, not redirected since (systemd.exec(5))."""
    try:
        stat = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{stat.st_dev}:{stat.st_ino}"


def add_camera_id(record: logging.LogRecord) -> bool:
    """A filter that keeps every record and adds `CAMERA_ID` to those of a camera's thread, unless they have one."""
    thread = record.threadName or ""
    if thread.startswith(CAMERA_THREAD):
        record.__dict__.setdefault("CAMERA_ID", thread[len(CAMERA_THREAD) :])
    return True


def add_message_id(record: logging.LogRecord) -> bool:
    """A filter that keeps every record and adds `MESSAGE_ID` to those with a known `EVENT`."""
    number = MESSAGE_IDS.get(record.__dict__.get("EVENT", ""))
    if number is not None:
        record.__dict__["MESSAGE_ID"] = number
    return True


def _priority_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PriorityFormatter("%(name)s: %(message)s"))
    return handler


def _journal_handler() -> Optional[logging.Handler]:
    try:
        from systemd.journal import JournalHandler
    except ImportError:
        return None
    handler: logging.Handler = JournalHandler(SYSLOG_IDENTIFIER=IDENTIFIER)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    # The handler sends every record attribute whose name is a valid journal field.
    handler.addFilter(add_camera_id)
    handler.addFilter(add_message_id)
    return handler
