"""The GPU's memory for threads that may not touch the GPU: they ask, the thread that owns it does."""

import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from typing import Callable, Deque, Optional, Sequence

from edge_agent.core.ports import BufferPool, MappedBuffer
from edge_agent.core.types import Array
from edge_agent.errors import EngineError, SourceError
from edge_agent.runtime.command_queue import CommandQueue

ANSWER_WITHIN_S = 3.0
"""The owner looks at least every tenth of a second, and locking memory takes some milliseconds per megabyte."""
KNOWN_WITHIN_S = 3600.0
"""As long as an engine may be built (see `supervisor`)."""

Buffers = Sequence[MappedBuffer]


class PoolProxy:
    """A `core.ports.BufferPool` in front of one that belongs to a single thread, the owner.

    `open`, `serve` and `close` are the owner's; all else is for any thread, the owner included.

    Args:
        command_queue: Brings requests to the owner.
        answer_within_s: How long one may take; what comes later is undone.
    """

    def __init__(self, command_queue: CommandQueue, answer_within_s: float = ANSWER_WITHIN_S) -> None:
        self._command_queue, self._answer_within_s = command_queue, answer_within_s
        self._pool: Optional[BufferPool] = None
        self._owner: Optional[int] = None
        self._known = threading.Event()
        self._lock = threading.Condition()
        self._asked: Deque[_Request] = deque()
        self._freed: Deque[_Return] = deque()
        self._out = 0
        self._closing = self._closed = False

    def open(self, pool: Optional[BufferPool]) -> None:
        """The GPU is known now; None when there is none, or it needs no memory of its own."""
        self._owner, self._pool = threading.get_ident(), pool
        self._known.set()

    def dismiss(self) -> None:
        """Nobody needs to wait any longer: the end has begun. From any thread."""
        with self._lock:
            self._closing = True
        self._known.set()

    def modes(self) -> Sequence[str]:
        """See `BufferPool`; waits until the owner has opened it, which may take as long as building an engine."""
        self._known.wait(KNOWN_WITHIN_S)
        return () if self._pool is None or self._closing else self._pool.modes()

    def allocate(self, count: int, nbytes: int) -> Buffers:
        """See `BufferPool`."""
        return self._ask(lambda pool: pool.allocate(count, nbytes))

    def register(self, arrays: Sequence[Array]) -> Buffers:
        """See `BufferPool`."""
        return self._ask(lambda pool: pool.register(arrays))

    def free(self, buffers: Buffers, then: Callable[[], None]) -> None:
        """See `BufferPool`."""
        with self._lock:
            if not self._closed:
                self._freed.append(_Return(buffers, then))
                self._lock.notify()
                then = _nothing
        then()  # once the GPU is closed it holds nothing any more
        if threading.get_ident() == self._owner:
            self.serve()
        else:
            self._command_queue.submit(self.serve)  # when too many commands wait, it is done with the next request

    def serve(self) -> None:
        """Do what was asked for, returns first: room for what comes."""
        pool = self._pool
        while self._freed and pool is not None:
            back = self._freed.popleft()
            pool.free(back.buffers, back.then)
            self._out -= len(back.buffers)
        while self._asked and pool is not None:
            self._asked.popleft().answer(pool, self._count)

    def close(self, within_s: float) -> bool:
        """Wait until all has come back, and take no more requests. False when a camera still uses some after that.

        Then the GPU must not be closed, for that would free memory that a camera's driver writes into.
        """
        self.dismiss()
        deadline_t = time.monotonic() + within_s
        while True:
            self.serve()
            with self._lock:
                left_s = deadline_t - time.monotonic()
                if (self._out or self._freed) and left_s > 0.0:
                    self._lock.wait(left_s)
                    continue
                self._closed = True
                return not self._out

    def _ask(self, work: Callable[[BufferPool], Buffers]) -> Buffers:
        request = _Request(work)
        with self._lock:  # what is asked before the end has begun is answered
            if self._closing:
                raise SourceError("no memory for pictures: the agent is stopping")
            self._asked.append(request)
        if threading.get_ident() == self._owner:
            self.serve()
        elif not self._command_queue.submit(self.serve):
            request.future.cancel()
            raise SourceError("no memory for pictures: too many commands wait for the GPU's thread")
        try:
            return request.future.result(self._answer_within_s)
        except NoAnswer:
            if not request.future.cancel():
                request.future.add_done_callback(self._undo)
            raise SourceError(
                f"no memory for pictures: the GPU's thread has not answered within {self._answer_within_s:g} s"
            ) from None

    def _count(self, count: int) -> None:
        self._out += count

    def _undo(self, late: "Future[Buffers]") -> None:
        if late.exception() is None:
            self.free(late.result(), _nothing)


class _Return:
    """Buffers that come back, and what to do when the GPU has let go of them."""

    def __init__(self, buffers: Buffers, then: Callable[[], None]) -> None:
        self.buffers, self.then = buffers, then


class _Request:
    """One thing to be done by the owner; forgotten when nobody waits for it any more."""

    def __init__(self, work: Callable[[BufferPool], Buffers]) -> None:
        self.future: Future[Buffers] = Future()
        self._work = work

    def answer(self, pool: BufferPool, count: Callable[[int], None]) -> None:
        """Do it. What the GPU refuses is the asker's error, not the owner's."""
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
