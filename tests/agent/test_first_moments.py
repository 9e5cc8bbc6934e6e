"""Signals in the first tenths of a second, when settings are read and parts are built."""

import signal
from pathlib import Path

import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import eventually
from tests.fakes.service_manager import ServiceManager

SETTINGS = {"CAMERAS__A__URI": "test://one?fps=10", "MQTT__PORT": 9}


def listens(agent):
    """Whether the process has all of its handlers, as the kernel sees it: SIGHUP's is the last."""
    status = Path(f"/proc/{agent.process.pid}/status").read_text("ascii")
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
    return bool(caught >> (signal.SIGHUP - 1) & 1)


def at_the_first_moment(agent, number):
    """Send it as soon as there is a handler."""
    eventually(lambda: listens(agent), "a handler")
    assert "node n, boot" not in agent.log, "it is still being built"
    agent.process.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_early_stop_is_an_ordered_stop(tmp_path, number):
    with AgentProcess(SETTINGS, tmp_path) as agent:
        at_the_first_moment(agent, number)
        assert agent.wait() == 0
        assert "asked to stop before the start" in agent.log and "Traceback" not in agent.log


def test_an_early_hangup_is_a_reload_once_it_runs(tmp_path):
    with ServiceManager(str(tmp_path / "notify")) as manager:
        with AgentProcess(SETTINGS, tmp_path / "state", environ=manager.environ) as agent:
            at_the_first_moment(agent, signal.SIGHUP)
            eventually(lambda: "settings read again" in agent.log)
            agent.stop()
            assert agent.process.returncode == 0
        states = [state for state in manager.states() if state != "EXTEND_TIMEOUT_USEC"]
        assert states == ["READY", "RELOADING", "READY", "STOPPING"]


def test_a_second_stop_is_at_once_also_while_it_is_built(tmp_path):
    with AgentProcess({**SETTINGS, "CAMERAS__A__URI": "test://one?size=8000x8000"}, tmp_path) as agent:
        at_the_first_moment(agent, signal.SIGTERM)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.wait() in (0, 128 + signal.SIGTERM)
