"""The life of each face in front of one camera, told as events, with the best picture of it."""

from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.frame import Image
from edge_agent.core.ports import NewId
from edge_agent.core.presence.crops import CropParams, acceptable, assess, better, clearly_better, cut
from edge_agent.core.presence.tracker import Track
from edge_agent.core.types import Box, Crop, FaceEvent, FrameInfo, Quality

UPDATE_INTERVAL_S = 1.0
"""At most one `update` per appearance in so many seconds."""

# Judging a face costs as much as all the rest of a step, and faces change little between two frames.
_JUDGE_EVERY_S = 0.1


class Observation(NamedTuple):
    """One frame that was inferred. Lives as long as the step does: its pixels are borrowed.

    Attributes:
        picture: The upright full frame.
        info: Its identity.
        score_kind: What the detector's scores mean.
        infer_started_t: Monotonic seconds.
        infer_s: Seconds.
    """

    picture: Image
    info: FrameInfo
    score_kind: str
    infer_started_t: float
    infer_s: float


class Visit:
    """One visit of one face, from `start` to `end`, as of the last frame that showed it.

    Holds no frame's pixels but its best crop's.
    """

    __slots__ = (
        "crop", "crop_shown", "event_id", "infer_s", "infer_started_t", "info", "judged_t", "quality", "score",
        "score_kind", "started", "told_crop", "told_t", "told_zones", "top_score", "track_id", "visible", "xyxy",
        "zones",
    )  # fmt: skip

    def __init__(self, event_id: str, track: Track, look: Observation) -> None:
        self.event_id = event_id
        self.track_id = track.id
        self.started = look.info.moment
        self.top_score = 0.0
        self.visible = True
        self.zones: Tuple[str, ...] = ()
        self.quality: Optional[Quality] = None
        self.crop: Optional[Crop] = None
        self.crop_shown = False
        self.judged_t = float("-inf")
        self.told_t = look.info.moment.t
        self.told_zones: Tuple[str, ...] = ()
        self.told_crop: Optional[Quality] = None
        self.see(track, look)

    def see(self, track: Track, look: Observation) -> None:
        """A frame shows it."""
        self.xyxy = track.xyxy
        self.score = track.confidence
        self.top_score = max(self.top_score, track.confidence)
        self.info = look.info
        self.score_kind = look.score_kind
        self.infer_started_t = look.infer_started_t
        self.infer_s = look.infer_s

    @property
    def box(self) -> Box:
        """Normalised to the upright full frame, clipped to it."""
        left, top, right, bottom = self.xyxy
        width, height = self.info.width, self.info.height
        return Box(_part(left, width), _part(top, height), _part(right, width), _part(bottom, height))

    def has_news(self) -> bool:
        """Whether something changed since the last event that is worth an `update`."""
        if self.zones != self.told_zones:
            return True
        if self.crop is None:
            return False
        return self.told_crop is None or clearly_better(self.crop.quality, self.told_crop)


class VisitTracker:
    """Keeps the open appearances of one camera and numbers their events. Bounded by the tracker's `max_tracks`.

    Args:
        new_id: Makes event ids.
        crops: How crops are taken; may be replaced at any time. The switch is `set_crops`.
        zones_of: Names of the zones that a box is in; None when the camera has no zones.

    Attributes:
        open: Open appearances by track id, oldest first.
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

    def show(self, tracks: Iterable[Track], look: Observation) -> List[FaceEvent]:
        """Starts and updates that a frame brings."""
        events = []
        t = look.info.moment.t
        for track in tracks:
            if not track.confirmed:
                continue
            visit = self.open.get(track.id)
            if visit is not None:
                visit.visible = track.visible
                if not track.visible:
                    continue
                visit.see(track, look)
                self._study(visit, look)
                if t - visit.told_t >= UPDATE_INTERVAL_S and visit.has_news():
                    events.append(self._tell(visit, "update"))
            else:
                visit = self.open[track.id] = Visit(self._new_id(), track, look)
                self._study(visit, look)
                events.append(self._tell(visit, "start"))
        return events

    def close_missing(self, tracks: Sequence[Track]) -> List[FaceEvent]:
        """Ends of the appearances whose track has ended."""
        alive = {track.id for track in tracks}
        return [self._end(number, "left") for number in list(self.open) if number not in alive]

    def close_all(self, end_reason: str) -> List[FaceEvent]:
        """Ends of all open appearances."""
        return [self._end(number, end_reason) for number in list(self.open)]

    def set_crops(self, on: bool) -> None:
        """Take crops from now on, or take none and forget those that are held."""
        self.crops_on = on
        if not on:
            for visit in self.open.values():
                visit.crop = None

    def take_first_crop(self) -> Optional[Tuple[str, Crop]]:
        """(event_id, crop) of one appearance that has its first crop; each appearance comes once."""
        for visit in self.open.values():
            if visit.crop is not None and not visit.crop_shown:
                visit.crop_shown = True
                return visit.event_id, visit.crop
        return None

    def _study(self, visit: Visit, look: Observation) -> None:
        """Where the face is, how good it looks, and whether this is the best picture of it so far."""
        if self._zones_of is not None:
            visit.zones = self._zones_of(visit.box)
        t = look.info.moment.t
        if t - visit.judged_t < _JUDGE_EVERY_S:
            return
        visit.judged_t = t
        xyxy = np.asarray(visit.xyxy, np.float32)
        quality = assess(look.picture, xyxy, visit.score)
        if visit.quality is None or better(quality, visit.quality):
            visit.quality = quality
        if not self.crops_on or not acceptable(quality, self.params):
            return
        if visit.crop is None or better(quality, visit.crop.quality):
            visit.crop = cut(look.picture, xyxy, self.params, quality, look.info)

    def _tell(self, visit: Visit, event_type: str) -> FaceEvent:
        visit.told_t = visit.info.moment.t
        visit.told_zones = visit.zones
        visit.told_crop = visit.crop.quality if visit.crop is not None else None
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


def _part(value: float, whole: int) -> float:
    return round(min(max(value / whole, 0.0), 1.0), 4)
