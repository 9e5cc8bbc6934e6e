"""INT8 calibration caches: NVIDIA's scales per tensor, checked before TensorRT silently ignores what does not fit.

Format: a line `TRT-<version>-<algorithm>`, then `tensor: scale`, the scale being a big-endian float32 in hex and the
tensor's largest amplitude divided by 127. Names are those of the network that was calibrated: UFF has none with ":0",
TAO's ONNX exports have it everywhere. The scales mean the same to every version, but TensorRT 10 refuses a cache whose
first line names another than its own, and then calibrates anew, for which there are no pictures.
"""

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Mapping, Sequence

from edge_agent.errors import ModelError

_FULL_SCALE = 127.0
_HEADER = "TRT-8601-EntropyCalibration2"  # for other programs: each build gets the line of its own TensorRT
CALIBRATORS = {  # by algorithm: the class of TensorRT
    "EntropyCalibration2": "IInt8EntropyCalibrator2",
    "MinMaxCalibration": "IInt8MinMaxCalibrator",
}
_FIRST_LINE = re.compile(r"TRT-(\w+)-(\w+)")  # some tools write 8XXX
_AMPLITUDE = (0.2, 1.05)  # of the input, as a share of white: dark infrared pictures may well never reach it


@dataclass(frozen=True)
class Calibration:
    """A calibration cache.

    Attributes:
        path: The file.
        sha256: Of the file, hex.
        made_by: The TensorRT that its first line names.
        algorithm: "EntropyCalibration2" or "MinMaxCalibration".
        codes: By tensor name, in file order, the scale's 8 hex digits.
    """

    path: Path
    sha256: str
    made_by: str
    algorithm: str
    codes: Mapping[str, str]

    def amplitude(self, tensor: str) -> float:
        """The largest value that counts of a tensor."""
        return _value(self.codes[tensor]) * _FULL_SCALE


def read_calibration(path: Path) -> Calibration:
    """The cache in `path`.

    Raises:
        ModelError: It cannot be read, or is no calibration cache of an algorithm that TensorRT still has.
    """
    try:
        return parse_calibration(path.read_bytes(), path)
    except OSError as error:
        raise ModelError(f"calibration {path}: {error.strerror}", "expected an INT8 calibration cache") from error


def parse_calibration(data: bytes, path: Path) -> Calibration:
    """The cache in `data`, which came from `path`.

    Raises:
        ModelError: It is no calibration cache of an algorithm that TensorRT still has.
    """
    lines = data.decode("utf-8", "replace").splitlines() or [""]
    first = lines[0].strip()
    header = _FIRST_LINE.fullmatch(first)
    if header is None or header.group(2) not in CALIBRATORS:
        raise ModelError(
            f"calibration {path}: its first line is {first[:60]!r}",
            f"expected TRT-<version>- and one of {', '.join(CALIBRATORS)}",
        )
    codes: Dict[str, str] = {}
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            name, _, code = line.rpartition(":")
            codes[name.strip()] = _checked(code.strip(), f"calibration {path}: line {number}")
    if not codes:
        raise ModelError(f"calibration {path}: names no tensor", "fetch it again")
    return Calibration(path, hashlib.sha256(data).hexdigest(), header.group(1), header.group(2), codes)


def encode_calibration(amplitudes: Mapping[str, float]) -> bytes:
    """A cache of these amplitudes by tensor name."""
    codes = {name: struct.pack(">f", value / _FULL_SCALE).hex() for name, value in amplitudes.items()}
    return _encoded(_HEADER, codes)


def fitted(calibration: Calibration, tensors: Sequence[str], source: str, white: float, version: str) -> bytes:
    """The cache under the names of a network, for the calibrator of TensorRT `version`; see `scales_of`."""
    return _encoded(_header(version, calibration.algorithm), _fitting(calibration, tensors, source, white))


def restamped(calibration: Calibration, version: str) -> bytes:
    """The cache as it is, but for TensorRT `version`: for a network whose tensors are not known."""
    return _encoded(_header(version, calibration.algorithm), calibration.codes)


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
    if not fits_pictures(amplitude, white):
        raise ModelError(
            f"calibration {calibration.path}: made for other preprocessing: its input {source} reaches "
            f"{amplitude:.4g}, but this model's pictures reach {white:g}",
            "use the calibration that was published with this model, or precision fp16",
        )
    return codes


def fits_pictures(amplitude: float, white: float) -> bool:
    """Whether an input that reaches `amplitude` may have been calibrated with pictures whose white is `white`."""
    low, high = (share * white for share in _AMPLITUDE)
    return low <= amplitude <= high


def _header(version: str, algorithm: str) -> str:
    """As TensorRT `version` begins its caches, NV_TENSORRT_VERSION being 8201 for 8.2.1, and 100300 for 10.3.0."""
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return f"TRT-{major * (1000 if major < 10 else 10000) + minor * 100 + patch}-{algorithm}"


def _encoded(header: str, codes: Mapping[str, str]) -> bytes:
    return "".join([f"{header}\n", *(f"{name}: {code}\n" for name, code in codes.items())]).encode("utf-8")


def _bare(name: str) -> str:
    return name[:-2] if name.endswith(":0") else name


def _value(code: str) -> float:
    return float(struct.unpack(">f", bytes.fromhex(code))[0])


def _checked(code: str, where: str) -> str:
    code = code if code.strip("0") else code.zfill(8)  # NVIDIA's exporters write 0 as one digit
    try:
        value = _value(code)
    except (ValueError, struct.error) as error:
        raise ModelError(f"{where} cannot be read", "expected 'tensor: 8 hex digits'") from error
    if not 0 <= value < float("inf"):
        raise ModelError(f"{where}: the scale is {value}", "the file is damaged: fetch it again")
    return code
