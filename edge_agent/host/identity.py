"""Names that stay unique: event ids, the boot counter, the node's default name."""

import hashlib
import os
import threading
import time
import uuid
from pathlib import Path


def uuid7() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random; sortable, unique across nodes and boots."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def next_boot(state_dir: Path) -> int:
    """One more than at the last start, kept in `state_dir`, written whole or not at all.

    Raises:
        OSError: The folder cannot be written.
    """
    path = state_dir / "boot"
    try:
        last = int(path.read_text("ascii"))
    except (OSError, ValueError):
        last = 0
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    partial.write_text(f"{last + 1}\n", "ascii")
    partial.replace(path)
    return last + 1


def machine_suffix(path: Path = Path("/etc/machine-id")) -> str:
    """A few characters that tell this machine from another with the same node name; not the machine id itself."""
    try:
        seed = path.read_bytes().strip()
    except OSError:
        seed = b""
    return hashlib.sha256(b"edge-agent" + (seed or str(uuid.getnode()).encode())).hexdigest()[:8]
