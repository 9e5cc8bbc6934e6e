"""Reads a model file as a `Network`, in the forms that TensorRT's parsers and ONNX Runtime take."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional, Tuple

from edge_agent.core.detection.geometry import fitted_size
from edge_agent.core.detection.model_contract import CENTERFACE, ModelContract
from edge_agent.errors import MissingPackage, ModelError
from edge_agent.inference.trt.api import Shape
from edge_agent.inference.trt.tao_converter import EncryptedModel, find_converter
from edge_agent.models import registry
from edge_agent.models.etlt import open_etlt
from edge_agent.models.onnx.binding import Binding, bind_tensors, derive_contract, require_contract
from edge_agent.models.onnx.file import OnnxModel, parse_onnx, read_model
from edge_agent.models.uff.to_onnx import convert_uff

_CALIBRATION_SUFFIX = "_int8.txt"
# Tensor names of NVIDIA's DetectNet_v2 exports in UFF.
_DETECTNET = Binding("input_1", {"cov": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"})


@dataclass(frozen=True)
class Network:
    """A model to build.

    Attributes:
        name: Name of the model in messages.
        sha256: Checksum of the model as it is built, hex.
        onnx: The network in ONNX; empty when it is encrypted.
        uff: The network in UFF, if the file is UFF; else None.
        model: Inputs and outputs of `onnx`; None when it is encrypted.
        binding: Names of the tensors, the same in ONNX and UFF.
        contract: Meaning of the tensors.
        calibration: Path of its INT8 calibration cache, if any.
        path: Path of the model file.
        encrypted: Set when only NVIDIA's tao-converter can decrypt the model.
    """

    name: str
    sha256: str
    onnx: bytes
    uff: Optional[bytes]
    model: Optional[OnnxModel]
    binding: Binding
    contract: ModelContract
    calibration: Optional[Path]
    path: Path
    encrypted: Optional[EncryptedModel] = None

    @property
    def precision(self) -> str:
        """Precision that the file stores its weights in."""
        return self.model.precision if self.model is not None else "fp32"

    @property
    def shapes(self) -> Tuple[Shape, Shape, Shape]:
        """Smallest, usual and largest input, (1, C, H, W); all equal for models of one size."""
        contract = self.contract
        if not contract.any_size:
            fixed = (1, contract.channels, contract.net[1], contract.net[0])
            return fixed, fixed, fixed
        least, most = contract.multiple, contract.long_side
        width, height = fitted_size((4, 3), most, least)
        channels = contract.channels
        return (1, channels, least, least), (1, channels, height, width), (1, channels, most, most)


def read_network(
    model: str,
    directory: Path,
    class_name: Optional[str] = None,
    long_side: int = CENTERFACE.long_side,
    calibration: Optional[str] = None,
    labels_file: Optional[str] = None,
    key: Optional[str] = None,
    allow_encrypted: bool = True,
) -> Network:
    """The network called `model`, checked against its contract.

    Args:
        model: A name of the registry, or the path of an .onnx, .uff or .etlt file.
        directory: Folder of fetched models.
        class_name: Class that means a face, for a model of several classes.
        long_side: Longer side of the input, px, for a model of any input size.
        calibration: Path of an INT8 calibration cache; when None, the one that `model calibrate` wrote, else the one
            fetched with the model.
        labels_file: Path of the class names; labels.txt beside the model when None.
        key: Encryption key of an .etlt; NVIDIA's published key when None.
        allow_encrypted: False rejects a model that only tao-converter can decrypt.

    Raises:
        ModelError: The model is missing or damaged, or fits no contract that the agent knows.
        MissingPackage: The model is encrypted, and NVIDIA's package is not installed.
    """
    given = Path(calibration) if calibration is not None else None
    if model.endswith(registry.SUFFIXES):
        path = Path(model)
        onnx, uff = read_payload(path, key)
        parsed = parse_onnx(onnx, str(path))
        contract = derive_contract(parsed, str(path), registry.labels_of(path, labels_file), class_name, long_side)
        return _network(path.name, path, onnx, uff, parsed, contract, given or _existing_calibration(path))
    card = registry.card_of(model)
    if "tensorrt" not in card.backends:
        raise ModelError(f"model {card.name} does not run in TensorRT", f"it needs {' or '.join(card.backends)}")
    path = registry.locate(card, directory)
    contract = replace(card.contract, long_side=long_side)
    beside = (path.with_name(file.name) for file in card.files if file.name.endswith(_CALIBRATION_SUFFIX))
    fetched = next((file for file in beside if file.is_file()), None)
    converter = find_converter() if allow_encrypted and path.suffix == ".etlt" else None
    if converter is not None and not any(file.is_file() for file in _conversions(path)):
        encrypted = EncryptedModel(path, registry.FACEDETECTIR_KEY, converter)
        digest = registry.sha256_of(path)
        return Network(card.name, digest, b"", None, None, _DETECTNET, contract, given or fetched, path, encrypted)
    onnx, uff = read_payload(path)
    parsed = parse_onnx(onnx, str(path))
    require_contract(parsed, str(path), contract)
    return _network(card.name, path, onnx, uff, parsed, contract, given or _existing_calibration(path) or fetched)


def local_calibration(path: Path) -> Path:
    """Path of the calibration that `model calibrate` writes for the model in `path`."""
    return path.with_suffix(".int8.txt")


def _existing_calibration(path: Path) -> Optional[Path]:
    found = local_calibration(path)
    return found if found.is_file() else None


def _network(
    name: str,
    path: Path,
    onnx: bytes,
    uff: Optional[bytes],
    parsed: OnnxModel,
    contract: ModelContract,
    calibration: Optional[Path],
) -> Network:
    digest = hashlib.sha256(onnx if uff is None else uff).hexdigest()
    return Network(name, digest, onnx, uff, parsed, bind_tensors(parsed, str(path)), contract, calibration, path)


def _conversions(path: Path) -> Tuple[Path, Path]:
    """Paths where the user puts the converted form of an .etlt."""
    return path.with_suffix(".onnx"), path.with_suffix(".uff")


def read_payload(path: Path, key: Optional[str] = None) -> Tuple[bytes, Optional[bytes]]:
    """(ONNX, UFF or None) of a model file; of an .etlt, its converted form beside it, else its decrypted content.

    Raises:
        ModelError: The file cannot be read, is damaged, or the key is wrong.
        MissingPackage: The file is encrypted, and NVIDIA's package is not installed.
    """
    if path.suffix == ".etlt":
        path = next((file for file in _conversions(path) if file.is_file()), path)
    data = read_model(path)
    kind = path.suffix[1:]
    if kind == "etlt":
        try:
            kind, data = open_etlt(data, str(path), key or registry.FACEDETECTIR_KEY)
        except MissingPackage as error:
            raise MissingPackage(error.message, f"{error.hint}; as {path.with_suffix('.onnx')} it is found") from error
    return (convert_uff(data, str(path)).data, data) if kind == "uff" else (data, None)
