"""Merges candidate boxes to one box per face: NMS, DBSCAN and their hybrid, equivalent to NVIDIA's DeepStream.

Defaults are those of NVIDIA's FaceDetectIR configuration (deepstream_reference_apps,
`config_infer_primary_facedetectir.txt`, DeepStream 6.0 to 7.0), or nvinfer's where that has none. All functions take
boxes of positive size in network px and confidences above 0, and keep no reference to them.
"""

from dataclasses import dataclass
from typing import List, Literal, Optional, Tuple

import numpy as np

from edge_agent.core.params import param
from edge_agent.core.types import Array

# Confidence in every mode: the largest coverage in the cluster, not the sum as in TAO's tools.
SCORE_KIND = "max"

# nvinfer's ATHR_THRESHOLD, always active with DBSCAN: network px of box side per (members + 1).
AREA_HIT_RATIO = 60.0

# Up to this many candidates plain lists are faster than numpy (x86, CPython 3.11): 3 against 15 us at 12, 22 against 50
# at 60, 197 against 208 at 240. Both compute in float64, so the result does not depend on it.
LIST_LIMIT = 250


@dataclass(frozen=True)
class ClusterParams:
    """How candidate boxes are merged to faces. Names are DeepStream's."""

    # cluster-mode=2 in the shipped configuration; DBSCAN with min_boxes 3 and eps 0.7 stands there commented out.
    cluster_mode: Literal["nms", "dbscan", "hybrid", "none"] = param(
        "nms",
        "How candidates are merged: nms keeps the best of each group, dbscan averages a group, hybrid drops candidates "
        "without a group and then applies nms, none keeps every candidate",
    )
    # nms-iou-threshold=0.5 there; CenterFace's code has 0.3.
    nms_iou_threshold: Optional[float] = param(
        None,
        "Boxes that overlap more than this (IoU) are one face; raise it when faces close together merge, lower it when "
        "one face is reported twice; the model's default when unset (0.5 FaceDetectIR, 0.3 CenterFace)",
        ge=0,
        le=1,
    )
    # topk=20 there.
    top_k: int = param(20, "At most this many faces per image, the best first", ge=1, le=1000)
    # nvinfer's default; not in the shipped configuration.
    post_cluster_threshold: float = param(
        0.0, "Faces scored below this after merging are dropped; raise it against false alarms", ge=0, le=1
    )
    # eps=0.7 there, commented out.
    eps: float = param(
        0.7, "dbscan, hybrid: boxes are neighbours when 1 - IoU is below this; raise it to merge more", gt=0, le=1
    )
    # minBoxes=3 there, commented out.
    min_boxes: int = param(
        3, "dbscan, hybrid: a group needs this many candidates; raise it against false alarms", ge=1, le=1000
    )
    # nvinfer's default (dbscan-min-score).
    dbscan_min_score: float = param(
        0.0, "dbscan: groups whose summed scores are below this are dropped; raise it against false alarms", ge=0
    )


def cluster(xyxy: Array, confidence: Array, params: ClusterParams) -> Tuple[Array, Array]:
    """Merge candidates to faces.

    Args:
        xyxy: (N, 4) float32, network px.
        confidence: (N,) float32.
        params: `nms_iou_threshold` must be set when the mode uses it.

    Returns:
        (M, 4) float32 network px and (M,) float32 confidence of kind `SCORE_KIND`, M <= `top_k`, best first, ties in
        the order of their candidates.
    """
    mode = params.cluster_mode
    if mode == "dbscan":
        xyxy, confidence = dbscan(xyxy, confidence, params.eps, params.min_boxes, params.dbscan_min_score)
        strong = confidence >= params.post_cluster_threshold
        xyxy, confidence = xyxy[strong], confidence[strong]
    elif mode == "hybrid":
        core = np.flatnonzero(_core(_near(xyxy, params.eps), params.min_boxes))
        xyxy, confidence = xyxy[core], confidence[core]
    if mode in ("dbscan", "none"):
        best = np.argsort(-confidence, kind="stable")[: params.top_k]
        return xyxy[best], confidence[best]

    if params.nms_iou_threshold is None:
        raise ValueError("nms_iou_threshold: None; expected the model's default")
    best = nms(xyxy, confidence, params.nms_iou_threshold, params.top_k)
    xyxy, confidence = xyxy.take(best, axis=0), confidence.take(best)
    if params.post_cluster_threshold > 0:
        strong = confidence > params.post_cluster_threshold
        xyxy, confidence = xyxy[strong], confidence[strong]
    return xyxy, confidence


def nms(xyxy: Array, confidence: Array, iou_threshold: float, top_k: int) -> Array:
    """(M,) indices kept by greedy non-maximum suppression, best first, ties in input order.

    Source: nvdsinfer's `nonMaximumSuppression`: a box is kept when its IoU with every kept box is <= the
    threshold. Boxes are processed best first, so stopping at `top_k` equals truncating the result.
    """
    order = np.argsort(-confidence, kind="stable")
    suppress = _suppress_lists if len(order) <= LIST_LIMIT else _suppress_arrays
    return order.take(suppress(xyxy.take(order, axis=0), iou_threshold, top_k))


def _suppress_lists(boxes: Array, iou_threshold: float, top_k: int) -> List[int]:
    """Positions kept of (N, 4) boxes sorted best first; for few boxes."""
    kept: List[int] = []
    rivals: List[Tuple[float, float, float, float, float]] = []
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        area = (right - left) * (bottom - top)
        for rival_left, rival_top, rival_right, rival_bottom, rival_area in rivals:
            # min() and max() would take half of the run time.
            width = (right if right < rival_right else rival_right) - (left if left > rival_left else rival_left)
            if width <= 0:
                continue
            height = (bottom if bottom < rival_bottom else rival_bottom) - (top if top > rival_top else rival_top)
            if height <= 0:
                continue
            inner = width * height
            if inner / (rival_area + area - inner) > iou_threshold:
                break
        else:
            kept.append(i)
            if len(kept) == top_k:
                break
            rivals.append((left, top, right, bottom, area))
    return kept


def _suppress_arrays(boxes: Array, iou_threshold: float, top_k: int) -> List[int]:
    """Positions kept of (N, 4) boxes sorted best first; for many boxes."""
    kept: List[int] = []
    rest = _columns(boxes.astype(np.float64))
    positions = np.arange(len(boxes))
    while len(positions) and len(kept) < top_k:
        kept.append(int(positions[0]))
        free = 1 + np.flatnonzero(_iou(rest[:, :1], rest[:, 1:]) <= iou_threshold)
        rest, positions = rest.take(free, axis=1), positions.take(free)
    return kept


def dbscan(xyxy: Array, confidence: Array, eps: float, min_boxes: int, min_score: float = 0.0) -> Tuple[Array, Array]:
    """One averaged box per dense group: (M, 4) float32 and (M,) float32, groups in the order of their first box.

    Source: `NvDsInferDBScan::clusterObjects` (NVIDIA-ISAAC-ROS/isaac_ros_object_detection, Apache-2.0), which differs
    from the textbook and from scikit-learn:

    - neighbours have a distance 1 - IoU strictly below `eps`; a core box has at least `min_boxes` - 1 of them,
      counted without weights;
    - a group is a core box and its *direct* core neighbours that have no group yet, in input order; neighbours of
      neighbours are collected there but never visited, so a chain of boxes splits;
    - border boxes belong to no group;
    - the group's box is the confidence-weighted mean, its confidence the largest;
    - a group is dropped when its summed confidence is below `min_score`, or when sqrt(area) / (members + 1) exceeds
      `AREA_HIT_RATIO`: a large box with few members.
    """
    near = _near(xyxy, eps)
    free = _core(near, min_boxes)
    groups = []
    for seed in np.flatnonzero(free):
        if free[seed]:
            groups.append(np.flatnonzero(near[seed] & free))
            free[groups[-1]] = False
    if not groups:
        return np.empty((0, 4), np.float32), np.empty(0, np.float32)

    sizes = np.array([len(group) for group in groups])
    starts = np.cumsum(sizes) - sizes
    members = np.concatenate(groups)
    confidence = confidence[members]
    weights = confidence.astype(np.float64)
    totals = np.add.reduceat(weights, starts)
    means = np.add.reduceat(weights[:, None] * xyxy[members], starts) / totals[:, None]
    areas = (means[:, 2] - means[:, 0]) * (means[:, 3] - means[:, 1])
    agreed = (totals >= min_score) & (np.sqrt(areas) / (sizes + 1) <= AREA_HIT_RATIO)
    return means[agreed].astype(np.float32), np.maximum.reduceat(confidence, starts)[agreed]


def _near(xyxy: Array, eps: float) -> Array:
    """(N, N) bool: which boxes are neighbours, each of itself too. In float32 as NVIDIA's code, and faster."""
    columns = _columns(xyxy.astype(np.float32))
    near = _iou(columns[:, :, None], columns[:, None, :])
    return np.asarray(np.subtract(1.0, near, out=near) < eps)


def _core(near: Array, min_boxes: int) -> Array:
    """(N,) bool: which boxes are core boxes, by neighbours including themselves."""
    return np.asarray(np.count_nonzero(near, axis=1) >= min_boxes)


def _columns(boxes: Array) -> Array:
    """(5, N): left, top, right, bottom, area of (N, 4) boxes."""
    left, top, right, bottom = boxes.T
    return np.stack([left, top, right, bottom, (right - left) * (bottom - top)])


def _iou(a: Array, b: Array) -> Array:
    """Intersection over union of two broadcastable sets of columns, in as few temporary arrays as possible."""
    lower = np.maximum(a[0], b[0])
    width = np.minimum(a[2], b[2])
    width -= lower
    np.maximum(width, 0.0, out=width)
    np.maximum(a[1], b[1], out=lower)
    height = np.minimum(a[3], b[3])
    height -= lower
    np.maximum(height, 0.0, out=height)
    inner = np.multiply(width, height, out=width)
    union = np.add(a[4], b[4], out=height)
    union -= inner
    inner /= union
    return np.asarray(inner)
