"""Threads that take bounded steps; their errors are kept and reported."""

import logging
import threading
import time
from typing import Callable

from edge_agent.errors import EngineError
from edge_agent.runtime.worker import Worker
from tests.fakes.waiting import eventually


def test_progress_advances_with_each_step_and_stops_with_a_hung_one():
    release = threading.Event()
    steps = []

    def step() -> None:
        steps.append(time.monotonic())
        release.wait(10 if len(steps) == 3 else 0.001)

    worker = Worker("w", step, stop_within_s=0.05)
    with worker:
        eventually(lambda: len(steps) == 3)
        stuck_at = worker.progress_t
        assert stuck_at <= steps[2]
    assert worker.stuck, "it is inside a step that does not return"
    assert worker.progress_t == stuck_at
    release.set()
    eventually(lambda: not worker.alive)


def test_setup_step_and_teardown_run_in_one_thread_and_its_end_is_reported():
    seen, ended = [], threading.Event()

    def noting(what: str, then: Callable[[], None] = lambda: None) -> Callable[[], None]:
        return lambda: (seen.append((what, threading.current_thread().name)), then())

    worker = Worker(
        "w", noting("step", lambda: worker.stop()), noting("setup"), noting("teardown"), lambda: ended.set()
    )
    with worker:
        assert ended.wait(5)
    assert not worker.stuck and worker.set_up
    assert seen == [("setup", "w"), ("step", "w"), ("teardown", "w")]
    assert worker.error is None


def test_a_failure_is_torn_down_and_reported_too():
    seen = []

    def fail() -> None:
        raise EngineError("gone", "restart")

    for setup, step in ((fail, lambda: None), (lambda: None, fail)):
        with Worker("w", step, setup, lambda: seen.append("teardown"), lambda: seen.append("exit")) as worker:
            eventually(lambda worker=worker: not worker.alive)
        assert seen == ["teardown", "exit"] and worker.error is not None
        assert worker.set_up is (step is fail) and not worker.stuck
        seen.clear()


def test_a_defect_in_the_teardown_is_an_error_and_hides_no_other(caplog):
    def spoil() -> None:
        raise ZeroDivisionError("defect")

    def fail() -> None:
        raise EngineError("gone", "restart")

    ended = []
    with Worker("w", lambda: None, teardown=spoil, on_exit=lambda: ended.append("exit")) as worker:
        pass
    assert isinstance(worker.error, ZeroDivisionError) and ended == ["exit"]
    with Worker("w", fail, teardown=spoil) as worker:
        eventually(lambda: not worker.alive)
    assert isinstance(worker.error, EngineError) and "defect" in caplog.text


def test_an_expected_error_is_one_line_and_a_defect_has_its_traceback(caplog):
    def fail(error: Exception) -> Worker:
        def step() -> None:
            raise error

        with Worker("w", step) as worker:
            eventually(lambda: not worker.alive)
        return worker

    with caplog.at_level(logging.ERROR):
        assert isinstance(fail(EngineError("the engine went away", "restart")).error, EngineError)
        assert isinstance(fail(ZeroDivisionError("defect")).error, ZeroDivisionError)
    expected, defect = caplog.records
    assert expected.exc_info is None and "restart" in expected.getMessage()
    assert defect.exc_info is not None
