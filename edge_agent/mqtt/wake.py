"""Lets one thread wait for a socket and be woken by others."""

import contextlib
import select
import socket
from typing import Optional, Protocol, Tuple


class HasFileno(Protocol):
    """Anything that poll can wait for."""

    def fileno(self) -> int:
        """The file descriptor."""


class Wake:
    """`set` from any thread; `wait` from one."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def set(self) -> None:
        """End the current wait, or the next."""
        # Full: enough is unread to end the next wait. Closed: nobody will wait again.
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def wait(self, timeout_s: float, sock: Optional[HasFileno] = None, write: bool = False) -> Tuple[bool, bool]:
        """Up to `timeout_s`, for `set` or for `sock`.

        Returns:
            Whether `sock` can be read (or is broken), and, with `write`, whether it can be written.
        """
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if sock is not None:
            poll.register(sock, select.POLLIN | (select.POLLOUT if write else 0))
        events = dict(poll.poll(max(0.0, timeout_s) * 1000.0))
        if self._reader.fileno() in events:
            with contextlib.suppress(BlockingIOError):
                while self._reader.recv(4096):
                    pass
        state = events.get(sock.fileno(), 0) if sock is not None else 0
        return bool(state & ~select.POLLOUT), bool(state & select.POLLOUT)

    def close(self) -> None:
        """Idempotent."""
        self._reader.close()
        self._writer.close()
