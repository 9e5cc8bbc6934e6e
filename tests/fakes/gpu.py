"""A whole fake board: driver, TensorRT and CUDA toolkit, in place of what is not there."""

import os
import struct
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple

import pytest

from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.trt.backend import LocalTensorRt
from edge_agent.inference.trt.engine_loader import BuildOptions, EngineLoader, OpenedEngine
from edge_agent.inference.trt.network import Network
from tests.fakes.kernel_twin import spans, twin_image
from tests.fakes.pycuda import FakeCuda
from tests.fakes.tensorrt import BOARDS, FakeTensorRT

NVCC = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
cp "$(dirname "$0")/twin.so" "$out"
"""


def toolkit(folder: Path) -> Dict[str, str]:
    """An nvcc that answers with the kernel's twin; the environment in which it is found."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "bin" / "twin.so").write_bytes(twin_image())
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)
    return {"CUDA_HOME": str(folder)}


def calibration(path: Path, scales: Iterable[Tuple[str, float]], header: str = "TRT-7103-EntropyCalibration2") -> Path:
    """A calibration cache in NVIDIA's format."""
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales]
    path.write_text("\n".join([header, *lines, ""]))
    return path


class FakeBoard:
    """One board with one TensorRT.

    Args:
        folder: For the cache and the toolkit.
        version: Of TensorRT; one of `tests.fakes.tensorrt.VERSIONS`.
        board: One of `tests.fakes.tensorrt.BOARDS`.

    Attributes:
        told: Lines of progress.
        cache: The agent's cache folder.
    """

    def __init__(self, folder: Path, version: str = "10.3", board: str = "orin", **gpu: Any) -> None:
        what = BOARDS[board]
        self.cuda = FakeCuda(spans=spans, capability=what.capability, integrated=what.integrated, **gpu)
        self.trt = FakeTensorRT(version, what, self.cuda)
        self.cache = folder / "cache"
        self.environ = toolkit(folder / "cuda")
        self.told: List[str] = []

    def open(self, network: Network, **options: Any) -> OpenedEngine:
        """A verified engine; on failure everything is freed, as by `open_network`."""
        context = CudaContext(self.cuda)
        try:
            backend = LocalTensorRt(self.trt, context, self.environ)
            return EngineLoader(backend, self.cache, self.told.append).open(network, BuildOptions(**options))
        except BaseException:
            context.close()
            raise

    def plug_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `import tensorrt` and `import pycuda.driver` find this board."""
        package = types.ModuleType("pycuda")
        package.driver = self.cuda  # type: ignore[attr-defined]
        package.__spec__ = ModuleSpec("pycuda", None, origin="fake")  # as whatever an import has found
        self.trt.__spec__ = ModuleSpec("tensorrt", None, origin="fake")
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", self.cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", self.trt)
        for name, value in {**self.environ, "CACHE_DIRECTORY": str(self.cache)}.items():
            monkeypatch.setitem(os.environ, name, value)

    def assert_clean(self) -> None:
        """Nothing is left on the GPU, and everything was given back in the right order."""
        self.trt.assert_clean()
        self.cuda.assert_clean()

    def engines(self) -> List[Path]:
        """Plans in the cache."""
        return sorted((self.cache / "engines").glob("*.plan"))
