"""What is reported to the service manager and when: readiness, watchdog, reload and stop."""

import sys
import threading
import time
from contextlib import ExitStack

import pytest

from edge_agent.errors import EngineError
from edge_agent.runtime.supervisor import LONGEST_SILENCE_S, Supervisor, exit_code
from edge_agent.runtime.worker import Worker
from tests.fakes.waiting import eventually

IDLE = threading.Event()
"""Never set: a step waits on it for a bounded time, as steps do."""


class Manager:
    """Records its calls."""

    def __init__(self):
        self.calls = []

    def ready(self, status):
        self.calls.append(("ready", status))

    def status(self, status):
        self.calls.append(("status", status))

    def reloading(self):
        self.calls.append(("reloading", ""))

    def stopping(self):
        self.calls.append(("stopping", ""))

    def alive(self):
        self.calls.append(("alive", ""))

    def extend(self, seconds):
        self.calls.append(("extend", seconds))

    def names(self):
        return [word for word, _ in list(self.calls)]


class Stage:
    """What the supervisor needs of a capture stage; counts how often the supervisor has read it."""

    def __init__(self):
        self.first_open_done = False
        self.end = False
        self.rounds = self.checks = 0

    @property
    def ended(self):
        self.rounds += 1
        return self.end

    def check(self):
        self.checks += 1


class Rig:
    """Workers whose setup and steps wait for gates; the supervisor runs in a thread of its own."""

    def __init__(self, names=("publish", "infer", "capture-door"), deadline_s=0.3, others=()):
        self.manager, self.stage = Manager(), Stage()
        self.engine_open, self.hang = threading.Event(), threading.Event()
        self.reloads = []
        self.supervisor = Supervisor(
            {"door": self.stage},
            self.manager,
            lambda: "how it goes",
            lambda: self.reloads.append(len(self.reloads)),
            others,
        )
        self.release = threading.Event()
        self.workers = [self._worker(name, deadline_s) for name in names]
        self._thread = threading.Thread(target=self.supervisor.watch, args=(self.workers,), daemon=True)

    def _worker(self, name, deadline_s):
        def step():
            if name == "infer" and self.hang.is_set():
                self.release.wait(20)
            IDLE.wait(0.01)

        def setup():
            if name == "infer":
                self.engine_open.wait(20)

        return Worker(
            name,
            step,
            setup,
            on_exit=self.supervisor.wake,
            stop_within_s=0.2,
            deadline_s=deadline_s,
        )

    def __enter__(self):
        self._stack = ExitStack()
        for worker in self.workers:
            self._stack.enter_context(worker)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.engine_open.set()
        self.release.set()
        self.supervisor.request_stop()
        self._thread.join(5)
        self._stack.close()
        assert not self._thread.is_alive()


def wait_for_reports(rig, count):
    """Wait for so many reports of the supervisor."""
    for _ in range(count):
        before = len(rig.manager.calls)
        rig.supervisor.wake()
        eventually(lambda before=before: len(rig.manager.calls) > before, "it notifies at every check")


def rounds(rig, count):
    """Let the supervisor complete so many rounds, whether it reports anything or not."""
    for _ in range(count + 1):  # the first may have begun before
        before = rig.stage.rounds
        rig.supervisor.wake()
        eventually(lambda before=before: rig.stage.rounds > before, "the supervisor goes on")


def test_ready_waits_for_the_engine_and_for_each_cameras_first_attempt():
    with Rig() as rig:
        wait_for_reports(rig, 3)
        assert set(rig.manager.names()) == {"extend", "status"}, "an engine that is being built asks for time"
        assert ("status", "starting: infer") in rig.manager.calls
        rig.engine_open.set()
        eventually(lambda: ("status", "starting: opening door") in rig.manager.calls, deadline_s=5)
        extended = rig.manager.names().count("extend")
        rounds(rig, 2)
        assert rig.manager.names().count("extend") == extended, "a camera whose first open hangs gets no more time"
        assert "ready" not in rig.manager.names() and "alive" not in rig.manager.names()
        rig.stage.first_open_done = True
        rig.supervisor.wake()
        eventually(lambda: "alive" in rig.manager.names())
        assert rig.manager.calls.count(("ready", "how it goes")) == 1
    assert rig.manager.names()[-1] == "stopping"


def test_cameras_are_checked_for_hung_calls_from_the_start_on():
    with Rig() as rig:
        rounds(rig, 2)
        assert rig.stage.checks and "ready" not in rig.manager.names()
        ready(rig)
        before = rig.stage.checks
        rounds(rig, 2)
        assert rig.stage.checks > before


def test_progress_is_shown_while_starting():
    with Rig() as rig:
        wait_for_reports(rig, 1)
        rig.supervisor.progress("still building, 15 s")
        eventually(lambda: ("status", "starting: still building, 15 s") in rig.manager.calls)
        extended = rig.manager.names().count("extend")
        wait_for_reports(rig, 1)
        assert rig.manager.names().count("extend") > extended


def test_an_engine_without_progress_for_long_gets_no_more_time(monkeypatch):
    with Rig() as rig:
        wait_for_reports(rig, 1)
        ahead_s = [LONGEST_SILENCE_S]
        now = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: now() + ahead_s[0])
        rig.supervisor.progress("the only line")  # its changed status line marks a check that the test can wait for
        eventually(lambda: ("status", "starting: the only line") in rig.manager.calls)
        assert "extend" in rig.manager.names()
        ahead_s[0] = 2 * LONGEST_SILENCE_S + 1
        calls = list(rig.manager.calls)
        rounds(rig, 2)
        assert rig.manager.calls == calls


def ready(rig):
    rig.engine_open.set()
    rig.stage.first_open_done = True
    eventually(lambda: "alive" in rig.manager.names(), deadline_s=5)


def test_the_watchdog_is_fed_while_all_return_and_never_while_one_does_not():
    with Rig() as rig:
        ready(rig)
        wait_for_reports(rig, 5)
        rig.hang.set()
        eventually(lambda: ("status", "infer does not return") in rig.manager.calls, deadline_s=5)
        assert rig.supervisor.faults == ["infer does not return"]
        fed = rig.manager.names().count("alive")
        rounds(rig, 5)
        assert rig.manager.names().count("alive") == fed
        rig.hang.clear()
        rig.release.set()
        eventually(lambda: rig.manager.names().count("alive") > fed, "it came back before the watchdog struck")
        eventually(lambda: rig.manager.calls[-1] != ("status", "infer does not return"))
        assert rig.supervisor.faults == []
        assert rig.manager.names().count("ready") == 1


def test_a_setup_may_take_longer_than_a_step():
    with Rig(deadline_s=0.05) as rig:
        infer = rig.workers[1]
        assert infer.alive and not infer.set_up
        assert infer.overdue_s(time.monotonic() + 0.2) == 0.0
        ready(rig)


def test_an_overdue_thread_of_an_adapter_stops_feeding_the_watchdog_too():
    class Other:
        name, late_s = "mqtt", 0.0

        def overdue_s(self, t):
            return self.late_s

    other = Other()
    with Rig(others=[other]) as rig:
        ready(rig)
        other.late_s = 1.0
        eventually(lambda: ("status", "mqtt does not return") in rig.manager.calls)
        fed = rig.manager.names().count("alive")
        rounds(rig, 5)
        assert rig.manager.names().count("alive") == fed
        other.late_s = 0.0
        eventually(lambda: rig.manager.names().count("alive") > fed, "fed again")


def test_a_reload_is_framed_and_only_after_the_start():
    with Rig() as rig:
        rig.supervisor.request_reload()
        wait_for_reports(rig, 2)
        assert rig.reloads == []
        ready(rig)
        eventually(lambda: rig.reloads == [0], "it was not forgotten")
        rig.supervisor.request_reload()
        eventually(lambda: rig.reloads == [0, 1])
        eventually(lambda: rig.manager.names().count("ready") == 3)
        words = [word for word in rig.manager.names() if word in ("ready", "reloading")]
        assert words == ["ready", "reloading", "ready", "reloading", "ready"]


@pytest.mark.parametrize("engine_is_open", [False, True])
def test_a_stop_may_leave_an_engine_behind_but_not_the_publisher(engine_is_open):
    with Rig() as rig:
        if engine_is_open:
            ready(rig)
            rig.hang.set()
            eventually(lambda: ("status", "infer does not return") in rig.manager.calls, deadline_s=5)
        rig.supervisor.request_stop()
        rig.workers[1].__exit__(None, None, None)
        assert rig.workers[1].stuck
        assert exit_code(rig.workers, rig.workers[0]) == 0
        assert exit_code(rig.workers, rig.workers[1]) == int(engine_is_open), "what it held may be lost"


def test_a_reason_to_restart_ends_it_but_not_before_it_is_ready():
    manager, stage = Manager(), Stage()
    supervisor = Supervisor({"door": stage}, manager, str, list, recovery=lambda t: "no memory")
    worker = Worker("infer", lambda: IDLE.wait(0.01), on_exit=supervisor.wake)
    with worker:
        watching = threading.Thread(target=supervisor.watch, args=([worker],))
        watching.start()
        eventually(lambda: ("status", "starting: opening door") in manager.calls, deadline_s=5)
        assert supervisor.restart_reason is None
        stage.first_open_done = True
        supervisor.wake()
        watching.join(10)
    assert supervisor.restart_reason == "no memory" and manager.names()[-2:] == ["alive", "stopping"]


@pytest.mark.parametrize("error, code", [(EngineError("gone", "restart"), 1), (None, 0)])
def test_it_ends_with_a_failed_worker_and_with_the_last_source(error, code):
    manager, stage = Manager(), Stage()
    supervisor = Supervisor({"door": stage}, manager, str, list)

    def step():
        if error is not None:
            raise error
        stage.end = True
        IDLE.wait(0.01)

    with Worker("infer", step, on_exit=supervisor.wake) as worker:
        supervisor.watch([worker])
    assert manager.names()[-1] == "stopping"
    assert exit_code([worker], worker) == code


def test_a_signal_at_any_line_of_the_watch_does_not_stop_it():
    rig = Rig()
    lines = []

    def interrupt(frame, event, argument):
        lines.append(frame.f_code.co_name)
        rig.supervisor.request_reload()
        if len(lines) > 500:
            rig.supervisor.request_stop()
        return interrupt

    def watch():
        sys.settrace(interrupt)
        rig.supervisor.watch([])

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    watching.join(10)
    assert not watching.is_alive(), f"a handler waits for what {lines[-1]} holds"
