"""Look into a model's files: what they are, and what the agent could do with them."""

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Tuple

from edge_agent.errors import InputError, ModelError
from edge_agent.inference.onnx.contract import describe, structure
from edge_agent.inference.onnx.file import parse_onnx
from edge_agent.inference.uff.to_onnx import convert_uff

_CALIBRATION_HEADER = re.compile(r"TRT-(\d+)-(\w+)")
_NAME_LIMIT_BYTES = 1024
_FULL_SCALE = 127.0


@dataclass(frozen=True)
class Inspection:
    """What a file is.

    Attributes:
        kind: "onnx", "etlt", "uff", "calibration" or "labels".
        facts: What was read, ready for JSON, in the order worth reading.
        findings: What it means for the agent, a sentence each.
    """

    kind: str
    facts: Dict[str, Any]
    findings: List[str] = field(default_factory=list)


def inspect_file(path: Path) -> Inspection:
    """Tell what `path` is by its name and its bytes.

    Raises:
        InputError: It cannot be read, or is none of the kinds known.
        ModelError: It is of a known kind, but damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "expected a model file") from error
    if path.suffix == ".onnx":
        return inspect_onnx(data, str(path))
    if path.suffix == ".etlt":
        return inspect_etlt(data, str(path))
    if path.suffix == ".uff":
        return inspect_uff(data, str(path))
    if data.startswith(b"TRT-"):
        return inspect_calibration(data, str(path))
    if path.suffix == ".txt":
        return _inspect_labels(data, str(path))
    raise InputError(
        f"{path}: of no known kind",
        "expected .onnx, .etlt, .uff, an INT8 calibration cache (TRT-...), or labels in a .txt",
    )


def inspect_onnx(data: bytes, name: str) -> Inspection:
    """Inputs, outputs, exporter, and the contract that the model keeps.

    Raises:
        ModelError: It is damaged.
    """
    model = parse_onnx(data, name)
    facts: Dict[str, Any] = {
        "inputs": [str(tensor) for tensor in model.inputs],
        "outputs": [str(tensor) for tensor in model.outputs],
        "precision": model.precision,
        "opset": {domain or "ai.onnx": version for domain, version in model.opsets.items()},
        "producer": model.producer,
        "operators": sorted(model.operators),
        "metadata": dict(model.metadata),
    }
    try:
        contract, classes = structure(model, name)
        facts["contract"] = describe(contract, classes)
        return Inspection("onnx", facts, [f"keeps the contract {facts['contract']}: backend onnxruntime can run it"])
    except ModelError as error:
        facts["contract"] = None
        return Inspection("onnx", facts, [f"keeps no contract that the agent knows: {error}"])


def inspect_etlt(data: bytes, name: str) -> Inspection:
    """The plain header of NVIDIA's encrypted export: an int32 length, then the name of the input node.

    Source: nvidia_tao_deploy/utils/decoding.py; a length of 0 means that the payload is ONNX, else it is UFF.

    Raises:
        ModelError: The header does not fit the file.
    """
    length = struct.unpack_from("<i", data)[0] if len(data) >= 4 else -1
    if not 0 <= length <= min(_NAME_LIMIT_BYTES, len(data) - 4):
        raise ModelError(
            f"{name}: damaged or no .etlt: its header says {length}", "expected a length of 0 to 1024 bytes"
        )
    node = data[4 : 4 + length]
    if not (node.isascii() and node.decode("ascii", "replace").isprintable()):
        raise ModelError(f"{name}: damaged or no .etlt: its input's name is not text", "fetch it again")
    payload = "uff" if length else "onnx"
    facts = {"payload": payload, "input": node.decode(), "payload_bytes": len(data) - 4 - length, "encrypted": True}
    reads = "; of TensorRT only versions up to 8.6 (JetPack up to 6.0) read UFF" if length else ""
    way = "'edge-agent model convert' makes .onnx of it, which every backend runs"
    return Inspection("etlt", facts, [f"the payload is {payload.upper()}, encrypted{reads}", way])


def inspect_uff(data: bytes, name: str) -> Inspection:
    """Inputs, outputs and operations of a UFF file, and the contract that it keeps once it is converted.

    Raises:
        ModelError: It is damaged, or cannot be converted.
    """
    made = convert_uff(data, name)
    facts: Dict[str, Any] = {
        "inputs": [str(tensor) for tensor in made.inputs],
        "outputs": [str(tensor) for tensor in made.outputs],
        "operations": dict(made.operations),
    }
    onnx = inspect_onnx(made.data, name)
    facts["contract"] = onnx.facts["contract"]
    findings = ["of TensorRT only versions up to 8.6 (JetPack up to 6.0) read UFF"]
    if facts["contract"] is None:
        return Inspection("uff", facts, [*onnx.findings, *findings])
    way = "'edge-agent model convert' makes .onnx of it, which every backend runs"
    return Inspection("uff", facts, [f"keeps the contract {facts['contract']}", *findings, way])


def inspect_calibration(data: bytes, name: str) -> Inspection:
    """An INT8 calibration cache: per tensor, a big-endian float32 in hex, the amplitude divided by 127.

    Raises:
        ModelError: A line cannot be read.
    """
    lines = data.decode("ascii", "replace").splitlines()
    header = _CALIBRATION_HEADER.fullmatch(lines[0].strip()) if lines else None
    if header is None:
        raise ModelError(f"{name}: no calibration cache", "expected a first line such as TRT-8001-EntropyCalibration2")
    scales = [_scale(line, number, name) for number, line in enumerate(lines[1:], 2) if line.strip()]
    if not scales:
        raise ModelError(f"{name}: a calibration cache without tensors", "fetch it again")
    tensor, scale = next((entry for entry in scales if entry[0].startswith("input")), scales[0])
    amplitude = scale * _FULL_SCALE
    facts = {
        "tensorrt": header.group(1),
        "algorithm": header.group(2),
        "tensors": len(scales),
        "input": tensor,
        "input_amplitude": round(amplitude, 5),
        "names_end_in_colon_0": any(entry.endswith(":0") for entry, _ in scales),
    }
    fits = abs(amplitude - 1.0) < 0.02
    finding = "as pictures in 0..1 give" if fits else "but pictures in 0..1 give about 1: made for other preprocessing"
    return Inspection("calibration", facts, [f"{tensor} reaches {amplitude:.4f}, {finding}"])


def _scale(line: str, number: int, name: str) -> Tuple[str, float]:
    tensor, _, code = line.rpartition(":")
    try:
        scale = struct.unpack(">f", bytes.fromhex(code.strip()))[0]
    except (ValueError, struct.error) as error:
        raise ModelError(f"{name}: line {number} cannot be read", "expected 'tensor: 8 hex digits'") from error
    return tensor.strip(), scale


def _inspect_labels(data: bytes, name: str) -> Inspection:
    try:
        labels = [line.strip() for line in data.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: neither a calibration cache nor text", "expected labels, one per line") from error
    return Inspection("labels", {"labels": labels}, ["one class per line, in the order of the coverage planes"])
