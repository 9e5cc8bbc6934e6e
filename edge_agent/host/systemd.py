"""What the service manager is told, by its notification protocol (sd_notify(3)); without it, nothing happens."""

import grp
import logging
import os
import pwd
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import FrozenSet, Mapping, NamedTuple, Optional, Sequence

from edge_agent.host.identity import instance_of

FOLDER = Path("/run/edge-agent-requests")


class NvargusRestart:
    """Leaves requests.

    Args:
        folder: Made by systemd-tmpfiles, writable for the agent's group.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._path = folder / "restart-nvargus"
        self._failing = False

    def restart_nvargus(self) -> bool:
        """Ask for NVIDIA's camera daemon to be restarted; False when the request cannot be left."""
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660))
        except OSError as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            log.log(level, "%s: %s; enable edge-agent-nvargus.path", self._path, error.strerror)
            self._failing = True
            return False
        self._failing = False
        return True


SERVICE_USER = "edge-agent"
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
    names = ("LoadState", "UnitFileState", "ActiveState", "Result")
    found = unit_properties(unit, names, path, running)
    return UnitState(*(found.get(name, "") for name in names)) if "LoadState" in found else None


def unit_properties(
    unit: str, names: Sequence[str], path: Optional[str] = None, running: Path = Path("/run/systemd/system")
) -> Mapping[str, str]:
    """What `systemctl show` tells; only what this systemd knows, and nothing where it does not run or answer."""
    program = shutil.which("systemctl", path=path)
    if program is None or not running.is_dir():
        return {}
    command = [program, "show", "-p", ",".join(names), unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WITHIN_S)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {} if done.returncode else dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


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


log = logging.getLogger(__name__)

MAX_STATUS = 500
SEND_WITHIN_S = 1.0


class ServiceManager:
    """systemd, or nobody. Safe from any thread; never raises, waits for at most `SEND_WITHIN_S`.

    Args:
        environ: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are read once.
        pid: Of this process.

    Attributes:
        watchdog_s: Seconds after which silence is answered with SIGABRT; None when the unit has no watchdog, or
            it watches another process.
    """

    def __init__(self, environ: Mapping[str, str], pid: Optional[int] = None) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environ, os.getpid() if pid is None else pid)
        self._failing = False

    @property
    def present(self) -> bool:
        """Whether there is one, which would start a stopped service anew."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Started, or done with a reload."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(status))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. Both lines in one datagram, or systemd 253 and newer ignore them."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1", _status("stopping"))

    def alive(self) -> None:
        """Feed the watchdog."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Starting or stopping needs at least `seconds` more from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            # A socket of its own for each: a manager that was re-executed listens on the same path, and no other.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(SEND_WITHIN_S)
                sock.connect(self._address)
                sock.sendall("\n".join(lines).encode())
        except OSError as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            log.log(level, "the service manager cannot be told %s: %s", lines[0], error)
            self._failing = True
            return
        if self._failing:
            log.info("the service manager can be told again")
        self._failing = False


def _address(path: str) -> Optional[str]:
    """The socket's address; `@` stands for the abstract namespace. Others (vsock, relative) are not for services."""
    if path.startswith("@"):
        return "\0" + path[1:]
    return path if path.startswith("/") else None


def _watchdog_s(environ: Mapping[str, str], pid: int) -> Optional[float]:
    try:
        usec = int(environ.get("WATCHDOG_USEC", ""))
        watched = int(environ.get("WATCHDOG_PID", pid))
    except ValueError:
        return None
    return usec / 1e6 if usec > 0 and watched == pid else None


def _status(text: str) -> str:
    # A line break would begin another assignment.
    return "STATUS=" + " ".join(text.split())[:MAX_STATUS]
