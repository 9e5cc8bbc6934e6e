"""The preprocess kernel compiled for the CPU, which the fake GPU runs instead of nvcc's machine code."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Iterable, Tuple

import numpy as np
import pytest

from edge_agent.inference.cuda.compiler import SOURCE
from edge_agent.inference.cuda.preprocess import ARGUMENTS

TWIN = SOURCE.with_name("preprocess_twin.cpp")
_SAMPLE_BYTES = (1, 2, 3)


@functools.lru_cache(maxsize=None)
def twin_image() -> bytes:
    """The twin as bytes of a shared library; skips the test when there is no C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler for the kernel's twin: apt-get install g++")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "twin.so"
        flags = ["-std=c++14", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", str(target), str(TWIN)], check=True)
        return target.read_bytes()


class TwinCompiler:
    """Stands in for `cuda.compiler.Nvcc`; the fake GPU runs what it compiles.

    Attributes:
        compiled: Count of calls.
    """

    def __init__(self) -> None:
        self.compiled = 0

    def compile(self, source: Path, sm: str, scratch: Path) -> bytes:
        self.compiled += 1
        return twin_image()


def spans(name: str, arguments: bytes) -> Iterable[Tuple[int, int]]:
    """What a launch reads and writes: (address, bytes) of the source's and the target's first to last byte."""
    a = {field: value.item() for field, value in zip(ARGUMENTS.names, np.frombuffer(arguments, ARGUMENTS)[0])}
    last_px = (a["source_h"] - 1) * a["pitch"] + (a["source_w"] - 1) * a["step"]
    yield a["source"], last_px + _SAMPLE_BYTES[a["samples"]]
    yield a["target"], a["channels"] * a["net_h"] * a["net_w"] * (2 if name == "preprocess_half" else 4)
