"""The cache of engines on disk: per engine one plan and one JSON manifest."""

import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from edge_agent.errors import InputError

_FORMAT = 1
_KEPT = 4
"""Engines (and references) kept per model; a board needs one, and another for each change of settings."""


@dataclass(frozen=True)
class EngineKey:
    """Everything that a plan depends on; another value of any of these needs another engine.

    Attributes:
        model_sha256: Checksum of the model.
        calibration_sha256: Checksum of the INT8 calibration, or None.
        precision: Precision that was built.
        shapes: Smallest, usual and largest input; the batch is their first dim.
        workspace_bytes: Scratch memory allowed.
        dla_core: Deep learning accelerator, or None.
        tensorrt: Full version of TensorRT.
        gpu: Name of the GPU.
        sm: Compute capability, "87".
        multiprocessors: Count; an Orin Nano's GPU has the name of an AGX Orin's.
        driver: Newest CUDA version that the driver runs.
    """

    model_sha256: str
    calibration_sha256: Optional[str]
    precision: str
    shapes: Tuple[Tuple[int, ...], ...]
    workspace_bytes: int
    dla_core: Optional[int]
    tensorrt: str
    gpu: str
    sm: str
    multiprocessors: int
    driver: str

    @property
    def digest(self) -> str:
        """Hex checksum over all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """Facts of a built engine, stored beside its plan.

    Attributes:
        plan_sha256: Checksum of the plan.
        plan_bytes: Size of the plan.
        asked: Requested precision.
        precision: Precision that layers compute in.
        why: Reason for this precision.
        layers: Count of layers by precision.
        build_s: Duration of the build.
    """

    plan_sha256: str
    plan_bytes: int
    asked: str
    precision: str
    why: str
    layers: Dict[str, int] = field(default_factory=dict)
    build_s: float = 0.0


class EngineCache:
    """A folder of engines. TensorRT executes plans unchecked, so only the agent's user may write here.

    Args:
        directory: Created when needed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str, key: EngineKey) -> Path:
        """Path of the plan; the manifest beside it ends in .json."""
        return self.directory / f"{Path(name).stem}-{key.precision}-{key.digest[:16]}.plan"

    def load(self, path: Path) -> Tuple[Optional[bytes], Optional[Manifest], str]:
        """(plan, manifest, "") of a complete entry, else (None, None, reason).

        Raises:
            InputError: The folder cannot be read.
        """
        try:
            plan = path.read_bytes()
            entries: Dict[str, Any] = json.loads(path.with_suffix(".json").read_text("utf-8"))
            if entries.pop("format") != _FORMAT:
                return None, None, "it was built by another version of this program"
            entries.pop("key")
            manifest = Manifest(**entries)
        except FileNotFoundError:
            return None, None, "there is none in the cache"
        except OSError as error:
            raise _unusable(path, error) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return None, None, f"its manifest is damaged ({type(error).__name__})"
        if len(plan) != manifest.plan_bytes or hashlib.sha256(plan).hexdigest() != manifest.plan_sha256:
            return None, None, f"it is damaged: {len(plan)} bytes instead of {manifest.plan_bytes}, or another checksum"
        with suppress(OSError):  # the folder may be read-only
            os.utime(str(path))
        return plan, manifest, ""

    def store(self, path: Path, key: EngineKey, plan: bytes, manifest: Manifest) -> None:
        """Write both atomically, the manifest last, so that it never describes another plan.

        Raises:
            InputError: The folder cannot be written.
        """
        text = json.dumps({"format": _FORMAT, "key": asdict(key), **asdict(manifest)}, indent=2) + "\n"
        self.write(path, plan)
        self.write(path.with_suffix(".json"), text.encode())

    def require_writable(self) -> None:
        """Check that the folder can be written, before a build of minutes.

        Raises:
            InputError: The folder cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=str(self.directory)).close()
        except OSError as error:
            raise _unusable(self.directory, error) from error

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file of the cache atomically.

        Raises:
            InputError: The folder cannot be written.
        """
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        except OSError as error:
            if scratch.exists():
                scratch.unlink()
            raise _unusable(path, error) from error

    def prune(self, name: str) -> List[Path]:
        """Remove all but the newest of a model's engines and references, by creation or last load.

        Returns:
            The removed files.
        """
        stem = re.escape(Path(name).stem)
        removed: List[Path] = []
        with suppress(OSError):  # another agent may prune at the same time; the rest is removed next time
            for pattern in (
                rf"{stem}-(int8|fp16|fp32)-[0-9a-f]{{16}}\.plan",
                rf"{stem}-[0-9a-f]{{16}}\.reference\.npz",
            ):
                found = [path for path in self.directory.iterdir() if re.fullmatch(pattern, path.name)]
                for path in sorted(found, key=_age_s)[_KEPT:]:
                    path.unlink()
                    removed.append(path)
                    manifest = path.with_suffix(".json")
                    if manifest.exists():
                        manifest.unlink()
        return removed


def describe(layers: Dict[str, int]) -> str:
    """Count of layers by precision in one line."""
    return ", ".join(f"{precision} {count}" for precision, count in layers.items()) or "not reported"


def _age_s(path: Path) -> float:
    return -path.stat().st_mtime


def _unusable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"engine cache {path}: {error.strerror}",
        "expected a folder that the agent may write: CacheDirectory= in the systemd unit, else XDG_CACHE_HOME",
    )
