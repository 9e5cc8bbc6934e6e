"""Processes the frames of one camera: detection, tracking, visits, presence."""

from dataclasses import dataclass, replace
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import CameraTransform
from edge_agent.core.detection.evidence import graded
from edge_agent.core.frame import Frame
from edge_agent.core.ports import Clock, Detector, NewId
from edge_agent.core.presence.crops import CropParams, assess, cut
from edge_agent.core.presence.idle import IdleGate, IdleParams
from edge_agent.core.presence.state_machine import PresenceMachine, PresenceParams
from edge_agent.core.presence.tracker import Tracker, TrackerParams
from edge_agent.core.presence.visits import Observation, VisitTracker
from edge_agent.core.types import CameraReport, Crop, Detections, FaceEvent, FrameInfo, Moment, Outcome, Presence, Sight

HOLD_S = 900.0
"""While frames are damaged, visits stay open for at most this long: the same face may be there again afterwards."""

_END_REASONS = {Sight.DISABLED: "disabled", Sight.STOPPED: "shutdown"}

# Published state: presence, sight, number of faces, event ids, presence per zone.
_State = Tuple[Presence, Sight, Optional[int], Tuple[str, ...], Tuple[Presence, ...]]


@dataclass(frozen=True)
class PipelineParams:
    """Settings that the pipelines of all cameras share. By default every frame is inferred, also while idle."""

    tracker: TrackerParams = TrackerParams()
    presence: PresenceParams = PresenceParams()
    crops: CropParams = CropParams()
    idle: IdleParams = IdleParams(fps=0.0)


_DEFAULTS = PipelineParams()


class FacePipeline:
    """Turns the frames of one camera into events and presence. Called by one thread; holds no frame between calls.

    It infers frames only after `set_sight(Sight.OK, ...)`; frames of a camera that cannot see are skipped.

    Args:
        camera: Camera id.
        params: Settings of this camera; its delays override those in `shared`.
        detector: Detector of all cameras; its errors leave the pipeline unchanged.
        new_id: Creates event ids.
        clock: Clock; also measures inference.
        shared: Settings of all cameras.

    Attributes:
        enabled: Whether detection is switched on.

    Raises:
        ValueError: A region of interest, zone or mask is unusable.
    """

    def __init__(
        self,
        camera: str,
        params: CameraParams,
        detector: Detector,
        new_id: NewId,
        clock: Clock,
        shared: PipelineParams = _DEFAULTS,
    ) -> None:
        self.camera = camera
        self.enabled = True
        self._params, self._detector, self._clock = params, detector, clock
        self._transform = CameraTransform(params)
        self._tracker = Tracker(shared.tracker)
        self._idle_gate = IdleGate(shared.idle)
        self._visits = VisitTracker(new_id, shared.crops, self._transform.zones_of if params.zones else None)
        delays = _delays(params, shared.presence)
        self._presence = PresenceMachine(delays)
        self._zones: Dict[str, PresenceMachine] = {zone: PresenceMachine(delays) for zone in params.zones}
        self._camera_sight = self._sight = Sight.STARTING
        self._since = clock()
        self._published = self._state()
        self._latency_s = 0.0
        self._evidence_t = self._since.t
        self._damaged_t = 0.0
        self._unseen = False  # since damage, no frame has shown whether the open visits go on
        self._size: Optional[Tuple[int, int]] = None
        self._trial_t: Optional[float] = None

    @property
    def crops_on(self) -> bool:
        return self._visits.crops_on

    def frame_info(self, frame: Frame, moment: Moment) -> FrameInfo:
        """Identity of a frame, with the size of the upright image."""
        height, width = frame.pixels.shape[:2]
        return FrameInfo(self.camera, frame.sequence, moment, *self._transform.size(width, height))

    def step(self, frame: Frame, info: FrameInfo) -> Outcome:
        """Infer one frame, unless nobody is present and nothing has changed; the caller releases it.

        Raises:
            EngineError: The detector's engine failed.
        """
        if not self._sight.can_see:
            return Outcome(self.camera, info=info)
        image = self._transform.upright(frame)
        region, corner = self._transform.region(image)
        if not self._idle_gate.should_infer(region, info.moment.t):
            return Outcome(self.camera, info=info, idle=True)
        started_t = self._clock().t
        detections = self._detector.detect(region)
        done_t = self._clock().t
        faces = self._filtered(detections, corner)
        self._rescale_tracks((info.width, info.height))
        t = info.moment.t
        self._latency_s = done_t - t
        if frame.faint and not len(faces):
            return self._without_evidence(info, faces)
        self._evidence_t = t
        tracks = self._tracker.update(faces, t)
        if self._tracker.unused:
            faces = faces.select(np.delete(np.arange(len(faces)), self._tracker.unused))
        events = self._visits.close_missing(tracks)
        events += self._visits.observe(
            tracks, Observation(image, info, faces.score_kind, started_t, done_t - started_t)
        )
        if not frame.faint or any(visit.visible for visit in self._visits.open.values()):
            self._unseen = False
        self._observe_presence(t, any(track.on_trial for track in tracks))
        self._idle_gate.inferred(region, t, empty=not tracks and self._presence.state is Presence.NO)
        return Outcome(
            self.camera, tuple(events), self._changed(info.moment), info, faces, self._visits.take_first_crop()
        )

    def _without_evidence(self, info: FrameInfo, faces: Detections) -> Outcome:
        """A face may be there that was not found: the time since the last evidence counts as no absence."""
        self.excuse(max(0.0, info.moment.t - self._evidence_t))
        self._evidence_t = info.moment.t
        return Outcome(self.camera, info=info, detections=faces)

    def tick(self, moment: Moment) -> Optional[Outcome]:
        """Let delays expire, also without frames; None when nothing changes."""
        if self._sight is Sight.DAMAGED and moment.t - self._damaged_t >= HOLD_S:
            return self._outcome(self._end_visits(), moment)
        if not self._sight.can_see:
            return None
        # The tracker uses exposure times, which are older than the clock by the latency of the last frame.
        events = self._visits.close_missing(self._tracker.expire(moment.t - self._latency_s))
        for machine, _, present in self._machines():
            # Without a frame, only the end of a visit is an observation.
            if events and not present:
                machine.observe(False, moment.t)
            else:
                machine.tick(moment.t)
        return self._outcome(events, moment)

    def excuse(self, seconds: float) -> None:
        """Do not count this time before the next frame as absence: damaged frames hid the scene."""
        if seconds > 0.0:
            self._tracker.excuse(seconds)
            for machine, _, _ in self._machines():
                machine.excuse(seconds)

    def set_sight(self, sight: Sight, moment: Moment) -> Optional[Outcome]:
        """Set whether the camera can see; losing sight ends all open visits, but for damage. None without a change."""
        self._camera_sight = sight
        return self._apply_sight(moment)

    def set_enabled(self, on: bool, moment: Moment) -> Optional[Outcome]:
        """Switch detection on or off; a camera that cannot see keeps its own sight. None when nothing changes."""
        self.enabled = on
        return self._apply_sight(moment)

    def set_crops(self, on: bool) -> None:
        """Switch crops on or off; off also discards the crops of the open visits."""
        self._visits.set_crops(on)

    def snapshot(self, frame: Frame, info: FrameInfo) -> Crop:
        """The whole frame as a crop: upright, masked, at most as large as a crop; the caller releases the frame."""
        image = self._transform.upright(frame)
        whole = np.array([0, 0, info.width, info.height], np.float32)
        return cut(image, whole, replace(self._visits.params, margin=0.0), assess(image, whole, 1.0), info)

    def end_idle(self) -> None:
        """Infer every frame until nothing has changed for a while: the detector's threshold has changed."""
        self._idle_gate.reset()

    def configure(self, params: CameraParams, shared: PipelineParams = _DEFAULTS) -> None:
        """Apply the *live* settings; those that need a restart, and the switches, stay unchanged."""
        self._params = params
        self._tracker.params = shared.tracker
        self._visits.params = shared.crops
        self._idle_gate.params = shared.idle
        self._idle_gate.reset()
        for machine, _, _ in self._machines():
            machine.params = _delays(params, shared.presence)

    def report(self) -> CameraReport:
        """The camera's state as of the last call."""
        presence, sight, faces, event_ids, zones = self._state()
        scores = [visit.score for visit in self._visits.open.values()]
        best_score = None if faces is None else max(scores, default=None)
        return CameraReport(
            self.camera, presence, sight, self._since, faces, best_score, event_ids, dict(zip(self._zones, zones))
        )

    def _rescale_tracks(self, size: Tuple[int, int]) -> None:
        """Keep the tracks on their faces when the stream changes its size: it shows the same view in other px."""
        if size != self._size:
            if self._size is not None:
                self._tracker.rescale(size[0] / self._size[0], size[1] / self._size[1])
            self._size = size

    def _filtered(self, found: Detections, corner: Tuple[int, int]) -> Detections:
        """Detections in px of the full frame that are large enough, graded by this camera's minimum score."""
        if not len(found):
            return found
        if corner != (0, 0):
            xyxy = found.xyxy + np.array(corner * 2, np.float32)
            found = Detections(xyxy, found.confidence, found.score_kind, found.evidence)
        if self._params.min_score > 0:
            found = graded(found, self._params.min_score, self._tracker.params)
        if self._params.min_face_px > 0:
            sides = (found.xyxy[:, 2:] - found.xyxy[:, :2]).min(axis=1)
            found = found.select(sides >= self._params.min_face_px)
        return found

    def _machines(self) -> Iterator[Tuple[PresenceMachine, bool, bool]]:
        """(machine, visible, present) of the camera and of each zone; a face in a short gap is present, not visible."""
        faces = [(visit.visible, visit.zones) for visit in self._visits.open.values()]
        yield self._presence, any(visible for visible, _ in faces), bool(faces)
        for zone, machine in self._zones.items():
            inside = [visible for visible, zones in faces if zone in zones]
            yield machine, any(inside), bool(inside)

    def _observe_presence(self, t: float, on_trial: bool) -> None:
        """Update the presence machines by the frame of time `t`; a face in a gap is no observation.

        Neither is a face on trial: until its second look, for a limited time, nobody can be said to be absent.
        """
        if not on_trial:
            self._trial_t = None
        elif self._trial_t is None:
            self._trial_t = t
        undecided = self._trial_t is not None and t - self._trial_t <= self._tracker.params.second_look_s
        for machine, visible, present in self._machines():
            if visible or not (present or undecided):
                machine.observe(visible, t)

    def _apply_sight(self, moment: Moment) -> Optional[Outcome]:
        sight = self._camera_sight
        if sight.can_see and not self.enabled:
            sight = Sight.DISABLED
        if sight is self._sight:
            return None
        self._sight = sight
        self._evidence_t = moment.t
        self._idle_gate.reset()
        events: List[FaceEvent] = []
        if sight is Sight.DAMAGED:
            self._damaged_t, self._unseen = moment.t, True
        elif not sight.can_see:
            events = self._end_visits(_END_REASONS.get(sight, "camera_lost"))
        for machine, _, _ in self._machines():
            machine.set_sight(sight)
        return self._outcome(events, moment)

    def _end_visits(self, reason: str = "camera_lost") -> List[FaceEvent]:
        self._tracker.reset()
        return self._visits.close_all(reason)

    def _outcome(self, events: Sequence[FaceEvent], moment: Moment) -> Optional[Outcome]:
        report = self._changed(moment)
        if not events and report is None:
            return None
        return Outcome(self.camera, tuple(events), report)

    def _state(self) -> _State:
        """The published state; a report follows each change."""
        presence = self._presence.state
        open_ids = tuple(visit.event_id for visit in self._visits.open.values())
        # The number is unknown until the first frame after sight was regained.
        known = presence is not Presence.UNKNOWN or (bool(open_ids) and not self._unseen)
        faces = len(open_ids) if known else None
        return presence, self._sight, faces, open_ids, tuple(machine.state for machine in self._zones.values())

    def _changed(self, moment: Moment) -> Optional[CameraReport]:
        state = self._state()
        if state == self._published:
            return None
        if state[:2] != self._published[:2]:
            self._since = moment
        self._published = state
        return self.report()


def _delays(camera: CameraParams, presence: PresenceParams) -> PresenceParams:
    """Presence parameters with the camera's own delays."""
    return replace(
        presence,
        delay_on_s=presence.delay_on_s if camera.delay_on_s is None else camera.delay_on_s,
        delay_off_s=presence.delay_off_s if camera.delay_off_s is None else camera.delay_off_s,
    )
