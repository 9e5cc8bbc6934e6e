"""The state folder, claimed for this agent before anything in it is touched."""

import errno
import logging
from dataclasses import dataclass
from pathlib import Path

from edge_agent.host.identity import NUMBERS_PER_START, new_epoch, next_boot
from edge_agent.host.state_file import StateFile
from edge_agent.outbox.store import LOCK_NAME, OUTBOX_NAME, FileLock, recorded_boot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """Where things are kept, and this start's number.

    Attributes:
        lock: Held, unless the folder cannot be used.
        boot: Larger than every earlier one, also where it cannot be kept.
        fault: Why nothing can be kept, in words, when that is so; it has been told then.
    """

    folder: Path
    lock: FileLock
    boot: int
    fault: str

    def memory(self, name: str) -> StateFile:
        """A small file in it."""
        return StateFile(self.folder / name, failing=bool(self.fault))


def claim(folder: Path) -> State:
    """Take the folder, then count this start: an agent that is refused has counted nothing.

    Raises:
        InputError: Another agent has it.
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
        log.warning("state folder %s: %s; %s. Going on without: what must wait, waits in memory", folder, fault, hint)
        boot = max(known + NUMBERS_PER_START, new_epoch())
    return State(folder, lock, boot, fault)
