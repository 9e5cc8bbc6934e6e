"""Which face is which from frame to frame: constant-velocity tracks and greedy association. Ages in seconds."""

from dataclasses import dataclass
from operator import itemgetter
from typing import List, Sequence, Tuple

from edge_agent.core.params import param
from edge_agent.core.types import Detections

# A face may look this many times larger or smaller (in area) at its next sighting.
_MAX_AREA_RATIO = 6.0

# The filter trusts a measurement half when it comes this long after the one before: at 30 fps places are smoothed a
# little, at 5 fps hardly at all. Also the shortest time over which a first speed is believed.
_SMOOTH_S = 0.02
_MIN_ALPHA = 0.25

# Nobody walks on like that for longer.
_MAX_AHEAD_S = 1.0

_XyXy = Tuple[float, float, float, float]  # left, top, right, bottom, px
_Place = Tuple[float, float, float, float]  # centre x, centre y, width, height, px


@dataclass(frozen=True)
class TrackerParams:
    """When faces in two frames are the same one."""

    confirm_s: float = param(
        0.0,
        "Seconds a face must be followed before it counts; raise it against flickering false alarms, 0 counts the "
        "first sight and is fastest",
        ge=0,
        le=60,
    )
    max_lost_s: float = param(
        1.0,
        "Seconds a face may go unseen and keep its id; raise it when one visit breaks into several events, lower it "
        "for a faster end",
        ge=0,
        le=60,
    )
    min_overlap: float = param(
        -0.2,
        "DIoU from which a face is the same as the one expected there (1 same place, -0.2 side by side); raise it "
        "when ids jump between neighbours, lower it when fast faces or slow cameras break into several events",
        ge=-0.4,
        lt=1,
    )
    max_tracks: int = param(
        64,
        "Faces followed at once; bounds memory: beyond it the longest unseen, then the newest are dropped",
        ge=1,
        le=1024,
    )


class Track:
    """One face over time. Owned by the tracker, valid until its next call; read only.

    Attributes:
        id: From 1, never reused.
        xyxy: Where it was last seen, px as detected (not smoothed).
        confidence: Of that detection.
        first_t: Time of the first sighting.
        seen_t: Time of the last one.
        visible: True when the latest frame showed it, False in a gap.
        confirmed: True once it has been followed for `confirm_s`.
    """

    __slots__ = (
        "confidence", "confirmed", "first_t", "h", "hits", "id", "seen_t", "visible", "vx", "vy", "w", "x", "xyxy", "y",
    )  # fmt: skip

    def __init__(self, number: int, t: float) -> None:
        self.id = number
        self.xyxy: _XyXy = (0.0, 0.0, 0.0, 0.0)
        self.confidence = 0.0
        self.first_t = t
        self.seen_t = t
        self.visible = True
        self.confirmed = False
        self.hits = 0
        self.x = self.y = self.w = self.h = self.vx = self.vy = 0.0


class Tracker:
    """Gives each face an id that lasts through short gaps and crossings. Deterministic; one camera, one thread.

    Each track is an alpha-beta filter (g-h filter: constant velocity) over the box's centre. Gains follow the time
    between sightings, beta = alpha^2 / (2 - alpha) (Benedict and Bordner, 1962); beta starts as least squares over the
    first k sightings does, 6 / (k (k + 1)). Predicted and detected boxes are paired greedily, the best DIoU first
    (Zheng et al., "Distance-IoU loss", AAAI 2020: IoU - squared centre distance / squared diagonal of the enclosing
    box), which also ranks boxes that do not overlap.

    Args:
        params: May be replaced between calls.
    """

    def __init__(self, params: TrackerParams) -> None:
        self.params = params
        self._tracks: List[Track] = []
        self._last_id = 0
        self._t = float("-inf")

    def update(self, detections: Detections, t: float) -> Sequence[Track]:
        """Take one frame's faces; every detection goes to exactly one track (up to `max_tracks`).

        Args:
            detections: In px of the upright full frame.
            t: The frame's time, monotonic seconds; a step back counts as no step.

        Returns:
            All live tracks by ascending id: visible, in a gap, and not yet confirmed. Whoever is missing has ended.
        """
        t = self._t = max(t, self._t)
        boxes: List[_XyXy] = [(x0, y0, x1, y1) for x0, y0, x1, y1 in detections.xyxy.tolist()]
        scores: List[float] = detections.confidence.tolist()
        places = [((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]
        for track in self._tracks:
            track.visible = False
        free = [True] * len(boxes)
        for _, track, j in self._pairs(places, t):
            if free[j] and not track.visible:
                free[j] = False
                self._correct(track, places[j], t)
                self._sighted(track, boxes[j], scores[j], t)
        for j, place in enumerate(places):
            if free[j]:
                self._sighted(self._started(place, t), boxes[j], scores[j], t)
        return self.expire(t)

    def expire(self, t: float) -> Sequence[Track]:
        """End tracks that have been lost too long at `t`, also when no more frames come.

        Only a frame can show that a face is gone, so one that the latest frame showed does not age.
        """
        limit_t = t - self.params.max_lost_s
        tracks = [track for track in self._tracks if track.visible or track.seen_t >= limit_t]
        if len(tracks) > self.params.max_tracks:
            tracks.sort(key=lambda track: (-track.seen_t, track.id))
            tracks = sorted(tracks[: self.params.max_tracks], key=lambda track: track.id)
        self._tracks = tracks
        return tracks

    def reset(self) -> None:
        """End all tracks; ids go on."""
        self._tracks = []

    def _pairs(self, places: Sequence[_Place], t: float) -> List[Tuple[float, Track, int]]:
        """Track and detection that may be the same face, most alike first, then lower id, then detection order."""
        pairs = []
        min_overlap = self.params.min_overlap
        for track in self._tracks:
            dt = min(t - track.seen_t, _MAX_AHEAD_S)
            x, y, w, h = track.x + track.vx * dt, track.y + track.vy * dt, track.w, track.h
            area = w * h
            for j, (cx, cy, bw, bh) in enumerate(places):
                dx, dy = abs(cx - x), abs(cy - y)
                sum_w, sum_h = w + bw, h + bh
                if dx > sum_w or dy > sum_h:
                    continue
                other = bw * bh
                if other > area * _MAX_AREA_RATIO or area > other * _MAX_AREA_RATIO:
                    continue
                # Overlap along each axis, negative where there is a gap; the enclosing box is the sum less the overlap.
                over_w, over_h = min(sum_w / 2 - dx, w, bw), min(sum_h / 2 - dy, h, bh)
                inner = over_w * over_h if over_w > 0 and over_h > 0 else 0.0
                diagonal = (sum_w - over_w) ** 2 + (sum_h - over_h) ** 2
                diou = inner / ((area + other - inner) or 1.0) - (dx * dx + dy * dy) / (diagonal or 1.0)
                if diou >= min_overlap:
                    pairs.append((diou, track, j))
        # Stable, so equals keep the order of ids and detections.
        pairs.sort(key=itemgetter(0), reverse=True)
        return pairs

    def _started(self, place: _Place, t: float) -> Track:
        self._last_id += 1
        track = Track(self._last_id, t)
        track.x, track.y, track.w, track.h = place
        self._tracks.append(track)
        return track

    def _sighted(self, track: Track, box: _XyXy, score: float, t: float) -> None:
        track.xyxy = box
        track.confidence = score
        track.seen_t = t
        track.visible = True
        track.hits += 1
        track.confirmed = track.confirmed or t - track.first_t >= self.params.confirm_s

    def _correct(self, track: Track, place: _Place, t: float) -> None:
        """Alpha-beta step from the last sighting to `t`."""
        dt = t - track.seen_t
        ahead_s = min(dt, _MAX_AHEAD_S)
        k = track.hits + 1
        alpha = dt / (dt + _SMOOTH_S)
        speed_gain = max(
            alpha * alpha / (2 - alpha) / dt if dt > 0 else 0.0,
            6 / (k * (k + 1)) / max(dt, _SMOOTH_S),
        )
        alpha = max(alpha, _MIN_ALPHA)
        x, y = track.x + track.vx * ahead_s, track.y + track.vy * ahead_s
        cx, cy, w, h = place
        track.x, track.y = x + alpha * (cx - x), y + alpha * (cy - y)
        track.vx += speed_gain * (cx - x)
        track.vy += speed_gain * (cy - y)
        track.w += alpha * (w - track.w)
        track.h += alpha * (h - track.h)
