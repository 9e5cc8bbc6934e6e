"""A fake JetPack 4 for TensorRT's worker: a Python with `tensorrt` 8.2, and NVIDIA's driver."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Optional

import pytest

FAKES = Path(__file__).parent
PACKAGE = FAKES / "python36"


@functools.lru_cache(maxsize=None)
def python36() -> Optional[str]:
    """Path of a Python 3.6, if one is installed."""
    found = shutil.which("python3.6")
    pyenv = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv")))
    candidates = sorted(pyenv.glob("versions/3.6.*/bin/python3.6"))
    for candidate in [*([found] if found else []), *map(str, candidates)]:
        done = subprocess.run([candidate, "-c", ""], capture_output=True, check=False)
        if done.returncode == 0:
            return candidate
    return None


@functools.lru_cache(maxsize=None)
def driver_image() -> bytes:
    """The fake driver as bytes of a shared library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the fake driver: apt-get install gcc")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "libcuda.so.1"
        subprocess.run([compiler, *flags, "-o", str(target), str(PACKAGE / "cuda.c")], check=True)
        return target.read_bytes()


def interpreter(which: str) -> str:
    """Path of a base interpreter: of Python "3.6", or of "this" process."""
    if which == "this":
        return sys.executable
    found = python36()
    if found is None:
        pytest.skip("needs Python 3.6, which JetPack 4 has: pyenv install 3.6.15")
    return found


class JetPack4:
    """A folder with an interpreter whose `import tensorrt` finds the fake, and a libcuda.so.1.

    Args:
        folder: Folder to create it in.
        which: "3.6" or "this".

    Attributes:
        python: Path of the interpreter.
        environ: Environment variables that it needs.
    """

    def __init__(self, folder: Path, which: str = "this") -> None:
        base = interpreter(which)
        subprocess.run([base, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        (site,) = (folder / "venv").glob("lib/python3*/site-packages")
        (site / "jetpack.pth").write_text(f"{PACKAGE}\n")
        self.python = str(folder / "venv" / "bin" / "python")
        library = folder / "lib" / "libcuda.so.1"
        library.parent.mkdir()
        library.write_bytes(driver_image())
        code = f"import sys; sys.path.insert(0, {str(FAKES.parents[1])!r}); from tests.fakes.oracle import main; main()"
        oracle: List[str] = [sys.executable, "-c", code]
        self.environ: Dict[str, str] = {
            "LD_LIBRARY_PATH": str(library.parent),
            "FAKE_TRT_ORACLE": json.dumps(oracle),
            "CACHE_DIRECTORY": str(folder / "cache"),
        }

    def plug_in(self, monkeypatch: pytest.MonkeyPatch, *faults: str) -> None:
        """Set the environment; `faults` as the fake `tensorrt` names them."""
        for name, value in {**self.environ, "FAKE_TRT": " ".join(faults)}.items():
            monkeypatch.setenv(name, value)
