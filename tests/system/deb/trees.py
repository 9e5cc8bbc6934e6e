"""Checkouts of later versions, made from this one."""

import shutil
import subprocess
from pathlib import Path

from tests.fakes.systemd_machine import SOURCE

FIRST = "0.1.0"
END = ')\n"""From the third on'
MIGRATION = "CREATE TABLE letters (id INTEGER); ALTER TABLE messages ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm';"


def make_tree(tree: Path, version: str) -> None:
    """A copy of this checkout; one of a later version changes the outbox's tables, too."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=SOURCE, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and not name.startswith("tests/") and (SOURCE / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, tree / name)
    (SOURCE / "build").mkdir(exist_ok=True)
    (tree / "build").symlink_to(SOURCE / "build")
    if version != FIRST:
        _edit(tree / "edge_agent" / "__init__.py", f'"{FIRST}"', f'"{version}"')
        _edit(tree / "edge_agent" / "outbox" / "database.py", END, f'    "{MIGRATION}",\n{END}')


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{path}: {old!r}"
    path.write_text(text.replace(old, new), "utf-8")
