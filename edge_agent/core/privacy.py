"""Pictures that must not show who it is."""

from typing import Literal

import numpy as np

from edge_agent.core.types import Array

Privacy = Literal["off", "pixelate", "full"]

_BLOCKS = 8
"""Across the longer side of a crop: a face is then about five blocks wide, and nobody's in particular."""


def hide(pixels: Array, privacy: Privacy) -> Array:
    """The whole crop, bystanders in its margin too, as coarse blocks ("pixelate") or as one flat gray ("full").

    Args:
        pixels: (H, W) or (H, W, 3) uint8; handed back as it is when `privacy` is "off".
        privacy: How much is hidden.

    Returns:
        The same shape, each block the mean of what it hides; contiguous, own memory.
    """
    if privacy == "off":
        return pixels
    height, width = pixels.shape[:2]
    side = max(height, width) if privacy == "full" else max(1, -(-max(height, width) // _BLOCKS))
    rows, columns = np.arange(0, height, side), np.arange(0, width, side)
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=0), columns, axis=1)
    heights, widths = np.diff(np.append(rows, height)), np.diff(np.append(columns, width))
    areas = np.outer(heights, widths)
    means = np.rint(sums / (areas if pixels.ndim == 2 else areas[:, :, None])).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(means, heights, axis=0), widths, axis=1))
