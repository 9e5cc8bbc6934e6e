"""Labelled pictures, and the mistakes made on them."""

from dataclasses import dataclass
from pathlib import Path

from edge_agent.core.types import Array
from edge_agent.errors import InputError, SourceError


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
    from edge_agent.capture.images import load_picture

    try:
        pixels, levels = load_picture(path, color)
    except SourceError as error:
        raise InputError(error.message, error.hint) from error
    return levels.to_gray8(pixels)
