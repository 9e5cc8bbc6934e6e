"""TensorRT 8.2 in a worker process of another Python, as on JetPack 4: its outputs, and every way it can fail."""

import ast
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Set

import numpy as np
import pytest

from edge_agent.core.frame import Image
from edge_agent.errors import EngineError, MissingPackage, ModelError
from edge_agent.inference import EngineParams, open_engine
from edge_agent.inference.ort import OrtEngine
from edge_agent.inference.preprocess import golden_image
from edge_agent.inference.trt import worker_backend
from edge_agent.inference.trt.find import open_backend
from edge_agent.inference.trt.network import read_network
from edge_agent.inference.trt.process import PROGRAM, WorkerError, WorkerProcess
from tests.fakes import graphs
from tests.fakes.gpu import calibration
from tests.fakes.jetpack4 import FAKES, PACKAGE, JetPack4, interpreter
from tests.fakes.tensorrt import ATTRIBUTES
from tests.fakes.waiting import eventually

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")

PATIENCE_S = 30.0


@pytest.fixture(params=["3.6", "this"])
def either(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JetPack4:
    made = JetPack4(tmp_path, request.param)
    made.plug_in(monkeypatch)
    return made


@pytest.fixture
def jetpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JetPack4:
    made = JetPack4(tmp_path)
    made.plug_in(monkeypatch)
    return made


def opened(jetpack: JetPack4, path: Path, **params: Any) -> Any:
    options: Dict[str, Any] = {"backend": "tensorrt", "tensorrt_python": jetpack.python, **params}
    return open_engine(EngineParams(model=str(path), **options), path.parent)


def images() -> Any:
    yield golden_image()
    for width, height in ((640, 480), (1280, 800), (480, 640), (640, 480)):
        y, x = np.mgrid[:height, :width]
        blob = np.exp(-((x - width / 3) ** 2 + (y - height / 2) ** 2) / (width * 8.0))
        yield Image(np.clip(40 + 215 * blob, 0, 255).astype(np.uint8))


def gone(pid: int) -> bool:
    """True when the process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("make", [graphs.gridbox, graphs.centerface])
def test_the_worker_has_the_outputs_of_onnxruntime(either: JetPack4, tmp_path: Path, make: Any) -> None:
    path = make(tmp_path / "m.onnx")
    contract = read_network(str(path), tmp_path).contract
    engine, other = opened(either, path), OrtEngine(path, contract)
    assert (engine.info.backend, engine.info.precision) == ("tensorrt", "fp16")
    assert engine.info.detail["gpu"] == "NVIDIA Tegra X1"
    assert engine.info.detail["version"] == "8.2.1.8"
    for image in images():
        answers, expected = engine.infer(image), other.infer(image)
        assert sorted(answers) == sorted(expected)
        for role, value in expected.items():
            np.testing.assert_allclose(answers[role], value, atol=0.003, rtol=0.003)
    engine.close()
    engine.close()


def test_int8_with_a_calibration_as_on_a_xavier(
    jetpack: JetPack4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetpack.plug_in(monkeypatch, "int8")
    path = graphs.gridbox(tmp_path / "m.onnx")
    names = ("cells", "logits", "output_cov/Sigmoid", "output_bbox/BiasAdd")
    cache = calibration(tmp_path / "c.txt", [("input_1:0", 1 / 127), *((f"{name}:0", 0.1) for name in names)])
    engine = opened(jetpack, path, calibration=str(cache))
    assert engine.info.precision == "int8"
    exact = engine.infer(golden_image())["cov"].copy()
    engine.close()
    engine = opened(jetpack, path, calibration=str(cache), precision="fp32")
    assert engine.info.precision == "fp32"
    assert not np.array_equal(engine.infer(golden_image())["cov"], exact)
    engine.close()
    with pytest.raises(ModelError, match="DLA"):
        opened(jetpack, path, calibration=str(cache), dla_core=0)


def test_the_engine_is_built_once(jetpack: JetPack4, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = graphs.gridbox(tmp_path / "m.onnx")
    opened(jetpack, path).close()
    assert "building engine" in caplog.text
    caplog.clear()
    opened(jetpack, path).close()
    assert "engine from the cache" in caplog.text and "building engine" not in caplog.text
    (plan,) = (tmp_path / "cache" / "engines").glob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-1])
    opened(jetpack, path).close()
    assert "it is damaged" in caplog.text


def test_8_0_has_no_inspector(jetpack: JetPack4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_VERSION", "8.0.1.6")
    engine = opened(jetpack, graphs.gridbox(tmp_path / "m.onnx"))
    assert engine.info.precision == "fp16" and engine.info.detail["layers"] == "not reported"
    engine.close()


def test_without_tensorrt_here_jetpacks_python_is_found(jetpack: JetPack4, tmp_path: Path) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("needs a machine without TensorRT: it is installed here")
    backend = open_backend(None, {}, Path(jetpack.python))
    assert (backend.gpu, backend.version, backend.worker) == ("NVIDIA Tegra X1", "8.2.1.8", jetpack.python)
    backend.close()
    for other in ("nowhere", "/bin/false"):
        with pytest.raises(MissingPackage, match="tensorrt cannot be imported: No module named"):
            open_backend(None, {}, Path(other))


def test_auto_takes_the_worker_that_the_settings_name(
    jetpack: JetPack4, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    started = []
    monkeypatch.setattr(worker_backend, "WorkerProcess", lambda python: started.append(python) or WorkerProcess(python))
    engine = opened(jetpack, graphs.gridbox(tmp_path / "m.onnx"), backend="auto")
    assert (engine.info.backend, engine.info.detail["worker"]) == ("tensorrt", jetpack.python)
    assert "auto: TensorRT is installed, and NVIDIA Tegra X1 answers" in caplog.text
    assert started == [jetpack.python]
    engine.close()


@pytest.mark.parametrize(
    ("fault", "kind", "why"),
    [
        ("start", EngineError, "TensorRT does not start: CUDA initialization failure.*error: 2.*stop other programs"),
        ("parse", ModelError, "No importer registered for op: Foo"),
        ("build", ModelError, "cannot build model m.onnx: 10: Could not find any implementation"),
        ("take", EngineError, "cannot load the engine: 1:.*out of memory.*stop other programs"),
        ("context", EngineError, "no execution context: 2: out of memory"),
        ("enqueue", EngineError, "did not run the network.*illegal memory access.*only a restart"),
        ("wrong", EngineError, "answers wrongly"),
        ("crash", EngineError, "run: killed by signal 11"),
    ],
)
def test_a_failure_in_the_worker_is_an_error_in_the_agent(
    jetpack: JetPack4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, kind: Any, why: str
) -> None:
    jetpack.plug_in(monkeypatch, fault)
    with pytest.raises(kind, match=why):
        opened(jetpack, graphs.gridbox(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("cuInit:100", "cuInit: no CUDA-capable device is detected.*groups video and render"),
        ("cuMemAlloc_v2:2", "cuMemAlloc_v2: out of memory.*stop other programs"),
        ("cuEventSynchronize:700", "an illegal memory access was encountered.*only a restart"),
    ],
)
def test_a_failure_of_the_driver_is_an_error(
    jetpack: JetPack4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, why: str
) -> None:
    monkeypatch.setenv("FAKE_CUDA_FAIL", rule)
    with pytest.raises(EngineError, match=why):
        opened(jetpack, graphs.gridbox(tmp_path / "m.onnx"))


def test_missing_parts_of_jetpack_are_named(jetpack: JetPack4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx")
    for python, why in (
        (str(tmp_path / "nowhere"), "nowhere cannot be run: No such file.*python3-libnvinfer"),
        ("/bin/false", "/bin/false does not run TensorRT's worker: exit code 1"),
        ("/bin/cat", "/bin/cat does not run TensorRT's worker"),
    ):
        with pytest.raises(MissingPackage, match=why):
            opened(jetpack, path, tensorrt_python=python)
    monkeypatch.setenv("FAKE_TRT_VERSION", "10.3.0")
    with pytest.raises(MissingPackage, match=r"has TensorRT 10\.3\.0, and the worker is for 8"):
        opened(jetpack, path)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (site / "jetpack.pth").unlink()
    with pytest.raises(MissingPackage, match=r"tensorrt cannot be imported by .*No module named"):
        opened(jetpack, path)


def test_a_crashed_worker_is_an_engine_error_and_leaves_no_zombie(jetpack: JetPack4, tmp_path: Path) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx")
    engine = opened(jetpack, path)
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="run: killed by signal 9"):
        engine.infer(golden_image())
    assert not children()
    with pytest.raises(EngineError, match="killed by signal 9"):
        engine.infer(golden_image())
    engine.close()
    engine = opened(jetpack, path)
    assert engine.infer(golden_image())["cov"].shape == (1, 15, 24)
    engine.close()
    assert not children()


def test_a_hanging_worker_is_killed_at_the_deadline(
    jetpack: JetPack4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetpack.plug_in(monkeypatch, "slow-build")
    worker = WorkerProcess(jetpack.python)
    worker.request("parse", PATIENCE_S, graphs.gridbox(tmp_path / "m.onnx").read_bytes())
    before = open_files()
    with pytest.raises(EngineError, match=r"build: no answer within 0\.2 s; it was killed"):
        worker.request("build", 0.2, precision="fp32", workspace_bytes=1, shapes=[])
    assert not children()
    worker.close()
    assert open_files() == before - 2  # socket and memory


def test_the_worker_is_usable_after_an_error_answer(jetpack: JetPack4) -> None:
    worker = WorkerProcess(jetpack.python)
    with pytest.raises(WorkerError, match="cannot load the engine"):
        worker.request("load", PATIENCE_S, b"no plan", tensors=[])
    worker.request("unload", PATIENCE_S)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the agent, which ends it in order
        os.kill(worker.pid, number)
    worker.request("unload", PATIENCE_S)
    worker.close()
    assert gone(worker.pid) and not children()


def test_another_protocol_is_an_error(tmp_path: Path, jetpack: JetPack4) -> None:
    other = tmp_path / "python"
    text = PROGRAM.read_text().replace("\nPROTOCOL = 1\n", "\nPROTOCOL = 2\n")
    (tmp_path / "worker.py").write_text(text)
    other.write_text(f'#!/bin/sh\nexec "{jetpack.python}" -I "{tmp_path}/worker.py" "$3" "$4"\n')
    other.chmod(0o755)
    with pytest.raises(EngineError, match="uses protocol 2, this agent 1"):
        WorkerProcess(str(other))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


AGENT = """
import sys
from edge_agent.inference.trt.process import WorkerProcess
worker = WorkerProcess(sys.argv[1])
worker.request("parse", 60, open(sys.argv[2], "rb").read())
print(worker.pid, flush=True)
worker.request("build", 60, precision="fp32", workspace_bytes=1, shapes=[])
"""


@pytest.mark.parametrize("which", ["3.6", "this"])
def test_the_worker_ends_with_the_agent_even_during_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    jetpack = JetPack4(tmp_path, which)
    jetpack.plug_in(monkeypatch, "slow-build")
    model = graphs.gridbox(tmp_path / "m.onnx")
    command = [sys.executable, "-c", AGENT, jetpack.python, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=str(FAKES.parents[1])) as agent:
        pid = int(agent.stdout.readline())  # type: ignore[union-attr]
        assert not gone(pid)
        agent.kill()
    try:
        eventually(lambda: gone(pid), "the worker has ended")
    finally:
        if not gone(pid):
            os.kill(pid, signal.SIGKILL)


def test_the_worker_is_python_3_6() -> None:
    python = interpreter("3.6")
    code = f"compile(open({str(PROGRAM)!r}).read(), 'worker', 'exec')"
    subprocess.run([python, "-I", "-c", code], check=True)


def test_the_fake_offers_nothing_that_8_2_lacks() -> None:
    """Compared with the lists that `test_drift` compares with the real bindings."""
    real = ATTRIBUTES["8.2"]
    seen: Set[str] = set()
    for node in ast.parse((PACKAGE / "tensorrt.py").read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name in real:
            names = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            names |= {target.id for part in node.body if isinstance(part, ast.Assign) for target in part.targets
                      if isinstance(target, ast.Name)}  # fmt: skip
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in real:
            names = {entry.value for entry in node.value.args[1].elts}  # type: ignore[attr-defined]
        else:
            continue
        kind = node.name if isinstance(node, ast.ClassDef) else node.targets[0].id  # type: ignore[attr-defined]
        seen.add(kind)
        assert {name for name in names if not name.startswith("_")} <= real[kind], kind
    assert len(seen) >= 12


def children() -> Set[int]:
    """Process ids of this process's workers, zombies included."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in pids if "trt/worker.py" in Path(f"/proc/{pid}/cmdline").read_text() or gone(int(pid))}
