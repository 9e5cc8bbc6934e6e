"""The picture that every engine answers before the agent is ready."""

from pathlib import Path

import numpy as np

from edge_agent.core.frame import Picture
from edge_agent.errors import InputError

_PICTURE = Path(__file__).parents[1] / "assets" / "golden.pgm"
_PGM = b"P5\n256 192\n255\n"


def golden_picture() -> Picture:
    """A face, (192, 256) uint8; see assets/README.md.

    Raises:
        InputError: The installation is damaged.
    """
    try:
        data = _PICTURE.read_bytes()
    except OSError as error:
        raise InputError(f"{_PICTURE}: {error.strerror}", "install edge-agent again") from error
    if not data.startswith(_PGM) or len(data) != len(_PGM) + 192 * 256:
        raise InputError(f"{_PICTURE}: damaged", "install edge-agent again")
    return Picture(np.frombuffer(data, np.uint8, offset=len(_PGM)).reshape(192, 256))
