"""Reads and writes recordings: JSON lines, one per inferred frame and one per change of sight.

Frames are payloads of `C/detections` in the profile "native", so the messages a subscriber received are a recording.
Changes of sight are not published in this form; only `edge-agent replay --record` writes them.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, List, Mapping, Union

import numpy as np

from edge_agent.core.protocol.commands import parse_json
from edge_agent.core.protocol.messages import DETECTIONS_SCHEMA, timestamp
from edge_agent.core.protocol.topics import ID
from edge_agent.core.types import CLEAR, EVIDENCE, Array, Detections, Moment, Sight

SIGHT_SCHEMA = "edge-agent.sight/1"
MAX_LINE_BYTES = 1 << 20
_MAX_SIDE = 16384


@dataclass(frozen=True)
class RecordedDetections:
    """Detections of one inferred frame, in px of the upright full frame, whose size is `width` x `height` px."""

    camera: str
    moment: Moment
    sequence: int
    width: int
    height: int
    detections: Detections


@dataclass(frozen=True)
class SightChange:
    """The camera's sight from `moment` on; with `doubt`, blindness is suspected and not proven."""

    camera: str
    moment: Moment
    sight: Sight
    doubt: bool


def sight_line(change: SightChange) -> Dict[str, Any]:
    """The JSON object of a change of sight."""
    return {
        "schema": SIGHT_SCHEMA,
        "camera": change.camera,
        "ts": timestamp(change.moment.at),
        "sight": change.sight.value,
        "doubt": change.doubt,
    }


def read_line(line: bytes) -> Union[RecordedDetections, SightChange]:
    """Parse one line of a recording; unknown fields are ignored.

    Raises:
        ValueError: The line is invalid; the text names the field and what was expected.
    """
    record = parse_json(line, MAX_LINE_BYTES)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    schema = record.get("schema")
    if schema not in (DETECTIONS_SCHEMA, SIGHT_SCHEMA):
        raise ValueError(f"schema: expected {DETECTIONS_SCHEMA} or {SIGHT_SCHEMA}")
    camera = record.get("camera")
    if not isinstance(camera, str) or not ID.fullmatch(camera):
        raise ValueError("camera: expected a camera's id")
    moment = moment_at(read_timestamp(record.get("ts")))
    if schema == SIGHT_SCHEMA:
        return SightChange(camera, moment, _sight(record.get("sight")), record.get("doubt") is True)
    frame = record.get("frame")
    if not isinstance(frame, dict):
        raise ValueError("frame: expected an object with sequence, width, height")
    width, height = (_whole(frame, side, 1, _MAX_SIDE) for side in ("width", "height"))
    found = _detections(record, width, height)
    return RecordedDetections(camera, moment, _whole(frame, "sequence", 0, 1 << 63), width, height, found)


def read_timestamp(text: Any) -> datetime:
    """Parse RFC 3339 in UTC, with or without a fraction.

    Raises:
        ValueError: The text is not of this form.
    """
    try:
        at = datetime.fromisoformat(text[:-1]) if isinstance(text, str) and text.endswith("Z") else None
    except ValueError:
        at = None
    if at is not None and at.tzinfo is None and 1970 <= at.year < 9999:
        return at.replace(tzinfo=timezone.utc)
    raise ValueError("ts: expected a time like 2026-01-31T12:00:00.000000Z")


def moment_at(at: datetime) -> Moment:
    """A moment whose monotonic time is the recorded system time: recordings have no other clock."""
    return Moment(at.timestamp(), at)


def _sight(value: Any) -> Sight:
    try:
        return Sight(value)
    except ValueError:
        raise ValueError(f"sight: expected one of {', '.join(sight.value for sight in Sight)}") from None


def _detections(record: Mapping[str, Any], width: int, height: int) -> Detections:
    kind = record.get("score_kind")
    if kind not in ("max", "sum"):
        raise ValueError("score_kind: expected max or sum")
    found = record.get("detections")
    if not isinstance(found, list):
        raise ValueError("detections: expected a list")
    boxes: List[List[float]] = []
    scores: List[float] = []
    evidence: List[int] = []
    for index, entry in enumerate(found):
        box = entry.get("box") if isinstance(entry, dict) else None
        if not isinstance(box, dict):
            raise ValueError(f"detections[{index}]: expected an object with box and score")
        sides = [_number(box.get(side), f"detections[{index}].box.{side}", 1.0) for side in _SIDES]
        if sides[0] >= sides[2] or sides[1] >= sides[3]:
            raise ValueError(f"detections[{index}].box: expected left < right and top < bottom")
        boxes.append(sides)
        scores.append(_number(entry.get("score"), f"detections[{index}].score", math.inf))
        name = entry.get("evidence", EVIDENCE[CLEAR])
        if name not in EVIDENCE:
            raise ValueError(f"detections[{index}].evidence: expected one of {', '.join(EVIDENCE)}")
        evidence.append(EVIDENCE.index(name))
    xyxy: Array = np.array(boxes, np.float64).reshape(-1, 4) * (width, height, width, height)
    return Detections(xyxy, np.array(scores), kind, np.array(evidence, np.uint8))


_SIDES = ("left", "top", "right", "bottom")


def _number(value: Any, name: str, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise ValueError(f"{name}: expected a number from 0{'' if math.isinf(high) else f' to {high:g}'}")
    return float(value)


def _whole(record: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"frame.{name}: expected a whole number from {low}")
    return value
