"""Log lines for whoever reads them: systemd's journal gets fields or priorities, a person gets times."""

import logging
import os
import sys
from typing import Mapping, Optional

# sd-daemon(3): the priority prefix that journald takes off the line.
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
"""By what a record's `EVENT` says; never to be changed, since people search and catalogues translate by them."""


class _PriorityFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        # Every line of a traceback needs its own, or journald files the rest under the default priority.
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def configure(level: str, environ: Mapping[str, str]) -> None:
    """Send all logging to systemd's journal when stderr leads there, else to stderr, at `level`.

    With systemd-python every entry has fields: `LOGGER`, `THREAD_NAME`, the place in the code, a traceback, and
    `CAMERA_ID` for what a camera's own thread says, `EVENT` and its `MESSAGE_ID` for changes of state. Without it, it
    has its priority.
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


def identify(record: logging.LogRecord) -> bool:
    """A filter that keeps every record: one with `EVENT` gets its `MESSAGE_ID`."""
    number = MESSAGE_IDS.get(record.__dict__.get("EVENT", ""))
    if number is not None:
        record.__dict__["MESSAGE_ID"] = number
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
    handler.addFilter(identify)
    return handler
