"""`scripts/gpu-check` in short, on the fake GPU with the kernel's twin; it detects every kind of fault."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest

from edge_agent.inference.cuda.compiler import KernelCache
from scripts.lib.gpu_check import checks, run
from scripts.lib.gpu_check.checks import FAIL, NOTE, OK, Bench, Row
from tests.fakes import graphs
from tests.fakes.gpu import FakeBoard
from tests.fakes.kernel_twin import TwinCompiler, spans, twin_image
from tests.fakes.libcuda import FakeDriverLibrary
from tests.fakes.pycuda import FakeCuda
from tests.fakes.tensorrt import BOARDS

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu-check"


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda(spans=spans, memory_bytes=1 << 31)


def bench(cuda: Any, folder: Path, compiler: Any = TwinCompiler) -> Bench:
    return Bench(cuda, KernelCache(folder, compiler), 60, np.random.default_rng(1), copy_bytes=1 << 16, launches=3)


def states(rows: Iterator[Row]) -> Dict[str, str]:
    found = {name: state for name, state, _ in rows}
    assert found
    return found


@pytest.mark.slow
def test_a_sound_gpu_passes(cuda: FakeCuda, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with FakeDriverLibrary(cuda) as library:
        assert run.report(run.rows(bench(cuda, tmp_path), iter([("engine", NOTE, "none")]))) == 0
    out = capsys.readouterr().out
    assert "nothing failed (19 checks)" in out
    assert [line.split()[0] for line in out.splitlines()[:15]] == [OK] * 15
    cuda.assert_clean()
    assert library.registered == {}


@pytest.mark.slow
def test_only_modes_of_the_gpu_are_tried(tmp_path: Path) -> None:
    for board, state in (("nano", (NOTE, NOTE, NOTE)), ("t4", (OK, NOTE, OK)), ("xavier-nx", (OK, OK, OK))):
        what = BOARDS[board]
        cuda = FakeCuda(spans=spans, capability=what.capability, integrated=what.integrated)
        with FakeDriverLibrary(cuda):
            found = states(checks.camera_memory(bench(cuda, tmp_path / board)))
        assert tuple(found.values()) == state
        cuda.assert_clean()


def test_cameras_memory_that_the_gpu_refuses_is_a_failed_row(cuda: FakeCuda, tmp_path: Path) -> None:
    cuda.fail["cuMemHostRegister"] = "operation not supported"
    with FakeDriverLibrary(cuda):
        rows = list(checks.camera_memory(bench(cuda, tmp_path)))
    assert all(state == FAIL and "operation not supported" in found for _, state, found in rows)
    cuda.assert_clean()


class MixedUp(FakeDriverLibrary):
    """Shows the GPU another camera buffer than the one that it was asked for."""

    def _pointer(self, pointer: Any, address: int, flags: int) -> int:
        return super()._pointer(pointer, next(iter(self.registered)), flags)


def test_memory_that_is_not_the_cameras_fails(cuda: FakeCuda, tmp_path: Path) -> None:
    with MixedUp(cuda):
        rows = list(checks.camera_memory(bench(cuda, tmp_path)))
    assert all(state == FAIL and "other pixels" in found for _, state, found in rows)


class Skewed:
    """Compiles a kernel that is half a pixel off."""

    def compile(self, source: Path, sm: str, scratch: Path) -> bytes:
        folder = scratch / "skewed"
        folder.mkdir()
        for name in ("preprocess.cuh", "preprocess_twin.cpp"):
            text = source.with_name(name).read_text()
            (folder / name).write_text(text.replace("(2 * at + 1) * source - inner", "2 * at * source"))
        target = scratch / "skewed.so"
        command = ["g++", "-std=c++14", "-O2", "-shared", "-fPIC", "-o", str(target)]
        subprocess.run([*command, str(folder / "preprocess_twin.cpp")], check=True)
        return target.read_bytes()


def test_a_wrong_kernel_fails(cuda: FakeCuda, tmp_path: Path) -> None:
    twin_image()  # skips where there is no compiler
    found = states(checks.kernel(bench(cuda, tmp_path, Skewed)))
    assert found["kernel, linear"] == FAIL and found["kernel, area"] == OK


class Leaky(FakeCuda):
    """Loses memory at every call of one kind."""

    leak = ""
    lost = 0

    def check(self, api: str) -> None:
        super().check(api)
        self.lost += (1 << 18) * (api == self.leak)

    def mem_get_info(self) -> Tuple[int, int]:
        free, total = super().mem_get_info()
        return free - self.lost, total


@pytest.mark.parametrize(("leak", "frames", "starts"), [("cuLaunchKernel", FAIL, FAIL), ("cuStreamCreate", OK, FAIL)])
def test_a_leak_fails(tmp_path: Path, leak: str, frames: str, starts: str) -> None:
    cuda = Leaky(spans=spans)
    cuda.leak = leak
    found = states(checks.leaks(bench(cuda, tmp_path), lambda line: None))
    assert found == {"leaks: 60 frames": frames, "leaks: 50 starts": starts}


def test_a_check_that_breaks_off_is_a_failed_row_and_the_others_go_on(
    cuda: FakeCuda, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cuda.fail = {"cuLaunchKernel": "unspecified launch failure"}
    assert run.report(run.rows(bench(cuda, tmp_path), iter([("engine", OK, "")]))) == 1
    out = capsys.readouterr().out
    assert "FAIL  kernel" in out and "launch failure" in out
    assert out.count("FAIL") == 6 and "6 of 9 checks failed" in out
    cuda.assert_clean()


@pytest.mark.slow
@pytest.mark.parametrize(("version", "board"), [("8.2", "nano"), ("10.3", "orin"), ("11.4", "thor")])
def test_engines_where_tensorrt_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, board: str) -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")
    fake = FakeBoard(tmp_path, version, board)
    fake.plug_in(monkeypatch)
    monkeypatch.setattr(run, "ENGINE_S", 0.2)
    model = graphs.bright(tmp_path / "m.onnx")
    rows: List[Row] = list(run.engine(str(model), tmp_path))
    built = [(state, figure.split(",")[0]) for _, state, figure in rows]
    if board == "nano":
        assert built == [(OK, "fp16"), (OK, "fp32"), (OK, "fp16"), (NOTE, "Fake has no INT8")]
    else:
        assert built == [(OK, each) for each in ("fp16", "fp32", "fp16", "int8", "int8", "fp16")], rows
    fake.assert_clean()
    assert states(run.engine("nowhere.onnx", tmp_path)) == {"engine": NOTE}


def test_without_a_gpu_it_reports_this_in_one_line() -> None:
    try:
        import pycuda.driver  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("needs a machine without pycuda: it is installed here")
    environ = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(SCRIPT)], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("gpu-check: no GPU to check: pycuda cannot be imported")
    assert len(done.stderr.splitlines()) == 1
