"""The pipeline of one camera: transitions, and what is published at which time."""

import numpy as np
import pytest

from edge_agent.core.camera.params import CameraParams
from edge_agent.core.presence.pipeline import HOLD_S, PipelineParams
from edge_agent.core.presence.state_machine import PresenceParams
from edge_agent.core.presence.tracker import TrackerParams
from edge_agent.core.types import Detections, Presence, Sight
from edge_agent.errors import EngineError
from tests.core.presence.staged_camera import HEIGHT, INFER_S, SIDE, WIDTH, StagedCamera

YES, NO, UNKNOWN = Presence.YES, Presence.NO, Presence.UNKNOWN
LEFT_HALF = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
RIGHT_HALF = ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))


def test_the_initial_state_is_starting_and_unknown():
    camera = StagedCamera(sight=None)
    report = camera.pipeline.report()
    assert (report.presence, report.sight, report.faces, report.event_ids) == (UNKNOWN, Sight.STARTING, None, ())
    assert report.since == camera.clock()


def test_a_visit_from_the_first_frame_to_off():
    camera = StagedCamera()
    assert (camera.report.presence, camera.report.sight, camera.report.faces) == (UNKNOWN, Sight.OK, None)
    empty = camera.show()
    assert (camera.report.presence, camera.report.faces) == (NO, 0)
    assert camera.report.since == empty.info.moment

    came = camera.show((320, 240))
    (start,) = came.events
    assert (start.event_type, start.event_id, start.seq, start.track_id) == ("start", "event-1", 1, 1)
    assert start.info is came.info and start.started == came.info.moment
    assert start.ended is None and start.end_reason is None and start.crop is None
    assert (start.box.left, start.box.top) == (round(280 / WIDTH, 4), round(200 / HEIGHT, 4))
    assert start.infer_s == pytest.approx(INFER_S)
    assert start.infer_started_t == came.info.moment.t
    assert (camera.report.presence, camera.report.faces, camera.report.event_ids) == (YES, 1, ("event-1",))
    assert camera.report.best_score == pytest.approx(0.9)

    last = camera.show((322, 240), score=0.7)
    assert last.report is None, "nothing that is published changed"
    assert len(last.detections) == 1

    gap = [camera.show() for _ in range(9)]
    assert not any(outcome.report or outcome.events for outcome in gap), "a short gap still counts as there"
    camera.show(after_s=0.3)
    end = camera.events[-1]
    assert (end.event_type, end.event_id, end.seq, end.end_reason) == ("end", "event-1", 2, "left")
    assert end.info is last.info and end.ended == last.info.moment and end.started == start.started
    assert end.score == pytest.approx(0.7) and end.top_score == pytest.approx(0.9)
    assert (camera.report.presence, camera.report.faces) == (YES, 0), "delay_off_s is not over"

    while camera.report.presence is YES:
        camera.tick(0.05)
    assert camera.report.presence is NO
    assert camera.report.since.t == pytest.approx(last.info.moment.t + 2.0, abs=0.051)


def test_ticks_alone_end_a_visit_and_presence_after_a_frame_without_the_face():
    camera = StagedCamera()
    seen_t = camera.show((320, 240)).info.moment.t
    camera.show()
    times = {}
    for _ in range(40):
        outcome = camera.tick()
        if outcome and outcome.events:
            times["end"] = camera.clock().t - seen_t
        if outcome and outcome.report and outcome.report.presence is NO:
            times["off"] = camera.clock().t - seen_t
    assert times["end"] == pytest.approx(1.0, abs=0.12)
    assert times["off"] == pytest.approx(2.0, abs=0.12)


def test_without_frames_a_visible_face_stays_present():
    camera = StagedCamera()
    camera.show((320, 240))
    assert all(camera.tick() is None for _ in range(100))
    assert camera.report.presence is YES


def test_a_face_in_a_gap_counts_as_present_with_any_delay():
    camera = StagedCamera(presence=PresenceParams(0.0, 0.0))
    camera.show((320, 240))
    for _ in range(5):
        camera.show()
        camera.tick(0.0)
    assert camera.report.presence is YES
    camera.show(after_s=1.0)
    assert camera.report.presence is NO and camera.events[-1].end_reason == "left"


def test_since_is_the_change_of_presence_not_of_the_number_of_faces():
    camera = StagedCamera()
    first = camera.show((100, 100))
    camera.show((100, 100), (400, 100))
    assert (camera.report.faces, camera.report.since) == (2, first.info.moment)


def test_latency_does_not_shorten_a_visit():
    """Frames arrive 0.9 s after exposure; a face that is missed for 0.3 s keeps its event, ticks or not."""
    camera = StagedCamera()
    for i in range(40):
        faces = [] if i % 8 in (3, 4) else [(320, 240)]
        camera.show(*faces, after_s=0.0, latency_s=0.9)
        camera.clock.advance(-0.8)
        assert camera.pipeline.tick(camera.clock.advance(0.8)) is None
        camera.clock.advance(-0.8)
    assert camera.published == [("start", "event-1")]


def test_delay_on_of_the_camera_overrides_and_events_do_not_wait_for_it():
    camera = StagedCamera(
        camera=CameraParams("test://", delay_on_s=1.0, delay_off_s=0.0), presence=PresenceParams(0.0, 60.0)
    )
    camera.show()
    camera.show((320, 240))
    assert camera.published == [("start", "event-1")]
    assert (camera.report.presence, camera.report.faces) == (NO, 1)
    camera.show(after_s=0.9)
    camera.show((320, 240))
    assert camera.report.presence is YES
    camera.show()
    camera.show(after_s=1.1)
    assert camera.report.presence is NO


def test_a_single_detection_does_not_satisfy_delay_on_during_its_gap():
    camera = StagedCamera(tracker=TrackerParams(max_lost_s=1.0), presence=PresenceParams(delay_on_s=0.5))
    camera.show()
    camera.show((320, 240))
    for _ in range(15):
        camera.show()
        camera.tick(0.0)
        assert camera.report.presence is NO
    assert [kind for kind, _ in camera.published] == ["start", "end"]


def test_a_visit_starts_when_its_track_is_confirmed():
    camera = StagedCamera(tracker=TrackerParams(confirm_s=0.25))
    camera.show((100, 100))
    camera.show((100, 100))
    assert camera.events == [] and camera.report.presence is NO
    camera.show((100, 100))
    third = camera.show((100, 100))
    assert camera.published == [("start", "event-1")]
    assert camera.events[0].started == third.info.moment


@pytest.mark.parametrize("sight", [s for s in Sight if not s.can_see and s is not Sight.DAMAGED])
def test_losing_sight_ends_open_visits_and_is_unknown_at_once(sight):
    reason = {Sight.DISABLED: "disabled", Sight.STOPPED: "shutdown"}.get(sight, "camera_lost")
    camera = StagedCamera(camera=CameraParams("test://", zones={"left": LEFT_HALF}))
    camera.show((100, 240), (500, 240))
    last = camera.show((100, 240))
    outcome = camera.sight(sight, after_s=0.5)
    assert [(e.event_type, e.event_id, e.end_reason, e.seq) for e in outcome.events] == [
        ("end", "event-1", reason, 3),
        ("end", "event-2", reason, 4),
    ]
    assert outcome.events[0].ended == last.info.moment
    report = outcome.report
    assert (report.presence, report.sight, report.faces, report.best_score) == (UNKNOWN, sight, None, None)
    assert report.zones == {"left": UNKNOWN} and report.since == camera.clock()

    calls = camera.detector.calls
    blind = camera.show((100, 240))
    assert (blind.events, blind.report, blind.detections) == ((), None, None)
    assert camera.detector.calls == calls, "skipped frames are not inferred"
    assert camera.tick(100) is None

    camera.sight(Sight.OK)
    assert camera.report.presence is UNKNOWN
    camera.show((100, 240))
    assert camera.events[-1].event_id == "event-3" and camera.events[-1].track_id == 3
    assert camera.report.presence is YES


def test_only_a_change_of_sight_is_published():
    camera = StagedCamera()
    camera.sight(Sight.LOST)
    assert camera.sight(Sight.LOST, after_s=1) is None
    outcome = camera.sight(Sight.DARK, after_s=1)
    assert outcome.report.sight is Sight.DARK and outcome.report.since == camera.clock()


def test_presence_no_needs_a_frame_after_sight_is_regained():
    camera = StagedCamera()
    camera.show()
    camera.sight(Sight.LOST)
    camera.sight(Sight.OK)
    assert camera.tick(50) is None and camera.report.presence is UNKNOWN
    camera.show()
    assert camera.report.presence is NO


def test_the_detection_switch():
    camera = StagedCamera()
    camera.show((320, 240))
    assert camera.set_enabled(True) is None
    outcome = camera.set_enabled(False)
    assert outcome.events[0].end_reason == "disabled" and outcome.report.sight is Sight.DISABLED
    camera.sight(Sight.LOST)
    assert camera.report.sight is Sight.LOST, "a camera fault is not hidden by the switch"
    camera.sight(Sight.OK)
    assert camera.report.sight is Sight.DISABLED
    camera.set_enabled(True)
    assert (camera.report.sight, camera.report.presence) == (Sight.OK, UNKNOWN)


def test_updates_need_a_change_and_come_at_most_once_a_second():
    camera = StagedCamera(camera=CameraParams("test://", zones={"left": LEFT_HALF, "right": RIGHT_HALF}))
    for i in range(100):
        camera.show((310 if i // 2 % 2 else 330, 240))
    updates = [event for event in camera.events if event.event_type == "update"]
    times = [event.info.moment.t for event in updates]
    assert len(updates) > 5, "a face on the border keeps changing its zone"
    assert min(np.diff([camera.events[0].info.moment.t, *times])) >= 1.0

    camera = StagedCamera(camera=CameraParams("test://", zones={"left": LEFT_HALF, "right": RIGHT_HALF}))
    for i in range(100):
        camera.show((100 + i, 240))
    assert camera.published == [("start", "event-1")], "moving is no news"


def test_zones_have_their_own_occupancy_and_their_own_delay():
    camera = StagedCamera(camera=CameraParams("test://", zones={"left": LEFT_HALF, "right": RIGHT_HALF}))
    assert camera.report.zones == {"left": UNKNOWN, "right": UNKNOWN}
    camera.show((250, 240))
    assert camera.report.zones == {"left": YES, "right": NO}
    assert camera.events[0].zones == ("left",)
    for x in range(260, 400, 10):
        camera.show((x, 240))
    assert camera.report.zones == {"left": YES, "right": YES}, "the left one is in its delay"
    assert camera.events[-1].event_type == "update" and camera.events[-1].zones == ("right",)
    for _ in range(20):
        camera.show((390, 240))
    assert camera.report.zones == {"left": NO, "right": YES}
    for _ in range(9):
        camera.show()
    assert camera.report.zones["right"] is YES, "in its gap"
    while camera.report.zones["right"] is YES:
        camera.tick()
    assert (camera.report.presence, camera.report.zones) == (NO, {"left": NO, "right": NO})


def test_small_and_weak_faces_are_ignored():
    camera = StagedCamera(camera=CameraParams("test://", min_face_px=50, min_score=0.5))
    assert len(camera.show((100, 100), side=49).detections) == 0
    assert len(camera.show((100, 100), score=0.49).detections) == 0
    assert camera.events == [] and camera.report.presence is NO
    camera.show((100, 100), side=50, score=0.5)
    camera.show((100, 100), side=50, score=0.5)
    assert camera.published == [("start", "event-1")]


@pytest.mark.parametrize(("kind", "minimum"), [("max", 0.5), ("sum", 0.5), ("sum", 8.0)])
def test_a_visit_continues_from_a_lower_score_than_it_starts_from(kind, minimum):
    """A face whose score swings about the camera's minimum is one visit, and what never reaches it is none."""
    camera = StagedCamera(camera=CameraParams("test://", min_score=minimum), tracker=TrackerParams(continue_ratio=0.6))
    camera.show((320, 240), score=0.99 * minimum, kind=kind)
    assert camera.events == [] and camera.report.presence is NO
    camera.show((320, 240), score=minimum, kind=kind)
    camera.show((320, 240), score=minimum, kind=kind)
    for share in [0.62] * 30 + [1.1] + [0.62] * 30:
        outcome = camera.show((320, 240), score=share * minimum, kind=kind)
        assert len(outcome.detections) == 1 and camera.report.presence is YES
    assert camera.published == [("start", "event-1")]
    for _ in range(40):
        outcome = camera.show((320, 240), score=0.58 * minimum, kind=kind)
        assert len(outcome.detections) == 0, "what continues no track is no detection"
    assert [kind for kind, _ in camera.published] == ["start", "end"] and camera.report.presence is NO


NEAR = {"min_score": 0.4}  # a clear face has 0.55 then


@pytest.mark.parametrize("score", [0.4, 0.54])
def test_one_box_near_the_threshold_is_no_visit_and_no_presence(score):
    camera = StagedCamera(camera=CameraParams("test://", **NEAR))
    camera.show()
    for _ in range(5):
        camera.show((320, 240), score=score)
        for _ in range(20):
            camera.show()
            camera.tick(0.0)
    assert camera.events == [] and {report.presence for report in camera.reports} <= {UNKNOWN, NO}


@pytest.mark.parametrize(("kind", "minimum", "score"), [("max", 0.4, 0.55), ("sum", 4.0, 5.0), ("sum", 0.4, 0.5)])
def test_a_clear_face_counts_at_once_and_one_near_the_threshold_in_the_second_frame(kind, minimum, score):
    for share, frames in ((1.0, 1), (0.99, 2)):
        camera = StagedCamera(camera=CameraParams("test://", min_score=minimum))
        camera.show()
        shown = [camera.show((320, 240), score=share * score, kind=kind) for _ in range(3)]
        assert [bool(outcome.events) for outcome in shown] == [i == frames - 1 for i in range(3)]
        assert camera.report.presence is YES


def test_nobody_is_not_said_while_a_face_awaits_its_second_look():
    camera = StagedCamera(camera=CameraParams("test://", **NEAR), tracker=TrackerParams(second_look_s=0.5))
    camera.show((320, 240), score=0.45)
    for _ in range(4):
        camera.show()
        assert camera.report.presence is UNKNOWN
    camera.show((320, 240), score=0.45)
    assert camera.report.presence is YES
    assert NO not in {report.presence for report in camera.reports}


def test_flashes_hold_off_nobody_for_a_limited_time():
    """False boxes in every frame, each elsewhere, so that one is always on trial."""
    camera = StagedCamera(camera=CameraParams("test://", **NEAR), tracker=TrackerParams(second_look_s=0.5))
    for i in range(8):
        camera.show((50 + 270 * (i % 3), 60 + 180 * (i // 3 % 3)), score=0.45, side=30)
    assert camera.events == [] and camera.report.presence is NO


def test_boxes_found_in_the_region_of_interest_refer_to_the_full_upright_frame():
    camera = StagedCamera(camera=CameraParams("test://", roi=(0.5, 0.25, 1.0, 1.0), rotate=90))
    outcome = camera.show((100, 60), side=40)
    assert (outcome.info.width, outcome.info.height) == (HEIGHT, WIDTH)
    assert camera.detector.image.pixels.shape == (480, 240)
    np.testing.assert_array_equal(outcome.detections.xyxy, [[240 + 80, 160 + 40, 240 + 120, 160 + 80]])
    assert camera.events[0].box.right == round(360 / 480, 4)


SIZES = [(640, 480), (480, 640), (1280, 720), (320, 240), (1920, 1080), (352, 288), (640, 480)]


@pytest.mark.parametrize("spots", [[(0.5, 0.5)], [(0.2, 0.3), (0.75, 0.6)]])
@pytest.mark.parametrize("missed", [0, 1])
@pytest.mark.parametrize("by_height", [True, False])
@pytest.mark.parametrize("roi", [None, (0.0, 0.0, 1.0, 0.9)])
def test_a_change_of_size_splits_no_visit_and_counts_nobody_twice(spots, missed, by_height, roi):
    """A stream that changes its size; faces grow with the height, or with both sides; a frame may miss them."""
    camera = StagedCamera(camera=CameraParams("test://", roi=roi))
    for width, height in SIZES:
        pixels = np.full((height, width), 90, np.uint8)
        for _ in range(missed):
            camera.show(pixels=pixels)
        for _ in range(5):
            side = 0.25 * (height if by_height else min(width, height))
            camera.show(*((x * width, y * height) for x, y in spots), side=side, pixels=pixels)
            assert camera.report.faces == len(spots) and camera.report.presence is YES
    assert [kind for kind, _ in camera.published if kind != "update"] == ["start"] * len(spots)


def test_boxes_are_clipped_to_the_frame():
    camera = StagedCamera()
    camera.show((5, 470))
    box = camera.events[0].box
    assert (box.left, box.bottom) == (0.0, 1.0) and box.right == round(45 / WIDTH, 4)


def test_ends_come_before_starts_and_seq_has_no_gap():
    camera = StagedCamera()
    camera.show((100, 100), (300, 100))
    camera.show((500, 400), after_s=1.5)
    camera.sight(Sight.COVERED)
    assert camera.published == [
        ("start", "event-1"),
        ("start", "event-2"),
        ("end", "event-1"),
        ("end", "event-2"),
        ("start", "event-3"),
        ("end", "event-3"),
    ]
    assert [event.seq for event in camera.events] == [1, 2, 3, 4, 5, 6]


def test_an_engine_error_leaves_the_pipeline_unchanged():
    camera = StagedCamera()
    camera.show((320, 240))
    camera.detector.fault = EngineError("gone")
    with pytest.raises(EngineError):
        camera.show((320, 240))
    camera.detector.fault = None
    camera.show((320, 240))
    assert camera.published == [("start", "event-1")]


def test_live_settings():
    camera = StagedCamera()
    camera.show((320, 240))
    camera.pipeline.configure(
        CameraParams("test://", min_face_px=200, delay_off_s=0.0),
        PipelineParams(TrackerParams(max_lost_s=0.0)),
    )
    camera.show((320, 240))
    assert camera.published == [("start", "event-1"), ("end", "event-1")]
    assert camera.report.presence is NO


def test_events_have_the_score_kind():
    camera = StagedCamera()
    camera.show((320, 240))
    assert camera.events[0].score_kind == "max"
    summing = StagedCamera()
    summing.detector.detect = lambda image: Detections([[0, 0, SIDE, SIDE]], [3.5], "sum")
    summing.show()
    assert (summing.events[0].score_kind, summing.events[0].score) == ("sum", 3.5)


def test_damaged_frames_end_no_visit_and_the_same_face_goes_on_afterwards():
    camera = StagedCamera()
    camera.show((300, 200))
    camera.sight(Sight.DAMAGED)
    report = camera.reports[-1]
    assert (report.presence, report.sight, report.faces, report.best_score) == (UNKNOWN, Sight.DAMAGED, None, None)
    for _ in range(60):
        camera.tick(5.0)
    camera.pipeline.excuse(300.0)
    camera.sight(Sight.OK)
    camera.show((300, 200))
    assert [event.event_type for event in camera.events if event.event_type != "update"] == ["start"]
    assert camera.reports[-1].presence is Presence.YES
    for _ in range(40):
        camera.show()
    assert camera.events[-1].event_type == "end" and camera.events[-1].end_reason == "left"


def test_damage_that_does_not_end_ends_the_visit_as_a_loss_of_the_camera():
    camera = StagedCamera()
    camera.show((300, 200))
    camera.sight(Sight.DAMAGED)
    camera.tick(HOLD_S - 1.0)
    assert camera.events[-1].event_type == "start"
    camera.tick(1.5)
    assert camera.events[-1].event_type == "end" and camera.events[-1].end_reason == "camera_lost"


def test_a_camera_that_is_lost_after_damage_ends_the_visit():
    camera = StagedCamera()
    camera.show((300, 200))
    camera.sight(Sight.DAMAGED)
    camera.sight(Sight.LOST)
    assert camera.events[-1].event_type == "end" and camera.events[-1].end_reason == "camera_lost"


def test_faint_frames_show_that_somebody_is_there_but_not_that_nobody_is():
    camera = StagedCamera()
    for _ in range(50):
        camera.show(faint=True)
    assert (camera.report.presence, camera.report.faces) == (UNKNOWN, None)
    camera.show((320, 240), faint=True)
    assert (camera.report.presence, camera.report.faces) == (YES, 1)
    for _ in range(100):
        camera.show(faint=True)
    assert camera.report.presence is YES and camera.published == [("start", "event-1")]
    while camera.report.presence is YES:
        camera.show()
    assert camera.report.presence is NO and camera.events[-1].end_reason == "left"


def test_a_gap_in_faint_frames_is_not_counted():
    camera = StagedCamera()
    camera.show((320, 240))
    camera.show()
    for _ in range(100):
        camera.show(faint=True)
    assert camera.show((322, 240)).events == () and len(camera.events) == 1
