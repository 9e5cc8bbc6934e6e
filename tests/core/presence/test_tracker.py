"""Ids persist through gaps, crossings and uneven timestamps; no detection is lost; association is near optimal."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_agent.core.detection.geometry import iou
from edge_agent.core.presence.tracker import Tracker, TrackerParams
from edge_agent.core.types import CLEAR, FAIR, WEAK, Detections

SIDE = 80.0


def faces(*centres, side=SIDE, scores=None, evidence=None):
    """Square faces around centres (x, y)."""
    c = np.array(centres, np.float32).reshape(-1, 2)
    scores = np.full(len(c), 0.9) if scores is None else np.array(scores)
    evidence = None if evidence is None else np.array(evidence, np.uint8)
    return Detections(np.hstack([c - side / 2, c + side / 2]), scores, "max", evidence)


def visible(tracks):
    return [track.id for track in tracks if track.visible]


def at(tracks, x, y):
    """The id of the visible track whose box is centred there."""
    (found,) = [
        track.id
        for track in tracks
        if track.visible and math.hypot(sum(track.xyxy[::2]) / 2 - x, sum(track.xyxy[1::2]) / 2 - y) < 0.01
    ]
    return found


def test_ids_start_at_one_in_the_order_of_detections_and_are_not_reused():
    tracker = Tracker(TrackerParams(max_lost_s=0.5))
    assert visible(tracker.update(faces((100, 100), (400, 100)), 0.0)) == [1, 2]
    assert tracker.update(faces(), 1.0) == []
    assert visible(tracker.update(faces((100, 100)), 2.0)) == [3]
    tracker.reset()
    assert visible(tracker.update(faces((100, 100)), 2.1)) == [4]


def test_a_track_has_the_detected_box_not_the_predicted_one():
    tracker = Tracker(TrackerParams())
    for i in range(10):
        detections = faces((100 + 7 * i, 100), scores=[0.5 + i / 100])
        (track,) = tracker.update(detections, i / 30)
        assert track.xyxy == tuple(detections.xyxy[0].tolist())
        assert track.confidence == pytest.approx(0.5 + i / 100)
        assert (track.first_t, track.seen_t) == (0.0, i / 30)


@pytest.mark.parametrize("fps", [2, 5, 15, 30, 200])
@pytest.mark.parametrize("speed", [0, 60, 150])
def test_one_id_through_a_gap_at_any_frame_rate(fps, speed):
    """A face is missed for 0.8 s while it goes on moving, px/s."""
    tracker = Tracker(TrackerParams())
    ids = set()
    for i in range(3 * fps):
        t = i / fps
        detections = faces() if 1.4 < t < 2.2 else faces((200 + speed * t, 300))
        ids.update(track.id for track in tracker.update(detections, t))
    assert ids == {1}


def test_a_gap_longer_than_max_lost_s_ends_the_track_whatever_the_frame_rate():
    for fps in (3, 30, 100):
        tracker = Tracker(TrackerParams(max_lost_s=1.0))
        tracker.update(faces((100, 100)), 0.0)
        lives = [i / fps for i in range(1, 3 * fps) if tracker.update(faces(), i / fps)]
        assert lives[-1] == pytest.approx(1.0)


def test_only_a_frame_can_show_that_a_face_is_gone():
    tracker = Tracker(TrackerParams(max_lost_s=1.0))
    tracker.update(faces((100, 100)), 0.0)
    assert len(tracker.expire(100.0)) == 1, "no frame has come since"
    tracker.update(faces(), 0.5)
    assert len(tracker.expire(1.0)) == 1
    assert len(tracker.expire(1.01)) == 0, "it was missed once, and then the time ran out"


def test_a_frame_interval_above_max_lost_s_keeps_the_id_of_a_still_face():
    tracker = Tracker(TrackerParams(max_lost_s=1.0))
    for i in range(10):
        tracks = tracker.update(faces((100 + 5 * (i % 2), 100), (500, 200)), i * 4.0)
        assert visible(tracks) == [1, 2]


def crossing(t, offset):
    """Two faces walking through each other, one a little higher: their places at time t, 0..2 s."""
    return (100 + 200 * t, 300), (500 - 200 * t, 300 + offset)


@pytest.mark.parametrize("fps", [10, 15, 30, 60])
@pytest.mark.parametrize("offset", [0, 15, 40])
def test_crossing_faces_keep_their_ids(fps, offset):
    tracker = Tracker(TrackerParams())
    for i in range(2 * fps + 1):
        t = i / fps
        a, b = crossing(t, offset)
        if np.hypot(a[0] - b[0], a[1] - b[1]) < 1:
            continue
        tracks = tracker.update(faces(a, b), t)
        assert (at(tracks, *a), at(tracks, *b)) == (1, 2), f"t={t}"


@pytest.mark.parametrize("fps", [10, 15, 30, 60])
@pytest.mark.parametrize("order", [1, -1])
def test_crossing_faces_keep_their_ids_when_the_nearer_one_hides_the_other(fps, order):
    """While they overlap by half only the first is detected, as after NMS; noise of one px; either detection order."""
    rng = np.random.default_rng(3)
    tracker = Tracker(TrackerParams())
    for i in range(2 * fps + 1):
        t = i / fps
        a, b = (tuple(np.array(p) + rng.normal(0, 1, 2)) for p in crossing(t, 10))
        hidden = abs(a[0] - b[0]) < SIDE * 0.5
        tracks = tracker.update(faces(a) if hidden else faces(*(a, b)[::order]), t)
        if i == 0:
            first = at(tracks, *a)
        assert at(tracks, *a) == first, f"t={t}"
        assert {track.id for track in tracks} == {1, 2}


def test_a_fast_face_at_a_slow_rate_keeps_its_id_once_its_speed_is_known():
    tracker = Tracker(TrackerParams())
    x, ids = 0.0, []
    for i in range(12):
        x += min(i, 6) * 25
        ids += visible(tracker.update(faces((x, 100)), i / 5))
    assert set(ids) == {1}, "six steps of nearly two widths each"


def test_three_detections_of_a_fast_face_suffice_to_predict_it():
    tracker = Tracker(TrackerParams())
    for i in range(3):
        tracker.update(faces((100 + 500 * i / 30, 100)), i / 30)
    assert visible(tracker.update(faces((100 + 500 * 0.5, 100)), 0.5)) == [1]


def test_uneven_timestamps_keep_the_track():
    """Frames of an even 30 fps that a network bunches: stamps 1 ms apart, then 65 ms; then equal; then a step back."""
    tracker = Tracker(TrackerParams())
    ids = []
    for i in range(90):
        t = i / 30 if i % 2 else (i + 1) / 30 - 0.001
        if i > 60:
            t = 2.0
        if i > 75:
            t = 1.0
        ids += visible(tracker.update(faces((200 + 4 * i, 200)), t))
    assert set(ids) == {1}


def test_neighbours_do_not_take_over_an_id():
    tracker = Tracker(TrackerParams())
    tracker.update(faces((100, 100)), 0.0)
    tracks = tracker.update(faces((100 + 1.5 * SIDE, 100)), 0.03)
    assert visible(tracks) == [2]


def first_id_of_another(fps, gap_s, aside, speed=0.0, rng=None, **params):
    """Ids after a face, seen for 1 s, is missed for `gap_s` and one appears `aside` widths from where it would be."""
    rng, tracker = rng or np.random.default_rng(1), Tracker(TrackerParams(**params))
    frames, gap = round(fps), round(gap_s * fps)
    for i in range(frames):
        tracker.update(faces(rng.normal((200 + speed * i / fps, 200), 1.0)), i / fps)
    for i in range(frames, frames + gap):
        tracker.update(faces(), i / fps)
    t = (frames + gap) / fps
    return visible(tracker.update(faces((200 + speed * t + aside * SIDE, 200)), t))


@pytest.mark.parametrize("fps", [5, 10, 15, 30])
@pytest.mark.parametrize("gap_s", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("aside", [0.6, 0.8, 1.0, -0.7, -1.0])
@pytest.mark.parametrize("speed", [0, 120])
def test_who_appears_aside_after_a_gap_is_another(fps, gap_s, aside, speed):
    assert first_id_of_another(fps, gap_s, aside, speed) == [2]
    if abs(aside) < 1:
        assert first_id_of_another(fps, gap_s, aside, speed, gap_overlap=-0.4) == [1], "the gate between two frames"


@pytest.mark.parametrize("fps", [5, 10, 15, 30])
@pytest.mark.parametrize("gap_s", [0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("aside", [0.0, 0.2, -0.3])
def test_who_appears_in_the_same_place_after_a_gap_is_the_same(fps, gap_s, aside):
    assert first_id_of_another(fps, gap_s, aside) == [1]


def test_the_gate_tightens_with_the_age_of_the_gap():
    reach = [
        max(aside for aside in np.arange(0, 1.2, 0.05) if first_id_of_another(20, gap_s, aside) == [1])
        for gap_s in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    assert reach == sorted(reach, reverse=True) and reach[0] >= 0.9 and reach[-1] < 0.5


def test_a_face_of_another_size_is_another_face():
    for before, after in ((200, 60), (60, 200)):
        tracker = Tracker(TrackerParams())
        tracker.update(faces((100, 100), side=before), 0.0)
        assert visible(tracker.update(faces((100, 100), side=after), 0.03)) == [2]


def distance_iou(a, b):
    """As its authors define it: IoU - squared distance of the centres / squared diagonal of the enclosing box."""
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - inner
    distance = math.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
    diagonal = math.hypot(max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    return inner / union - distance**2 / diagonal**2


BOX = st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(10, 60), st.integers(10, 60)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=400, deadline=None)
@given(BOX, BOX, st.sampled_from([-0.4, -0.2, 0.0, 0.3, 0.7]))
def test_a_face_is_the_one_before_from_that_distance_iou_on(before, now, min_overlap):
    a, b = [((c[2] - c[0]) * (c[3] - c[1])) for c in (before, now)]
    near = all(abs(before[i] + before[i + 2] - now[i] - now[i + 2]) / 2
               <= before[i + 2] - before[i] + now[i + 2] - now[i] for i in (0, 1))  # fmt: skip
    expected = near and max(a, b) <= 6 * min(a, b) and distance_iou(before, now) >= min_overlap
    assume(abs(distance_iou(before, now) - min_overlap) > 1e-6)
    tracker = Tracker(TrackerParams(min_overlap=min_overlap))
    tracker.update(Detections(np.array([before]), np.array([0.9])), 0.0)
    tracks = tracker.update(Detections(np.array([now]), np.array([0.9])), 0.1)
    assert visible(tracks) == ([1] if expected else [2])


def test_a_slow_drift_is_extrapolated_for_a_limited_time():
    tracker = Tracker(TrackerParams())
    for i in range(30):
        tracker.update(faces((100 + i, 100)), i / 30)
    assert visible(tracker.update(faces((130, 100)), 11.0)) == [1], "the camera stalled for ten seconds"


def test_confirm_s_counts_time_not_frames():
    for fps in (10, 100):
        tracker = Tracker(TrackerParams(confirm_s=0.5))
        confirmed = [i / fps for i in range(fps) if tracker.update(faces((100, 100)), i / fps)[0].confirmed]
        assert confirmed[0] == pytest.approx(0.5)


def test_the_first_detection_confirms_by_default():
    assert Tracker(TrackerParams()).update(faces((1, 1)), 0.0)[0].confirmed


def test_tracks_are_bounded_and_the_longest_unseen_goes_first():
    tracker = Tracker(TrackerParams(max_tracks=3))
    tracker.update(faces((100, 100)), 0.0)
    tracker.update(faces((400, 100)), 0.1)
    tracks = tracker.update(faces((700, 100), (1000, 100)), 0.2)
    assert [track.id for track in tracks] == [2, 3, 4]
    tracks = tracker.update(faces(*[(200 * i, 900) for i in range(10)]), 0.3)
    assert len(tracks) == 3


def test_a_weak_detection_continues_a_track_and_starts_none():
    tracker = Tracker(TrackerParams())
    assert tracker.update(faces((100, 100), evidence=[WEAK]), 0.0) == [] and tracker.unused == [0]
    tracker.update(faces((100, 100), evidence=[CLEAR]), 0.1)
    for i in range(40):
        tracks = tracker.update(faces((400, 100), (100 + i, 100), evidence=[WEAK, WEAK]), 0.2 + i / 10)
        assert visible(tracks) == [1] and tracker.unused == [0]
    assert tracks[0].xyxy[0] == 99.0
    tracks = tracker.update(faces((140, 100), scores=[0.5]), 4.2)
    assert visible(tracks) == [1] and not tracker.unused


def test_a_weak_detection_takes_no_track_from_a_clear_one():
    tracker = Tracker(TrackerParams())
    tracker.update(faces((100, 100)), 0.0)
    tracks = tracker.update(faces((100, 100), (130, 100), evidence=[WEAK, CLEAR]), 0.1)
    assert [track.id for track in tracks] == [1] and tracks[0].xyxy[0] == 90.0
    assert tracker.unused == [0]


def test_rescaling_keeps_place_size_and_speed():
    tracker = Tracker(TrackerParams())
    for i in range(10):
        tracker.update(faces((200 + 20 * i, 100)), i / 10)
    tracker.rescale(2.0, 0.5)
    moved = Detections(np.array([[2 * 460 - SIDE, 50 - SIDE / 4, 2 * 460 + SIDE, 50 + SIDE / 4]]), np.array([0.9]))
    tracker.update(faces(), 1.0)
    (track,) = tracker.update(moved, 1.3)
    assert track.id == 1 and track.visible, "where its speed has taken it while it was missed"


def test_a_face_near_the_threshold_is_confirmed_by_a_second_detection_and_a_clear_one_at_once():
    tracker = Tracker(TrackerParams())
    (near, clear) = tracker.update(faces((100, 100), (400, 100), evidence=[FAIR, CLEAR]), 0.0)
    assert (near.confirmed, clear.confirmed) == (False, True)
    (near, clear) = tracker.update(faces((100, 100), evidence=[FAIR]), 0.4)
    assert near.confirmed and near.id == 1


@pytest.mark.parametrize("second", [WEAK, None])
def test_a_face_near_the_threshold_is_dropped_without_a_second_look_in_time(second):
    """A weak detection is none: it could not have started the track."""
    tracker = Tracker(TrackerParams(second_look_s=0.5))
    tracker.update(faces((100, 100), evidence=[FAIR]), 0.0)
    shown = faces() if second is None else faces((100, 100), evidence=[second])
    for i in range(1, 6):
        assert [track.confirmed for track in tracker.update(shown, i / 10)] == [False]
    assert tracker.update(shown, 0.6) == []
    (track,) = tracker.update(faces((100, 100), evidence=[FAIR]), 0.7)
    assert track.id == 2 and not track.confirmed


def test_the_next_frame_is_a_second_look_however_late():
    tracker = Tracker(TrackerParams(second_look_s=0.5))
    tracker.update(faces((100, 100), evidence=[FAIR]), 0.0)
    (track,) = tracker.update(faces((100, 100), evidence=[FAIR]), 5.0)
    assert track.id == 1 and track.confirmed


def test_confirm_s_holds_beside_the_second_look():
    tracker = Tracker(TrackerParams(confirm_s=0.25))
    confirmed = [tracker.update(faces((100, 100), evidence=[FAIR]), i / 10)[0].confirmed for i in range(5)]
    assert confirmed == [False, False, False, True, True]


def test_boxes_without_area_are_tracked():
    tracker = Tracker(TrackerParams())
    for t in range(3):
        assert len(visible(tracker.update(faces((10, 10), (10, 10), side=0), t / 30))) == 2


centre = st.tuples(st.integers(0, 300), st.integers(0, 300))
scenes = st.lists(st.tuples(st.integers(0, 1500), st.lists(centre, max_size=6)), max_size=25)


@settings(max_examples=200, deadline=None)
@given(scenes, st.sampled_from([10.0, 80.0]), st.sampled_from([0.0, 0.4]))
def test_properties_of_any_scene(scene, side, confirm_s):
    params = TrackerParams(confirm_s=confirm_s)
    tracker, twin = Tracker(params), Tracker(params)
    t, ended, before, highest = 0.0, set(), set(), 0
    for dt_ms, centres in scene:
        t += dt_ms / 1000
        detections = faces(*centres, side=side)
        tracks = tracker.update(detections, t)
        ids = [track.id for track in tracks]
        assert ids == sorted(set(ids)), "unique and ascending"
        shown = sorted(track.xyxy for track in tracks if track.visible)
        assert shown == sorted(tuple(box) for box in detections.xyxy.tolist()), "no detection lost or doubled"
        new = set(ids) - before
        assert all(i > highest for i in new) and not ended & set(ids), "never reused"
        assert all(track.visible or t - track.seen_t <= params.max_lost_s for track in tracks)
        assert all(track.confirmed for track in tracks if track.seen_t - track.first_t >= confirm_s)
        assert [(i.id, i.xyxy) for i in twin.update(detections, t)] == [(i.id, i.xyxy) for i in tracks]
        ended |= before - set(ids)
        before, highest = set(ids), max([highest, *ids])


def test_association_agrees_with_an_optimal_one_on_easy_scenes():
    """Hungarian assignment on IoU over 300 scenes of wandering faces that stay apart, in shuffled order."""
    optimize = pytest.importorskip("scipy.optimize", reason="needs scipy, which scikit-learn of [dev] brings")
    rng = np.random.default_rng(11)
    compared = 0
    for _ in range(300):
        n = int(rng.integers(1, 21))
        grid = rng.permutation(40)[:n]
        place = np.stack([grid % 8, grid // 8], 1) * 2.2 * SIDE + 200.0
        speed = rng.uniform(-90, 90, (n, 2))
        tracker = Tracker(TrackerParams())
        last = None
        for i in range(8):
            order = rng.permutation(n)
            detections = faces(*(place + speed * i / 30 + rng.normal(0, 1.5, (n, 2)))[order])
            tracks = tracker.update(detections, i / 30)
            by_box = {track.xyxy: track.id for track in tracks}
            ids = np.array([by_box[tuple(box)] for box in detections.xyxy.tolist()])
            if last is not None:
                overlap = iou(last[0].xyxy, detections.xyxy)
                rows, columns = optimize.linear_sum_assignment(-overlap)
                np.testing.assert_array_equal(ids[columns], last[1][rows])
                compared += n
            last = detections, ids
    assert compared > 15_000


def test_time_in_which_damage_hid_the_scene_does_not_end_a_gap():
    tracker = Tracker(TrackerParams(max_lost_s=1.0))
    face = Detections(np.array([[10, 10, 50, 60]], np.float32), np.array([0.9], np.float32), "peak")
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), "peak")
    (track,) = tracker.update(face, 0.0)
    tracker.update(none, 0.1)
    tracker.excuse(1.4)
    assert [found.id for found in tracker.update(face, 1.6)] == [track.id]
    tracker.update(none, 1.7)
    assert tracker.update(none, 2.7) == [], "without damage a face that is missed for so long has left"
