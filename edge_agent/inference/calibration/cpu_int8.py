"""The model in INT8 for CPU cores, used where it was shown to be as good as the float one, and faster.

What was shown is kept beside the model as JSON, and holds for one model file, one kind of CPU and one ONNX Runtime.
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
"""So much precision and recall may be lost."""
LEAST_FACES = 10
_FASTER = 0.95
_FORMAT = 1
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Verdict:
    """What the trial of an INT8 file showed.

    Attributes:
        model_sha256: Of the float file.
        int8_sha256: Of the INT8 file.
        cpu: Where it was tried.
        onnxruntime: By which version.
        pictures: How many it was judged on; none of them was calibrated with.
        faces: That the float network finds on them with certainty.
        precision: Of the INT8 network, the float network's faces being the truth; None without any.
        recall: Likewise.
        float_ms: Median time of one picture.
        int8_ms: Likewise.
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
    def why_not(self) -> str:
        """What speaks against its use; empty when nothing does."""
        if self.faces < LEAST_FACES:
            return f"too few faces to judge by: {self.faces} of {LEAST_FACES}"
        if min(self.precision, self.recall) < 1.0 - SLACK:
            return f"against the float network: precision {self.precision:.3f}, recall {self.recall:.3f}"
        if self.int8_ms > _FASTER * self.float_ms:
            return f"not faster here: {self.int8_ms:.1f} ms against {self.float_ms:.1f} ms"
        return ""


def int8_file(path: Path) -> Path:
    """Where the INT8 version of the model in `path` lies; what was shown of it lies beside it as .json."""
    return path.with_suffix(".cpu-int8.onnx")


def store_verdict(path: Path, verdict: Verdict) -> Path:
    """Write what was shown of the INT8 version of the model in `path`.

    Raises:
        InputError: The folder cannot be written.
    """
    target = int8_file(path).with_suffix(".json")
    text = json.dumps({"format": _FORMAT, **asdict(verdict)}, indent=2) + "\n"
    write_beside(target, text.encode())
    return target


def proven_int8(path: Path, model_sha256: str) -> Tuple[str, str]:
    """(sha256 of the INT8 file to use instead of the model in `path`, ""), or ("", why not)."""
    target = int8_file(path)
    try:
        entries = json.loads(target.with_suffix(".json").read_text("utf-8"))
        if entries.pop("format") != _FORMAT:
            return "", f"{target} is of another version of this program"
        verdict = Verdict(**entries)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        why_not = verdict.why_not
    except FileNotFoundError:
        return "", "there is none; 'edge-agent model calibrate' makes it"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return "", f"{target} or what was shown of it cannot be read ({type(error).__name__})"
    if verdict.model_sha256 != model_sha256 or verdict.int8_sha256 != digest:
        return "", f"{target} was made from another model, or changed since"
    here = (cpu_name(), runtime_version())
    if (verdict.cpu, verdict.onnxruntime) != here:
        return "", f"{target} was tried on {verdict.cpu} with ONNX Runtime {verdict.onnxruntime}, not here"
    return ("", f"{target}: {why_not}") if why_not else (digest, "")


def write_beside(path: Path, data: bytes) -> None:
    """Replace a file beside a model, at once or not at all.

    Raises:
        InputError: The folder cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(data)
        scratch.replace(path)
    except OSError as error:
        if scratch.exists():
            scratch.unlink()
        raise InputError(
            f"{path}: cannot be written: {error.strerror}", "expected a model in a folder that may be written"
        ) from error


def cpu_name() -> str:
    """This machine's CPU, as Linux calls it."""
    names = [value for key, value in cpu_facts() if key in ("model name", "Model")]
    return f"{platform.machine()} {names[0] if names else ''}".strip()


def cpu_facts() -> Tuple[Tuple[str, str], ...]:
    """What Linux tells of each core; nothing elsewhere."""
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ()
    pairs = (line.partition(":") for line in lines)
    return tuple((key.strip(), value.strip()) for key, _, value in pairs)
