"""INT8 calibration caches: NVIDIA's scales per tensor, checked before TensorRT silently ignores what does not fit.

Format: a line `TRT-<version>-<algorithm>`, then `tensor: scale`, the scale being a big-endian float32 in hex and the
tensor's largest amplitude divided by 127. Names are those of the network that was calibrated: UFF has none with ":0",
TAO's ONNX exports have it everywhere.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from edge_agent.errors import ModelError
from edge_agent.inference.trt.api import TensorRT

_FULL_SCALE = 127.0
_HEADER = "TRT-8601-EntropyCalibration2"
CALIBRATORS = {  # by algorithm: the class of TensorRT
    "EntropyCalibration2": "IInt8EntropyCalibrator2",
    "MinMaxCalibration": "IInt8MinMaxCalibrator",
}
_AMPLITUDE = (0.2, 1.05)  # of the input, as a share of white: dark infrared pictures may well never reach it


@dataclass(frozen=True)
class Calibration:
    """A calibration cache.

    Attributes:
        path: The file.
        sha256: Of the file, hex.
        header: Its first line.
        algorithm: "EntropyCalibration2" or "MinMaxCalibration".
        codes: By tensor name, in file order, the scale's 8 hex digits.
    """

    path: Path
    sha256: str
    header: str
    algorithm: str
    codes: Mapping[str, str]


def read_calibration(path: Path) -> Calibration:
    """The cache in `path`.

    Raises:
        ModelError: It cannot be read, or is no calibration cache of an algorithm that TensorRT still has.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"calibration {path}: {error.strerror}", "expected an INT8 calibration cache") from error
    lines = data.decode("utf-8", "replace").splitlines() or [""]
    header = lines[0].strip()
    algorithm = header.rpartition("-")[2]
    if not header.startswith("TRT-") or algorithm not in CALIBRATORS:
        raise ModelError(
            f"calibration {path}: its first line is {header[:60]!r}",
            f"expected TRT-<version>- and one of {', '.join(CALIBRATORS)}",
        )
    codes: Dict[str, str] = {}
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            name, _, code = line.rpartition(":")
            codes[name.strip()] = _checked(code.strip(), f"calibration {path}: line {number}")
    if not codes:
        raise ModelError(f"calibration {path}: names no tensor", "fetch it again")
    return Calibration(path, hashlib.sha256(data).hexdigest(), header, algorithm, codes)


def encode_calibration(amplitudes: Mapping[str, float]) -> bytes:
    """A cache of these amplitudes by tensor name; TensorRT 8.6's, which later ones read, too."""
    lines = [_HEADER]
    lines += [f"{name}: {struct.pack('>f', value / _FULL_SCALE).hex()}" for name, value in amplitudes.items()]
    return ("\n".join(lines) + "\n").encode("utf-8")


def fitted(calibration: Calibration, tensors: Sequence[str], source: str, white: float) -> bytes:
    """The cache under the names of a network, for its calibrator; see `scales_of`."""
    codes = _fitting(calibration, tensors, source, white)
    lines = [calibration.header, *(f"{name}: {code}" for name, code in codes.items())]
    return ("\n".join(lines) + "\n").encode("utf-8")


def scales_of(calibration: Calibration, tensors: Sequence[str], source: str, white: float) -> Dict[str, float]:
    """The scale of each tensor of a network that the cache knows.

    Args:
        calibration: As read.
        tensors: Names of the network's tensors.
        source: Name of its input.
        white: The input's value for a white pixel: 1 for DetectNet_v2, 255 for CenterFace.

    Raises:
        ModelError: It was made for another network, or for other preprocessing.
    """
    return {name: _value(code) for name, code in _fitting(calibration, tensors, source, white).items()}


def _fitting(calibration: Calibration, tensors: Sequence[str], source: str, white: float) -> Dict[str, str]:
    """Codes under the network's own spelling of the names."""
    spelled = {_bare(name): name for name in tensors}
    codes = {spelled[_bare(name)]: code for name, code in calibration.codes.items() if _bare(name) in spelled}
    if source not in codes:
        raise ModelError(
            f"calibration {calibration.path}: made for another model: it has no scale for the input {source}",
            f"it begins with {', '.join(list(calibration.codes)[:3])}",
        )
    known = {name for name in tensors if name in codes}
    if 2 * len(known) < min(len(calibration.codes), len(set(tensors))):
        raise ModelError(
            f"calibration {calibration.path}: made for another model: of its {len(calibration.codes)} tensors only "
            f"{len(known)} are in this one, which has {len(set(tensors))}",
            "use the calibration that was published with this model, or precision fp16",
        )
    amplitude = _value(codes[source]) * _FULL_SCALE
    low, high = (share * white for share in _AMPLITUDE)
    if not low <= amplitude <= high:
        raise ModelError(
            f"calibration {calibration.path}: made for other preprocessing: its input {source} reaches "
            f"{amplitude:.4g}, but this model's pictures reach {white:g}",
            "use the calibration that was published with this model, or precision fp16",
        )
    return codes


def make_calibrator(trt: TensorRT, calibration: Calibration, cache: bytes) -> Any:
    """TensorRT's calibrator of the cache's algorithm, which has no pictures, only the cache."""
    base = getattr(trt, CALIBRATORS[calibration.algorithm])

    class CachedScales(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> Optional[Sequence[int]]:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: object) -> None:
            return None

    return CachedScales()


def _bare(name: str) -> str:
    return name[:-2] if name.endswith(":0") else name


def _value(code: str) -> float:
    return float(struct.unpack(">f", bytes.fromhex(code))[0])


def _checked(code: str, where: str) -> str:
    try:
        value = _value(code)
    except (ValueError, struct.error) as error:
        raise ModelError(f"{where} cannot be read", "expected 'tensor: 8 hex digits'") from error
    if not 0 <= value < float("inf"):
        raise ModelError(f"{where}: the scale is {value}", "the file is damaged: fetch it again")
    return code
