"""`edge-agent run` with TensorRT asked for, as its own process: what is wrong is one line, and the exit is right."""

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest

from edge_agent.inference.trt_source import read_network
from tests.fakes.agent import AgentProcess
from tests.fakes.board_modules import environment
from tests.fakes.broker import eventually
from tests.fakes.gpu import FakeBoard
from tests.inference import graphs

pytest.importorskip("onnxruntime", reason="the fake TensorRT needs it: pip install onnxruntime")


def no_gpu(folder: Path) -> Dict[str, Any]:
    return {"gpu": {"devices": 0}}


def wrong_driver(folder: Path) -> Dict[str, Any]:
    return {"cuda_fails": {"cuInit": "system has unsupported display driver / cuda driver combination"}}


def no_memory(folder: Path) -> Dict[str, Any]:
    return {"gpu": {"memory_bytes": 200_000}}


def unwritable_cache(folder: Path) -> Dict[str, Any]:
    (folder / "cache").write_text("a file where a folder should be")
    return {}


def truncated_engine(folder: Path) -> Dict[str, Any]:
    plan = built(folder)
    plan.write_bytes(plan.read_bytes()[:-100])
    return {}


def foreign_engine(folder: Path) -> Dict[str, Any]:
    """Whole by its manifest, and yet TensorRT does not take it, as after a copy from another machine."""
    plan = built(folder)
    data = plan.read_bytes().replace(b"10.3.0", b"10.4.0")
    plan.write_bytes(data)
    manifest = json.loads(plan.with_suffix(".json").read_text())
    manifest["plan_sha256"] = hashlib.sha256(data).hexdigest()
    plan.with_suffix(".json").write_text(json.dumps(manifest))
    return {}


def built(folder: Path) -> Path:
    """The engine that the process will look for."""
    board = FakeBoard(folder)
    board.open(read_network(str(graphs.gridbox(folder / "m.onnx")), folder)).engine.close()
    (plan,) = board.engines()
    return plan


CASES: Dict[str, Tuple[Callable[[Path], Dict[str, Any]], int, str]] = {
    "no GPU": (
        no_gpu,
        1,
        "CUDA: opening the GPU: cuInit failed: no CUDA-capable device is detected (is there an",
    ),
    "wrong driver": (wrong_driver, 1, "unsupported display driver / cuda driver combination (reboot after a driver up"),
    "no memory": (no_memory, 1, "out of memory (stop other programs on the GPU"),
    "unwritable cache": (unwritable_cache, 1, "Not a directory (expected a folder that the agent may write: CacheDir"),
    "truncated engine": (truncated_engine, 0, "building engine"),
    "foreign engine": (foreign_engine, 0, "is not compatible with this version of TensorRT"),
}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict[str, AgentProcess]]:
    """All at once, for they take their time to start."""
    started = {}
    with ExitStack() as stack:
        for name, (prepare, _, _) in CASES.items():
            folder = tmp_path_factory.mktemp("board")
            environ = environment(folder, **prepare(folder))
            settings = {
                "CAMERAS__A__URI": "test://one?fps=10",
                "MODEL__BACKEND": "tensorrt",
                "MODEL__MODEL": graphs.gridbox(folder / "m.onnx"),
                "OUTBOX__STORE": "memory",
            }
            process = AgentProcess(settings, folder / "state", scripted=False, environ=environ)
            started[name] = stack.enter_context(process)
        yield started


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_one_line_and_the_exit_is_right(agents: Dict[str, AgentProcess], name: str) -> None:
    _, code, line = CASES[name]
    agent = agents[name]
    if code == 0:  # it was repaired, and goes on
        eventually(lambda: "ready: " in agent.log, "it works", deadline_s=60)
        agent.stop()
    assert agent.wait(60) == code
    telling = [each for each in agent.log.splitlines() if line in each]
    assert len(telling) == 1, agent.log
    assert "Traceback" not in agent.log
    assert ("proven with the golden picture" in agent.log) == (code == 0)
