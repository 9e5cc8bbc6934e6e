"""Follows each visit of a face in front of one camera: its events, and the best crop of it."""

from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.frame import Image
from edge_agent.core.ports import NewId
from edge_agent.core.presence.crops import CropParams, acceptable, assess, better, clearly_better, cut
from edge_agent.core.presence.tracker import Track
from edge_agent.core.types import Box, Crop, FaceEvent, FrameInfo, Quality

UPDATE_INTERVAL_S = 1.0
"""Minimum seconds between two `update` events of a visit."""

# Assessing a face costs as much as the rest of a step, and faces change little between two frames.
_ASSESS_INTERVAL_S = 0.1


class Observation(NamedTuple):
    """One inferred frame. Valid during one step: the pixels are borrowed.

    Attributes:
        image: The upright full frame.
        info: Identity of the frame.
        score_kind: Meaning of the detector's scores.
        infer_started_t: Monotonic seconds when inference started.
        infer_s: Seconds of inference.
    """

    image: Image
    info: FrameInfo
    score_kind: str
    infer_started_t: float
    infer_s: float


class Visit:
    """One visit of one face, from `start` to `end`, as of the last frame that showed it.

    Holds no frame's pixels but those of its best crop.
    """

    __slots__ = (
        "assessed_t", "crop", "crop_taken", "event_id", "infer_s", "infer_started_t", "info", "published_quality",
        "published_t", "published_zones", "quality", "score", "score_kind", "started", "top_score", "track_id",
        "visible", "xyxy", "zones",
    )  # fmt: skip

    def __init__(self, event_id: str, track: Track, observation: Observation) -> None:
        self.event_id = event_id
        self.track_id = track.id
        self.started = observation.info.moment
        self.top_score = 0.0
        self.visible = True
        self.zones: Tuple[str, ...] = ()
        self.quality: Optional[Quality] = None
        self.crop: Optional[Crop] = None
        self.crop_taken = False
        self.assessed_t = float("-inf")
        self.published_t = observation.info.moment.t
        self.published_zones: Tuple[str, ...] = ()
        self.published_quality: Optional[Quality] = None
        self.update(track, observation)

    def update(self, track: Track, observation: Observation) -> None:
        """Take over what a frame shows of the face."""
        self.xyxy = track.xyxy
        self.score = track.confidence
        self.top_score = max(self.top_score, track.confidence)
        self.info = observation.info
        self.score_kind = observation.score_kind
        self.infer_started_t = observation.infer_started_t
        self.infer_s = observation.infer_s

    @property
    def box(self) -> Box:
        """Face box normalised to the upright full frame, clipped to it."""
        left, top, right, bottom = self.xyxy
        width, height = self.info.width, self.info.height
        return Box(
            _normalised(left, width), _normalised(top, height), _normalised(right, width), _normalised(bottom, height)
        )

    def needs_update(self) -> bool:
        """Whether the zones or the best crop have changed since the last event."""
        if self.zones != self.published_zones:
            return True
        if self.crop is None:
            return False
        return self.published_quality is None or clearly_better(self.crop.quality, self.published_quality)


class VisitTracker:
    """Keeps the open visits of one camera and numbers their events. Bounded by the tracker's `max_tracks`.

    Args:
        new_id: Creates event ids.
        crops: Parameters of crops; may be replaced at any time, but `set_crops` switches them.
        zones_of: Names of the zones that contain a box; None when the camera has no zones.

    Attributes:
        open: Open visits by track id, oldest first.
        crops_on: Whether crops are taken.
    """

    def __init__(
        self, new_id: NewId, crops: CropParams, zones_of: Optional[Callable[[Box], Tuple[str, ...]]] = None
    ) -> None:
        self.params = crops
        self.crops_on = crops.enabled
        self.open: Dict[int, Visit] = {}
        self._new_id, self._zones_of = new_id, zones_of
        self._seq = 0

    def observe(self, tracks: Iterable[Track], observation: Observation) -> List[FaceEvent]:
        """Events "start" and "update" of one frame."""
        events = []
        t = observation.info.moment.t
        for track in tracks:
            if not track.confirmed:
                continue
            visit = self.open.get(track.id)
            if visit is not None:
                visit.visible = track.visible
                if not track.visible:
                    continue
                visit.update(track, observation)
                self._assess(visit, observation)
                if t - visit.published_t >= UPDATE_INTERVAL_S and visit.needs_update():
                    events.append(self._publish(visit, "update"))
            else:
                visit = self.open[track.id] = Visit(self._new_id(), track, observation)
                self._assess(visit, observation)
                events.append(self._publish(visit, "start"))
        return events

    def close_missing(self, tracks: Sequence[Track]) -> List[FaceEvent]:
        """Close the visits whose track has ended; returns their "end" events."""
        alive = {track.id for track in tracks}
        return [self._end(track_id, "left") for track_id in list(self.open) if track_id not in alive]

    def close_all(self, end_reason: str) -> List[FaceEvent]:
        """Close all visits; returns their "end" events."""
        return [self._end(track_id, end_reason) for track_id in list(self.open)]

    def set_crops(self, on: bool) -> None:
        """Switch crops on or off; off also discards the crops of the open visits."""
        self.crops_on = on
        if not on:
            for visit in self.open.values():
                visit.crop = None

    def take_first_crop(self) -> Optional[Tuple[str, Crop]]:
        """(event_id, crop) of a visit that has got its first crop; each visit is returned once."""
        for visit in self.open.values():
            if visit.crop is not None and not visit.crop_taken:
                visit.crop_taken = True
                return visit.event_id, visit.crop
        return None

    def _assess(self, visit: Visit, observation: Observation) -> None:
        """Update the zones, the quality and the best crop of a visit."""
        if self._zones_of is not None:
            visit.zones = self._zones_of(visit.box)
        t = observation.info.moment.t
        if t - visit.assessed_t < _ASSESS_INTERVAL_S:
            return
        visit.assessed_t = t
        xyxy = np.asarray(visit.xyxy, np.float32)
        quality = assess(observation.image, xyxy, visit.score)
        if visit.quality is None or better(quality, visit.quality):
            visit.quality = quality
        if not self.crops_on or not acceptable(quality, self.params):
            return
        if visit.crop is None or better(quality, visit.crop.quality):
            visit.crop = cut(observation.image, xyxy, self.params, quality, observation.info)

    def _publish(self, visit: Visit, event_type: str) -> FaceEvent:
        visit.published_t = visit.info.moment.t
        visit.published_zones = visit.zones
        visit.published_quality = visit.crop.quality if visit.crop is not None else None
        return self._event(visit, event_type)

    def _end(self, track_id: int, end_reason: str) -> FaceEvent:
        return self._event(self.open.pop(track_id), "end", end_reason)

    def _event(self, visit: Visit, event_type: str, end_reason: Optional[str] = None) -> FaceEvent:
        self._seq += 1
        return FaceEvent(
            event_type=event_type,
            event_id=visit.event_id,
            seq=self._seq,
            track_id=visit.track_id,
            info=visit.info,
            started=visit.started,
            ended=visit.info.moment if end_reason is not None else None,
            box=visit.box,
            score=visit.score,
            top_score=visit.top_score,
            score_kind=visit.score_kind,
            zones=visit.zones,
            quality=visit.quality,
            crop=visit.crop if end_reason is not None else None,
            end_reason=end_reason,
            infer_started_t=visit.infer_started_t,
            infer_s=visit.infer_s,
        )


def _normalised(px: float, size: int) -> float:
    return round(min(max(px / size, 0.0), 1.0), 4)
