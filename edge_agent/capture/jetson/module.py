"""Import of NVIDIA's jetson-utils, conversion of its exceptions, and its version differences."""

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
    first_step: str = ""


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
    """A call of jetson-utils failed."""


class Call:
    """Context for calls of jetson-utils, which raises bare `Exception`s: converts exactly these to `CallFailed`."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is Exception:
            raise CallFailed(str(error).replace("jetson.utils -- ", "")) from error


def load_jetson_utils(root: Path = Path("/")) -> Any:
    """Import the extension module and verify that it is NVIDIA's.

    Args:
        root: Parent of `etc/nv_tegra_release`.

    Raises:
        MissingPackage: It is missing, cannot be loaded, or is another package; with the remedy for this JetPack.
    """
    # Importing `jetson_utils` proves nothing: another project on PyPI has that name, and NVIDIA's version 2 can be
    # imported without its extension.
    try:
        import jetson_utils_python
    except ImportError as error:
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == "jetson_utils_python"
        fault = _absent() if is_absent else f"jetson-utils cannot be loaded: {error}"
        raise MissingPackage(fault, remedy(root)) from error
    missing = [name for name in _NEEDED if not hasattr(jetson_utils_python, name)]
    if missing:
        raise MissingPackage(f"jetson_utils_python is not NVIDIA's: no {', '.join(missing)}", remedy(root))
    return jetson_utils_python


def remedy(root: Path = Path("/")) -> str:
    """One line on how to install jetson-utils on this board."""
    jetpack = _JETPACKS.get(_release(root))
    if jetpack is None:
        return (
            "csi: and jetson: need a Jetson with jetson-utils, built from dusty-nv/jetson-inference on GitHub; "
            "on other machines use v4l2:/dev/... for cameras, and the URI of a file or stream"
        )
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    environment = "" if running == jetpack.python else f" (this is {running})"
    return (
        f"on {jetpack.name}: git clone --recursive dusty-nv/jetson-inference from GitHub, {jetpack.first_step}"
        "mkdir build, cd build, cmake .., make, sudo make install, sudo ldconfig; "
        f"it is built for Python {jetpack.python}, so create "
        f"the environment with that{environment} and --system-site-packages"
    )


def has_streams(module: Any) -> bool:
    """Whether the module has CUDA streams (since June 2024); without them, the whole GPU is synchronised."""
    return hasattr(module, "cudaStreamCreate") and hasattr(module, "cudaStreamSynchronize")


def is_foreign() -> bool:
    """Whether the unrelated package jetson-utils of PyPI is installed, which hides NVIDIA's."""
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
    """L4T's major version; 0 on other machines."""
    try:
        found = _RELEASE.match((root / "etc/nv_tegra_release").read_text("ascii", "replace"))
    except OSError:
        return 0
    return int(found.group(1)) if found else 0
