"""The seam to the kernel: the few system calls that capture needs, and their faults in words."""

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
    """What capture asks of the operating system; every method raises OSError as the system call would fail."""

    def open(self, path: str) -> int:
        """A descriptor, read-write and non-blocking."""

    def ioctl(self, fd: int, code: int, argument: abi.Argument) -> None:
        """Fills `argument` in place."""

    def mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        """Shared with the driver; its `close` unmaps."""

    def poll(self, fd: int, timeout_s: float) -> int:
        """The events (POLLIN, POLLERR, ...), or 0 when `timeout_s` has passed."""

    def close(self, fd: int) -> None:
        """Give the descriptor back."""


class LinuxKernel:
    """The real one."""

    def open(self, path: str) -> int:
        """See `Kernel`. Non-blocking, because a DQBUF that blocks may hang for ever after an unplug."""
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ioctl(self, fd: int, code: int, argument: abi.Argument) -> None:
        """See `Kernel`."""
        fcntl.ioctl(fd, code, argument, True)

    def mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        """See `Kernel`."""
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)

    def poll(self, fd: int, timeout_s: float) -> int:
        """See `Kernel`."""
        waiter = select.poll()
        waiter.register(fd, select.POLLIN)
        ready = waiter.poll(max(0, round(timeout_s * 1000)))
        return ready[0][1] if ready else 0

    def close(self, fd: int) -> None:
        """See `Kernel`."""
        os.close(fd)


class Device:
    """One open video node.

    Args:
        kernel: The system calls.
        path: The node itself, not a link.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, kernel: Kernel, path: str) -> None:
        self.kernel = kernel
        self.path = path
        self.fd = kernel.open(path)

    def ioctl(self, code: int, argument: abi.Argument) -> None:
        """Call the driver, again when a signal came in between (Python repeats most calls, but not ioctl).

        Raises:
            OSError: As the driver says, with the ioctl's name.
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
        """Call the driver; False where it has no such ioctl, or no such item (enumerations end by EINVAL)."""
        try:
            self.ioctl(code, argument)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTTY):
                return False
            raise
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        self.kernel.close(self.fd)


_HINTS = {
    errno.ENOENT: "plug the camera in, or look up its name with: ls -l /dev/v4l/by-id /dev/v4l/by-path",
    errno.ENXIO: "the driver no longer serves this node; plug the camera in again",
    errno.ENODEV: "the camera was unplugged or its driver has failed; it is looked for again at the next open",
    errno.EIO: "the driver has failed; the camera is opened again, if that does not help unplug it and look at dmesg",
    errno.ENOTTY: "this is not a V4L2 video node",
    errno.EINVAL: "the driver refuses; if it goes on, look at dmesg",
    errno.ENOMEM: "the kernel has no memory for the buffers; choose a smaller width and height",
    errno.ENOSPC: "not enough USB bandwidth: use a lower fps or size or MJPG, another USB controller, or set "
    "uvcvideo quirks=0x80",
}


def explain(uri: str, path: str, error: OSError) -> SourceError:
    """What a failed system call means for the camera, and what to do.

    Args:
        uri: The camera as the user calls it.
        path: The node that it was found at.
        error: As `Device` and `Kernel` raise it; its file name is the call's name, where there is one.
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
    """Processes that have `path` open, as "name (pid N)"; only those that we may look into."""
    processes = sorted(Path("/proc").glob("[0-9]*"), key=lambda entry: int(entry.name))
    return [name for name in (_name_if_open(process, path) for process in processes) if name]


def _name_if_open(process: Path, path: str) -> Optional[str]:
    try:
        with os.scandir(process / "fd") as descriptors:
            if not any(os.readlink(entry.path) == path for entry in descriptors):
                return None
        name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # it has ended, or belongs to another user
        return None
    if int(process.name) == os.getpid():
        return f"{name} (this program, which still holds a frame of it or uses it as another camera)"
    return f"{name} (pid {process.name})"
