"""What flows through the agent: moments, frames' identity, detections, reports, events. Pure data."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Moment:
    """One instant on both clocks.

    Attributes:
        t: Monotonic seconds; the only clock that durations are measured on.
        at: Aware UTC; the only clock that people see.
        synced: Whether the system clock was known to be synchronised.
    """

    t: float
    at: datetime
    synced: bool = True


@dataclass(frozen=True)
class FrameInfo:
    """Identity of a frame; flows on after its pixels are released.

    Attributes:
        camera: Camera id.
        sequence: The source's own counter; gaps are frames lost before the agent saw them.
        moment: Exposure time (start of exposure where the driver tells it).
        width: Upright full frame, px (after rotation and flip, before the region of interest).
        height: Likewise.
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


class Detections:
    """Faces found in one frame, as arrays side by side.

    Args:
        xyxy: (N, 4) float32: left, top, right, bottom in source px of the upright full frame.
        confidence: (N,) float32, sorted or not; its meaning is `score_kind`.
        score_kind: "max" (a probability, 0..1) or "sum" (coverage summed over a cluster, may exceed 1).

    Raises:
        ValueError: On shapes that do not match.
    """

    __slots__ = ("confidence", "score_kind", "xyxy")

    def __init__(self, xyxy: Array, confidence: Array, score_kind: str = "max") -> None:
        xyxy = np.asarray(xyxy, np.float32)
        confidence = np.asarray(confidence, np.float32)
        if xyxy.ndim != 2 or xyxy.shape[1] != 4:
            raise ValueError(f"xyxy: expected shape (N, 4), got {xyxy.shape}")
        if confidence.shape != (len(xyxy),):
            raise ValueError(f"confidence: expected shape ({len(xyxy)},), got {confidence.shape}")
        self.xyxy = xyxy
        self.confidence = confidence
        self.score_kind = score_kind

    @classmethod
    def empty(cls, score_kind: str = "max") -> "Detections":
        """No face."""
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), score_kind)

    def select(self, index: Any) -> "Detections":
        """The subset that a numpy index (mask, integers, slice) picks."""
        return Detections(self.xyxy[index], self.confidence[index], self.score_kind)

    def __len__(self) -> int:
        return len(self.xyxy)

    def __iter__(self) -> Iterator[Tuple[Array, float]]:
        return ((box, float(score)) for box, score in zip(self.xyxy, self.confidence))


class Sight(str, Enum):
    """Whether a camera can see, and if not, why not."""

    OK = "ok"
    STARTING = "starting"
    LOST = "lost"
    ENDED = "ended"
    DARK = "dark"
    EMITTER = "emitter"
    FROZEN = "frozen"
    COVERED = "covered"
    DISABLED = "disabled"
    STOPPED = "stopped"

    @property
    def can_see(self) -> bool:
        """True only when the picture may be trusted to show a face if there is one."""
        return self is Sight.OK

    @property
    def available(self) -> bool:
        """What `C/availability` says: detection switched off is not a camera fault."""
        return self in (Sight.OK, Sight.DISABLED)


class Presence(str, Enum):
    """The three-state answer; the values are the MQTT payloads."""

    YES = "ON"
    NO = "OFF"
    UNKNOWN = "None"


@dataclass(frozen=True)
class Quality:
    """How good a face's picture is.

    Attributes:
        score: 0..1, the product that crops are chosen by.
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
    """A face's picture, copied out of its frame; owns its pixels.

    Attributes:
        pixels: (H, W) or (H, W, 3 RGB) uint8, contiguous.
        box: What the crop shows, normalised to the upright full frame (wider than the face by the margin).
        quality: Of the face when the crop was taken.
        info: The frame that it was cut from.
    """

    pixels: Array
    box: Box
    quality: Quality
    info: FrameInfo


@dataclass(frozen=True)
class FaceEvent:
    """One step in the life of one appearance of one face.

    Attributes:
        event_type: "start", "update" or "end".
        event_id: UUIDv7, the same from start to end.
        seq: Counts per (boot, camera), from 1, without gaps.
        info: The frame that caused it (for an "end", the last frame that showed the face).
        ended: Only on "end".
        crop: On "end" only, the best picture of the appearance, if there was one and crops are on.
        end_reason: "left", "camera_lost", "disabled", "shutdown" or "restart"; only on "end".
        infer_started_t: Monotonic seconds when inference on the frame began.
        infer_s: Seconds that preprocessing and the network took on the frame.
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
    """What is true of one camera now; published as retained state.

    Attributes:
        camera: Camera id.
        presence: The three-state answer.
        sight: The reason behind it.
        since: When `presence` or `sight` last changed.
        faces: Number of confirmed faces, or None when the camera cannot see.
        best_score: Of the confirmed faces now, or None.
        event_ids: Of the appearances open now.
        zones: Three-state answer per named zone.
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
    """What one step of a camera's pipeline says to the world.

    Attributes:
        camera: Camera id.
        events: In `seq` order.
        report: The camera's truth, only when it changed.
        info: The frame behind it, or None for a step without one.
        detections: Of the frame; empty when there was none.
        first_crop: (event_id, crop) at the first acceptable crop of an appearance, for the retained image.
        idle: The frame was not looked at, because nobody is there and it shows nothing new.
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
    """Events of one camera, from the first `seq` to the last, that went before anybody had kept them."""

    camera: str
    from_seq: int
    to_seq: int


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says of itself; published in `B/info`.

    Attributes:
        backend: "onnxruntime", "tensorrt", "scripted".
        precision: What it really runs in: "fp32", "fp16", "int8".
        model: Registry name or file name.
        model_sha256: Of the file, hex; empty for the scripted engine.
        calibration_sha256: Of the INT8 calibration, or None.
        detail: Anything worth publishing (threads, providers, device).
    """

    backend: str
    precision: str
    model: str
    model_sha256: str
    calibration_sha256: Optional[str] = None
    detail: Mapping[str, Any] = field(default_factory=dict)


def normalised_boxes(detections: Detections, width: int, height: int) -> Sequence[Box]:
    """Detections' boxes normalised to a frame of `width` x `height` px, clipped to 0..1."""
    scaled = np.clip(detections.xyxy / np.array([width, height, width, height], np.float32), 0.0, 1.0)
    return [Box(*(round(float(v), 4) for v in row)) for row in scaled]


Counters = Dict[str, int]
