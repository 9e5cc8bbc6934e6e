"""Grades detections by what they are evidence for: a face, or only the continuation of a track."""

from dataclasses import dataclass

import numpy as np

from edge_agent.core.params import param
from edge_agent.core.types import CLEAR, WEAK, Array, Detections


@dataclass(frozen=True)
class EvidenceParams:
    """Which scores continue a track."""

    continue_ratio: float = param(
        0.7,
        "A tracked face continues from this share of the score that starts a track; lower it when one visit breaks "
        "into several, raise it when a visit outlasts its face; 1 is the same score for both",
        gt=0,
        le=1,
    )


def grades(starts: Array) -> Array:
    """(N,) uint8 `WEAK` or `CLEAR`.

    Args:
        starts: (N,) bool: whether each may start a track.
    """
    return np.asarray(np.where(starts, CLEAR, WEAK).astype(np.uint8))


def graded(found: Detections, start: float, params: EvidenceParams) -> Detections:
    """The detections that reach `continue_ratio` of the score `start`, graded no higher than they are already."""
    score = found.confidence
    evidence = grades(score >= np.float32(start))
    if found.evidence is not None:
        evidence = np.minimum(evidence, found.evidence)
    kept = score >= np.float32(start * params.continue_ratio)
    return Detections(found.xyxy[kept], score[kept], found.score_kind, evidence[kept])
