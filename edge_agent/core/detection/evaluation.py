"""Evaluation of a detector on labelled images: matching, precision, recall and their curve."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.detection.geometry import iou
from edge_agent.core.types import Array, Detections

SIZE_BINS: Tuple[Tuple[str, float, float], ...] = (
    ("under 5 %", 0.0, 0.05),
    ("5-10 %", 0.05, 0.10),
    ("10-20 %", 0.10, 0.20),
    ("20-40 %", 0.20, 0.40),
    ("over 40 %", 0.40, float("inf")),
)
"""Ratio of face height to image height; NVIDIA's model card calls FaceDetectIR weak under about 10 %."""


@dataclass(frozen=True)
class GroundTruth:
    """Labels of one image.

    Attributes:
        name: File name, relative to the image folder.
        faces: (N, 4) float32 xyxy, source px.
        ignored: (M, 4) float32 xyxy regions in which detections count neither as hits nor as false alarms.
    """

    name: str
    faces: Array
    ignored: Array


@dataclass(frozen=True)
class Match:
    """Matching of one image's detections, by descending confidence.

    Attributes:
        confidence: (D,) confidence of the detections that count.
        hit: (D,) bool: whether each matched a face.
        missed: Indices of unmatched faces.
        false_alarms: (F, 4) xyxy of unmatched detections.
    """

    confidence: Array
    hit: Array
    missed: Tuple[int, ...]
    false_alarms: Array


def match(detections: Detections, truth: GroundTruth, iou_threshold: float) -> Match:
    """Greedy matching as in COCO: best score first, each to the free face of highest IoU above the threshold.

    NVIDIA's model card counts an IoU greater than 0.5; one of exactly 0.5 is a miss and a false alarm.
    An unmatched detection of which at least half lies inside an ignored region (intersection over its own area) does
    not count.
    """
    order = np.argsort(-detections.confidence, kind="stable")
    boxes, scores = detections.xyxy[order], detections.confidence[order]
    overlap = iou(boxes, truth.faces)
    # In the precision of `overlap`, so that an IoU of exactly 0.6 does not exceed 0.6 by rounding.
    limit = np.float32(iou_threshold)
    free = np.ones(len(truth.faces), bool)
    hit = np.zeros(len(boxes), bool)
    for row in range(len(boxes)):
        candidates = np.where(free, overlap[row], -1.0)
        if len(candidates) and candidates.max() > limit:
            free[int(candidates.argmax())] = False
            hit[row] = True
    counts = hit | ~_inside(boxes, truth.ignored)
    return Match(scores[counts], hit[counts], tuple(np.flatnonzero(free).tolist()), boxes[~hit & counts])


def _inside(boxes: Array, regions: Array) -> Array:
    """(N,) bool: at least half of the box's area lies in one of the regions."""
    if not len(regions) or not len(boxes):
        return np.zeros(len(boxes), bool)
    top_left = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    inner = np.prod(np.clip(bottom_right - top_left, 0, None), axis=2)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.asarray((inner >= 0.5 * area[:, None]).any(axis=1))


@dataclass
class Evaluation:
    """Sums the matches of many images: `add` each image, then read the figures."""

    iou_threshold: float = 0.5
    images: int = 0
    faces: int = 0
    _scores: List[Array] = field(default_factory=list)
    _hits: List[Array] = field(default_factory=list)
    _by_size: Dict[str, List[int]] = field(default_factory=lambda: {name: [0, 0] for name, _, _ in SIZE_BINS})

    def add(self, detections: Detections, truth: GroundTruth, image_h_px: int) -> Match:
        """Match one image's detections and add the result."""
        matched = match(detections, truth, self.iou_threshold)
        self.images += 1
        self.faces += len(truth.faces)
        self._scores.append(matched.confidence)
        self._hits.append(matched.hit)
        for index, face in enumerate(truth.faces):
            share = float(face[3] - face[1]) / image_h_px
            name = next(name for name, low, high in SIZE_BINS if low <= share < high)
            self._by_size[name][0] += index not in matched.missed
            self._by_size[name][1] += 1
        return matched

    @property
    def hits(self) -> int:
        """True positives."""
        return int(sum(hit.sum() for hit in self._hits))

    @property
    def false_alarms(self) -> int:
        """False positives."""
        return int(sum((~hit).sum() for hit in self._hits))

    @property
    def precision(self) -> Optional[float]:
        """TP / (TP + FP), or None without detections."""
        found = self.hits + self.false_alarms
        return self.hits / found if found else None

    @property
    def recall(self) -> Optional[float]:
        """TP / (TP + FN), or None without faces."""
        return self.hits / self.faces if self.faces else None

    @property
    def accuracy(self) -> Optional[float]:
        """TP / (TP + FP + FN), the figure of NVIDIA's KPI table; None without faces and detections."""
        total = self.faces + self.false_alarms
        return self.hits / total if total else None

    def recall_by_size(self) -> Sequence[Tuple[str, int, int]]:
        """(bin, faces found, faces) for each of `SIZE_BINS` that has faces."""
        return [(name, found, total) for name, (found, total) in self._by_size.items() if total]

    def curve(self) -> Tuple[Array, Array, Array]:
        """Precision, recall and threshold, each (K,), one point per distinct score, by descending threshold."""
        scores = np.concatenate(self._scores) if self._scores else np.empty(0)
        hits = np.concatenate(self._hits) if self._hits else np.empty(0, bool)
        order = np.argsort(-scores, kind="stable")
        scores, hits = scores[order], hits[order]
        found = np.cumsum(hits)
        precision = found / np.arange(1, len(hits) + 1)
        recall = found / max(1, self.faces)
        last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.empty(0, int)
        return precision[last], recall[last], scores[last]

    def average_precision(self) -> float:
        """Area under the monotonic precision-recall curve (all-point interpolation, PASCAL VOC 2010)."""
        precision, recall, _ = self.curve()
        if not len(precision):
            return 0.0
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(np.concatenate(([0.0], recall))) * envelope))
