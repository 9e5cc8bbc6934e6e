"""The queue between the threads that send and the network thread, with a wake-up that `poll` can wait for."""

import contextlib
import itertools
import select
import socket
from collections import deque
from dataclasses import dataclass
from typing import Deque, Optional, Sequence, Tuple, Union

from edge_agent.core.protocol.messages import Message
from edge_agent.mqtt.client_events import Subscription


@dataclass(frozen=True)
class Outgoing:
    """One item of the queue.

    Attributes:
        session: Number of the session that it is meant for.
        token: Names it in `Acked` and `Rejected`.
        content: A message to publish, or topics to subscribe to.
    """

    session: int
    token: int
    content: Union[Message, Sequence[Subscription]]


class SendQueue:
    """Filled and woken by any thread; emptied and waited for by the network thread."""

    def __init__(self) -> None:
        self._items: Deque[Outgoing] = deque()
        self._tokens = itertools.count(1)
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, session: int, content: Union[Message, Sequence[Subscription]]) -> int:
        """Add an item and wake the network thread; returns the item's token."""
        token = next(self._tokens)
        self._items.append(Outgoing(session, token, content))
        self.wake()
        return token

    def take(self) -> Outgoing:
        """Remove and return the oldest item.

        Raises:
            IndexError: The queue is empty.
        """
        return self._items.popleft()

    def wake(self) -> None:
        """End the current wait, or the next one."""
        # A full socket has enough unread bytes to end the next wait; nobody waits on a closed one.
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def wait(self, timeout_s: float, fd: Optional[int] = None, write: bool = False) -> Tuple[bool, bool]:
        """Wait up to `timeout_s` for a wake-up or for a file descriptor.

        Returns:
            Whether `fd` can be read (or is broken), and, with `write`, whether it can be written.
        """
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if fd is not None:
            poll.register(fd, select.POLLIN | (select.POLLOUT if write else 0))
        events = dict(poll.poll(max(0.0, timeout_s) * 1000.0))
        if self._reader.fileno() in events:
            with contextlib.suppress(BlockingIOError):
                while self._reader.recv(4096):
                    pass
        state = events.get(fd, 0) if fd is not None else 0
        return bool(state & ~select.POLLOUT), bool(state & select.POLLOUT)

    def close(self) -> None:
        """Close the wake-up sockets. Idempotent."""
        self._reader.close()
        self._writer.close()
