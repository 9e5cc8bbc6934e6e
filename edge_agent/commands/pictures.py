"""Labelled pictures, and the mistakes made on them."""

from dataclasses import dataclass
from pathlib import Path

from edge_agent.core.types import Array
from edge_agent.errors import InputError


@dataclass(frozen=True)
class Miss:
    """One mistake, to look at: a face not found, or something found that is no face."""

    picture: Path
    box: Array
    kind: str


def read_picture(path: Path, color: bool) -> Array:
    """(H, W) uint8 gray, or (H, W, 3) uint8 RGB.

    Raises:
        InputError: It is not a picture.
    """
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise InputError(f"{path}: not a picture that can be read", "expected PNG, JPEG, BMP, TIFF or PGM")
    return pixels[:, :, ::-1] if color else pixels
