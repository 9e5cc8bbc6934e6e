"""Writes files that are made from others, or reports which of them are stale."""

from pathlib import Path
from typing import Mapping

ROOT = Path(__file__).resolve().parents[2]


def update(files: Mapping[str, str], check: bool, root: Path = ROOT) -> int:
    """Write the files whose text has changed; returns the exit code.

    Args:
        files: Text by path below `root`.
        check: Write nothing; the exit code is 1 when a file is stale.
        root: The checkout.
    """
    stale = {}
    for name, text in files.items():
        path = root / name
        if not path.is_file() or path.read_text("utf-8") != text:
            stale[name] = text
    for name, text in stale.items():
        print(f"{name}: {'stale; run scripts/generate' if check else 'written'}")
        if not check:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, "utf-8")
    return int(check and bool(stale))
