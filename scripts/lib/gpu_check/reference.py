"""Reference of the preprocess kernel in numpy and float64: resizing as two matrix products."""

from typing import Tuple

import numpy as np


def resized(pixels: np.ndarray, size: Tuple[int, int], area: bool) -> np.ndarray:
    """(H, W) of any type -> (size[1], size[0]) float64."""
    weights = _area if area else _bilinear
    return np.asarray(
        weights(pixels.shape[0], size[1]) @ pixels.astype(np.float64) @ weights(pixels.shape[1], size[0]).T
    )


def _bilinear(source: int, target: int) -> np.ndarray:
    """(target, source): half-pixel centres, clamped at the edge."""
    centre = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    lower = np.floor(centre).astype(int)
    upper = np.minimum(lower + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), lower), 1 - (centre - lower))
    np.add.at(weights, (np.arange(target), upper), centre - lower)
    return weights


def _area(source: int, target: int) -> np.ndarray:
    """(target, source): weight of each source px by its overlap with the target px."""
    edges = np.arange(target + 1) * source / target
    px = np.arange(source)
    overlap = np.minimum(edges[1:, None], px + 1) - np.maximum(edges[:-1, None], px)
    return np.clip(overlap, 0, None) * target / source
