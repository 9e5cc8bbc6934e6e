"""Properties of the published events and reports after any sequence of steps."""

import gc
import sys

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_agent.core.camera.params import CameraParams
from edge_agent.core.presence.state_machine import PresenceParams
from edge_agent.core.presence.tracker import TrackerParams
from edge_agent.core.presence.visits import UPDATE_INTERVAL_S
from edge_agent.core.types import Presence, Sight
from tests.core.presence.staged_camera import INFER_S, StagedCamera

# Time goes in whole milliseconds here, and no sum of them meets these.
MAX_LOST_S, DELAY_OFF_S = 0.5005, 1.0005
RIGHT_HALF = ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))
SPOTS = [(100, 100), (330, 380), (540, 100)]  # too far apart to be taken for one another
PLACES = {"anywhere": SPOTS, "right": SPOTS[1:]}
STEP_MS = st.one_of(st.integers(1, 120), st.integers(121, 1500))


class TruthfulCamera(RuleBasedStateMachine):
    """A model that records when each position was last seen, and derives the expected state from it."""

    def __init__(self):
        super().__init__()
        self.camera = StagedCamera(
            sight=None,
            camera=CameraParams("test://", zones={"right": RIGHT_HALF}),
            tracker=TrackerParams(max_lost_s=MAX_LOST_S),
            presence=PresenceParams(0.0, DELAY_OFF_S),
        )
        self.camera.reports.append(self.camera.pipeline.report())
        self.camera_sight, self.enabled = Sight.STARTING, True
        self.go_blind()

    def go_blind(self):
        self.open = {}  # spot -> when it was last seen
        self.shown = None  # the spots in the last frame since sight was gained
        self.face_t = {}  # place -> when a face was last seen there
        self.answer = dict.fromkeys(PLACES, Presence.UNKNOWN)

    @property
    def sight(self):
        return Sight.DISABLED if self.camera_sight is Sight.OK and not self.enabled else self.camera_sight

    def let_time_pass(self, t, track_t):
        self.open = {
            spot: seen_t for spot, seen_t in self.open.items() if spot in self.shown or track_t - seen_t <= MAX_LOST_S
        }
        for place, spots in PLACES.items():
            if self.open.keys().isdisjoint(spots) and (
                self.answer[place] is not Presence.YES or t - self.face_t[place] >= DELAY_OFF_S
            ):
                self.answer[place] = Presence.NO

    @rule(spots=st.sets(st.sampled_from(SPOTS)), after_ms=STEP_MS)
    def frame(self, spots, after_ms):
        outcome = self.camera.show(*sorted(spots), after_s=after_ms / 1000)
        if self.sight is not Sight.OK:
            return
        t = outcome.info.moment.t
        self.shown = spots
        for spot in spots:
            self.open[spot] = t
        for place in PLACES:
            if not spots.isdisjoint(PLACES[place]):
                self.answer[place], self.face_t[place] = Presence.YES, t
        self.let_time_pass(t, t)

    @rule(after_ms=STEP_MS)
    def tick(self, after_ms):
        self.camera.tick(after_ms / 1000)
        if self.shown is not None:
            self.let_time_pass(self.camera.clock.t, self.camera.clock.t - INFER_S)

    @rule(sight=st.one_of(st.just(Sight.OK), st.sampled_from(Sight)))
    def camera_says(self, sight):
        self.camera_sight = sight
        self.camera.sight(sight)
        if self.sight is not Sight.OK:
            self.go_blind()

    @rule(on=st.booleans())
    def switch(self, on):
        self.enabled = on
        self.camera.set_enabled(on)
        if self.sight is not Sight.OK:
            self.go_blind()

    @invariant()
    def what_was_published_is_the_truth(self):
        report = self.camera.report
        assert report.sight is self.sight
        assert (report.presence, report.zones["right"]) == (self.answer["anywhere"], self.answer["right"])
        assert report.faces == (None if self.shown is None else len(self.open))

    @invariant()
    def it_never_says_off_while_it_cannot_see(self):
        if not self.sight.can_see or self.shown is None:
            assert {self.camera.reports[-1].presence, *self.camera.reports[-1].zones.values()} == {Presence.UNKNOWN}

    @invariant()
    def the_events_are_whole(self):
        events, open_ids = self.camera.events, []
        told_t = {}
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        for event in events:
            if event.event_type == "start":
                assert event.event_id not in told_t
                open_ids.append(event.event_id)
            elif event.event_type == "update":
                assert event.event_id in open_ids
                assert event.info.moment.t - told_t[event.event_id] >= UPDATE_INTERVAL_S
            else:
                open_ids.remove(event.event_id)
                assert event.end_reason and event.ended == event.info.moment
            told_t[event.event_id] = event.info.moment.t
        assert tuple(open_ids) == self.camera.reports[-1].event_ids


TruthfulCamera.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_any_order_of_things = TruthfulCamera.TestCase


@pytest.mark.slow
def test_memory_and_state_are_bounded_over_100_000_steps():
    """Crowds and a camera appear and disappear; ids keep growing."""
    crowds = np.random.default_rng(5).uniform(0, 480, (20, 12, 2)).tolist()
    camera = StagedCamera(tracker=TrackerParams(max_tracks=8))
    blocks = []
    for i in range(100_000):
        camera.show(*(crowds[i // 50 % 20] if i % 50 == 0 else ()), after_s=0.03)
        if i % 1000 == 900:
            camera.sight(Sight.LOST)
            camera.sight(Sight.OK)
            last_seq = camera.events[-1].seq
            camera.events.clear()
            camera.reports.clear()
        assert len(camera.pipeline.report().event_ids) <= 8
        if i % 20_000 == 10_000:
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    assert last_seq > 10_000
    assert max(blocks[1:]) - blocks[0] < 1_000
