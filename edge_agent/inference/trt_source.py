"""The network that TensorRT is to build: one file, seen as TensorRT's parsers and as ONNX Runtime take it."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional, Tuple

from edge_agent.core.contract import CENTERFACE, ModelContract
from edge_agent.core.geometry import fitted_size
from edge_agent.errors import MissingPackage, ModelError
from edge_agent.inference import models
from edge_agent.inference.etlt import open_etlt
from edge_agent.inference.onnx_contract import Binding, bind, derive, require
from edge_agent.inference.onnx_file import OnnxModel, parse_onnx, read_model
from edge_agent.inference.trt_api import Shape
from edge_agent.inference.uff_to_onnx import convert_uff

_CALIBRATION_SUFFIX = "_int8.txt"


@dataclass(frozen=True)
class Network:
    """A model to be built.

    Attributes:
        name: What users call it.
        sha256: Of the model as it is built, hex.
        onnx: The network in ONNX.
        uff: The same in UFF, where it came so; None else.
        model: The outside of `onnx`.
        binding: Its tensors' names, which are the same in UFF.
        contract: What they mean.
        calibration: Its INT8 calibration cache, if any.
    """

    name: str
    sha256: str
    onnx: bytes
    uff: Optional[bytes]
    model: OnnxModel
    binding: Binding
    contract: ModelContract
    calibration: Optional[Path]

    @property
    def shapes(self) -> Tuple[Shape, Shape, Shape]:
        """Smallest, usual and largest input, (1, C, H, W); three times the same for models of one size."""
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
) -> Network:
    """The network called `model`, checked against its contract.

    Args:
        model: A name of the registry, or the path of an .onnx, .uff or .etlt file.
        directory: Folder of fetched models.
        class_name: Of a model of several classes, the one that means a face.
        long_side: Of a model that takes any size, px.
        calibration: Path of an INT8 calibration cache; the one fetched with the model when None.
        labels_file: Path of the class names; labels.txt beside the model when None.
        key: What an .etlt is encrypted with; NVIDIA's published key when None.

    Raises:
        ModelError: It is missing, damaged, or keeps no contract that the agent knows.
        MissingPackage: It is encrypted, and NVIDIA's package is not installed.
    """
    given = Path(calibration) if calibration is not None else None
    if model.endswith(models.SUFFIXES):
        path = Path(model)
        onnx, uff = read_payload(path, key)
        outside = parse_onnx(onnx, str(path))
        contract = derive(outside, str(path), models.labels_of(path, labels_file), class_name, long_side)
        return _network(path.name, str(path), onnx, uff, outside, contract, given)
    card = models.card_of(model)
    if "tensorrt" not in card.backends:
        raise ModelError(f"model {card.name} does not run in TensorRT", f"it needs {' or '.join(card.backends)}")
    path = models.locate(card, directory)
    onnx, uff = read_payload(path)
    outside = parse_onnx(onnx, str(path))
    contract = replace(card.contract, long_side=long_side)
    require(outside, str(path), contract)
    beside = (path.with_name(file.name) for file in card.files if file.name.endswith(_CALIBRATION_SUFFIX))
    fetched = next((file for file in beside if file.is_file()), None)
    return _network(card.name, str(path), onnx, uff, outside, contract, given or fetched)


def _network(
    name: str,
    where: str,
    onnx: bytes,
    uff: Optional[bytes],
    outside: OnnxModel,
    contract: ModelContract,
    calibration: Optional[Path],
) -> Network:
    digest = hashlib.sha256(onnx if uff is None else uff).hexdigest()
    return Network(name, digest, onnx, uff, outside, bind(outside, where), contract, calibration)


def read_payload(path: Path, key: Optional[str] = None) -> Tuple[bytes, Optional[bytes]]:
    """(ONNX, UFF or None) of a model file; of an .etlt what the user made of it beside it, else what is in it.

    Raises:
        ModelError: It cannot be read, is damaged, or the key is wrong.
        MissingPackage: It is encrypted, and NVIDIA's package is not installed.
    """
    if path.suffix == ".etlt":
        made = (path.with_suffix(".onnx"), path.with_suffix(".uff"))
        path = next((file for file in made if file.is_file()), path)
    data = read_model(path)
    kind = path.suffix[1:]
    if kind == "etlt":
        try:
            kind, data = open_etlt(data, str(path), key or models.FACEDETECTIR_KEY)
        except MissingPackage as error:
            raise MissingPackage(error.message, f"{error.hint}; as {path.with_suffix('.onnx')} it is found") from error
    return (convert_uff(data, str(path)).data, data) if kind == "uff" else (data, None)
