"""Inspects model files: their kind, their content, and how the agent can use them."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List

from edge_agent.errors import InputError, ModelError
from edge_agent.files import MAX_MODEL_BYTES, read_regular
from edge_agent.models.calibration_cache import fits_white_level, parse_calibration
from edge_agent.models.onnx.binding import contract_structure, describe_contract
from edge_agent.models.onnx.file import parse_onnx
from edge_agent.models.uff.to_onnx import convert_uff

_NAME_LIMIT_BYTES = 1024
_UFF_READERS = "of TensorRT only versions up to 8.6 (JetPack up to 6.0) read UFF"
_CONVERT = "'edge-agent model convert' converts it to .onnx, which every backend runs"
_INPUT_RANGES = {1.0: "as images in 0..1 do: a DetectNet_v2", 255.0: "as images in 0..255 do: CenterFace"}
_OTHER_RANGE = "but images in 0..1 reach about 1, in 0..255 about 255: made for other preprocessing"


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        kind: "onnx", "etlt", "uff", "calibration" or "labels".
        facts: What was read, ready for JSON, in the order of presentation.
        findings: What it means for the agent, one sentence each.
    """

    kind: str
    facts: Dict[str, Any]
    findings: List[str] = field(default_factory=list)


def inspect_file(path: Path) -> Inspection:
    """Inspect a file; its kind is recognised by its name and its content.

    Raises:
        InputError: It cannot be read, or is of no known kind.
        ModelError: It is of a known kind, but damaged.
        MissingPackage: It is a network, and `onnx` is not installed.
    """
    try:
        data = read_regular(path, MAX_MODEL_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "expected a model file") from error
    if path.suffix == ".onnx":
        return inspect_onnx(data, str(path))
    if path.suffix == ".etlt":
        return inspect_etlt(data, str(path))
    if path.suffix == ".uff":
        return inspect_uff(data, str(path))
    if data.startswith(b"TRT-"):
        return inspect_calibration(data, path)
    if path.suffix == ".txt":
        return _inspect_labels(data, str(path))
    raise InputError(
        f"{path}: of no known kind",
        "expected .onnx, .etlt, .uff, an INT8 calibration cache (TRT-...), or labels in a .txt",
    )


def inspect_onnx(data: bytes, name: str) -> Inspection:
    """Inspect an ONNX file: inputs, outputs, exporter, and the contract that the model keeps.

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
        contract, classes = contract_structure(model, name)
        facts["contract"] = describe_contract(contract, classes)
        return Inspection("onnx", facts, [f"keeps the contract {facts['contract']}: backend onnxruntime can run it"])
    except ModelError as error:
        facts["contract"] = None
        return Inspection("onnx", facts, [f"keeps no contract that the agent knows: {error}"])


def inspect_etlt(data: bytes, name: str) -> Inspection:
    """Inspect the unencrypted header of an .etlt: an int32 length, then the name of the input node.

    A length of 0 means that the payload is ONNX, else it is UFF. Source: nvidia_tao_deploy/utils/decoding.py.

    Raises:
        ModelError: The header does not fit the file.
    """
    length = struct.unpack_from("<i", data)[0] if len(data) >= 4 else -1
    if not 0 <= length <= min(_NAME_LIMIT_BYTES, len(data) - 4):
        raise ModelError(
            f"{name}: damaged or no .etlt: its header states the length {length}",
            "expected a length of 0 to 1024 bytes",
        )
    node = data[4 : 4 + length]
    if not (node.isascii() and node.decode("ascii", "replace").isprintable()):
        raise ModelError(f"{name}: damaged or no .etlt: its input's name is not text", "fetch it again")
    payload = "uff" if length else "onnx"
    facts = {"payload": payload, "input": node.decode(), "payload_bytes": len(data) - 4 - length, "encrypted": True}
    readers = f"; {_UFF_READERS}" if length else ""
    return Inspection("etlt", facts, [f"the payload is {payload.upper()}, encrypted{readers}", _CONVERT])


def inspect_uff(data: bytes, name: str) -> Inspection:
    """Inspect a UFF file: inputs, outputs, operations, and the contract that the converted model keeps.

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
    if facts["contract"] is None:
        return Inspection("uff", facts, [*onnx.findings, _UFF_READERS])
    return Inspection("uff", facts, [f"keeps the contract {facts['contract']}", _UFF_READERS, _CONVERT])


def inspect_calibration(data: bytes, path: Path) -> Inspection:
    """Inspect an INT8 calibration cache.

    Raises:
        ModelError: It is damaged.
    """
    cache = parse_calibration(data, path)
    source = next((name for name in cache.codes if name.startswith("input")), next(iter(cache.codes)))
    amplitude = cache.amplitude(source)
    facts = {
        "tensorrt": cache.made_by,
        "algorithm": cache.algorithm,
        "tensors": len(cache.codes),
        "input": source,
        "input_amplitude": round(amplitude, 5),
        "names_end_in_colon_0": any(name.endswith(":0") for name in cache.codes),
    }
    finding = next(
        (found for white, found in _INPUT_RANGES.items() if fits_white_level(amplitude, white)), _OTHER_RANGE
    )
    return Inspection("calibration", facts, [f"{source} reaches {amplitude:.4f}, {finding}"])


def _inspect_labels(data: bytes, name: str) -> Inspection:
    try:
        labels = [line.strip() for line in data.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: neither a calibration cache nor text", "expected labels, one per line") from error
    return Inspection("labels", {"labels": labels}, ["one class per line, in the order of the coverage planes"])
