"""Identity of an agent: its state folder, its instance, event ids and boot counters."""

import contextlib
import os
import secrets
import time
import uuid
from pathlib import Path
from typing import Mapping, Optional

from edge_agent.host.state_file import write_whole

ENV_FOLDER = Path("/etc/edge-agent")
NUMBERS_PER_START = 2
"""Boot counters that a start uses: the first numbers the events that close visits of a crashed agent."""
LARGEST_BOOT = 1 << 53
"""Boot counters are smaller, so a larger one is damage. JSON readers and SQLite hold such integers exactly."""
CLOCK_WAS_SET = 1_600_000_000
"""Unix seconds of September 2020; an earlier time means that the clock has not been set (no battery)."""


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
    """The instance of the template unit that reads this env file; empty when no instance reads it."""
    if env_file is None or env_file.parent != ENV_FOLDER or env_file.name == "edge-agent.env":
        return ""
    return env_file.stem


def uuid7() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits; sortable, unique across nodes and boots."""
    return uuid7_of(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10), "big"))


def uuid7_of(unix_ms: int, random: int) -> str:
    """The UUIDv7 of a time and 80 random bits, six of which the version and variant replace."""
    value = unix_ms << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new_epoch() -> int:
    """A boot counter above all counters that were incremented, and above earlier epochs.

    Unix seconds; with a random part while the clock has not been set, because it then restarts at every boot.
    """
    now = int(time.time())
    return now if now > CLOCK_WAS_SET else now + secrets.randbelow(CLOCK_WAS_SET)


def next_boot(state_dir: Path, known: int = 0) -> int:
    """The last boot counter plus two, or a new epoch; stored atomically in `state_dir`.

    Args:
        state_dir: Created when missing.
        known: The last counter from another store; 0 when unknown.

    Raises:
        OSError: The folder cannot be written.
    """
    path = state_dir / "boot"
    with contextlib.suppress(OSError, ValueError):
        stored = int(path.read_text("ascii"))
        known = max(known, stored if stored < LARGEST_BOOT else 0)
    boot = known + NUMBERS_PER_START if known > 0 else new_epoch()
    write_whole(path, f"{boot}\n", durable=False)
    return boot


def kernel_boot(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """The kernel's boot id; monotonic times of different processes are comparable only within one boot."""
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return uuid.uuid4().hex
