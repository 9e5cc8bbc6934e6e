"""Grades detections by what they are evidence for: continuing a track, starting one on trial, or a face at once."""

from dataclasses import dataclass

import numpy as np

from edge_agent.core.params import param
from edge_agent.core.types import CLEAR, FAIR, WEAK, Array, Detections


@dataclass(frozen=True)
class EvidenceParams:
    """Which scores continue a track, and which start one without a second detection."""

    continue_ratio: float = param(
        0.7,
        "A tracked face continues from this share of the score that starts a track; lower it when one visit breaks "
        "into several, raise it when a visit outlasts its face; 1 is the same score for both",
        gt=0,
        le=1,
    )
    clear_margin: float = param(
        0.25,
        "A face counts at once from this far above the score that starts a track, as a share of what is left up to 1; "
        "one below must be seen twice; raise it against single false alarms, 0 counts every face at once",
        ge=0,
        le=1,
    )


def clear_score(start: float, kind: str, params: EvidenceParams) -> float:
    """The score from which one detection is enough, where `start` is the score that starts a track.

    "sum" scores have no upper bound, so their margin is a share of `start` itself.
    """
    room = start if kind == "sum" else max(0.0, 1.0 - start)
    return start + params.clear_margin * room


def grades(confidence: Array, starts: Array, clear: float) -> Array:
    """(N,) uint8 `WEAK`, `FAIR` or `CLEAR`.

    Args:
        confidence: (N,) float32 scores.
        starts: (N,) bool: whether each may start a track.
        clear: Score from which one detection is enough.
    """
    return np.asarray(np.where(starts, np.where(confidence >= np.float32(clear), CLEAR, FAIR), WEAK).astype(np.uint8))


def graded(found: Detections, start: float, params: EvidenceParams) -> Detections:
    """The detections that reach `continue_ratio` of `start`, graded no higher than they are already."""
    score = found.confidence
    evidence = grades(score, score >= np.float32(start), clear_score(start, found.score_kind, params))
    if found.evidence is not None:
        evidence = np.minimum(evidence, found.evidence)
    kept = score >= np.float32(start * params.continue_ratio)
    return Detections(found.xyxy[kept], score[kept], found.score_kind, evidence[kept])
