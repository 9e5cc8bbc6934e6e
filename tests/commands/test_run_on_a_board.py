"""`edge-agent run` with the TensorRT backend, in its own process: each fault is one line with the right exit code."""

from contextlib import ExitStack
from typing import Dict, Iterator

import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.board_faults import FAULTS, settings_of
from tests.fakes.board_modules import environment
from tests.fakes.broker import eventually

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")


# The kinds; their varieties are tried by `test_board_table`, without a process each.
NAMES = (
    "no GPU",
    "wrong driver",
    "no memory",
    "unwritable cache",
    "truncated engine",
    "foreign engine",
    "another model's calibration",
    "a missing converter",
)


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict[str, AgentProcess]]:
    """Started together, because each takes long to start."""
    started = {}
    with ExitStack() as stack:
        for name in NAMES:
            fault, folder = FAULTS[name], tmp_path_factory.mktemp("board")
            environ = environment(folder, **fault.board)
            settings = {
                "CAMERAS__A__URI": "test://one?fps=10",
                "OUTBOX__STORE": "memory",
                **settings_of(fault, folder),
            }
            fault.prepare(folder)
            process = AgentProcess(settings, folder / "state", scripted=False, environ=environ)
            started[name] = stack.enter_context(process)
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_is_one_line_with_the_right_exit_code(agents: Dict[str, AgentProcess], name: str) -> None:
    fault, agent = FAULTS[name], agents[name]
    if fault.repaired:  # and it goes on
        eventually(lambda: "ready: " in agent.log, "it works", deadline_s=60)
        agent.stop()
    assert agent.wait(60) == (0 if fault.repaired else 1)
    reported = [line for line in agent.log.splitlines() if fault.line in line]
    assert len(reported) == 1 and fault.hint in reported[0], agent.log
    assert "Traceback" not in agent.log
    assert ("verified with the golden image" in agent.log) == fault.repaired
