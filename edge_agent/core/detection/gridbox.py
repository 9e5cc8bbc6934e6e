"""Decoder of DetectNet_v2's GridBox outputs, equivalent to NVIDIA's DeepStream.

Source: DeepStream's nvdsinfer, `DetectPostprocessor::parseBoundingBox`. Two differences, both under one network px:
a box that is empty after clipping is dropped here (there only one of negative size), and an edge between W-1 and W is
clipped to W-1 here (there only one at W or beyond).
"""

from functools import lru_cache
from typing import Mapping, Tuple

import numpy as np

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.types import Array
from edge_agent.errors import ModelError

# pre-cluster-threshold and nms-iou-threshold of class 0 in NVIDIA's shipped config_infer_primary_facedetectir.txt.
PRE_CLUSTER_THRESHOLD = 0.4
NMS_IOU_THRESHOLD = 0.5


def decode(outputs: Mapping[str, Array], contract: ModelContract, threshold: float) -> Tuple[Array, Array]:
    """Candidate boxes of all cells whose coverage reaches the threshold.

    With X = column * stride + 0.5 (half a *pixel*, not half a cell) and b in units of 35 network px:
    left = X - 35 * b0, top = Y - 35 * b1, right = X + 35 * b2, bottom = Y + 35 * b3.

    Args:
        outputs: `cov` (C, gh, gw) float32 0..1 and `bbox` (4C, gh, gw) float32; read only.
        contract: Contract of the model; `target` selects the planes.
        threshold: A cell is kept when its coverage is >= this.

    Returns:
        (N, 4) float32 left, top, right, bottom in network px, within 0..W-1 and 0..H-1, never empty; and (N,) float32
        coverage. Both new arrays, cells in row-major order.

    Raises:
        ModelError: The arrays do not have the contract's shapes.
    """
    cov, bbox = outputs["cov"], outputs["bbox"]
    if cov.ndim != 3 or bbox.shape != (4 * cov.shape[0], *cov.shape[1:]) or not 0 <= contract.target < cov.shape[0]:
        raise ModelError(
            f"gridbox outputs have shapes cov {cov.shape} and bbox {bbox.shape}",
            f"expected (C, gh, gw) and (4C, gh, gw) with C > {contract.target}: is this a DetectNet_v2 model?",
        )
    coverage = cov[contract.target].ravel()
    active = (coverage >= threshold).nonzero()[0]
    if not len(active):
        return np.empty((0, 4), np.float32), np.empty(0, np.float32)

    first = 4 * contract.target
    edges = bbox[first : first + 4].reshape(4, -1).take(active, axis=1)
    edges *= _signs(contract.box_scale)
    edges += _centres(cov.shape[1], cov.shape[2], contract.stride, contract.box_offset).take(active, axis=1)
    np.maximum(edges, 0.0, out=edges)
    np.minimum(edges, _limits(contract.net), out=edges)
    solid = edges[2:] > edges[:2]
    if not solid.all():
        solid = solid.all(axis=0)
        active, edges = active[solid], edges[:, solid]
    return edges.T, coverage.take(active)


@lru_cache(maxsize=8)
def _centres(rows: int, columns: int, stride: Tuple[float, float], offset: float) -> Array:
    """(4, rows * columns) float32: x, y, x, y of each cell's reference point, network px; cached, read only."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    centres = np.array([x * stride[0] + offset, y * stride[1] + offset] * 2, np.float32)
    centres.flags.writeable = False
    return centres


@lru_cache(maxsize=8)
def _signs(scale: float) -> Array:
    """(4, 1) float32: network px per unit of left, top, right, bottom, with their signs."""
    signs = np.array([[-scale], [-scale], [scale], [scale]], np.float32)
    signs.flags.writeable = False
    return signs


@lru_cache(maxsize=8)
def _limits(net: Tuple[int, int]) -> Array:
    """(4, 1) float32: the last pixel of the network's input, for x, y, x, y."""
    limits = np.array([[net[0] - 1], [net[1] - 1]] * 2, np.float32)
    limits.flags.writeable = False
    return limits
