"""CUDA contexts: use by one thread, a balanced context stack, memory that is freed, and CUDA errors in one line."""

import gc
import inspect
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Iterator, List, Optional

import numpy as np
import pytest

from edge_agent.errors import EngineError, MissingPackage
from edge_agent.inference.cuda import context as cuda_context
from edge_agent.inference.cuda import driver as cuda_driver
from edge_agent.inference.cuda.context import CudaContext
from tests.fakes.pycuda import FakeCuda, LogicError, Misuse


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def context(cuda: FakeCuda) -> Iterator[CudaContext]:
    context = CudaContext(cuda)
    yield context
    context.close()
    cuda.assert_clean()


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def in_thread(work: Callable[[], Any]) -> Optional[BaseException]:
    """Run `work` in a thread; the error that it raised, if any."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).exception(10)


def test_the_context_has_the_gpus_properties(context: CudaContext) -> None:
    assert (context.name, context.sm, context.cuda_version, context.integrated) == ("Fake", "87", "12.6", True)


def test_thor_has_three_digits() -> None:
    context = CudaContext(FakeCuda(capability=(11, 0)))
    assert context.sm == "110"
    context.close()


def test_waiting_sleeps_and_ignores_other_streams(cuda: FakeCuda, context: CudaContext) -> None:
    assert cuda.event_flags_used == [cuda.event_flags.BLOCKING_SYNC | cuda.event_flags.DISABLE_TIMING]
    assert cuda.stream_flags_used == [1]
    assert context.stream_handle in cuda.queues


def test_the_context_is_current_only_inside_the_block(cuda: FakeCuda, context: CudaContext) -> None:
    assert cuda.stack == []
    with context.current():
        with context.current():
            assert len(cuda.stack) == 2
        assert len(cuda.stack) == 1
    assert cuda.stack == []
    with pytest.raises(KeyError):
        with context.current():
            raise KeyError
    assert cuda.stack == []


def test_a_thread_may_end_without_close(cuda: FakeCuda) -> None:
    """Real pycuda would abort the process if the context had stayed on the thread's stack."""
    made: List[CudaContext] = []
    assert in_thread(lambda: made.append(CudaContext(cuda))) is None
    assert cuda.aborts == []


def test_the_fake_detects_a_thread_that_ends_with_a_context(cuda: FakeCuda) -> None:
    cuda.init()
    assert in_thread(lambda: cuda.Device(0).retain_primary_context().push()) is None
    assert len(cuda.aborts) == 1


def test_another_thread_is_rejected(cuda: FakeCuda, context: CudaContext) -> None:
    buffer = context.device_buffer(16)
    for work in (context.wait, context.close, buffer.free, lambda: context.pinned(4)):
        error = in_thread(work)
        assert isinstance(error, RuntimeError) and "another thread" in str(error)
    assert cuda.allocated_bytes == 16


def test_everything_is_freed_newest_first_and_once(cuda: FakeCuda) -> None:
    context = CudaContext(cuda)
    kept = [context.device_buffer(16), context.pinned(32), context.device_buffer(64)]
    kept[0].free()
    kept[0].free()
    assert cuda.allocated_bytes == 96
    context.close()
    context.close()
    for buffer in kept:
        buffer.free()
    cuda.assert_clean()


def test_use_after_close_is_an_error(cuda: FakeCuda) -> None:
    context = CudaContext(cuda)
    context.close()
    for work in (context.wait, lambda: context.device_buffer(4)):
        with pytest.raises(EngineError, match="used after it was closed"):
            work()


def test_a_second_context_in_the_same_thread_works(cuda: FakeCuda) -> None:
    for _ in range(3):
        context = CudaContext(cuda)
        context.device_buffer(16)
        context.close()
        cuda.assert_clean()


def test_copies_go_through_the_stream(cuda: FakeCuda, context: CudaContext) -> None:
    there, back = context.pinned(256), context.pinned(256)
    remote = context.device_buffer(256)
    there.array[:] = np.arange(256)
    back.array[:] = 0
    context.upload(remote.pointer, there.array)
    context.download(back.array, remote.pointer)
    assert not back.array.any()
    context.wait()
    assert np.array_equal(back.array, np.arange(256))


def test_close_waits_for_enqueued_work(cuda: FakeCuda) -> None:
    context = CudaContext(cuda)
    source, target = context.pinned(16), context.device_buffer(16)
    context.upload(target.pointer, source.array)
    context.close()
    assert cuda.copied_bytes == 16
    cuda.assert_clean()


@pytest.mark.parametrize(
    ("api", "words", "advice"),
    [
        ("cuInit", "no CUDA-capable device is detected", "groups video and render"),
        ("cuInit", "system has unsupported display driver / cuda driver combination", "reboot after a driver update"),
        ("cuInit", "unknown error", ""),
        ("cuDevicePrimaryCtxRetain", "out of memory", "stop other programs"),
        ("cuCtxPushCurrent", "invalid device context", "restart"),
        ("cuStreamCreate", "out of memory", "stop other programs"),
        ("cuEventCreate", "out of memory", "stop other programs"),
    ],
)
def test_a_gpu_that_cannot_be_opened_is_one_line_with_a_hint(api: str, words: str, advice: str) -> None:
    cuda = FakeCuda()
    cuda.fail[api] = words
    with pytest.raises(EngineError) as caught:
        CudaContext(cuda)
    assert words in caught.value.message and advice in caught.value.hint
    assert "\n" not in str(caught.value)
    cuda.assert_clean()  # while the error, and the frames that its traceback holds, are still there
    assert caught.value.__traceback__ is not None


@pytest.mark.parametrize("api", ["cuMemHostAlloc", "cuMemHostGetDevicePointer"])
def test_page_locked_memory_that_the_gpu_cannot_map_is_freed(cuda: FakeCuda, context: CudaContext, api: str) -> None:
    cuda.fail[api] = "out of memory"
    with pytest.raises(EngineError, match=f"allocating 64 page-locked bytes: {api} failed: out of memory"):
        context.pinned(64)
    assert cuda.allocated_bytes == 0


def test_no_gpu() -> None:
    with pytest.raises(EngineError, match="no CUDA-capable device"):
        CudaContext(FakeCuda(devices=0))
    with pytest.raises(EngineError, match="invalid device ordinal"):
        CudaContext(FakeCuda(devices=1), ordinal=1)


def test_out_of_memory_names_the_size_and_leaves_the_context_usable() -> None:
    cuda = FakeCuda(memory_bytes=1000)
    context = CudaContext(cuda)
    with pytest.raises(EngineError, match="allocating 1001 bytes on the GPU: cuMemAlloc failed: out of memory"):
        context.device_buffer(1001)
    with pytest.raises(EngineError, match="allocating 2000 page-locked bytes"):
        context.pinned(2000)
    context.device_buffer(1000)
    context.close()
    cuda.assert_clean()


def test_close_frees_everything_after_a_failure_of_the_gpu(cuda: FakeCuda, caplog: pytest.LogCaptureFixture) -> None:
    context = CudaContext(cuda)
    context.device_buffer(16)
    cuda.fail["work"] = "unspecified launch failure"
    context.close()
    assert "unspecified launch failure (CUDA in this process is broken; only a restart" in caplog.text
    cuda.assert_clean()


def test_a_handled_error_keeps_no_object_of_the_gpu(cuda: FakeCuda, collector_off: None) -> None:
    """Checked without the garbage collector, which may run in any thread."""
    context = CudaContext(cuda)
    cuda.fail["cuEventRecord"] = "unspecified launch failure"
    with suppress(EngineError):
        context.wait()
    cuda.fail.clear()
    context.close()
    cuda.assert_clean()


def test_the_fake_rejects_what_pycuda_does_not_check(cuda: FakeCuda) -> None:
    with pytest.raises(LogicError, match="invalid device context"):
        cuda.mem_alloc(16)
    cuda.init()
    handle = cuda.Device(0).retain_primary_context()
    handle.push()
    allocation = cuda.mem_alloc(16)
    handle.pop()
    with pytest.raises(Misuse, match="no context was current"):
        allocation.free()
    handle.push()
    allocation.free()
    handle.pop()
    error = in_thread(handle.detach)
    assert isinstance(error, Misuse)
    handle.detach()
    cuda.assert_clean()


@pytest.mark.parametrize(
    ("body", "advice"),
    [
        ("raise ModuleNotFoundError('No module named pycuda')", "pip install pycuda"),
        ("raise ImportError('libcuda.so.1: cannot open shared object file')", "driver is not installed"),
        ("raise ImportError('undefined symbol: cuCtxCreate_v2')", "newer CUDA than the driver's"),
        ("raise ImportError('numpy.core.multiarray failed to import')", "build it again"),
    ],
)
def test_pycuda_that_cannot_be_imported_is_one_line_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, advice: str
) -> None:
    folder = tmp_path / "pycuda"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "driver.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "pycuda"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        with pytest.raises(MissingPackage) as caught:
            cuda_driver.load_driver()
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "pycuda"]:
            del sys.modules[name]
    assert advice in caught.value.hint and "pycuda cannot be imported" in caught.value.message


def test_the_fake_has_what_the_context_uses_of_the_driver(cuda: FakeCuda) -> None:
    names = set(re.findall(r"\bdriver\.([A-Za-z_]\w*)", inspect.getsource(cuda_context))) - {"load_driver"}
    missing = [name for name in names if not hasattr(cuda, name)]
    assert names >= {"init", "Device", "Error"} and not missing
    assert not isinstance(cuda, ModuleType)
