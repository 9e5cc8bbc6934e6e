"""Where state lives: systemd's folder when it gives one, else the user's; and which unit reads which env file."""

from pathlib import Path
from typing import Mapping, Optional

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
