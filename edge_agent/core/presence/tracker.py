"""Tracks faces from frame to frame: constant-velocity tracks and greedy association. Ages in seconds."""

from dataclasses import dataclass
from operator import itemgetter
from typing import List, Sequence, Tuple

from edge_agent.core.detection.evidence import EvidenceParams
from edge_agent.core.params import param
from edge_agent.core.types import FAIR, WEAK, Detections

# Largest ratio of a face's areas in two successive detections.
_MAX_AREA_RATIO = 6.0

# The filter weights a measurement by half when it comes this long after the one before: it smooths a little at 30 fps,
# hardly at 5 fps. Also the shortest time from which a first speed is estimated.
_SMOOTH_S = 0.02
_MIN_ALPHA = 0.25

# Constant velocity is not assumed for longer.
_MAX_AHEAD_S = 1.5

# Slower faces, in widths per second, are expected where they were last seen once a frame has missed them: their speed
# is mostly noise of the boxes, which would add up over a gap.
_STILL = 0.5

# A gap this long has the full `gap_overlap`: where a face may have gone grows with time, and so does the chance that
# another person came.
_TIGHT_S = 0.5

_NONE: Sequence[int] = ()

_XyXy = Tuple[float, float, float, float]  # left, top, right, bottom, px
_Position = Tuple[float, float, float, float]  # centre x, centre y, width, height, px


@dataclass(frozen=True)
class TrackerParams(EvidenceParams):
    """When faces in two frames belong to the same track."""

    confirm_s: float = param(
        0.0,
        "Seconds a face must be tracked before it counts; raise it against flickering false alarms, 0 counts the "
        "first detection and is fastest",
        ge=0,
        le=60,
    )
    second_look_s: float = param(
        0.5,
        "Seconds in which a face near the threshold must be seen a second time, or in the next frame if that comes "
        "later; raise it when such faces are missed, lower it against false alarms",
        ge=0,
        le=60,
    )
    max_lost_s: float = param(
        1.0,
        "Seconds a face may be missed and keep its id; raise it when one visit breaks into several events, lower it "
        "for a faster end",
        ge=0,
        le=60,
    )
    min_overlap: float = param(
        -0.2,
        "DIoU from which a face matches a track's predicted box (1 same position, -0.2 side by side); raise it "
        "when ids jump between neighbours, lower it when fast faces or slow cameras break into several events",
        ge=-0.4,
        lt=1,
    )
    gap_overlap: float = param(
        0.35,
        "DIoU that a face needs after half a second in which frames did not show it, min_overlap right after; raise it "
        "when two people become one visit, lower it when faces that move while unseen break into several events",
        ge=-0.4,
        lt=1,
    )
    max_tracks: int = param(
        64,
        "Tracks per camera; bounds memory: beyond it those unseen for longest, then the newest are dropped",
        ge=1,
        le=1024,
    )


class Track:
    """One face over time. Owned by the tracker, valid until its next call; read only.

    Attributes:
        id: From 1, never reused.
        xyxy: Box of the last detection, px (not smoothed).
        confidence: Confidence of that detection.
        first_t: Time of the first detection.
        seen_t: Time of the last detection.
        visible: True when the latest frame showed the face, False in a gap.
        on_trial: True while only one detection near the threshold has shown it.
        confirmed: True once it is not on trial and was tracked for `confirm_s`.
    """

    __slots__ = (
        "confidence", "confirmed", "first_t", "h", "hits", "id", "on_trial", "seen_t", "visible", "vx", "vy", "w", "x",
        "xyxy", "y",
    )  # fmt: skip

    def __init__(self, number: int, t: float) -> None:
        self.id = number
        self.xyxy: _XyXy = (0.0, 0.0, 0.0, 0.0)
        self.confidence = 0.0
        self.first_t = t
        self.seen_t = t
        self.visible = True
        self.on_trial = False
        self.confirmed = False
        self.hits = 0
        self.x = self.y = self.w = self.h = self.vx = self.vy = 0.0


class Tracker:
    """Assigns each face an id that persists through short gaps and crossings. Deterministic; one camera, one thread.

    Each track is an alpha-beta filter (g-h filter: constant velocity) over the box's centre. Gains follow the time
    between detections, beta = alpha^2 / (2 - alpha) (Benedict and Bordner, 1962); beta starts as in least
    squares over the first k detections, 6 / (k (k + 1)). Predicted and detected boxes are paired greedily, best DIoU
    first (Zheng et al., "Distance-IoU loss", AAAI 2020: IoU - squared centre distance / squared diagonal of the
    enclosing box), which also ranks boxes that do not overlap. Weak detections are paired last, with the tracks that
    are left (Zhang et al., "ByteTrack", ECCV 2022), and start none.

    Args:
        params: May be replaced between calls.

    Attributes:
        unused: Indices of the latest frame's weak detections that continue no track.
    """

    def __init__(self, params: TrackerParams) -> None:
        self.params = params
        self._tracks: List[Track] = []
        self.unused = _NONE
        self._last_id = 0
        self._t = float("-inf")

    def update(self, detections: Detections, t: float) -> Sequence[Track]:
        """Assign every detection of one frame to exactly one track (up to `max_tracks`), of weak ones those that fit.

        Args:
            detections: In px of the upright full frame.
            t: The frame's time, monotonic seconds; a step back in time counts as none.

        Returns:
            All live tracks by ascending id: visible, in a gap, and not yet confirmed. A missing one has ended.
        """
        t = self._t = max(t, self._t)
        boxes: List[_XyXy] = [(x0, y0, x1, y1) for x0, y0, x1, y1 in detections.xyxy.tolist()]
        scores: List[float] = detections.confidence.tolist()
        positions = [((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]
        pairs = self._pairs(positions, t)
        for track in self._tracks:
            track.visible = False
        free = [True] * len(boxes)
        evidence = weak = _NONE
        if detections.evidence is not None:
            evidence = detections.evidence.tolist()
            weak = [j for j, grade in enumerate(evidence) if grade == WEAK]
            if weak:
                # A track on trial needs a second detection that could have started it.
                pairs = [pair for pair in pairs if evidence[pair[2]] != WEAK or not pair[1].on_trial]
                pairs.sort(key=lambda pair: evidence[pair[2]] == WEAK)
        for _, track, j in pairs:
            if free[j] and not track.visible:
                free[j] = False
                track.on_trial = False
                self._correct(track, positions[j], t)
                self._detected(track, boxes[j], scores[j], t)
        self.unused = _NONE
        if weak:
            self.unused = [j for j in weak if free[j]]
            for j in self.unused:
                free[j] = False
        for j, position in enumerate(positions):
            if free[j]:
                track = self._new_track(position, t)
                track.on_trial = bool(evidence) and evidence[j] == FAIR
                self._detected(track, boxes[j], scores[j], t)
        return self.expire(t)

    def expire(self, t: float) -> Sequence[Track]:
        """End tracks that are lost for too long at `t`, also without new frames.

        Only a frame can show that a face is gone, so a track that is visible in the latest frame does not age.
        """
        limit_t = t - self.params.max_lost_s
        trial_t = t - min(self.params.second_look_s, self.params.max_lost_s)
        tracks = [
            track for track in self._tracks if track.visible or track.seen_t >= (trial_t if track.on_trial else limit_t)
        ]
        if len(tracks) > self.params.max_tracks:
            tracks.sort(key=lambda track: (-track.seen_t, track.id))
            tracks = sorted(tracks[: self.params.max_tracks], key=lambda track: track.id)
        self._tracks = tracks
        return tracks

    def excuse(self, seconds: float) -> None:
        """Extend the gaps of all tracks that the latest frame did not show: nobody could see them for so long."""
        for track in self._tracks:
            if not track.visible:
                track.seen_t += seconds

    def reset(self) -> None:
        """End all tracks; ids continue."""
        self._tracks = []

    def rescale(self, x: float, y: float) -> None:
        """The frame has another size from now on: multiply all positions, widths and heights by `x` and `y`."""
        for track in self._tracks:
            left, top, right, bottom = track.xyxy
            track.xyxy = (left * x, top * y, right * x, bottom * y)
            track.x, track.w, track.vx = track.x * x, track.w * x, track.vx * x
            track.y, track.h, track.vy = track.y * y, track.h * y, track.vy * y

    def _pairs(self, positions: Sequence[_Position], t: float) -> List[Tuple[float, Track, int]]:
        """(DIoU, track, detection index) of possible matches, best first, then by id, then by index."""
        pairs = []
        loose, tight = self.params.min_overlap, max(self.params.min_overlap, self.params.gap_overlap)
        for track in self._tracks:
            dt, min_overlap = min(t - track.seen_t, _MAX_AHEAD_S), loose
            # Between two successive frames, however far apart, a face may move; none showed that it is gone.
            if not track.visible:
                min_overlap += (tight - loose) * min(1.0, (t - track.seen_t) / _TIGHT_S)
                if track.vx * track.vx + track.vy * track.vy < (_STILL * track.w) ** 2:
                    dt = 0.0
            x, y, w, h = track.x + track.vx * dt, track.y + track.vy * dt, track.w, track.h
            area = w * h
            for j, (cx, cy, bw, bh) in enumerate(positions):
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
        # A stable sort keeps the order of ids and detections among equals.
        pairs.sort(key=itemgetter(0), reverse=True)
        return pairs

    def _new_track(self, position: _Position, t: float) -> Track:
        self._last_id += 1
        track = Track(self._last_id, t)
        track.x, track.y, track.w, track.h = position
        self._tracks.append(track)
        return track

    def _detected(self, track: Track, box: _XyXy, score: float, t: float) -> None:
        track.xyxy = box
        track.confidence = score
        track.seen_t = t
        track.visible = True
        track.hits += 1
        track.confirmed = track.confirmed or (not track.on_trial and t - track.first_t >= self.params.confirm_s)

    def _correct(self, track: Track, position: _Position, t: float) -> None:
        """Alpha-beta step from the last detection to `t`."""
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
        cx, cy, w, h = position
        track.x, track.y = x + alpha * (cx - x), y + alpha * (cy - y)
        track.vx += speed_gain * (cx - x)
        track.vy += speed_gain * (cy - y)
        track.w += alpha * (w - track.w)
        track.h += alpha * (h - track.h)
