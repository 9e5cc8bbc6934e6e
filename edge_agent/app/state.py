"""The state folder, locked by this agent before anything in it is read or written."""

import errno
import logging
from dataclasses import dataclass
from pathlib import Path

from edge_agent.host.identity import NUMBERS_PER_START, new_epoch, next_boot
from edge_agent.host.state_file import StateFile
from edge_agent.outbox.database import LOCK_NAME, OUTBOX_NAME, FileLock, recorded_boot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """The state folder and the number of this start.

    Attributes:
        folder: Its path.
        lock: Held, unless the folder cannot be used.
        boot: Larger than every earlier one, even where it cannot be stored.
        fault: Why the folder cannot be used; logged already. Empty when it can.
    """

    folder: Path
    lock: FileLock
    boot: int
    fault: str

    def file(self, name: str) -> StateFile:
        """Return a small file in it."""
        return StateFile(self.folder / name, failing=bool(self.fault))


def claim(folder: Path) -> State:
    """Lock the folder, then count this start; a refused agent counts nothing.

    Raises:
        InputError: Another agent uses it.
    """
    lock = FileLock(folder / LOCK_NAME)
    known, fault = 0, ""
    try:
        lock.take()
        known = recorded_boot(folder / OUTBOX_NAME)
        boot = next_boot(folder, known)
    except OSError as error:
        fault = error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f"{'free some space' if full else 'make it writable'} or set EDGE_AGENT_STATE_DIR"
        log.warning("state folder %s: %s; %s. Continuing without it: messages wait in memory", folder, fault, hint)
        boot = max(known + NUMBERS_PER_START, new_epoch())
    return State(folder, lock, boot, fault)
