"""Whatever happens, in whatever order: the published story stays true, complete, and bounded."""

import gc
from collections import deque

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.core.appearance import UPDATE_EVERY_S
from edge_agent.core.camera import CameraParams
from edge_agent.core.presence import PresenceParams
from edge_agent.core.tracker import TrackerParams
from edge_agent.core.types import Presence, Sight
from tests.core.staged_camera import StagedCamera

MAX_LOST_S, DELAY_OFF_S = 0.5, 1.0
RIGHT = ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))
SPOTS = [(100, 100), (320, 380), (540, 100)]  # too far apart to be taken for one another


class TruthfulCamera(RuleBasedStateMachine):
    """A literal model: what each spot showed since sight was gained, and what follows from it for a subscriber.

    The subscriber knows only what was published: reports and events.
    """

    def __init__(self):
        super().__init__()
        self.camera = StagedCamera(
            sight=None,
            camera=CameraParams("test://", zones={"right": RIGHT}),
            tracker=TrackerParams(max_lost_s=MAX_LOST_S),
            presence=PresenceParams(0.0, DELAY_OFF_S),
        )
        self.camera.reports.append(self.camera.pipeline.report())
        self.sight, self.enabled = Sight.STARTING, True
        self.forget()

    def forget(self):
        self.there = {}  # spot -> time of its last sighting, while its event is open
        self.shown = None  # spots in the last frame; None when there was none since sight was gained
        self.last_face_t = {}  # place (None: anywhere, else the zone) -> time of the last face there
        self.answer = {None: Presence.UNKNOWN, "right": Presence.UNKNOWN}

    @property
    def can_see(self):
        return self.sight is Sight.OK and self.enabled

    def spots_of(self, place):
        return [spot for spot in self.there if place is None or spot[0] > 320]

    def judge(self, t, framed):
        if self.shown is None:
            return
        for spot, seen_t in list(self.there.items()):
            if spot not in self.shown and t - seen_t > MAX_LOST_S:
                del self.there[spot]
        for place in self.answer:
            if self.spots_of(place):
                if framed and any(spot in self.shown for spot in self.spots_of(place)):
                    self.answer[place], self.last_face_t[place] = Presence.YES, t
            elif self.answer[place] is not Presence.YES or t - self.last_face_t[place] >= DELAY_OFF_S:
                self.answer[place] = Presence.NO

    @rule(spots=st.sets(st.sampled_from(SPOTS)), after_ms=st.integers(1, 400))
    def frame(self, spots, after_ms):
        outcome = self.camera.show(*sorted(spots), after_s=after_ms / 1000)
        if self.can_see:
            self.shown = spots
            t = outcome.info.moment.t
            self.there = {spot: t for spot in self.there if spot in spots} | {
                spot: seen_t for spot, seen_t in self.there.items() if spot not in spots
            }
            self.there.update(dict.fromkeys(spots, t))
            self.judge(t, framed=True)
