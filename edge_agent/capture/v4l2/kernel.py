"""The port to the kernel: the system calls that capture needs, and error messages for their failures."""

import errno
import fcntl
import mmap
import os
import select
from pathlib import Path
from typing import List, Optional, Protocol

from edge_agent.capture.v4l2 import abi
from edge_agent.errors import SourceError


class Kernel(Protocol):
    """The system calls that capture uses; every method raises OSError as the system call does."""

    def open(self, path: str) -> int:
        """Open read-write and non-blocking; returns the descriptor."""

    def ioctl(self, fd: int, code: int, argument: abi.Argument) -> None:
        """Call the driver, which changes `argument` in place."""

    def mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        """Map memory shared with the driver; `close` of the mapping unmaps it."""

    def poll(self, fd: int, timeout_s: float) -> int:
        """The events (POLLIN, POLLERR, ...), or 0 after `timeout_s`."""

    def close(self, fd: int) -> None:
        """Close the descriptor."""


class LinuxKernel:
    """`Kernel` by real system calls."""

    def open(self, path: str) -> int:
        """Open non-blocking, because a blocking DQBUF may hang after an unplug."""
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ioctl(self, fd: int, code: int, argument: abi.Argument) -> None:
        fcntl.ioctl(fd, code, argument, True)

    def mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)

    def poll(self, fd: int, timeout_s: float) -> int:
        waiter = select.poll()
        waiter.register(fd, select.POLLIN)
        ready = waiter.poll(max(0, round(timeout_s * 1000)))
        return ready[0][1] if ready else 0

    def close(self, fd: int) -> None:
        os.close(fd)


class Device:
    """One open video node.

    Args:
        kernel: The system calls.
        path: The node, not a link.

    Raises:
        OSError: The node cannot be opened.
    """

    def __init__(self, kernel: Kernel, path: str) -> None:
        self.kernel = kernel
        self.path = path
        self.fd = kernel.open(path)

    def ioctl(self, code: int, argument: abi.Argument) -> None:
        """Call the driver, repeated after a signal (Python repeats most system calls, but not ioctl).

        Raises:
            OSError: The driver's error, with the ioctl's name as file name.
        """
        while True:
            try:
                self.kernel.ioctl(self.fd, code, argument)
            except InterruptedError:
                continue
            except OSError as error:
                number = error.errno or errno.EIO
                raise OSError(number, os.strerror(number), abi.IOCTL_NAMES[code]) from error
            return

    def supports(self, code: int, argument: abi.Argument) -> bool:
        """Call the driver; False when it lacks the ioctl or the item (enumerations end with EINVAL)."""
        try:
            self.ioctl(code, argument)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTTY):
                return False
            raise
        return True

    def close(self) -> None:
        """Close the node."""
        self.kernel.close(self.fd)


_HINTS = {
    errno.ENOENT: "plug the camera in, or look up its name with: ls -l /dev/v4l/by-id /dev/v4l/by-path",
    errno.ENXIO: "the driver no longer serves this node; plug the camera in again",
    errno.ENODEV: "the camera was unplugged or its driver has failed; it is searched again at the next open",
    errno.EIO: "the driver has failed; the camera is reopened; if that does not help, unplug it and read dmesg",
    errno.ENOTTY: "this is not a V4L2 video node",
    errno.EINVAL: "the driver rejects the call; if it persists, read dmesg",
    errno.ENOMEM: "the kernel has no memory for the buffers; choose a smaller width and height",
    errno.ENOSPC: "not enough USB bandwidth: use a lower fps or size or MJPG, another USB controller, or set "
    "uvcvideo quirks=0x80",
}


def explain(uri: str, path: str, error: OSError) -> SourceError:
    """The error for a failed system call, with its remedy.

    Args:
        uri: The camera's URI.
        path: The camera's node.
        error: From `Device` or `Kernel`; its file name may be the ioctl's name.
    """
    number = error.errno or errno.EIO
    at = "" if uri.endswith(path) else f" (now {path})"
    call = f"{error.filename}: " if error.filename in abi.IOCTL_NAMES.values() else ""
    message = f"{uri}{at}: {call}{os.strerror(number)}"
    if number == errno.EBUSY:
        users = holders(path)
        hint = f"in use by {', '.join(users)}" if users else "another program uses the camera: fuser -v " + path
    elif number in (errno.EACCES, errno.EPERM):
        hint = "add the user to the group `video`: usermod -aG video USER (systemd: SupplementaryGroups=video)"
    else:
        hint = _HINTS.get(number, "")
    return SourceError(message, hint)


def holders(path: str) -> List[str]:
    """Processes that have `path` open, as "name (pid N)"; only those that this user may inspect."""
    processes = sorted(Path("/proc").glob("[0-9]*"), key=lambda entry: int(entry.name))
    return [name for name in (_name_if_open(process, path) for process in processes) if name]


def _name_if_open(process: Path, path: str) -> Optional[str]:
    try:
        with os.scandir(process / "fd") as descriptors:
            if not any(os.readlink(entry.path) == path for entry in descriptors):
                return None
        name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # the process has ended or belongs to another user
        return None
    if int(process.name) == os.getpid():
        return f"{name} (this program, which still holds one of its frames or uses it as another camera)"
    return f"{name} (pid {process.name})"
