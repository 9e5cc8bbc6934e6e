"""What systemd says of a unit, and what a service's user may read; for diagnosis only."""

import grp
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import FrozenSet, NamedTuple, Optional

SERVICE_USER = "edge-agent"
ENV_FOLDER = Path("/etc/edge-agent")
WITHIN_S = 5.0


class UnitState(NamedTuple):
    """As systemd names them; "not-found" for a unit that is not installed.

    Attributes:
        load: "loaded", "not-found", "masked", ...
        enabled: "enabled", "disabled", ...; empty when it is not installed.
        active: "active", "inactive", "failed", ...
        result: Why it is not active: "success", "exit-code", "watchdog", "start-limit-hit", ...
    """

    load: str
    enabled: str
    active: str
    result: str


def instance_of(env_file: Optional[Path]) -> str:
    """Of the template unit that reads this env file; empty where there is none, or the single unit reads it."""
    if env_file is None or env_file.parent != ENV_FOLDER or env_file.name == "edge-agent.env":
        return ""
    return env_file.stem


def unit_of(env_file: Optional[Path]) -> str:
    """The unit that reads this env file; the single one where there is none, or it lies elsewhere."""
    instance = instance_of(env_file)
    return f"edge-agent@{instance}.service" if instance else "edge-agent.service"


def unit_state(
    unit: str, path: Optional[str] = None, running: Path = Path("/run/systemd/system")
) -> Optional[UnitState]:
    """None where systemd does not run, or does not answer.

    Args:
        unit: Its name.
        path: Where to look for systemctl; $PATH when None.
        running: Is there while systemd is the machine's first process.
    """
    program = shutil.which("systemctl", path=path)
    if program is None or not running.is_dir():
        return None
    command = [program, "show", "-p", "LoadState,UnitFileState,ActiveState,Result", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if done.returncode or "LoadState" not in found:
        return None
    names = ("LoadState", "UnitFileState", "ActiveState", "Result")
    return UnitState(*(found.get(name, "") for name in names))


class Account(NamedTuple):
    """Somebody as whom the agent runs."""

    name: str
    uid: int
    groups: FrozenSet[int]

    def may_read(self, path: Path) -> bool:
        """Whether the modes of the file, and of all folders above it, let it; access control lists are not looked at.

        Raises:
            OSError: It is not there, or cannot be looked at.
        """
        return self._may(path, 4) and all(self._may(folder, 1) for folder in path.absolute().parents)

    def _may(self, path: Path, bit: int) -> bool:
        found = path.stat()
        if self.uid == 0:
            return True
        mode = stat.S_IMODE(found.st_mode)
        shift = 6 if found.st_uid == self.uid else 3 if found.st_gid in self.groups else 0
        return bool(mode >> shift & bit)


def account(name: Optional[str] = None) -> Optional[Account]:
    """A user of this machine with its groups; who runs this process when `name` is None; None when there is none."""
    if name is None:
        uid = os.geteuid()
        return Account(_name_of(uid), uid, frozenset([os.getegid(), *os.getgroups()]))
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))


def group_name(gid: int) -> str:
    """Of a group; its number where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
