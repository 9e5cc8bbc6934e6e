"""Signals in the first tenths of a second, while the settings are still being read."""

import contextlib
import os
import signal
from types import MappingProxyType

import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import eventually
from tests.fakes.service_manager import ServiceManager

SETTINGS = {"CAMERAS__A__URI": "test://one?fps=10", "MQTT__PORT": 9}


class Reading:
    """An agent that waits while it reads its env file, a pipe to which nothing has been written yet."""

    def __init__(self, folder, environ=MappingProxyType({})):
        self._pipe = folder / "agent.env"
        os.mkfifo(self._pipe)
        settings = {**SETTINGS, "ENV_FILE": self._pipe}
        self.agent = AgentProcess(settings, folder / "state", environ=environ)

    def __enter__(self):
        self.agent.__enter__()
        eventually(self._opened, "it reads its settings")
        return self

    def __exit__(self, *error):
        self.go_on()
        self.agent.__exit__(*error)

    def send(self, number):
        self.agent.process.send_signal(number)

    def go_on(self):
        """Write its settings to the pipe, and replace the pipe by a file."""
        if self._file is not None:
            self._pipe.unlink()
            self._pipe.touch()
            os.close(self._file)
            self._file = None

    def _opened(self):
        # Opening it for writing fails until somebody reads.
        with contextlib.suppress(OSError):
            self._file = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
            return True
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_early_stop_is_an_ordered_stop(tmp_path, number):
    with Reading(tmp_path) as reading:
        reading.send(number)
        reading.go_on()
        assert reading.agent.wait() == 0
        assert "stop requested before the start" in reading.agent.log and "Traceback" not in reading.agent.log


def test_a_second_early_stop_is_at_once(tmp_path):
    with Reading(tmp_path) as reading:
        # Two that come at once may be taken for one.
        eventually(lambda: reading.send(signal.SIGTERM) or reading.agent.process.poll() is not None)
        assert reading.agent.wait() == 128 + signal.SIGTERM


def test_an_early_hangup_is_a_reload_once_it_runs(tmp_path):
    with ServiceManager(str(tmp_path / "notify")) as manager:
        with Reading(tmp_path, manager.environ) as reading:
            reading.send(signal.SIGHUP)
            reading.go_on()
            eventually(lambda: "settings read again" in reading.agent.log)
            reading.agent.stop()
            assert reading.agent.process.returncode == 0
        states = [state for state in manager.states() if state != "EXTEND_TIMEOUT_USEC"]
        assert states == ["READY", "RELOADING", "READY", "STOPPING"]
