"""Where state lives: systemd's folder when it gives one, else the user's."""

from pathlib import Path
from typing import Mapping, Optional


def state_dir(explicit: Optional[str], environ: Mapping[str, str]) -> Path:
    """`explicit`, else the first of $STATE_DIRECTORY (systemd), else $XDG_STATE_HOME or ~/.local/state, /edge-agent."""
    if explicit:
        return Path(explicit)
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    base = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "/") / ".local" / "state")
    return Path(base) / "edge-agent"
