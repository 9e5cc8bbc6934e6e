"""GPU buffers for other threads than the owner: requested, waited for, and always returned."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterator, List

import numpy as np
import pytest

from edge_agent.core.types import Moment
from edge_agent.errors import EngineError, SourceError
from edge_agent.runtime.command_queue import CommandQueue
from edge_agent.runtime.pool_proxy import PoolProxy
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import eventually


class Memory:
    """A `MappedBuffer`."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.pointer = array, array.ctypes.data


class Pool:
    """A `BufferPool` that asserts that only the thread that made it uses it."""

    def __init__(self) -> None:
        self.out: List[Memory] = []
        self.fault: Any = None
        self._thread = threading.get_ident()

    def modes(self) -> List[str]:
        return ["userptr"]

    def allocate(self, count: int, nbytes: int) -> List[Memory]:
        return self.register([np.zeros(nbytes, np.uint8) for _ in range(count)])

    def register(self, arrays: List[np.ndarray]) -> List[Memory]:
        assert threading.get_ident() == self._thread, "the GPU was touched by another thread"
        if self.fault is not None:
            raise self.fault
        made = [Memory(array) for array in arrays]
        self.out += made
        return made

    def free(self, buffers: List[Memory], then: Callable[[], None]) -> None:
        assert threading.get_ident() == self._thread, "the GPU was touched by another thread"
        for buffer in buffers:
            self.out.remove(buffer)
        then()


class Owner:
    """The infer thread: runs commands until it is stopped, then closes the pool."""

    def __init__(self, **options: Any) -> None:
        self.command_queue = CommandQueue(lambda done: None, lambda value: None, capacity=4)
        self.shared = PoolProxy(self.command_queue, **options)
        self.go, self.stop = threading.Event(), threading.Event()
        self.pool: Any = None
        self.closed: List[bool] = []
        self.close_within_s = 5.0
        self._clock = FakeClock()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> "Owner":
        self._thread.start()
        return self

    def _run(self) -> None:
        self.pool = Pool()
        self.shared.open(self.pool)
        while not self.stop.wait(0.005):
            list(self.command_queue.run_pending({}, self._now()))
        self.closed.append(self.shared.close(self.close_within_s))

    def _now(self) -> Moment:
        return self._clock()

    def block(self) -> None:
        """Block the owner until `end`."""
        entered = threading.Event()

        def work() -> None:
            entered.set()
            self.go.wait(10)

        assert self.command_queue.submit(work) and entered.wait(5)

    def end(self) -> None:
        self.go.set()
        self.stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner().start()
    yield owner
    owner.end()
    assert owner.pool.out == []


def nothing() -> None:
    return None


def test_the_owner_serves_requests_of_any_thread(owner: Owner) -> None:
    assert owner.shared.modes() == ["userptr"]
    kept = owner.shared.allocate(3, 100)
    registered = owner.shared.register([np.zeros(10, np.uint8)])
    assert [each.array.size for each in kept] == [100] * 3
    unmapped = threading.Event()
    owner.shared.free(registered, unmapped.set)
    assert unmapped.wait(5)
    owner.shared.free(kept, nothing)
    eventually(lambda: not owner.pool.out)


def test_modes_wait_until_the_pool_is_open() -> None:
    owner = Owner()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(owner.shared.modes)
        assert not asked.done()
        owner.start()
        assert asked.result(5) == ["userptr"]
    owner.end()


def test_dismiss_before_the_pool_is_open_ends_all_waits() -> None:
    shared = PoolProxy(CommandQueue(lambda done: None, lambda value: None))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(shared.modes)
        shared.dismiss()
        assert asked.result(5) == ()
    with pytest.raises(SourceError, match="the agent is stopping"):
        shared.allocate(1, 1)
    assert shared.close(0.0)


def test_a_refusal_of_the_gpu_is_raised_in_the_requesting_thread(owner: Owner) -> None:
    owner.shared.modes()
    owner.pool.fault = EngineError("out of memory")
    with pytest.raises(EngineError, match="out of memory"):
        owner.shared.allocate(1, 1)
    owner.pool.fault = None
    owner.shared.free(owner.shared.allocate(1, 1), nothing)


def test_a_result_that_comes_too_late_is_freed() -> None:
    owner = Owner(answer_within_s=0.05).start()
    owner.shared.modes()
    owner.block()
    for _ in range(3):
        with pytest.raises(SourceError, match=r"has not answered within 0\.05 s"):
            owner.shared.allocate(2, 10)
    owner.end()
    assert owner.pool.out == [] and owner.closed == [True]


def test_a_result_that_completes_after_the_timeout_is_freed() -> None:
    """The wait ends while the owner serves the request."""
    owner = Owner(answer_within_s=0.05).start()
    owner.shared.modes()
    begun, finish = threading.Event(), threading.Event()
    allocate = owner.pool.allocate

    def slow(count: int, nbytes: int) -> List[Memory]:
        begun.set()
        finish.wait(5)
        return allocate(count, nbytes)

    owner.pool.allocate = slow
    with pytest.raises(SourceError, match="has not answered"):
        owner.shared.allocate(2, 10)
    assert begun.is_set()
    finish.set()
    owner.end()
    assert owner.pool.out == [] and owner.closed == [True]


def test_too_many_commands_refuse_a_request_but_never_lose_a_return() -> None:
    owner = Owner().start()
    owner.shared.modes()
    kept = owner.shared.allocate(2, 10)
    owner.block()
    while owner.command_queue.submit(nothing):
        pass
    with pytest.raises(SourceError, match="too many commands wait"):
        owner.shared.allocate(1, 10)
    owner.shared.free(kept, nothing)
    owner.end()
    assert owner.pool.out == [] and owner.closed == [True]


def test_close_waits_for_cameras() -> None:
    owner = Owner().start()
    owner.shared.modes()
    kept = owner.shared.allocate(2, 10)
    owner.stop.set()
    eventually(lambda: owner.shared.modes() == ())
    assert owner._thread.is_alive() and owner.closed == []
    unmapped = threading.Event()
    owner.shared.free(kept, unmapped.set)
    assert unmapped.wait(5)
    owner.end()
    assert owner.pool.out == [] and owner.closed == [True]


def test_close_is_bounded_and_returns_whether_buffers_are_still_used() -> None:
    owner = Owner().start()
    owner.close_within_s = 0.05
    owner.shared.modes()
    kept = owner.shared.allocate(2, 10)
    owner.end()
    assert owner.closed == [False] and len(owner.pool.out) == 2
    late = threading.Event()
    owner.shared.free(kept, late.set)
    assert late.is_set(), "nobody is there any more to wait for"


def test_many_cameras_at_once(owner: Owner) -> None:
    owner.shared.modes()
    pause = threading.Event()

    def camera(number: int) -> int:
        done, end_t = 0, time.monotonic() + 20
        while done < 20 and time.monotonic() < end_t:
            try:
                buffers = owner.shared.allocate(4, 64 + number)
            except SourceError:  # the queue is small here; a camera comes again later
                pause.wait(0.005)
                continue
            assert all(each.array.size == 64 + number for each in buffers)
            owner.shared.free(buffers, nothing)
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(camera, range(4))) == [20] * 4
    owner.shared.free(owner.shared.allocate(1, 1), nothing)
    eventually(lambda: not owner.pool.out)
