"""Names that stay unique: event ids, the boot counter, the node's default name."""

import contextlib
import os
import secrets
import time
import uuid
from pathlib import Path
from typing import Mapping, Optional

from edge_agent.host.state_file import write_whole

ENV_FOLDER = Path("/etc/edge-agent")


def state_dir(explicit: Optional[str], environ: Mapping[str, str]) -> Path:
    """`explicit`, else the first of $STATE_DIRECTORY (systemd), else $XDG_STATE_HOME or ~/.local/state, /edge-agent."""
    if explicit:
        return Path(explicit)
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    base = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "/") / ".local" / "state")
    return Path(base) / "edge-agent"


def instance_of(env_file: Optional[Path]) -> str:
    """The template unit's instance that reads this env file; empty where it is the single unit's, or nobody's."""
    if env_file is None or env_file.parent != ENV_FOLDER or env_file.name == "edge-agent.env":
        return ""
    return env_file.stem


NUMBERS_PER_START = 2
"""The one before a start's boot counter is its own too: it numbers what the start closes of an earlier, crashed one."""
LARGEST_BOOT = 1 << 53
"""What is not below was not counted: the file is damaged. Every JSON reader and SQLite can hold it."""
CLOCK_WAS_SET = 1_600_000_000
"""Unix seconds of September 2020; a clock before that is a board without a battery."""


def uuid7() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random; sortable, unique across nodes and boots."""
    return uuid7_of(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10), "big"))


def uuid7_of(unix_ms: int, random: int) -> str:
    """The UUIDv7 of a time and 80 random bits, of which the version takes six."""
    value = unix_ms << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_epoch() -> int:
    """A boot counter above all that were counted up, and above every earlier one made this way.

    Unix seconds; where the clock has plainly not been set yet, with a random part, for it begins anew at every start.
    """
    now = int(time.time())
    return now if now > CLOCK_WAS_SET else now + secrets.randbelow(CLOCK_WAS_SET)


def next_boot(state_dir: Path, known: int = 0) -> int:
    """Two more than at the last start, or a new epoch; kept in `state_dir`, written whole or not at all.

    Args:
        state_dir: Made when missing.
        known: The last one, as others remember it; 0 when they do not.

    Raises:
        OSError: The folder cannot be written.
    """
    path = state_dir / "boot"
    with contextlib.suppress(OSError, ValueError):
        kept = int(path.read_text("ascii"))
        known = max(known, kept if kept < LARGEST_BOOT else 0)
    boot = known + NUMBERS_PER_START if known > 0 else new_epoch()
    write_whole(path, f"{boot}\n", durable=False)
    return boot


def kernel_boot(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """This run of the machine: within one, and only then, monotonic times of different processes compare."""
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return uuid.uuid4().hex
