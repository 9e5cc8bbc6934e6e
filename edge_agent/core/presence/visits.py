"""The life of each face in front of one camera, told as events, with the best picture of it."""

from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.frame import Picture
from edge_agent.core.ports import NewId
from edge_agent.core.presence.crops import CropParams, acceptable, assess, better, clearly_better, cut
from edge_agent.core.presence.tracker import Track
from edge_agent.core.types import Box, Crop, FaceEvent, FrameInfo, Quality

UPDATE_EVERY_S = 1.0
"""At most one `update` per appearance in so many seconds."""

# Judging a face costs as much as all the rest of a step, and faces change little between two frames.
_JUDGE_EVERY_S = 0.1


class Look(NamedTuple):
    """One frame that was inferred. Lives as long as the step does: its pixels are borrowed.

    Attributes:
        picture: The upright full frame.
        info: Its identity.
        score_kind: What the detector's scores mean.
        infer_started_t: Monotonic seconds.
        infer_s: Seconds.
    """

    picture: Picture
    info: FrameInfo
    score_kind: str
    infer_started_t: float
    infer_s: float


class Appearance:
    """One visit of one face, from `start` to `end`, as of the last frame that showed it.

    Holds no frame's pixels but its best crop's.
    """

    __slots__ = (
        "crop", "crop_shown", "event_id", "infer_s", "infer_started_t", "info", "judged_t", "quality", "score",
        "score_kind", "started", "told_crop", "told_t", "told_zones", "top_score", "track_id", "visible", "xyxy",
        "zones",
    )  # fmt: skip

    def __init__(self, event_id: str, track: Track, look: Look) -> None:
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

    def see(self, track: Track, look: Look) -> None:
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


class AppearanceBook:
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
        self.open: Dict[int, Appearance] = {}
        self._new_id, self._zones_of = new_id, zones_of
        self._seq = 0

    def show(self, tracks: Iterable[Track], look: Look) -> List[FaceEvent]:
        """Starts and updates that a frame brings."""
        events = []
        t = look.info.moment.t
        for track in tracks:
            if not track.confirmed:
                continue
            appearance = self.open.get(track.id)
            if appearance is not None:
                appearance.visible = track.visible
                if not track.visible:
                    continue
                appearance.see(track, look)
                self._study(appearance, look)
                if t - appearance.told_t >= UPDATE_EVERY_S and appearance.has_news():
                    events.append(self._tell(appearance, "update"))
            else:
                appearance = self.open[track.id] = Appearance(self._new_id(), track, look)
                self._study(appearance, look)
                events.append(self._tell(appearance, "start"))
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
            for appearance in self.open.values():
                appearance.crop = None

    def take_first_crop(self) -> Optional[Tuple[str, Crop]]:
        """(event_id, crop) of one appearance that has its first crop; each appearance comes once."""
        for appearance in self.open.values():
            if appearance.crop is not None and not appearance.crop_shown:
                appearance.crop_shown = True
                return appearance.event_id, appearance.crop
        return None

    def _study(self, appearance: Appearance, look: Look) -> None:
        """Where the face is, how good it looks, and whether this is the best picture of it so far."""
        if self._zones_of is not None:
            appearance.zones = self._zones_of(appearance.box)
        t = look.info.moment.t
        if t - appearance.judged_t < _JUDGE_EVERY_S:
            return
        appearance.judged_t = t
        xyxy = np.asarray(appearance.xyxy, np.float32)
        quality = assess(look.picture, xyxy, appearance.score)
        if appearance.quality is None or better(quality, appearance.quality):
            appearance.quality = quality
        if not self.crops_on or not acceptable(quality, self.params):
            return
        if appearance.crop is None or better(quality, appearance.crop.quality):
            appearance.crop = cut(look.picture, xyxy, self.params, quality, look.info)

    def _tell(self, appearance: Appearance, event_type: str) -> FaceEvent:
        appearance.told_t = appearance.info.moment.t
        appearance.told_zones = appearance.zones
        appearance.told_crop = appearance.crop.quality if appearance.crop is not None else None
        return self._event(appearance, event_type)

    def _end(self, track_id: int, end_reason: str) -> FaceEvent:
        return self._event(self.open.pop(track_id), "end", end_reason)

    def _event(self, appearance: Appearance, event_type: str, end_reason: Optional[str] = None) -> FaceEvent:
        self._seq += 1
        return FaceEvent(
            event_type=event_type,
            event_id=appearance.event_id,
            seq=self._seq,
            track_id=appearance.track_id,
            info=appearance.info,
            started=appearance.started,
            ended=appearance.info.moment if end_reason is not None else None,
            box=appearance.box,
            score=appearance.score,
            top_score=appearance.top_score,
            score_kind=appearance.score_kind,
            zones=appearance.zones,
            quality=appearance.quality,
            crop=appearance.crop if end_reason is not None else None,
            end_reason=end_reason,
            infer_started_t=appearance.infer_started_t,
            infer_s=appearance.infer_s,
        )


def _part(value: float, whole: int) -> float:
    return round(min(max(value / whole, 0.0), 1.0), 4)
