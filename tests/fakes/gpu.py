"""A fake board: driver, TensorRT and CUDA toolkit."""

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
    """Create an nvcc that returns the kernel's twin; the environment variables that name it."""
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
        folder: Folder for the cache and the toolkit.
        version: TensorRT's; one of `tests.fakes.tensorrt.VERSIONS`.
        board: One of `tests.fakes.tensorrt.BOARDS`.

    Attributes:
        reported: Lines of progress.
        cache: The agent's cache folder.
    """

    def __init__(self, folder: Path, version: str = "10.3", board: str = "orin", **gpu: Any) -> None:
        model = BOARDS[board]
        self.cuda = FakeCuda(spans=spans, capability=model.capability, integrated=model.integrated, **gpu)
        self.trt = FakeTensorRT(version, model, self.cuda)
        self.cache = folder / "cache"
        self.environ = toolkit(folder / "cuda")
        self.reported: List[str] = []

    def open(self, network: Network, **options: Any) -> OpenedEngine:
        """A verified engine; on failure everything is freed, as by `open_network`."""
        context = CudaContext(self.cuda)
        try:
            backend = LocalTensorRt(self.trt, context, self.environ)
            return EngineLoader(backend, self.cache, self.reported.append).open(network, BuildOptions(**options))
        except BaseException:
            context.close()
            raise

    def plug_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `import tensorrt` and `import pycuda.driver` find this board."""
        package = types.ModuleType("pycuda")
        package.driver = self.cuda  # type: ignore[attr-defined]
        package.__spec__ = ModuleSpec("pycuda", None, origin="fake")  # as of an imported module
        self.trt.__spec__ = ModuleSpec("tensorrt", None, origin="fake")
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", self.cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", self.trt)
        for name, value in {**self.environ, "CACHE_DIRECTORY": str(self.cache)}.items():
            monkeypatch.setitem(os.environ, name, value)

    def assert_clean(self) -> None:
        """Check that nothing is left on the GPU, and that everything was freed in the right order."""
        self.trt.assert_clean()
        self.cuda.assert_clean()

    def engines(self) -> List[Path]:
        """Paths of the plans in the cache."""
        return sorted((self.cache / "engines").glob("*.plan"))
