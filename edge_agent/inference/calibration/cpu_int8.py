"""The INT8 version of a model for the CPU, used where a trial showed it to be as accurate as the float one, and faster.

The result is stored beside the model as JSON, and applies to one model file, one CPU model and one ONNX Runtime.
"""

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Tuple

from edge_agent.errors import InputError
from edge_agent.inference.ort import runtime_version

SLACK = 0.01
"""Accepted loss of precision and of recall."""
MIN_FACES = 10
_FASTER = 0.95
_FORMAT = 1
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Int8Trial:
    """The result of the trial of an INT8 file.

    Attributes:
        model_sha256: Of the float file, hex.
        int8_sha256: Of the INT8 file, hex.
        cpu: The CPU model of the trial.
        onnxruntime: The version of ONNX Runtime.
        pictures: Number of test frames; none of them is a calibration frame.
        faces: Number of faces that the float network detects in them with certainty.
        precision: Of the INT8 network, relative to the float network's faces.
        recall: Likewise.
        float_ms: Median time of the float network per frame.
        int8_ms: Median time of the INT8 network per frame.
    """

    model_sha256: str
    int8_sha256: str
    cpu: str
    onnxruntime: str
    pictures: int
    faces: int
    precision: float
    recall: float
    float_ms: float
    int8_ms: float

    @property
    def objection(self) -> str:
        """Why it must not be used; empty when it may."""
        if self.faces < MIN_FACES:
            return f"too few faces to judge by: {self.faces} of {MIN_FACES}"
        if min(self.precision, self.recall) < 1.0 - SLACK:
            return f"against the float network: precision {self.precision:.3f}, recall {self.recall:.3f}"
        if self.int8_ms > _FASTER * self.float_ms:
            return f"not faster here: {self.int8_ms:.1f} ms against {self.float_ms:.1f} ms"
        return ""


def int8_file(path: Path) -> Path:
    """The path of the INT8 version of the model in `path`; the result of its trial is beside it, as .json."""
    return path.with_suffix(".cpu-int8.onnx")


def store_trial(path: Path, trial: Int8Trial) -> Path:
    """Write the result of the trial of the INT8 version of the model in `path`.

    Raises:
        InputError: The folder is not writable.
    """
    target = int8_file(path).with_suffix(".json")
    text = json.dumps({"format": _FORMAT, **asdict(trial)}, indent=2) + "\n"
    write_beside(target, text.encode())
    return target


def verified_int8(path: Path, model_sha256: str) -> Tuple[str, str]:
    """(sha256 of the INT8 file to use instead of the model in `path`, ""), or ("", the reason against it)."""
    target = int8_file(path)
    try:
        entries = json.loads(target.with_suffix(".json").read_text("utf-8"))
        if entries.pop("format") != _FORMAT:
            return "", f"{target} was written by another version of this program"
        trial = Int8Trial(**entries)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        objection = trial.objection
    except FileNotFoundError:
        return "", "there is none; 'edge-agent model calibrate' creates it"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return "", f"{target} or the result of its trial cannot be read ({type(error).__name__})"
    if trial.model_sha256 != model_sha256 or trial.int8_sha256 != digest:
        return "", f"{target} was made from another model, or changed since"
    here = (cpu_name(), runtime_version())
    if (trial.cpu, trial.onnxruntime) != here:
        return "", f"{target} was tried on {trial.cpu} with ONNX Runtime {trial.onnxruntime}, not here"
    return ("", f"{target}: {objection}") if objection else (digest, "")


def write_beside(path: Path, data: bytes) -> None:
    """Replace a file beside a model atomically.

    Raises:
        InputError: The folder is not writable.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as error:
        if scratch.exists():
            scratch.unlink()
        raise InputError(
            f"{path}: cannot be written: {error.strerror}", "expected a model in a writable folder"
        ) from error


def cpu_name() -> str:
    """The architecture and the model name of this machine's CPU."""
    names = [value for key, value in cpu_facts() if key in ("model name", "Model")]
    return f"{platform.machine()} {names[0] if names else ''}".strip()


def cpu_facts() -> Tuple[Tuple[str, str], ...]:
    """The (key, value) pairs of /proc/cpuinfo; none where it cannot be read."""
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ()
    pairs = (line.partition(":") for line in lines)
    return tuple((key.strip(), value.strip()) for key, _, value in pairs)
