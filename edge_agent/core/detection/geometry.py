"""Mapping between an image and the input of a network."""

from dataclasses import dataclass
from functools import cached_property
from typing import Tuple

import numpy as np

from edge_agent.core.types import Array

Size = Tuple[int, int]  # (width, height), px


@dataclass(frozen=True)
class Placement:
    """Affine map from px of the image given to the engine to network px: net = src * scale + pad.

    Attributes:
        net_w: Network input width, px.
        net_h: Network input height, px.
        inner_w: Width of the resized image inside the network input, px.
        inner_h: Height of it, px.
        scale_x: Network px per source px, horizontally.
        scale_y: Network px per source px, vertically.
        pad_x: Left padding, network px.
        pad_y: Top padding, network px.
    """

    net_w: int
    net_h: int
    inner_w: int
    inner_h: int
    scale_x: float
    scale_y: float
    pad_x: int = 0
    pad_y: int = 0

    def to_source(self, xyxy: Array) -> Array:
        """(N, 4) float32 boxes from network px to source px."""
        shift, scale = self._shift_and_scale
        return np.asarray((xyxy - shift) / scale, np.float32)

    # Two small arrays per frame would cost as much as the map itself.
    @cached_property
    def _shift_and_scale(self) -> Tuple[Array, Array]:
        return (
            np.array([self.pad_x, self.pad_y] * 2, np.float32),
            np.array([self.scale_x, self.scale_y] * 2, np.float32),
        )


def stretch(source: Size, net: Size) -> Placement:
    """Fill the input without keeping the aspect ratio, as DeepStream's FaceDetectIR sample."""
    return Placement(net[0], net[1], net[0], net[1], net[0] / source[0], net[1] / source[1])


def letterbox(source: Size, net: Size) -> Placement:
    """Keep the aspect ratio; image at the top left, padding right and below (DeepStream's default padding side)."""
    scale = min(net[0] / source[0], net[1] / source[1])
    inner_w = max(1, min(net[0], round(source[0] * scale)))
    inner_h = max(1, min(net[1], round(source[1] * scale)))
    return Placement(net[0], net[1], inner_w, inner_h, inner_w / source[0], inner_h / source[1])


def fitted_size(source: Size, long_side: int, multiple: int) -> Size:
    """The smallest input with the image's aspect ratio whose longer side is `long_side`, each side a multiple.

    384 and 32 give (384, 256) for 1280x800, (384, 288) for 640x480, (256, 384) for a portrait of 800x1280.
    """
    scale = long_side / max(source)
    width, height = (max(multiple, -(-round(side * scale) // multiple) * multiple) for side in source)
    return width, height


def iou(a: Array, b: Array) -> Array:
    """(N, M) float32 intersection over union of (N, 4) and (M, 4) xyxy boxes; 0 where the union is empty."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.prod(np.clip(bottom_right - top_left, 0, None), axis=2)
    area_a = np.prod(np.clip(a[:, 2:] - a[:, :2], 0, None), axis=1)
    area_b = np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), axis=1)
    union = area_a[:, None] + area_b[None, :] - inner
    return np.asarray(np.divide(inner, union, out=np.zeros_like(inner), where=union > 0), np.float32)
