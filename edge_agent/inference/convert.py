"""Converts NVIDIA's model files to ONNX, and tries the result out before it is written."""

import os
import shlex
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from edge_agent.errors import InputError, MissingPackage, ModelError
from edge_agent.inference.ort import trial_run
from edge_agent.models.etlt import open_etlt
from edge_agent.models.inspect import Inspection, inspect_onnx
from edge_agent.models.onnx.file import parse_onnx
from edge_agent.models.uff.to_onnx import convert_uff


def convert_file(
    source: Path, target: Path, key: Optional[str] = None, outputs: Sequence[str] = (), batch: Optional[int] = 1
) -> Inspection:
    """Convert `source` to `target`, which is replaced atomically, or left unchanged after an error.

    Args:
        source: .uff or .etlt.
        target: The ONNX file.
        key: Decrypts an .etlt.
        outputs: Names of the outputs of a UFF network; its own when empty.
        batch: Size of a UFF network's free batch axis; None leaves it free.

    Returns:
        The facts of the source and the findings about the result.

    Raises:
        InputError: A file cannot be read or written, or there is no such output.
        ModelError: The file is damaged, its key is wrong, it cannot be converted, or the result does not run.
        MissingPackage: `onnx`, or for an .etlt NVIDIA's package, is not installed.
    """
    if target.suffix != ".onnx":
        raise InputError(f"{target}: the result is ONNX", "expected a name that ends in .onnx")
    kind, data = _payload(source, key)
    facts: Dict[str, Any] = {}
    if kind == "uff":
        made = convert_uff(data, str(source), outputs, batch)
        data, facts["operations"] = made.data, dict(made.operations)
    elif outputs:
        raise InputError(f"{source}: holds ONNX, whose outputs are as they are", "leave out --output")
    found = inspect_onnx(data, str(target))
    facts.update((fact, found.facts[fact]) for fact in ("inputs", "outputs", "contract"))
    trial = _trial(data, str(source))
    _write(target, data)
    use = f"; to use it, set EDGE_AGENT_MODEL__MODEL={shlex.quote(str(target))}" if facts["contract"] else ""
    return Inspection(kind, facts, [*found.findings, trial, f"wrote {target}{use}"])


def _payload(source: Path, key: Optional[str]) -> Tuple[str, bytes]:
    try:
        data = source.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}", "expected a .uff or .etlt file") from error
    if source.suffix != ".etlt":
        return "uff", data
    if key is None:
        raise InputError(f"{source}: is encrypted", "give its key by --key; that of FaceDetectIR is tlt_encode")
    return open_etlt(data, str(source), key)


def _trial(data: bytes, name: str) -> str:
    """A line on whether the result runs.

    Raises:
        ModelError: It does not run, or an output has another shape than the file states.
    """
    try:
        found = trial_run(data, name)
    except MissingPackage:
        return "not tried out: that needs onnxruntime (pip install onnxruntime)"
    for tensor in parse_onnx(data, name).outputs:
        stated = tuple(dim if isinstance(dim, int) else 1 for dim in tensor.shape or ())
        if tensor.shape is not None and stated != found[tensor.name]:
            raise ModelError(f"{name}: {tensor.name} should be {stated}, and is {found[tensor.name]}")
    return "tried out with ONNX Runtime: outputs of the shapes above, all finite"


def _write(target: Path, data: bytes) -> None:
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        scratch.write_bytes(data)
        scratch.replace(target)
    except OSError as error:
        if scratch.exists():
            scratch.unlink()
        raise InputError(f"{target}: cannot be written: {error.strerror}", "choose another place") from error
