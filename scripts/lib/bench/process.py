"""Resources of a tree of processes, from /proc."""

import contextlib
import os
from pathlib import Path
from typing import List, NamedTuple

TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Processor time so far, and the sum of the processes' peaks of resident memory."""

    cpu_s: float
    peak_rss_bytes: int


def usage(root: int) -> Usage:
    """Return the usage of a process and its descendants; those that have ended count through their parent."""
    cpu_ticks = peak = 0
    for pid in _tree(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        cpu_ticks += sum(int(field) for field in fields[11:15])
        peak += next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return Usage(cpu_ticks * TICK_S, peak)


def _tree(root: int) -> List[int]:
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found
