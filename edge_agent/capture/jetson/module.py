"""NVIDIA's jetson-utils: the right module of that name, its bare exceptions, and what its versions lack."""

import importlib.util
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, NamedTuple, Optional, Type

from edge_agent.errors import MissingPackage, SourceError

_NEEDED = ("videoSource", "cudaAllocMapped", "cudaConvertColor", "cudaDeviceSynchronize", "cudaToNumpy")
_RELEASE = re.compile(r"^# R(\d+) ")


class _JetPack(NamedTuple):
    name: str
    python: str
    before: str = ""


_JETPACK_5 = _JetPack("JetPack 5", "3.8")
_JETPACK_7 = _JetPack(
    "JetPack 7", "3.12", "first delete compute_53, 62 and 72 from both CMakeLists.txt, CUDA 13 has none; "
)
_JETPACKS: Dict[int, _JetPack] = {  # by L4T's major version
    32: _JetPack("JetPack 4", "3.8"),
    34: _JETPACK_5,
    35: _JETPACK_5,
    36: _JetPack("JetPack 6", "3.10"),
    38: _JETPACK_7,
    39: _JETPACK_7,
}


class CallFailed(SourceError):
    """A call of jetson-utils has raised."""


class Call:
    """A block in which jetson-utils is called: it raises bare `Exception`s, and exactly these become `CallFailed`."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is Exception:
            raise CallFailed(str(error).replace("jetson.utils -- ", "")) from error


def load_jetson_utils(root: Path = Path("/")) -> Any:
    """The extension module, seen to be NVIDIA's.

    Args:
        root: Where `etc/nv_tegra_release` is.

    Raises:
        MissingPackage: It is not there, cannot be loaded, or is something else; with this JetPack's remedy.
    """
    # `jetson_utils` proves nothing: another project has that name on PyPI, and NVIDIA's own version 2 without its
    # extension imports all the same.
    try:
        import jetson_utils_python
    except ImportError as error:
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == "jetson_utils_python"
        fault = _absent() if is_absent else f"jetson-utils cannot be loaded: {error}"
        raise MissingPackage(fault, remedy(root)) from error
    lacking = [name for name in _NEEDED if not hasattr(jetson_utils_python, name)]
    if lacking:
        raise MissingPackage(f"jetson_utils_python is not NVIDIA's: no {', '.join(lacking)}", remedy(root))
    return jetson_utils_python


def remedy(root: Path = Path("/")) -> str:
    """How jetson-utils comes onto this board, in one line."""
    jetpack = _JETPACKS.get(_release(root))
    if jetpack is None:
        return (
            "csi: and jetson: need a Jetson with jetson-utils, built from dusty-nv/jetson-inference on GitHub; "
            "elsewhere, cameras are read by v4l2:/dev/..., files and streams by their own URI"
        )
    this = f"{sys.version_info[0]}.{sys.version_info[1]}"
    environment = "" if this == jetpack.python else f" (this is {this})"
    return (
        f"on {jetpack.name}: git clone --recursive dusty-nv/jetson-inference from GitHub, {jetpack.before}mkdir build, "
        f"cd build, cmake .., make, sudo make install, sudo ldconfig; it is built for Python {jetpack.python}, so make "
        f"the environment with that{environment} and --system-site-packages"
    )


def has_streams(module: Any) -> bool:
    """Whether it has CUDA streams (since June 2024); without, all of the GPU has to be waited for."""
    return hasattr(module, "cudaStreamCreate") and hasattr(module, "cudaStreamSynchronize")


def is_foreign() -> bool:
    """Whether PyPI's unrelated package of that name is installed, which hides NVIDIA's from other programs too."""
    return all(importlib.util.find_spec(name) is not None for name in ("jetson_utils", "jetson_serial"))


def _absent() -> str:
    if importlib.util.find_spec("jetson_utils") is None:
        return "jetson-utils is not installed"
    if is_foreign():
        return (
            "the package jetson-utils from PyPI is installed, an unrelated project; NVIDIA's is not "
            "(pip uninstall jetson-utils)"
        )
    return "only the Python half of jetson-utils is installed, as pip leaves it; its extension is not"


def _release(root: Path) -> int:
    """L4T's major version, 0 where this is no Jetson."""
    try:
        found = _RELEASE.match((root / "etc/nv_tegra_release").read_text("ascii", "replace"))
    except OSError:
        return 0
    return int(found.group(1)) if found else 0
