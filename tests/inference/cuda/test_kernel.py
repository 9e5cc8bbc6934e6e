"""Compiling the kernel with real compilers, and the cache of its machine code."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest

from edge_agent.errors import EngineError, InputError, MissingPackage
from edge_agent.inference.cuda.compiler import SOURCE, KernelCache, Nvcc, cache_dir, find_nvcc
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.preprocess import ARGUMENTS
from tests.fakes.kernel_twin import TWIN, TwinCompiler, twin_image
from tests.fakes.pycuda import FakeCuda


def real_nvcc() -> Nvcc:
    try:
        return find_nvcc(os.environ)
    except MissingPackage as error:
        pytest.skip(f"needs a CUDA toolkit: {error}")


@pytest.fixture
def context() -> Iterator[CudaContext]:
    cuda = FakeCuda()
    context = CudaContext(cuda)
    yield context
    context.close()
    cuda.assert_clean()


@pytest.mark.slow
def test_nvcc_compiles_for_every_architecture_it_supports(tmp_path: Path) -> None:
    nvcc = real_nvcc()
    listed = subprocess.run([str(nvcc.path), "--list-gpu-arch"], stdout=subprocess.PIPE, check=True)
    architectures = [line.split("_")[1] for line in listed.stdout.decode().split()]
    assert architectures
    for sm in architectures:
        image = nvcc.compile(SOURCE, sm, tmp_path)
        assert image.startswith(b"\x7fELF")
        assert b"preprocess_float" in image and b"preprocess_half" in image


def test_the_error_has_the_line_of_nvcc(tmp_path: Path) -> None:
    nvcc = real_nvcc()
    with pytest.raises(MissingPackage, match=r"cannot compile for sm_1: .*[Uu]nsupported gpu architecture"):
        nvcc.compile(SOURCE, "1", tmp_path)


@pytest.mark.parametrize("standard", ["c++14", "c++17"])
def test_the_body_is_plain_cpp(tmp_path: Path, standard: str) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler for the kernel's twin: apt-get install g++")
    flags = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror", "-fsyntax-only"]
    subprocess.run([compiler, f"-std={standard}", *flags, str(TWIN)], check=True)


def test_every_half_and_every_midpoint_rounds_as_numpy_rounds(tmp_path: Path) -> None:
    twin = ctypes.CDLL(str(twin_file(tmp_path)))
    twin.preprocess_half_bits.argtypes = [ctypes.c_float]
    twin.preprocess_half_bits.restype = ctypes.c_uint16
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate(
        [halves, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(np.inf))]
    )
    found = np.array([twin.preprocess_half_bits(value) for value in values.tolist()], np.uint16)
    assert np.array_equal(found, values.astype(np.float16).view(np.uint16))


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from edge_agent.inference.cuda.preprocess import ARGUMENTS

libc, twin = ctypes.CDLL(None, use_errno=True), ctypes.CDLL(sys.argv[1])
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
page, inside = mmap.PAGESIZE, 64 * mmap.PAGESIZE
memory = np.frombuffer(mmap.mmap(-1, inside + 2 * page), np.uint8)
for guard in (memory.ctypes.data, memory.ctypes.data + page + inside):
    if libc.mprotect(guard, page, 0):
        sys.exit("mprotect failed")
first, last = memory.ctypes.data + page, memory.ctypes.data + page + inside
target = np.empty((3, 24, 40), np.float32)
grid, block = (ctypes.c_uint * 3)(5, 3, 1), (ctypes.c_uint * 3)(8, 8, 1)
for samples, step in ((0, 1), (1, 2), (2, 3)):
    for width, height in ((200, 120), (201, 121), (40, 24), (39, 23), (80, 48), (1, 1)):
        nbytes = width * height * step
        for source in (first, last - nbytes):
            for filter in (0, 1) if width >= 40 else (0,):
                places = (width * step, step, width, height, samples, filter, 40, 24, 40, 24, 0, 0, 3, 1.0, 0.0, 255.0)
                arguments = np.array((source, target.ctypes.data, *places), ARGUMENTS)
                twin.preprocess_float(ctypes.c_void_p(arguments.ctypes.data), grid, block)
"""


def test_the_kernel_reads_nothing_outside_the_image(tmp_path: Path) -> None:
    """The image lies between two pages that end the process when touched."""
    command = [sys.executable, "-c", GUARDED, str(twin_file(tmp_path))]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[3], check=False)
    assert done.returncode == 0


def twin_file(folder: Path) -> Path:
    path = folder / "twin.so"
    path.write_bytes(twin_image())
    return path


def test_the_arguments_have_the_size_of_the_header() -> None:
    header = SOURCE.with_name("preprocess.cuh").read_text("utf-8")
    assert f"static_assert(sizeof(Arguments) == {ARGUMENTS.itemsize}," in header


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_nvcc_is_found_outside_path(tmp_path: Path) -> None:
    old, new = (program(tmp_path / f"cuda-{version}" / "bin" / "nvcc") for version in ("12.6", "12.10"))
    bare = {"PATH": str(tmp_path / "nowhere")}
    assert find_nvcc(bare, [tmp_path]).path == new
    usual = program(tmp_path / "cuda" / "bin" / "nvcc")
    assert find_nvcc(bare, [tmp_path]).path == usual
    assert find_nvcc({"PATH": str(old.parent)}, [tmp_path]).path == old
    assert find_nvcc({"PATH": str(old.parent), "CUDA_HOME": str(new.parent.parent)}, [tmp_path]).path == new


def test_no_nvcc_is_one_line_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(MissingPackage, match=r"neither on PATH nor in .*nvidia-jetpack"):
        find_nvcc({"PATH": ""}, [tmp_path])
    with pytest.raises(MissingPackage, match=r"CUDA_HOME is .* is not executable"):
        find_nvcc({"CUDA_HOME": str(tmp_path)}, [tmp_path])


def test_a_compiler_that_fails_or_does_not_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingPackage, match="it printed no reason"):
        Nvcc(program(tmp_path / "nvcc")).compile(SOURCE, "87", tmp_path)
    with pytest.raises(MissingPackage, match="cannot be run"):
        Nvcc(tmp_path / "gone").compile(SOURCE, "87", tmp_path)


def test_the_cache_folder_is_systemds_else_xdgs() -> None:
    assert cache_dir({"CACHE_DIRECTORY": "/var/cache/a:/var/cache/b", "HOME": "/h"}) == Path("/var/cache/a")
    assert cache_dir({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/edge-agent")
    assert cache_dir({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache/edge-agent")
    with pytest.raises(InputError, match="CacheDirectory="):
        cache_dir({})


def load(cache: KernelCache, context: CudaContext) -> None:
    cache.load(context, "preprocess_float", ARGUMENTS.itemsize).free()


def test_the_kernel_is_compiled_once_per_gpu_and_cuda_version(tmp_path: Path, context: CudaContext) -> None:
    compiler = TwinCompiler()
    cache = KernelCache(tmp_path / "made" / "when needed", lambda: compiler)
    load(cache, context)
    load(cache, context)
    load(KernelCache(tmp_path / "made" / "when needed", lambda: compiler), context)
    assert compiler.compiled == 1
    assert [path.name for path in cache.path("87", "12.6").parent.iterdir()] == [cache.path("87", "12.6").name]
    assert len({cache.path(sm, version) for sm in ("72", "87") for version in ("11.4", "12.6")}) == 4


def test_a_cached_kernel_needs_no_compiler(tmp_path: Path, context: CudaContext) -> None:
    load(KernelCache(tmp_path, TwinCompiler), context)

    def none() -> TwinCompiler:
        raise MissingPackage("no compiler", "")

    load(KernelCache(tmp_path, none), context)
    with pytest.raises(MissingPackage):
        load(KernelCache(tmp_path / "other", none), context)


@pytest.mark.parametrize("damage", [b"", b"not a cubin", b"\x7fELF but no more"])
def test_damaged_or_foreign_code_is_compiled_again(
    tmp_path: Path, context: CudaContext, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = TwinCompiler()
    cache = KernelCache(tmp_path, lambda: compiler)
    path = cache.path(context.sm, context.cuda_version)
    path.write_bytes(damage)
    load(cache, context)
    load(cache, context)
    assert compiler.compiled == 1
    assert "compiling again" in caplog.text


def test_code_that_the_gpu_rejects_is_not_cached(tmp_path: Path, context: CudaContext) -> None:
    class WrongToolkit:
        def compile(self, source: Path, sm: str, scratch: Path) -> bytes:
            return b"\x7fELF of a newer CUDA"

    with pytest.raises(EngineError, match=r"no kernel image.*install the toolkit"):
        load(KernelCache(tmp_path, WrongToolkit), context)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, context: CudaContext) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"kernel cache .*file.*CacheDirectory="):
        load(KernelCache(tmp_path / "file", TwinCompiler), context)
    with pytest.raises(InputError, match="kernel cache"):
        load(KernelCache(Path("/proc/edge-agent"), TwinCompiler), context)
