"""Reads labelled images: COCO (one JSON file) and KITTI (one text file per image, as NVIDIA TAO uses it)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple

import numpy as np

from edge_agent.core.detection.evaluation import GroundTruth
from edge_agent.core.types import Array
from edge_agent.errors import InputError, SourceError
from edge_agent.files import read_regular


@dataclass(frozen=True)
class Miss:
    """One mistake: `kind` is "missed" or "false alarm", `box` (4,) left, top, right, bottom, px."""

    image: Path
    box: Array
    kind: str


def read_image(path: Path, color: bool) -> Array:
    """The image as (H, W) uint8 gray, or with `color` as (H, W, 3) uint8 RGB.

    Raises:
        InputError: The file is not an image.
    """
    from edge_agent.capture.images import load_image

    try:
        pixels, levels = load_image(path, color)
    except SourceError as error:
        raise InputError(error.message, error.hint) from error
    return levels.to_gray8(pixels)


COCO_HINT = 'expected COCO JSON: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "bbox": [x, y, w, h]}]}'
KITTI_HINT = "expected KITTI lines: face 0 0 0 LEFT TOP RIGHT BOTTOM ..."
FACE_NAMES = ("face", "faces", "head_face")
IGNORED_NAMES = ("dontcare", "ignore")
MAX_LABELS_BYTES = 512 << 20
_FARTHEST = 1e6
"""Largest coordinate, px; float32 still represents it exactly."""
Boxes = List[Tuple[float, float, float, float]]


def read_labels(path: Path, layout: str) -> List[GroundTruth]:
    """The labels of all images in a file (COCO) or folder (KITTI).

    Args:
        path: File or folder.
        layout: "coco", "kitti" or "auto" (a folder or .txt is KITTI, else COCO).

    Raises:
        InputError: It cannot be read, or does not have the layout.
    """
    if layout == "auto":
        layout = "kitti" if path.is_dir() or path.suffix == ".txt" else "coco"
    try:
        return _kitti(path) if layout == "kitti" else _coco(path)
    except OSError as error:
        raise InputError(f"labels {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"labels {path}: not a text file", COCO_HINT) from error


def _coco(path: Path) -> List[GroundTruth]:
    text = read_regular(path, MAX_LABELS_BYTES).decode("utf-8")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"labels {path}: not JSON (line {error.lineno}: {error.msg})", COCO_HINT) from error
    except (ValueError, RecursionError):  # a number of thousands of digits, or too deep nesting
        raise InputError(f"labels {path}: not JSON within the limits", COCO_HINT) from None
    try:
        names = {image["id"]: str(image["file_name"]) for image in data["images"]}
        wanted = _face_categories(data.get("categories", ()))
        faces: Dict[Any, Boxes] = {key: [] for key in names}
        ignored: Dict[Any, Boxes] = {key: [] for key in names}
        for annotation in data["annotations"]:
            if wanted and annotation.get("category_id") not in wanted:
                continue
            x, y, w, h = (float(v) for v in annotation["bbox"])
            target = ignored if annotation.get("iscrowd") or annotation.get("ignore") else faces
            target[annotation["image_id"]].append(_box(x, y, x + w, y + h))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"labels {path}: {type(error).__name__}: {error}", COCO_HINT) from error
    return [GroundTruth(name, _array(faces[key]), _array(ignored[key])) for key, name in names.items()]


def _face_categories(categories: Iterable[Dict[str, Any]]) -> List[Any]:
    """Ids of the categories named face; empty when there is none, and then every category counts."""
    return [c["id"] for c in categories if str(c.get("name", "")).lower() in FACE_NAMES]


def _kitti(path: Path) -> List[GroundTruth]:
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"labels {path}: no .txt file in this folder", KITTI_HINT)
    return [_kitti_file(file) for file in files]


def _kitti_file(path: Path) -> GroundTruth:
    faces: Boxes = []
    ignored: Boxes = []
    for number, line in enumerate(read_regular(path, MAX_LABELS_BYTES).decode("utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            left, top, right, bottom = (float(word) for word in words[4:8])
            box = _box(left, top, right, bottom)
        except ValueError as error:
            raise InputError(f"labels {path}, line {number}: {error}", KITTI_HINT) from error
        name = words[0].lower()
        if name in IGNORED_NAMES:
            ignored.append(box)
        elif name in FACE_NAMES:
            faces.append(box)
    return GroundTruth(path.stem, _array(faces), _array(ignored))


def _box(left: float, top: float, right: float, bottom: float) -> Tuple[float, float, float, float]:
    """The four as a tuple.

    Raises:
        ValueError: They are not a box within the limits.
    """
    if not (-_FARTHEST <= left <= right <= _FARTHEST and -_FARTHEST <= top <= bottom <= _FARTHEST):
        raise ValueError(f"[{left:g}, {top:g}, {right:g}, {bottom:g}] is not a box: left, top, right, bottom in px")
    return left, top, right, bottom


def _array(boxes: Boxes) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 4)
