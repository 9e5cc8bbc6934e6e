"""Which contract an ONNX model keeps: read off its inputs and outputs, and said plainly when it keeps none."""

from dataclasses import dataclass, replace
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from edge_agent.core.detection.model_contract import CENTERFACE, FACEDETECTIR, ModelContract
from edge_agent.errors import ModelError
from edge_agent.models.onnx.file import OnnxModel, Tensor

EXPECTED = (
    "expected DetectNet_v2 (float32 input 1xCxHxW; outputs *cov* 1xKxGHxGW and *bbox* 1x4KxGHxGW) "
    "or CenterFace (float32 input 1x3xHxW with free H and W; outputs 537, 538, 539)"
)
_CENTERFACE_IDS = {"heatmap": "537", "scale": "538", "offset": "539"}


@dataclass(frozen=True)
class Binding:
    """Names to run a model by.

    Attributes:
        input: Name of the input tensor.
        outputs: Name of the output tensor by role.
    """

    input: str
    outputs: Mapping[str, str]


def bind(model: OnnxModel, name: str) -> Binding:
    """Find input and outputs by role, as nvinfer does for DetectNet_v2: by the substrings cov and bbox.

    Raises:
        ModelError: It has not one float32 NCHW input, or its outputs have no known roles.
    """
    if len(model.inputs) != 1:
        raise _mismatch(model, name, f"has {len(model.inputs)} inputs")
    source = model.inputs[0]
    if source.dtype != "float32" or source.shape is None or len(source.shape) != 4:
        raise _mismatch(model, name, f"takes {source}")
    roles = _gridbox_roles(model.outputs) or _centerface_roles(model.outputs)
    if not roles:
        raise _mismatch(model, name, "has outputs of unknown meaning")
    foreign = [str(tensor) for tensor in model.outputs if tensor.name in roles.values() and tensor.dtype != "float32"]
    if foreign:
        raise _mismatch(model, name, f"answers {', '.join(foreign)}")
    return Binding(source.name, roles)


def derive(
    model: OnnxModel,
    name: str,
    labels: Sequence[str] = (),
    class_name: Optional[str] = None,
    long_side: int = CENTERFACE.long_side,
) -> ModelContract:
    """The contract that `model` keeps.

    Args:
        model: As read from the file.
        name: Says in errors which file it is.
        labels: Class names in the order of the coverage planes, from a labels file; may be empty.
        class_name: The class that means "face"; needed when there are several and none is called so.
        long_side: For a model that takes any size, px.

    Raises:
        ModelError: It keeps neither contract, or the class is not told.
    """
    contract, classes = structure(model, name)
    if contract.any_size:
        return replace(contract, long_side=long_side)
    names = class_names(labels, classes, name)
    return replace(contract, labels=names, target=face_class(names, class_name, name))


def class_names(labels: Sequence[str], classes: int, name: str) -> Tuple[str, ...]:
    """Names of a model's classes; "face" or their numbers where no labels file tells any.

    Raises:
        ModelError: The labels are not as many as the classes.
    """
    if len(labels) == classes:
        return tuple(labels)
    if labels:
        raise ModelError(
            f"model {name}: {classes} classes, but its labels file names {len(labels)}",
            "expected one line per class, in the order of the coverage planes",
        )
    return ("face",) if classes == 1 else tuple(str(index) for index in range(classes))


def face_class(labels: Sequence[str], class_name: Optional[str], name: str) -> int:
    """Index of the class that means a face: by name in any case, or by number; when None "face", or the only one.

    Raises:
        ModelError: There is no such class.
    """
    wanted = class_name if class_name is not None else "face"
    folded = [label.casefold() for label in labels]
    if wanted.casefold() in folded:
        return folded.index(wanted.casefold())
    if class_name is None and len(labels) == 1:
        return 0
    if wanted.isascii() and wanted.isdigit() and int(wanted) < len(labels):
        return int(wanted)
    raise ModelError(
        f"model {name}: no class is called {wanted!r}",
        f"set class_name to one of: {', '.join(labels)}; or to its number, 0 to {len(labels) - 1}",
    )


def require(model: OnnxModel, name: str, contract: ModelContract) -> None:
    """Make sure that `model` keeps `contract`.

    Raises:
        ModelError: It keeps another one, or none.
    """
    found, classes = structure(model, name)
    wanted = replace(found, labels=contract.labels, target=contract.target, long_side=contract.long_side)
    if wanted != contract or classes != len(contract.labels):
        raise ModelError(
            f"model {name}: keeps another contract: found {describe(found, classes)}",
            f"expected {describe(contract, len(contract.labels))}",
        )


def describe(contract: ModelContract, classes: int) -> str:
    """A contract's structure in one line."""
    if contract.any_size:
        return f"{contract.kind}, {contract.channels} channels, any size, stride {contract.stride[0]:g}"
    width, height = contract.net
    across, down = contract.stride
    return f"{contract.kind}, input {contract.channels}x{height}x{width}, stride {across:g}x{down:g}, classes {classes}"


def structure(model: OnnxModel, name: str) -> Tuple[ModelContract, int]:
    """The contract up to the labels, and the number of classes."""
    roles = bind(model, name).outputs
    batch, channels, height, width = _shape(model.inputs[0])
    if "heatmap" in roles:
        if height or width or batch > 1 or channels not in (0, 3):
            raise ModelError(
                f"model {name}: a CenterFace whose input is fixed at {model.inputs[0]}",
                "prepare it with: edge-agent model fetch centerface --from FILE",
            )
        return CENTERFACE, 1
    if batch > 1:
        raise _mismatch(model, name, f"has a fixed batch of {batch}; export it with batch 1 or free")
    if channels not in (1, 3) or not (height and width):
        raise _mismatch(model, name, "needs 1 or 3 channels and a fixed height and width")
    by_name = {tensor.name: tensor for tensor in model.outputs}
    cov, bbox = _shape(by_name[roles["cov"]]), _shape(by_name[roles["bbox"]])
    if len(cov) != 4 or not all(cov[1:]) or bbox[1:] != (4 * cov[1], *cov[2:]):
        raise _mismatch(model, name, "has coverage and box grids that do not belong together")
    _, classes, grid_h, grid_w = cov
    # Rounded up where the grid does not divide the input, as nvinfer does.
    stride = (float(-(-width // grid_w)), float(-(-height // grid_h)))
    return replace(FACEDETECTIR, net=(width, height), channels=channels, stride=stride), classes


def _gridbox_roles(outputs: Sequence[Tensor]) -> Dict[str, str]:
    cov = [tensor.name for tensor in outputs if "cov" in tensor.name]
    bbox = [tensor.name for tensor in outputs if "bbox" in tensor.name]
    return {"cov": cov[0], "bbox": bbox[0]} if len(cov) == 1 and len(bbox) == 1 and cov != bbox else {}


def _centerface_roles(outputs: Sequence[Tensor]) -> Dict[str, str]:
    names = {tensor.name for tensor in outputs}
    if names.issuperset(_CENTERFACE_IDS.values()):
        return dict(_CENTERFACE_IDS)
    planes: List[Tuple[int, str]] = [(_shape(tensor)[1], tensor.name) for tensor in outputs if len(_shape(tensor)) == 4]
    # A re-export renames the tensors but keeps their order: heatmap, scale, offset, landmarks.
    if [count for count, _ in planes] in ([1, 2, 2], [1, 2, 2, 10]):
        return {role: planes[index][1] for index, role in enumerate(_CENTERFACE_IDS)}
    return {}


def _shape(tensor: Tensor) -> Tuple[int, ...]:
    """The tensor's shape with 0 for a free dim; four zeros when it is not told."""
    if tensor.shape is None:
        return (0, 0, 0, 0)
    return tuple(dim if isinstance(dim, int) else 0 for dim in tensor.shape)


def _mismatch(model: OnnxModel, name: str, what: str) -> ModelError:
    found = ", ".join(str(tensor) for tensor in model.inputs) or "none"
    answers = ", ".join(str(tensor) for tensor in model.outputs)
    return ModelError(f"model {name}: {what}; found inputs {found}; outputs {answers}", EXPECTED)
