"""The contract that a model keeps, derived from the names, types and shapes of its inputs and outputs."""

from dataclasses import dataclass, replace
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from edge_agent.core.detection.model_contract import CENTERFACE, FACEDETECTIR, ModelContract
from edge_agent.errors import ModelError

Dim = Union[int, str]
Shape = Tuple[Dim, ...]

EXPECTED = (
    "expected DetectNet_v2 (float32 input 1xCxHxW; outputs *cov* 1xKxGHxGW and *bbox* 1x4KxGHxGW) "
    "or CenterFace (float32 input 1x3xHxW with free H and W; outputs 537, 538, 539)"
)
_CENTERFACE_IDS = {"heatmap": "537", "scale": "538", "offset": "539"}


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: As in the file, ":0" included.
        dtype: numpy's name of the element type.
        shape: Numbers where fixed, names (or "?") where free; None when it is unknown.
    """

    name: str
    dtype: str
    shape: Optional[Shape]

    def __str__(self) -> str:
        shape = "unknown" if self.shape is None else "x".join(str(dim) for dim in self.shape)
        return f"{self.name} {self.dtype} {shape}"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model.

    Attributes:
        inputs: Those that must be fed, weights excluded.
        outputs: In file order.
    """

    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]


ContractOf = Callable[[Signature], ModelContract]


@dataclass(frozen=True)
class Binding:
    """The names by which a model is run.

    Attributes:
        input: Name of the input tensor.
        outputs: Name of the output tensor by role.
    """

    input: str
    outputs: Mapping[str, str]


def bind_tensors(signature: Signature, name: str) -> Binding:
    """Find the input and the outputs by role; for DetectNet_v2 by the substrings cov and bbox, as nvinfer does.

    Raises:
        ModelError: There is not exactly one float32 NCHW input, or the outputs have no known roles.
    """
    if len(signature.inputs) != 1:
        raise _mismatch(signature, name, f"has {len(signature.inputs)} inputs")
    source = signature.inputs[0]
    if source.dtype != "float32" or source.shape is None or len(source.shape) != 4:
        raise _mismatch(signature, name, f"takes {source}")
    roles = _gridbox_roles(signature.outputs) or _centerface_roles(signature.outputs)
    if not roles:
        raise _mismatch(signature, name, "has outputs of unknown meaning")
    used = [tensor for tensor in signature.outputs if tensor.name in roles.values()]
    foreign = [str(tensor) for tensor in used if tensor.dtype != "float32"]
    if foreign:
        raise _mismatch(signature, name, f"has {', '.join(foreign)}")
    return Binding(source.name, roles)


def derive_contract(
    signature: Signature,
    name: str,
    labels: Sequence[str] = (),
    class_name: Optional[str] = None,
    long_side: int = CENTERFACE.long_side,
) -> ModelContract:
    """The contract that a model keeps.

    Args:
        signature: Its inputs and outputs.
        name: The model's name in errors.
        labels: Class names in the order of the coverage planes, from a labels file; may be empty.
        class_name: The class that means "face"; required when there are several and none has that name.
        long_side: For a model that takes any size, px.

    Raises:
        ModelError: It keeps no known contract, or the face class is unknown.
    """
    contract, classes = contract_structure(signature, name)
    if contract.any_size:
        return replace(contract, long_side=long_side)
    names = class_names(labels, classes, name)
    return replace(contract, labels=names, target=face_class(names, class_name, name))


def class_names(labels: Sequence[str], classes: int, name: str) -> Tuple[str, ...]:
    """Names of a model's classes; without labels "face" for a single class, else their numbers.

    Raises:
        ModelError: The number of labels differs from the number of classes.
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
    """Index of the class that means a face: by case-insensitive name, or by number; for None "face", or the only one.

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


def require_contract(signature: Signature, name: str, contract: ModelContract) -> None:
    """Check that a model keeps `contract`.

    Raises:
        ModelError: It keeps another contract, or none.
    """
    found, classes = contract_structure(signature, name)
    wanted = replace(found, labels=contract.labels, target=contract.target, long_side=contract.long_side)
    if wanted != contract or classes != len(contract.labels):
        raise ModelError(
            f"model {name}: keeps another contract: found {describe_contract(found, classes)}",
            f"expected {describe_contract(contract, len(contract.labels))}",
        )


def describe_contract(contract: ModelContract, classes: int) -> str:
    """The structure of a contract in one line."""
    if contract.any_size:
        return f"{contract.kind}, {contract.channels} channels, any size, stride {contract.stride[0]:g}"
    width, height = contract.net
    across, down = contract.stride
    return f"{contract.kind}, input {contract.channels}x{height}x{width}, stride {across:g}x{down:g}, classes {classes}"


def contract_structure(signature: Signature, name: str) -> Tuple[ModelContract, int]:
    """The contract without its labels, and the number of classes.

    Raises:
        ModelError: The model keeps no known contract.
    """
    roles = bind_tensors(signature, name).outputs
    batch, channels, height, width = _shape(signature.inputs[0])
    if "heatmap" in roles:
        if height or width or batch > 1 or channels not in (0, 3):
            raise ModelError(
                f"model {name}: a CenterFace whose input is fixed at {signature.inputs[0]}",
                "prepare it with: edge-agent model fetch centerface --from FILE",
            )
        return CENTERFACE, 1
    if batch > 1:
        raise _mismatch(signature, name, f"has a fixed batch of {batch}; export it with batch 1 or free")
    if channels not in (1, 3) or not (height and width):
        raise _mismatch(signature, name, "needs 1 or 3 channels and a fixed height and width")
    by_name = {tensor.name: tensor for tensor in signature.outputs}
    cov, bbox = _shape(by_name[roles["cov"]]), _shape(by_name[roles["bbox"]])
    if len(cov) != 4 or not all(cov[1:]) or bbox[1:] != (4 * cov[1], *cov[2:]):
        raise _mismatch(signature, name, "has coverage and box grids that do not belong together")
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
    """The tensor's shape with 0 for a free dimension; four zeros when it is unknown."""
    if tensor.shape is None:
        return (0, 0, 0, 0)
    return tuple(dim if isinstance(dim, int) else 0 for dim in tensor.shape)


def _mismatch(signature: Signature, name: str, what: str) -> ModelError:
    found = ", ".join(str(tensor) for tensor in signature.inputs) or "none"
    outputs = ", ".join(str(tensor) for tensor in signature.outputs)
    return ModelError(f"model {name}: {what}; found inputs {found}; outputs {outputs}", EXPECTED)
