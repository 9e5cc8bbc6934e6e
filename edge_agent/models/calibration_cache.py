"""INT8 calibration caches: scales per tensor, checked because TensorRT silently ignores those that do not fit.

Format: a line `TRT-<version>-<algorithm>`, then `tensor: scale`, the scale being a big-endian float32 in hex and the
tensor's largest amplitude divided by 127. Names are those of the network that was calibrated: UFF has none with ":0",
TAO's ONNX exports have it everywhere. The scales have the same meaning in every version, but TensorRT 10 rejects a
cache whose first line names another version, and would then calibrate again, for which there are no images.
"""

import hashlib
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Mapping, Sequence

from edge_agent.errors import ModelError
from edge_agent.files import MAX_TEXT_BYTES, read_regular

_FULL_SCALE = 127.0
_HEADER = "TRT-8601-EntropyCalibration2"  # for other programs; each build gets the header of its own TensorRT
CALIBRATORS = {  # by algorithm: the class of TensorRT
    "EntropyCalibration2": "IInt8EntropyCalibrator2",
    "MinMaxCalibration": "IInt8MinMaxCalibrator",
}
_FIRST_LINE = re.compile(r"TRT-(\w+)-(\w+)")  # some tools write 8XXX
_AMPLITUDE = (0.2, 1.05)  # of the input, as a share of white, which dark infrared images may never reach


@dataclass(frozen=True)
class Calibration:
    """A calibration cache.

    Attributes:
        path: The file.
        sha256: Of the file, hex.
        made_by: The version of TensorRT in its first line.
        algorithm: "EntropyCalibration2" or "MinMaxCalibration".
        codes: By tensor name, in file order, the scale's 8 hex digits.
    """

    path: Path
    sha256: str
    made_by: str
    algorithm: str
    codes: Mapping[str, str]

    def amplitude(self, tensor: str) -> float:
        """The full-scale value of a tensor."""
        return _value(self.codes[tensor]) * _FULL_SCALE


def read_calibration(path: Path) -> Calibration:
    """The cache in `path`.

    Raises:
        ModelError: It cannot be read, or is not a calibration cache of a supported algorithm.
    """
    try:
        return parse_calibration(read_regular(path, MAX_TEXT_BYTES), path)
    except OSError as error:
        raise ModelError(f"calibration {path}: {error.strerror}", "expected an INT8 calibration cache") from error


def parse_calibration(data: bytes, path: Path) -> Calibration:
    """The cache in `data`; errors name `path`.

    Raises:
        ModelError: It is not a calibration cache of a supported algorithm.
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
            codes[name.strip()] = _verified_code(code.strip(), f"calibration {path}: line {number}")
    if not codes:
        raise ModelError(f"calibration {path}: names no tensor", "fetch it again")
    return Calibration(path, hashlib.sha256(data).hexdigest(), header.group(1), header.group(2), codes)


def encode_calibration(amplitudes: Mapping[str, float]) -> bytes:
    """Encode a cache from amplitudes by tensor name."""
    codes = {name: struct.pack(">f", value / _FULL_SCALE).hex() for name, value in amplitudes.items()}
    return _encoded(_HEADER, codes)


def fitted(calibration: Calibration, tensors: Sequence[str], source: str, white: float, version: str) -> bytes:
    """Encode the scales that fit a network (as `scales_of`), under its tensor names, for TensorRT `version`."""
    return _encoded(_header(version, calibration.algorithm), _fitting(calibration, tensors, source, white))


def with_header(calibration: Calibration, version: str) -> bytes:
    """Encode the whole cache for TensorRT `version`, for a network whose tensors are unknown."""
    return _encoded(_header(version, calibration.algorithm), calibration.codes)


def scales_of(calibration: Calibration, tensors: Sequence[str], source: str, white: float) -> Dict[str, float]:
    """The scales of a network's tensors, as far as the cache holds them.

    Args:
        calibration: The cache.
        tensors: Names of the network's tensors.
        source: Name of its input.
        white: The input's value for a white pixel: 1 for DetectNet_v2, 255 for CenterFace.

    Raises:
        ModelError: It was made for another network, or for other preprocessing.
    """
    return {name: _value(code) for name, code in _fitting(calibration, tensors, source, white).items()}


def _fitting(calibration: Calibration, tensors: Sequence[str], source: str, white: float) -> Dict[str, str]:
    """The codes by the network's own tensor names."""
    spelled = {_bare(name): name for name in tensors}
    codes = {spelled[_bare(name)]: code for name, code in calibration.codes.items() if _bare(name) in spelled}
    if source not in codes:
        raise ModelError(
            f"calibration {calibration.path}: made for another model: it has no scale for the input {source}",
            f"it begins with {', '.join(list(calibration.codes)[:3])}",
        )
    found = {name for name in tensors if name in codes}
    if 2 * len(found) < min(len(calibration.codes), len(set(tensors))):
        raise ModelError(
            f"calibration {calibration.path}: made for another model: of its {len(calibration.codes)} tensors only "
            f"{len(found)} are in this one, which has {len(set(tensors))}",
            "use the calibration that was published with this model, or precision fp16",
        )
    amplitude = _value(codes[source]) * _FULL_SCALE
    if not fits_white_level(amplitude, white):
        raise ModelError(
            f"calibration {calibration.path}: made for other preprocessing: its input {source} reaches "
            f"{amplitude:.4g}, but this model's images reach {white:g}",
            "use the calibration that was published with this model, or precision fp16",
        )
    return codes


def fits_white_level(amplitude: float, white: float) -> bool:
    """Whether `amplitude` is plausible for a calibration with images in 0..`white`."""
    low, high = (share * white for share in _AMPLITUDE)
    return low <= amplitude <= high


def _header(version: str, algorithm: str) -> str:
    """The first line of a cache of TensorRT `version`: NV_TENSORRT_VERSION is 8201 for 8.2.1, and 100300 for 10.3.0."""
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return f"TRT-{major * (1000 if major < 10 else 10000) + minor * 100 + patch}-{algorithm}"


def _encoded(header: str, codes: Mapping[str, str]) -> bytes:
    return "".join([f"{header}\n", *(f"{name}: {code}\n" for name, code in codes.items())]).encode("utf-8")


def _bare(name: str) -> str:
    return name[:-2] if name.endswith(":0") else name


def _value(code: str) -> float:
    return float(struct.unpack(">f", bytes.fromhex(code))[0])


def _verified_code(code: str, where: str) -> str:
    """The code with 8 digits; errors name `where`."""
    code = code if code.strip("0") else code.zfill(8)  # NVIDIA's exporters write 0 as one digit
    try:
        value = _value(code)
    except (ValueError, struct.error) as error:
        raise ModelError(f"{where} cannot be read", "expected 'tensor: 8 hex digits'") from error
    if not 0 <= value < float("inf"):
        raise ModelError(f"{where}: the scale is {value}", "the file is damaged: fetch it again")
    return code
