"""Engines on disk: one plan and one JSON manifest for everything that decides whether a plan may be used."""

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
"""Engines (and references) of one model that stay; a board needs one, a change of settings now and then another."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine was built from, by what, and for what. Another value of any of these needs another engine.

    Attributes:
        model_sha256: Of the model.
        calibration_sha256: Of the INT8 calibration, or None.
        precision: That was built.
        shapes: Smallest, usual and largest input; the batch is their first dim.
        workspace_bytes: Scratch memory allowed.
        dla_core: Accelerator, or None.
        tensorrt: Full version.
        gpu: Name.
        sm: Compute capability, "87".
        multiprocessors: Of the GPU; an Orin Nano's GPU has the name of an AGX Orin's.
        driver: The newest CUDA that the driver runs.
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
        """Hex sum over all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What is known of an engine.

    Attributes:
        plan_sha256: Of the plan.
        plan_bytes: Its size.
        asked: The precision asked for.
        precision: What layers really compute in.
        why: Why this precision.
        layers: How many layers compute in what.
        build_s: How long the build took.
    """

    plan_sha256: str
    plan_bytes: int
    asked: str
    precision: str
    why: str
    layers: Dict[str, int] = field(default_factory=dict)
    build_s: float = 0.0


class EngineCache:
    """A folder of engines. A plan is code that TensorRT trusts: only the agent's user may write here.

    Args:
        directory: Made when needed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str, key: EngineKey) -> Path:
        """Where the plan lies; the manifest beside it ends in .json."""
        return self.directory / f"{Path(name).stem}-{key.precision}-{key.digest[:16]}.plan"

    def load(self, path: Path) -> Tuple[Optional[bytes], Optional[Manifest], str]:
        """(plan, manifest, "") of what is there and whole; (None, None, why not) else.

        Raises:
            InputError: The folder cannot be read.
        """
        try:
            plan = path.read_bytes()
            entries: Dict[str, Any] = json.loads(path.with_suffix(".json").read_text("utf-8"))
            if entries.pop("format") != _FORMAT:
                return None, None, "it is of another version of this program"
            entries.pop("key")
            manifest = Manifest(**entries)
        except FileNotFoundError:
            return None, None, "there is none"
        except OSError as error:
            raise _unusable(path, error) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return None, None, f"its manifest is damaged ({type(error).__name__})"
        if len(plan) != manifest.plan_bytes or hashlib.sha256(plan).hexdigest() != manifest.plan_sha256:
            return None, None, f"it is damaged: {len(plan)} bytes, and not the {manifest.plan_bytes} that were built"
        with suppress(OSError):  # a folder that is only read keeps its times
            os.utime(str(path))
        return plan, manifest, ""

    def store(self, path: Path, key: EngineKey, plan: bytes, manifest: Manifest) -> None:
        """Write both, each at once or not at all; the manifest last, so that it never vouches for another plan.

        Raises:
            InputError: The folder cannot be written.
        """
        text = json.dumps({"format": _FORMAT, "key": asdict(key), **asdict(manifest)}, indent=2) + "\n"
        self.write(path, plan)
        self.write(path.with_suffix(".json"), text.encode())

    def require_writable(self) -> None:
        """Find out before minutes of work, not after.

        Raises:
            InputError: The folder cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=str(self.directory)).close()
        except OSError as error:
            raise _unusable(self.directory, error) from error

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file of the cache, at once or not at all.

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
        """Remove all but the newest of a model's engines and references, by when they were made or last loaded.

        Returns:
            What is gone.
        """
        stem = re.escape(Path(name).stem)
        gone: List[Path] = []
        with suppress(OSError):  # another agent may tidy up, too; what stays now goes next time
            for pattern in (
                rf"{stem}-(int8|fp16|fp32)-[0-9a-f]{{16}}\.plan",
                rf"{stem}-[0-9a-f]{{16}}\.reference\.npz",
            ):
                found = [path for path in self.directory.iterdir() if re.fullmatch(pattern, path.name)]
                for path in sorted(found, key=_age_s)[_KEPT:]:
                    path.unlink()
                    gone.append(path)
                    manifest = path.with_suffix(".json")
                    if manifest.exists():
                        manifest.unlink()
        return gone


def describe(layers: Dict[str, int]) -> str:
    """Layers by precision in one line."""
    return ", ".join(f"{precision} {count}" for precision, count in layers.items()) or "the engine does not tell"


def _age_s(path: Path) -> float:
    return -path.stat().st_mtime


def _unusable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"engine cache {path}: {error.strerror}",
        "expected a folder that the agent may write: CacheDirectory= in the systemd unit, else XDG_CACHE_HOME",
    )
