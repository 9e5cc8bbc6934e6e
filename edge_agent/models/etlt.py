"""Decrypts NVIDIA's .etlt exports with NVIDIA's own package, where the user has installed it."""

import io
import platform
import sys
from importlib import import_module
from typing import Any, Callable, Dict, Tuple

from edge_agent.errors import MissingPackage, ModelError
from edge_agent.models.inspect import inspect_etlt
from edge_agent.models.onnx.file import parse_onnx
from edge_agent.models.uff.file import parse_uff

PACKAGE = "nvidia-eff-tao-encryption"
_MODULE = "eff_tao_encryption.tao_codec"
_PARSERS: Dict[str, Callable[[bytes, str], object]] = {"uff": parse_uff, "onnx": parse_onnx}
_PYTHONS = ((3, 7), (3, 8), (3, 10), (3, 12))  # of the package's wheels, all for x86-64 Linux


def open_etlt(data: bytes, name: str, key: str) -> Tuple[str, bytes]:
    """Decrypt an .etlt.

    With a wrong key NVIDIA's package returns meaningless bytes without an error, so the result is parsed.

    Returns:
        ("uff" or "onnx", the decrypted model).

    Raises:
        ModelError: The file is not an .etlt, or damaged, or the key is wrong.
        MissingPackage: NVIDIA's package is not installed; the hint names the systems that it exists for. Or the file
            holds ONNX, and `onnx` is not installed.
    """
    facts = inspect_etlt(data, name).facts
    codec = _codec(name)
    payload = io.BytesIO()
    encrypted = io.BytesIO(data[len(data) - facts["payload_bytes"] :])
    try:
        codec.decrypt_stream(encrypted, payload, key.encode("utf-8"), encryption=True, rewind=False)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{name}: cannot be decrypted: {error}", "the file is cut off or damaged") from error
    kind, model = facts["payload"], payload.getvalue()
    try:
        _PARSERS[kind](model, name)
    except ModelError as error:
        raise ModelError(
            f"{name}: decrypted with this key it is no {kind.upper()} model: a wrong key, or a damaged file",
            "give the key that it was exported with; that of FaceDetectIR is tlt_encode, of FaceDetect nvidia_tlt",
        ) from error
    return kind, model


def _codec(name: str) -> Any:
    try:
        return import_module(_MODULE)
    except (ImportError, OSError, RuntimeError) as error:
        message = f"{name} is encrypted: NVIDIA's package {PACKAGE} is needed ({error})"
        raise MissingPackage(message, _install_hint()) from error


def _install_hint() -> str:
    """How to install the package on this machine, or how to convert the file on another one."""
    available = sys.version_info[:2] in _PYTHONS and platform.machine() == "x86_64" and sys.platform == "linux"
    if available:
        return f"install it for this Python: {sys.executable} -m pip install {PACKAGE}"
    pythons = ", ".join(f"{major}.{minor}" for major, minor in _PYTHONS)
    return (
        f"it exists for x86-64 Linux with Python {pythons} only, not for {platform.machine()} with Python "
        f"{platform.python_version()}; on such a machine, in an environment of 3.8, 3.10 or 3.12 with this program: "
        f"pip install {PACKAGE}; edge-agent model convert IN.etlt OUT.onnx --key KEY; then bring OUT.onnx here"
    )
