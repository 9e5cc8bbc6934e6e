"""What the service manager is told, by its notification protocol (sd_notify(3)); without it, nothing happens."""

import logging
import os
import socket
import time
from typing import Mapping, Optional

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
