"""The service manager, systemd: notifications (sd_notify(3)), states of units, accounts, and the restart of nvargus."""

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

log = logging.getLogger(__name__)

SERVICE_USER = "edge-agent"
SYSTEMCTL_TIMEOUT_S = 5.0
MAX_STATUS = 500
SEND_WITHIN_S = 1.0
REQUESTS_FOLDER = Path("/run/edge-agent-requests")


class ServiceManager:
    """Client of the notification protocol; does nothing without systemd. Thread-safe, never raises, and waits at most
    `SEND_WITHIN_S`.

    Args:
        environ: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are read at construction.
        pid: Process id for the watchdog; this process when None.

    Attributes:
        watchdog_s: Timeout of the watchdog in seconds, after which systemd sends SIGABRT; None when the unit has no
            watchdog for this process.
    """

    def __init__(self, environ: Mapping[str, str], pid: Optional[int] = None) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environ, os.getpid() if pid is None else pid)
        self._failing = False

    @property
    def present(self) -> bool:
        """Whether a service manager runs this process and restarts it after an exit."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Report that the start or a reload is complete."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """Set the status line of `systemctl status`."""
        self._send(_status(status))

    def reloading(self) -> None:
        """Report the begin of a reload; `ready` ends it. systemd 253 and newer require both lines in one datagram."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Report that the service is stopping."""
        self._send("STOPPING=1", _status("stopping"))

    def alive(self) -> None:
        """Reset the watchdog."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Extend the timeout of the start or stop to at least `seconds` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            # A new socket for each message: a re-executed manager creates a new socket at the same path.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(SEND_WITHIN_S)
                sock.connect(self._address)
                sock.sendall("\n".join(lines).encode())
        except OSError as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            log.log(level, "cannot notify the service manager of %s: %s", lines[0], error)
            self._failing = True
            return
        if self._failing:
            log.info("the service manager can be notified again")
        self._failing = False


def _address(path: str) -> Optional[str]:
    """The socket's address; `@` stands for the abstract namespace. None for unsupported kinds (vsock, relative)."""
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
    # A line break would start another assignment.
    return "STATUS=" + " ".join(text.split())[:MAX_STATUS]


class UnitState(NamedTuple):
    """The state of a unit, in systemd's terms.

    Attributes:
        load: "loaded", "not-found", "masked", ...
        enabled: "enabled", "disabled", ...; empty when the unit is not installed.
        active: "active", "inactive", "failed", ...
        result: The reason why it is not active: "success", "exit-code", "watchdog", "start-limit-hit", ...
    """

    load: str
    enabled: str
    active: str
    result: str


def unit_of(env_file: Optional[Path]) -> str:
    """The unit that reads this env file; "edge-agent.service" without a file or for a file in another folder."""
    instance = instance_of(env_file)
    return f"edge-agent@{instance}.service" if instance else "edge-agent.service"


def unit_state(
    unit: str, path: Optional[str] = None, running: Path = Path("/run/systemd/system")
) -> Optional[UnitState]:
    """The state of a unit; None when systemd does not run or does not answer.

    Args:
        unit: Name of the unit.
        path: Search path for systemctl; $PATH when None.
        running: A folder that exists while systemd is process 1.
    """
    names = ("LoadState", "UnitFileState", "ActiveState", "Result")
    found = unit_properties(unit, names, path, running)
    return UnitState(*(found.get(name, "") for name in names)) if "LoadState" in found else None


def unit_properties(
    unit: str, names: Sequence[str], path: Optional[str] = None, running: Path = Path("/run/systemd/system")
) -> Mapping[str, str]:
    """Properties of a unit from `systemctl show`, without those it does not know; empty without an answer."""
    program = shutil.which("systemctl", path=path)
    if program is None or not running.is_dir():
        return {}
    command = [program, "show", "-p", ",".join(names), unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SYSTEMCTL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {} if done.returncode else dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


class Account(NamedTuple):
    """A user account and its groups."""

    name: str
    uid: int
    groups: FrozenSet[int]

    def may_read(self, path: Path) -> bool:
        """Whether the modes of the file and of all its parent folders allow reading; access control lists are ignored.

        Raises:
            OSError: The file does not exist, or its modes cannot be read.
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
    """The account of a user, or of this process when `name` is None; None for an unknown user."""
    if name is None:
        uid = os.geteuid()
        return Account(_name_of(uid), uid, frozenset([os.getegid(), *os.getgroups()]))
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))


def group_name(gid: int) -> str:
    """Name of a group; its number when it has no name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class NvargusRestart:
    """Requests a restart of NVIDIA's camera daemon from a root unit, by a file that edge-agent-nvargus.path watches.

    Args:
        folder: Created by systemd-tmpfiles; writable for the agent's group.
    """

    def __init__(self, folder: Path = REQUESTS_FOLDER) -> None:
        self._path = folder / "restart-nvargus"
        self._failing = False

    def restart_nvargus(self) -> bool:
        """Request the restart; False when the request file cannot be created."""
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660))
        except OSError as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            log.log(level, "%s: %s; enable edge-agent-nvargus.path", self._path, error.strerror)
            self._failing = True
            return False
        self._failing = False
        return True
