"""Compiles the preprocess kernel with nvcc on the machine that runs it, and caches the machine code.

No machine code can be shipped: CUDA 13 no longer compiles for the Nano, and older drivers run no newer CUDA's code.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, List, Mapping, Optional, Sequence

from edge_agent.errors import EngineError, InputError, MissingPackage
from edge_agent.inference.cuda.context import CudaContext, Kernel

_log = logging.getLogger(__name__)

_FOLDER = Path(__file__).with_name("kernel")
SOURCE = _FOLDER / "preprocess.cu"
_SOURCES = (_FOLDER / "preprocess.cuh", SOURCE)
_COMPILE_LIMIT_S = 300.0  # a Nano with a slow SD card takes half a minute
_INSTALL = (
    "install the CUDA toolkit that belongs to the board's JetPack or driver, with g++; "
    "on a Jetson: sudo apt-get install nvidia-jetpack; elsewhere name its folder in CUDA_HOME"
)


class Nvcc:
    """NVIDIA's compiler, at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def compile(self, source: Path, sm: str, scratch: Path) -> bytes:
        """The cubin of `source` for architecture `sm`, e.g. "87"; intermediate files are written to `scratch`.

        Raises:
            MissingPackage: It cannot be compiled with what is installed.
        """
        target = scratch / "kernel.cubin"
        command = [str(self.path), "-cubin", f"-arch=sm_{sm}", "-std=c++14", "-o", str(target), str(source)]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, "TMPDIR": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_COMPILE_LIMIT_S,
                check=False,
            )
        except OSError as error:
            raise MissingPackage(f"{self.path} cannot be run: {error.strerror}", _INSTALL) from error
        except subprocess.TimeoutExpired as error:
            raise MissingPackage(f"{self.path} did not finish within {_COMPILE_LIMIT_S:g} s", _INSTALL) from error
        if done.returncode or not target.is_file():
            message = _error_line(done.stdout.decode("utf-8", "replace"))
            raise MissingPackage(f"{self.path} cannot compile for sm_{sm}: {message}", _INSTALL)
        return target.read_bytes()


def find_nvcc(environ: Mapping[str, str], roots: Sequence[Path] = (Path("/usr/local"), Path("/opt"))) -> Nvcc:
    """The nvcc of CUDA_HOME or CUDA_PATH, else of PATH, else of the newest toolkit under `roots`.

    `roots` are needed because the PATH of a systemd service does not contain the toolkit's folder.

    Raises:
        MissingPackage: There is no nvcc.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(variable):
            path = Path(environ[variable]) / "bin" / "nvcc"
            if not os.access(str(path), os.X_OK):
                raise MissingPackage(f"{variable} is {environ[variable]}, but {path} is not executable", _INSTALL)
            return Nvcc(path)
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    if on_path:
        return Nvcc(Path(on_path))
    folders = [folder for root in roots for folder in (root / "cuda", *_newest_first(root))]
    for folder in folders:
        path = folder / "bin" / "nvcc"
        if os.access(str(path), os.X_OK):
            return Nvcc(path)
    searched = ", ".join(str(root / "cuda*") for root in roots)
    raise MissingPackage(f"nvcc, NVIDIA's compiler, is neither on PATH nor in {searched}", _INSTALL)


def cache_dir(environ: Mapping[str, str]) -> Path:
    """The agent's cache folder: systemd's cache directory, else the user's (XDG).

    Raises:
        InputError: The environment names neither.
    """
    given = environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    base = environ.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):  # the XDG specification demands that relative paths are ignored
        return Path(base) / "edge-agent"
    if environ.get("HOME"):
        return Path(environ["HOME"]) / ".cache" / "edge-agent"
    raise InputError(
        "no cache directory: neither CACHE_DIRECTORY, XDG_CACHE_HOME nor HOME is set",
        "set CacheDirectory=edge-agent in the systemd unit",
    )


class KernelCache:
    """Compiled kernels in a folder, by GPU architecture, the driver's CUDA version and the source's checksum.

    Args:
        directory: Created when needed.
        find_compiler: Called only when a kernel has to be compiled.
    """

    def __init__(self, directory: Path, find_compiler: Callable[[], Nvcc]) -> None:
        self._directory = directory
        self._find_compiler = find_compiler

    def path(self, sm: str, cuda_version: str) -> Path:
        """File of the machine code for a GPU architecture and a driver's CUDA version."""
        digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in _SOURCES)).hexdigest()
        return self._directory / f"preprocess-sm{sm}-cuda{cuda_version}-{digest[:16]}.cubin"

    def load(self, context: CudaContext, name: str, argument_bytes: int) -> Kernel:
        """An entry point, from the cache or compiled now. Code that the GPU rejects is not stored.

        Raises:
            MissingPackage: The kernel must be compiled and cannot be.
            InputError: The folder cannot be written.
            EngineError: The GPU rejects code that was compiled just now.
        """
        path = self.path(context.sm, context.cuda_version)
        image = _read(path)
        if image is not None:
            try:
                return context.kernel(image, name, argument_bytes)
            except EngineError as error:
                _log.warning("%s is damaged or for another GPU; compiling again: %s", path, error)
        compiler = self._find_compiler()
        with _scratch(self._directory) as scratch:
            _log.info("compiling the preprocess kernel for %s (sm_%s)", context.name, context.sm)
            image = compiler.compile(SOURCE, context.sm, scratch)
            kernel = context.kernel(image, name, argument_bytes)
            _store(image, scratch / path.name, path)
        return kernel


def _read(path: Path) -> Optional[bytes]:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A temporary folder inside `directory`, hence on the same file system."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".compiling-", dir=str(directory))
    except OSError as error:
        raise _unusable(directory, error) from error
    with folder as name:
        yield Path(name)


def _store(image: bytes, part: Path, path: Path) -> None:
    try:
        with part.open("wb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"kernel cache {path}: {error.strerror}",
        "expected a folder that the agent may write: CacheDirectory= in the systemd unit, else XDG_CACHE_HOME",
    )


def _newest_first(root: Path) -> List[Path]:
    def version(folder: Path) -> List[int]:
        return [int(part) if part.isdigit() else 0 for part in folder.name[len("cuda-") :].split(".")]

    return sorted(root.glob("cuda-*"), key=version, reverse=True)


def _error_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return (errors or lines or ["it printed no reason"])[0][:300]
