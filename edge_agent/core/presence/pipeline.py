"""All thinking about one camera: a frame in, an outcome out. Serves run, bench, evaluate, replay and demo alike."""

from dataclasses import dataclass, replace
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import CameraTransform
from edge_agent.core.frame import Frame
from edge_agent.core.ports import Clock, Detector, NewId
from edge_agent.core.presence.crops import CropParams, assess, cut
from edge_agent.core.presence.idle import IdleGate, IdleParams
from edge_agent.core.presence.state_machine import PresenceMachine, PresenceParams
from edge_agent.core.presence.tracker import Tracker, TrackerParams
from edge_agent.core.presence.visits import Observation, VisitTracker
from edge_agent.core.types import CameraReport, Crop, Detections, FaceEvent, FrameInfo, Moment, Outcome, Presence, Sight

_END_REASONS = {Sight.DISABLED: "disabled", Sight.STOPPED: "shutdown"}

# Presence, sight, number of faces, event ids, presence per zone.
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
    """One camera's way from frames to events and presence. Called by one thread; holds no frame between calls.

    It can see only after `sight(Sight.OK, ...)`; frames that come while it cannot see are not looked at.

    Args:
        camera: Camera id.
        params: Of this camera; its delays override those of `presence`.
        detector: Finds faces; errors of its engine pass through `step` and leave the pipeline as it was.
        new_id: Makes event ids.
        clock: Both clocks; measures inference.
        shared: Settings that all cameras share.

    Attributes:
        enabled: Whether detection is switched on.

    Raises:
        ValueError: On a region, zone or mask that cannot be meant.
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
        self._view = CameraTransform(params)
        self._tracker = Tracker(shared.tracker)
        self._rate = IdleGate(shared.idle)
        self._book = VisitTracker(new_id, shared.crops, self._view.zones_of if params.zones else None)
        delays = _delays(params, shared.presence)
        self._presence = PresenceMachine(delays)
        self._zones: Dict[str, PresenceMachine] = {zone: PresenceMachine(delays) for zone in params.zones}
        self._camera_sight = self._sight = Sight.STARTING
        self._since = clock()
        self._told = self._state()
        self._lag_s = 0.0

    @property
    def crops_on(self) -> bool:
        """Whether crops are taken."""
        return self._book.crops_on

    def frame_info(self, frame: Frame, moment: Moment) -> FrameInfo:
        """The frame's identity, upright."""
        height, width = frame.pixels.shape[:2]
        return FrameInfo(self.camera, frame.sequence, moment, *self._view.size(width, height))

    def step(self, frame: Frame, info: FrameInfo) -> Outcome:
        """Look at one frame, unless nobody is there and it shows nothing new; the caller releases it.

        Raises:
            EngineError: The detector's engine failed.
        """
        if not self._sight.can_see:
            return Outcome(self.camera, info=info)
        picture = self._view.upright(frame)
        region, corner = self._view.region(picture)
        if not self._rate.due(region, info.moment.t):
            return Outcome(self.camera, info=info, idle=True)
        started_t = self._clock().t
        found = self._detector.detect(region)
        done_t = self._clock().t
        faces = self._wanted(found, corner)
        t = info.moment.t
        self._lag_s = done_t - t
        tracks = self._tracker.update(faces, t)
        events = self._book.close_missing(tracks)
        events += self._book.show(tracks, Observation(picture, info, faces.score_kind, started_t, done_t - started_t))
        self._observe(t)
        self._rate.looked(region, t, nobody=not tracks and self._presence.state is Presence.NO)
        return Outcome(
            self.camera, tuple(events), self._changed(info.moment), info, faces, self._book.take_first_crop()
        )

    def tick(self, moment: Moment) -> Optional[Outcome]:
        """Let delays end, with or without frames; None when that changes nothing."""
        if not self._sight.can_see:
            return None
        # The tracker lives on the time of exposure, which is behind by what the last frame took to get here.
        events = self._book.close_missing(self._tracker.expire(moment.t - self._lag_s))
        for machine, _, there in self._machines():
            # No frame came, so only the end of a face is news.
            if events and not there:
                machine.observe(False, moment.t)
            else:
                machine.tick(moment.t)
        return self._outcome(events, moment)

    def set_sight(self, sight: Sight, moment: Moment) -> Optional[Outcome]:
        """The camera gained or lost sight; losing it ends all open events."""
        self._camera_sight = sight
        return self._reconsider(moment)

    def set_enabled(self, on: bool, moment: Moment) -> Optional[Outcome]:
        """Switch detection on or off; a camera that cannot see keeps its own reason."""
        self.enabled = on
        return self._reconsider(moment)

    def set_crops(self, on: bool) -> None:
        """Switch crops on, or off, which forgets those that are held."""
        self._book.set_crops(on)

    def snapshot(self, frame: Frame, info: FrameInfo) -> Crop:
        """The whole frame as a crop: upright, masked, no larger than a crop is; the caller releases the frame."""
        picture = self._view.upright(frame)
        whole = np.array([0, 0, info.width, info.height], np.float32)
        return cut(picture, whole, replace(self._book.params, margin=0.0), assess(picture, whole, 1.0), info)

    def end_idle(self) -> None:
        """Infer every frame until nothing has changed for a while: the detector's threshold has changed."""
        self._rate.wake()

    def configure(self, params: CameraParams, shared: PipelineParams = _DEFAULTS) -> None:
        """Take other *live* settings from now on; what needs a restart and the switches stay as they are."""
        self._params = params
        self._tracker.params = shared.tracker
        self._book.params = shared.crops
        self._rate.params = shared.idle
        self._rate.wake()
        for machine, _, _ in self._machines():
            machine.params = _delays(params, shared.presence)

    def report(self) -> CameraReport:
        """What is true now, as of the last call."""
        presence, sight, faces, event_ids, zones = self._state()
        best_score = max((visit.score for visit in self._book.open.values()), default=None)
        return CameraReport(
            self.camera, presence, sight, self._since, faces, best_score, event_ids, dict(zip(self._zones, zones))
        )

    def _wanted(self, found: Detections, corner: Tuple[int, int]) -> Detections:
        """Detections moved from the region to the full frame, without those that this camera ignores."""
        if not len(found):
            return found
        if corner != (0, 0):
            found = Detections(found.xyxy + np.array(corner * 2, np.float32), found.confidence, found.score_kind)
        if self._params.min_face_px <= 0 and self._params.min_score <= 0:
            return found
        sides = (found.xyxy[:, 2:] - found.xyxy[:, :2]).min(axis=1)
        return found.select((sides >= self._params.min_face_px) & (found.confidence >= self._params.min_score))

    def _machines(self) -> Iterator[Tuple[PresenceMachine, bool, bool]]:
        """Each presence machine, whether its place shows a face, and whether one is there (shown or in its gap)."""
        faces = [(visit.visible, visit.zones) for visit in self._book.open.values()]
        yield self._presence, any(visible for visible, _ in faces), bool(faces)
        for zone, machine in self._zones.items():
            inside = [visible for visible, zones in faces if zone in zones]
            yield machine, any(inside), bool(inside)

    def _observe(self, t: float) -> None:
        """Tell the presence machines what the frame of time `t` showed; a gap leaves the answer open."""
        for machine, shown, there in self._machines():
            if shown or not there:
                machine.observe(shown, t)

    def _reconsider(self, moment: Moment) -> Optional[Outcome]:
        sight = self._camera_sight
        if sight.can_see and not self.enabled:
            sight = Sight.DISABLED
        if sight is self._sight:
            return None
        self._sight = sight
        self._rate.wake()
        events: List[FaceEvent] = []
        if not sight.can_see:
            events = self._book.close_all(_END_REASONS.get(sight, "camera_lost"))
            self._tracker.reset()
        for machine, _, _ in self._machines():
            machine.set_sight(sight)
        return self._outcome(events, moment)

    def _outcome(self, events: Sequence[FaceEvent], moment: Moment) -> Optional[Outcome]:
        report = self._changed(moment)
        if not events and report is None:
            return None
        return Outcome(self.camera, tuple(events), report)

    def _state(self) -> _State:
        """What is published of this camera; a report goes out whenever it changes."""
        presence = self._presence.state
        open_ids = tuple(visit.event_id for visit in self._book.open.values())
        # Before the first frame since sight was regained nobody knows how many there are.
        faces = len(open_ids) if open_ids or presence is not Presence.UNKNOWN else None
        return presence, self._sight, faces, open_ids, tuple(machine.state for machine in self._zones.values())

    def _changed(self, moment: Moment) -> Optional[CameraReport]:
        state = self._state()
        if state == self._told:
            return None
        if state[:2] != self._told[:2]:
            self._since = moment
        self._told = state
        return self.report()


def _delays(camera: CameraParams, presence: PresenceParams) -> PresenceParams:
    """The camera's own delays where it has them."""
    return replace(
        presence,
        delay_on_s=presence.delay_on_s if camera.delay_on_s is None else camera.delay_on_s,
        delay_off_s=presence.delay_off_s if camera.delay_off_s is None else camera.delay_off_s,
    )
