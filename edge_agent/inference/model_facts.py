"""The facts of a DetectNet_v2 model file, for comparison with a DeepStream configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional

from edge_agent.core.detection.model_contract import FACEDETECTIR, ModelContract
from edge_agent.errors import MissingPackage, ModelError
from edge_agent.inference.trt.network import read_payload
from edge_agent.models.onnx.binding import bind_tensors, contract_structure
from edge_agent.models.onnx.file import parse_onnx
from edge_agent.models.registry import FACEDETECTIR_CARD


@dataclass(frozen=True)
class Facts:
    """A model's inputs and outputs.

    Attributes:
        contract: The contract that it keeps, without the classes' names.
        classes: Number of classes.
        input: Name of the input.
        outputs: Names of the outputs by role, "cov" and "bbox".
        uff: True for a UFF file.
    """

    contract: ModelContract
    classes: int
    input: str
    outputs: Mapping[str, str]
    uff: bool


# For the encrypted file where NVIDIA's package is not installed; names from NVIDIA's configurations.
FACEDETECTIR_FACTS = Facts(
    FACEDETECTIR, 1, "input_1", {"cov": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"}, uff=True
)


def facts_of(path: Path, key: Optional[str] = None) -> Facts:
    """The facts of a model file.

    Args:
        path: .onnx, .uff or .etlt.
        key: Decrypts an .etlt; NVIDIA's published key when None.

    Raises:
        ModelError: It cannot be read, is damaged, or is not a DetectNet_v2.
        MissingPackage: `onnx` is not installed; or the file is encrypted, is not FaceDetectIR, and NVIDIA's package is
            not installed.
    """
    try:
        onnx, uff = read_payload(path, key)
    except MissingPackage:
        if path.name == FACEDETECTIR_CARD.files[0].name:
            return FACEDETECTIR_FACTS
        raise
    model = parse_onnx(onnx, str(path))
    contract, classes = contract_structure(model, str(path))
    if contract.kind != "gridbox":
        raise ModelError(f"model {path}: is {contract.kind}", "expected a DetectNet_v2, which nvinfer decodes itself")
    binding = bind_tensors(model, str(path))
    return Facts(contract, classes, binding.input, binding.outputs, uff is not None)
