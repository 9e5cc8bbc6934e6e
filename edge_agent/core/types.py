"""Plain data types of the agent: times, frame identity, detections, events, camera state."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Moment:
    """One instant on the monotonic and on the system clock.

    Attributes:
        t: Monotonic seconds; all durations are measured on this clock.
        at: Aware UTC of the system clock, for timestamps.
        synced: Whether the system clock was known to be synchronised.
    """

    t: float
    at: datetime
    synced: bool = True


@dataclass(frozen=True)
class FrameInfo:
    """Identity of a frame; outlives its pixels.

    Attributes:
        camera: Camera id.
        sequence: The source's counter; gaps are frames lost before the agent received them.
        moment: Exposure time (start of exposure where the driver reports it).
        width: Width of the upright full frame, px (after rotation and flip, before the region of interest).
        height: Height of it, px.
    """

    camera: str
    sequence: int
    moment: Moment
    width: int
    height: int


@dataclass(frozen=True)
class Box:
    """A rectangle, normalised 0..1 to the upright full frame; x to the right, y down."""

    left: float
    top: float
    right: float
    bottom: float


WEAK, FAIR, CLEAR = 0, 1, 2
"""Evidence of a detection: only continues a track; starts one that a second detection must confirm; counts at once."""

EVIDENCE = ("weak", "fair", "clear")
"""Their names in payloads."""


class Detections:
    """Faces found in one frame, as parallel arrays.

    Args:
        xyxy: (N, 4) float32: left, top, right, bottom in source px of the upright full frame.
        confidence: (N,) float32, sorted or not; its meaning is `score_kind`.
        score_kind: "max" (a probability, 0..1) or "sum" (coverage summed over a cluster, may exceed 1).
        evidence: (N,) uint8 `WEAK`, `FAIR` or `CLEAR`; None when all are clear.

    Raises:
        ValueError: On shapes that do not match.
    """

    __slots__ = ("confidence", "evidence", "score_kind", "xyxy")

    def __init__(
        self, xyxy: Array, confidence: Array, score_kind: str = "max", evidence: Optional[Array] = None
    ) -> None:
        xyxy = np.asarray(xyxy, np.float32)
        confidence = np.asarray(confidence, np.float32)
        if xyxy.ndim != 2 or xyxy.shape[1] != 4:
            raise ValueError(f"xyxy: expected shape (N, 4), got {xyxy.shape}")
        if confidence.shape != (len(xyxy),):
            raise ValueError(f"confidence: expected shape ({len(xyxy)},), got {confidence.shape}")
        self.xyxy = xyxy
        self.confidence = confidence
        if evidence is not None and evidence.shape != confidence.shape:
            raise ValueError(f"evidence: expected shape ({len(xyxy)},), got {evidence.shape}")
        self.score_kind = score_kind
        self.evidence = evidence

    @classmethod
    def empty(cls, score_kind: str = "max") -> "Detections":
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), score_kind)

    def select(self, index: Any) -> "Detections":
        """The subset selected by a numpy index (mask, integers, slice)."""
        evidence = None if self.evidence is None else self.evidence[index]
        return Detections(self.xyxy[index], self.confidence[index], self.score_kind, evidence)

    def __len__(self) -> int:
        return len(self.xyxy)

    def __iter__(self) -> Iterator[Tuple[Array, float]]:
        return ((box, float(score)) for box, score in zip(self.xyxy, self.confidence))


class Sight(str, Enum):
    """Whether a camera can see, or why it cannot."""

    OK = "ok"
    STARTING = "starting"
    LOST = "lost"
    ENDED = "ended"
    DARK = "dark"
    EMITTER = "emitter"
    FROZEN = "frozen"
    COVERED = "covered"
    DAMAGED = "damaged"
    DISABLED = "disabled"
    STOPPED = "stopped"

    @property
    def can_see(self) -> bool:
        """True when a face in front of the camera would be visible in its frames."""
        return self is Sight.OK

    @property
    def available(self) -> bool:
        """The value of `C/availability`: a camera whose detection is switched off is available."""
        return self in (Sight.OK, Sight.DISABLED)


class Presence(str, Enum):
    """Three-state presence; the values are the MQTT payloads."""

    YES = "ON"
    NO = "OFF"
    UNKNOWN = "None"


@dataclass(frozen=True)
class Quality:
    """Image quality of a face.

    Attributes:
        score: 0..1, product of the parts; the crop with the highest score is kept.
        sharpness: Variance of the Laplacian of the face, gray levels squared.
        face_px: Shorter side of the face box, source px.
        exposure: Mean gray level of the face, 0..1.
        edge: True when the box touches the frame's edge, so part of the face may be cut off.
    """

    score: float
    sharpness: float
    face_px: int
    exposure: float
    edge: bool


@dataclass(frozen=True)
class Crop:
    """Image of a face, copied from its frame; owns its pixels.

    Attributes:
        pixels: (H, W) or (H, W, 3 RGB) uint8, contiguous.
        box: Area of the crop, normalised to the upright full frame (the face box with its margin).
        quality: Quality of the face in this crop.
        info: The frame that the crop was cut from.
    """

    pixels: Array
    box: Box
    quality: Quality
    info: FrameInfo


@dataclass(frozen=True)
class FaceEvent:
    """Start, update or end of one visit of one face.

    Attributes:
        event_type: "start", "update" or "end".
        event_id: UUIDv7, the same from start to end.
        seq: Counter per (boot, camera), from 1, without gaps.
        info: The frame that caused the event (for an "end", the last frame that showed the face).
        ended: Time of the last frame that showed the face; only on "end".
        crop: Best crop of the visit, if crops are on and one was acceptable; only on "end".
        end_reason: "left", "camera_lost", "disabled", "shutdown" or "restart"; only on "end".
        infer_started_t: Monotonic seconds when inference on the frame started.
        infer_s: Seconds of preprocessing and inference on the frame.
    """

    event_type: str
    event_id: str
    seq: int
    track_id: int
    info: FrameInfo
    started: Moment
    ended: Optional[Moment]
    box: Box
    score: float
    top_score: float
    score_kind: str
    zones: Tuple[str, ...] = ()
    quality: Optional[Quality] = None
    crop: Optional[Crop] = None
    end_reason: Optional[str] = None
    infer_started_t: float = 0.0
    infer_s: float = 0.0


@dataclass(frozen=True)
class CameraReport:
    """Current state of one camera; published as retained messages.

    Attributes:
        camera: Camera id.
        presence: Three-state presence.
        sight: Whether the camera can see.
        since: When `presence` or `sight` last changed.
        faces: Number of confirmed faces, or None when it is unknown.
        best_score: Highest score among them, or None.
        event_ids: Event ids of the open visits.
        zones: Three-state presence per zone.
    """

    camera: str
    presence: Presence
    sight: Sight
    since: Moment
    faces: Optional[int] = None
    best_score: Optional[float] = None
    event_ids: Tuple[str, ...] = ()
    zones: Mapping[str, Presence] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Result of one step of a camera's pipeline.

    Attributes:
        camera: Camera id.
        events: In `seq` order.
        report: State of the camera, only when it changed.
        info: The frame, or None for a step without one.
        detections: Faces in the frame, or None when it was not inferred.
        first_crop: (event_id, crop) of the first acceptable crop of a visit, for the retained image.
        idle: True when the frame was skipped: nobody is present and nothing has changed.
    """

    camera: str
    events: Tuple[FaceEvent, ...] = ()
    report: Optional[CameraReport] = None
    info: Optional[FrameInfo] = None
    detections: Optional[Detections] = None
    first_crop: Optional[Tuple[str, Crop]] = None
    idle: bool = False


@dataclass(frozen=True)
class LostEvents:
    """Events of one camera, `from_seq` to `to_seq`, that were dropped before they reached the outbox."""

    camera: str
    from_seq: int
    to_seq: int


@dataclass(frozen=True)
class EngineInfo:
    """Description of an engine; published in `B/info`.

    Attributes:
        backend: "onnxruntime", "tensorrt", "scripted".
        precision: Precision in use: "fp32", "fp16", "int8".
        model: Registry name or file name.
        model_sha256: SHA-256 of the model file, hex; empty for the scripted engine.
        calibration_sha256: SHA-256 of the INT8 calibration, or None.
        detail: Other published facts (threads, providers, device).
    """

    backend: str
    precision: str
    model: str
    model_sha256: str
    calibration_sha256: Optional[str] = None
    detail: Mapping[str, Any] = field(default_factory=dict)


def normalised_boxes(detections: Detections, width: int, height: int) -> Sequence[Box]:
    """Boxes normalised to a frame of `width` x `height` px, clipped to 0..1."""
    scaled = np.clip(detections.xyxy / np.array([width, height, width, height], np.float32), 0.0, 1.0)
    return [Box(*(round(float(v), 4) for v in row)) for row in scaled]


Counters = Dict[str, int]
