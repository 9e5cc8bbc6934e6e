"""GPU buffers for threads that may not use the GPU: the thread that owns it serves their requests."""

import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as RequestTimeout
from typing import Callable, Deque, Optional, Sequence

from edge_agent.core.ports import BufferPool, MappedBuffer
from edge_agent.core.types import Array
from edge_agent.errors import EngineError, SourceError
from edge_agent.runtime.command_queue import CommandQueue

ANSWER_WITHIN_S = 3.0
"""The owner serves requests every 0.1 s, and locking memory takes some milliseconds per megabyte."""
OPEN_WITHIN_S = 3600.0
"""As long as building an engine may take; equals `supervisor.LONGEST_SETUP_S`."""

Buffers = Sequence[MappedBuffer]


class PoolProxy:
    """A `core.ports.BufferPool` in front of one that belongs to a single thread, the owner.

    `open`, `serve` and `close` are for the owner; all else is for any thread, the owner included.

    Args:
        command_queue: Runs `serve` in the owner's thread.
        answer_within_s: How long a request may take; a later result is freed.
    """

    def __init__(self, command_queue: CommandQueue, answer_within_s: float = ANSWER_WITHIN_S) -> None:
        self._command_queue, self._answer_within_s = command_queue, answer_within_s
        self._pool: Optional[BufferPool] = None
        self._owner: Optional[int] = None
        self._opened = threading.Event()
        self._lock = threading.Condition()
        self._requests: Deque[_Request] = deque()
        self._returns: Deque[_Return] = deque()
        self._out = 0
        self._closing = self._closed = False

    def open(self, pool: Optional[BufferPool]) -> None:
        """Set the pool; None where frames need no GPU buffers."""
        self._owner, self._pool = threading.get_ident(), pool
        self._opened.set()

    def dismiss(self) -> None:
        """End all waits for the pool, and refuse further requests: the agent is stopping. From any thread."""
        with self._lock:
            self._closing = True
        self._opened.set()

    def modes(self) -> Sequence[str]:
        """Wait until the owner has opened the pool, then return its modes; see `BufferPool`."""
        self._opened.wait(OPEN_WITHIN_S)
        return () if self._pool is None or self._closing else self._pool.modes()

    def allocate(self, count: int, nbytes: int) -> Buffers:
        """As `BufferPool`, within `answer_within_s`."""
        return self._request(lambda pool: pool.allocate(count, nbytes))

    def register(self, arrays: Sequence[Array]) -> Buffers:
        """As `BufferPool`, within `answer_within_s`."""
        return self._request(lambda pool: pool.register(arrays))

    def free(self, buffers: Buffers, then: Callable[[], None]) -> None:
        """As `BufferPool`, within `answer_within_s`."""
        with self._lock:
            if not self._closed:
                self._returns.append(_Return(buffers, then))
                self._lock.notify()
                then = _nothing
        then()  # Once the GPU is closed, it uses none of the buffers.
        if threading.get_ident() == self._owner:
            self.serve()
        else:
            self._command_queue.submit(self.serve)  # When too many commands wait, the next request serves it.

    def serve(self) -> None:
        """Free what was returned, then allocate what was requested."""
        pool = self._pool
        while self._returns and pool is not None:
            back = self._returns.popleft()
            pool.free(back.buffers, back.then)
            self._out -= len(back.buffers)
        while self._requests and pool is not None:
            self._requests.popleft().answer(pool, self._count)

    def close(self, within_s: float) -> bool:
        """Wait until all buffers are returned, and refuse further requests. False when a camera still uses some.

        Then the GPU must not be closed, for that would free memory that a camera's driver writes to.
        """
        self.dismiss()
        deadline_t = time.monotonic() + within_s
        while True:
            self.serve()
            with self._lock:
                left_s = deadline_t - time.monotonic()
                if (self._out or self._returns) and left_s > 0.0:
                    self._lock.wait(left_s)
                    continue
                self._closed = True
                return not self._out

    def _request(self, work: Callable[[BufferPool], Buffers]) -> Buffers:
        request = _Request(work)
        with self._lock:  # A request made before `dismiss` is served.
            if self._closing:
                raise SourceError("no memory for frames: the agent is stopping")
            self._requests.append(request)
        if threading.get_ident() == self._owner:
            self.serve()
        elif not self._command_queue.submit(self.serve):
            request.future.cancel()
            raise SourceError("no memory for frames: too many commands wait for the GPU's thread")
        try:
            return request.future.result(self._answer_within_s)
        except RequestTimeout:
            if not request.future.cancel():
                request.future.add_done_callback(self._undo)
            raise SourceError(
                f"no memory for frames: the GPU's thread has not answered within {self._answer_within_s:g} s"
            ) from None

    def _count(self, count: int) -> None:
        self._out += count

    def _undo(self, late: "Future[Buffers]") -> None:
        if late.exception() is None:
            self.free(late.result(), _nothing)


class _Return:
    """Returned buffers, and the call for when they are freed."""

    def __init__(self, buffers: Buffers, then: Callable[[], None]) -> None:
        self.buffers, self.then = buffers, then


class _Request:
    """A request for buffers; cancelled when its wait has ended."""

    def __init__(self, work: Callable[[BufferPool], Buffers]) -> None:
        self.future: Future[Buffers] = Future()
        self._work = work

    def answer(self, pool: BufferPool, count: Callable[[int], None]) -> None:
        """Serve it. What the GPU refuses is raised in the requesting thread, not in the owner."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            made = self._work(pool)
        except EngineError as error:
            self.future.set_exception(error)
            return
        count(len(made))
        self.future.set_result(made)


def _nothing() -> None:
    return None
