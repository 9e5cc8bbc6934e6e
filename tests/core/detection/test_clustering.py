"""NMS, DBSCAN and hybrid: compared with scalar references, OpenCV and scikit-learn; and their properties."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.detection.clustering import LIST_LIMIT, SCORE_KIND, ClusterParams, cluster, dbscan, nms
from tests.core.detection import detection_oracles as oracle

DEFAULT = ClusterParams(nms_iou_threshold=0.5)
ALL = 1000  # top_k that cuts nothing here


def assert_rows(xyxy, confidence, rows):
    expected = np.array(rows, np.float64).reshape(-1, 5)
    np.testing.assert_allclose(xyxy, expected[:, :4], atol=1e-3)
    np.testing.assert_allclose(confidence, expected[:, 4], atol=1e-6)


def grids(seed, count, most):
    rng = np.random.default_rng(seed)
    return (oracle.random_rows(rng, int(rng.integers(0, most + 1))) for _ in range(count))


@pytest.mark.parametrize(("count", "most"), [(2000, 14), (300, 80), (6, LIST_LIMIT + 150)])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5])
def test_nms_agrees_with_the_literal_loop(count, most, iou_threshold):
    for xyxy, confidence in grids(most, count, most):
        kept = nms(xyxy, confidence, iou_threshold, ALL)
        assert_rows(xyxy[kept], confidence[kept], oracle.nms(oracle.rows_of(xyxy, confidence), iou_threshold))


@pytest.mark.parametrize(("count", "most"), [(1500, 60), (40, 3 * LIST_LIMIT)])
def test_nms_agrees_with_opencv(count, most):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    suppressed = 0
    for xyxy, confidence in grids(1, count, most):
        if not len(xyxy):
            continue
        ltwh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        expected = np.asarray(cv2.dnn.NMSBoxes(ltwh.tolist(), confidence.tolist(), 0.0, 0.5), int).reshape(-1)
        kept = nms(xyxy, confidence, 0.5, ALL)
        np.testing.assert_array_equal(kept, expected)
        suppressed += len(xyxy) - len(kept)
    assert suppressed > count


def test_nms_keeps_at_the_threshold_exactly():
    xyxy = np.array([[0, 0, 20, 10], [0, 0, 10, 10], [100, 0, 110, 10], [100, 0, 110, 3]], np.float32)
    confidence = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    assert list(nms(xyxy, confidence, 0.5, ALL)) == [0, 1, 2, 3]
    assert list(nms(xyxy, confidence, 0.3, ALL)) == [0, 2, 3]
    assert list(nms(xyxy, confidence, 0.29, ALL)) == [0, 2]


@pytest.mark.parametrize("copies", [3, LIST_LIMIT + 3])
def test_nms_takes_equal_scores_in_the_order_given(copies):
    xyxy = np.tile(np.array([[5, 5, 50, 50]], np.float32), (copies, 1))
    assert list(nms(xyxy, np.full(copies, 0.5, np.float32), 0.5, ALL)) == [0]
    assert list(nms(xyxy, np.full(copies, 0.5, np.float32), 1.0, ALL)) == list(range(copies))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), count=st.integers(0, 60), iou_threshold=st.floats(0, 1), top_k=st.integers(1, 70)
)
def test_nms_properties(seed, count, iou_threshold, top_k):
    rng = np.random.default_rng(seed)
    xyxy, _ = oracle.random_rows(rng, count)
    confidence = (rng.permutation(count) + 1).astype(np.float32) / (count + 1)  # distinct, so that the order is free
    kept = nms(xyxy, confidence, iou_threshold, ALL)
    boxes = xyxy[kept].astype(np.float64).tolist()
    assert (np.diff(confidence[kept]) < 0).all()
    assert all(oracle.overlap(a, b) <= iou_threshold for i, a in enumerate(boxes) for b in boxes[:i])
    for lost in set(range(count)) - set(kept.tolist()):
        box = xyxy[lost].astype(np.float64).tolist()
        assert any(
            confidence[k] > confidence[lost] and oracle.overlap(b, box) > iou_threshold for k, b in zip(kept, boxes)
        )
    np.testing.assert_array_equal(nms(xyxy, confidence, iou_threshold, top_k), kept[:top_k])
    np.testing.assert_array_equal(nms(xyxy[kept], confidence[kept], iou_threshold, ALL), np.arange(len(kept)))
    shuffle = rng.permutation(count)
    np.testing.assert_array_equal(shuffle[nms(xyxy[shuffle], confidence[shuffle], iou_threshold, ALL)], kept)


@pytest.mark.parametrize(
    ("eps", "min_boxes", "min_score"), [(0.7, 3, 0.0), (0.3, 1, 0.9), (0.2, 2, 0.0), (1.0, 1, 0.0)]
)
def test_dbscan_agrees_with_nvidias_loop(eps, min_boxes, min_score):
    found = 0
    for xyxy, confidence in grids(int(eps * 10), 800, 16):
        rows = oracle.rows_of(xyxy, confidence)
        merged = dbscan(xyxy, confidence, eps, min_boxes, min_score)
        order = np.argsort(-merged[1], kind="stable")
        assert_rows(merged[0][order], merged[1][order], oracle.dbscan(rows, eps, min_boxes, min_score))
        found += len(merged[0])
    assert found > 500


def test_dbscan_agrees_with_nvidias_loop_on_many_boxes():
    for xyxy, confidence in grids(77, 5, 120):
        rows = oracle.rows_of(xyxy, confidence)
        assert_rows(
            *cluster(xyxy, confidence, replace(DEFAULT, cluster_mode="dbscan", top_k=ALL)), oracle.dbscan(rows, 0.7, 3)
        )


def scikit_learn_cores(xyxy, eps, min_boxes):
    """Core points by scikit-learn's group, the way the semantics meet: strict eps, plain counts, no border points."""
    sklearn = pytest.importorskip("sklearn.cluster", reason="needs scikit-learn: pip install scikit-learn")
    boxes = xyxy.astype(np.float64).tolist()
    distance = np.array([[0.0 if a is b else 1.0 - oracle.overlap(a, b) for a in boxes] for b in boxes])
    strict = float(np.nextafter(eps, 0.0))
    model = sklearn.DBSCAN(eps=strict, min_samples=min_boxes, metric="precomputed").fit(distance)
    cores = model.core_sample_indices_
    labels = model.labels_[cores]
    return distance, cores, [cores[labels == label] for label in np.unique(labels)]


@pytest.mark.slow
@pytest.mark.parametrize(("eps", "min_boxes"), [(0.7, 3), (0.3, 2), (0.2, 1)])
def test_dbscan_agrees_with_scikit_learn_where_the_semantics_meet(eps, min_boxes):
    met = chains = 0
    for xyxy, confidence in grids(int(eps * 100), 500, 18):
        if not len(xyxy):
            continue
        distance, cores, groups = scikit_learn_cores(xyxy, eps, min_boxes)
        hybrid = replace(DEFAULT, cluster_mode="hybrid", eps=eps, min_boxes=min_boxes, nms_iou_threshold=1.0, top_k=ALL)
        kept, _ = cluster(xyxy, confidence, hybrid)
        assert sorted(kept.tolist()) == sorted(xyxy[cores].tolist())

        if any((distance[group[0], group[1:]] >= eps).any() for group in groups):
            chains += 1  # a member is not a direct neighbour of the first one: NVIDIA splits what scikit-learn joins
            continue
        met += 1
        expected = []
        for group in groups:
            weights = confidence[group].astype(np.float64)
            box = (weights[:, None] * xyxy[group]).sum(axis=0) / weights.sum()
            if np.sqrt((box[2] - box[0]) * (box[3] - box[1])) / (len(group) + 1) <= 60:
                expected.append((*box, weights.max()))
        assert_rows(*dbscan(xyxy, confidence, eps, min_boxes), expected)
    assert met > 200
    assert chains > 0 or eps < 0.3


def test_a_chain_splits_after_the_direct_neighbours_of_its_first_box():
    xyxy = np.array([[0, 0, 20, 20], [10, 0, 30, 20], [20, 0, 40, 20], [30, 0, 50, 20]], np.float32)
    boxes, _ = dbscan(xyxy, np.full(4, 0.5, np.float32), eps=0.7, min_boxes=2)
    np.testing.assert_allclose(boxes, [[5, 0, 25, 20], [25, 0, 45, 20]])


def test_the_distance_must_be_strictly_below_eps():
    xyxy = np.array([[0, 0, 20, 10], [0, 0, 10, 10]], np.float32)
    confidence = np.array([0.5, 0.5], np.float32)
    assert len(dbscan(xyxy, confidence, eps=0.5, min_boxes=2)[0]) == 0
    assert len(dbscan(xyxy, confidence, eps=0.51, min_boxes=2)[0]) == 1


def test_border_boxes_do_not_pull_on_the_mean():
    """A box near the group, with too few neighbours of its own, belongs to nothing."""
    xyxy = np.array([[0, 0, 20, 20], [1, 0, 21, 20], [2, 0, 22, 20], [11, 0, 31, 20]], np.float32)
    boxes, scores = dbscan(xyxy, np.array([0.5, 0.5, 0.5, 0.9], np.float32), eps=0.6, min_boxes=3)
    np.testing.assert_allclose(boxes, [[1, 0, 21, 20]])
    np.testing.assert_allclose(scores, [0.5])


def test_the_mean_is_weighted_and_the_score_is_the_largest_not_the_sum():
    xyxy = np.array([[0, 0, 20, 20], [4, 4, 24, 24]], np.float32)
    boxes, scores = dbscan(xyxy, np.array([0.9, 0.3], np.float32), eps=0.7, min_boxes=2)
    np.testing.assert_allclose(boxes, [[1, 1, 21, 21]], atol=1e-5)
    np.testing.assert_allclose(scores, [0.9])
    assert SCORE_KIND == "max"


@pytest.mark.parametrize(("side", "kept"), [(180, 1), (181, 0)])
def test_a_large_face_that_few_cells_agree_on_is_dropped(side, kept):
    xyxy = np.array([[0, 0, side, side]] * 2, np.float32)
    assert len(dbscan(xyxy, np.array([0.5, 0.6], np.float32), eps=0.7, min_boxes=1)[0]) == kept


def test_groups_below_the_summed_score_are_dropped():
    xyxy = np.array([[0, 0, 20, 20]] * 2, np.float32)
    confidence = np.array([0.5, 0.25], np.float32)
    assert len(dbscan(xyxy, confidence, 0.7, 2, min_score=0.75)[0]) == 1
    assert len(dbscan(xyxy, confidence, 0.7, 2, min_score=0.76)[0]) == 0


@pytest.mark.parametrize("post", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("top_k", [1, 20])
@pytest.mark.parametrize("mode", ["nms", "dbscan", "hybrid", "none"])
def test_every_mode_agrees_with_its_literal_loop(mode, top_k, post):
    literal = {
        "nms": lambda rows: oracle.nms(rows, 0.5, post, top_k),
        "dbscan": lambda rows: oracle.dbscan(rows, 0.7, 3, 0.0, post, top_k),
        "hybrid": lambda rows: oracle.hybrid(rows, 0.7, 3, 0.5, post, top_k),
        "none": lambda rows: sorted(rows, key=lambda r: -r[4])[:top_k],
    }[mode]
    params = replace(DEFAULT, cluster_mode=mode, top_k=top_k, post_cluster_threshold=post)
    for xyxy, confidence in grids(3, 150, 24):
        assert_rows(*cluster(xyxy, confidence, params), literal(oracle.rows_of(xyxy, confidence)))


def test_the_post_threshold_is_exclusive_for_nms_and_inclusive_for_dbscan():
    xyxy = np.array([[0, 0, 20, 20]] * 3, np.float32)
    confidence = np.full(3, 0.5, np.float32)
    params = replace(DEFAULT, post_cluster_threshold=0.5)
    assert len(cluster(xyxy, confidence, params)[0]) == 0
    assert len(cluster(xyxy, confidence, replace(params, cluster_mode="dbscan"))[0]) == 1


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 50),
    mode=st.sampled_from(["nms", "dbscan", "hybrid", "none"]),
    eps=st.floats(0.05, 1.0),
    min_boxes=st.integers(1, 5),
    top_k=st.integers(1, 30),
)
def test_properties_of_every_mode(seed, count, mode, eps, min_boxes, top_k):
    xyxy, confidence = oracle.random_rows(np.random.default_rng(seed), count)
    before = xyxy.copy(), confidence.copy()
    params = replace(DEFAULT, cluster_mode=mode, eps=eps, min_boxes=min_boxes, top_k=top_k)
    boxes, scores = cluster(xyxy, confidence, params)
    assert boxes.shape == (len(scores), 4)
    assert boxes.dtype == scores.dtype == np.float32
    assert len(boxes) <= min(count, top_k)
    assert (np.diff(scores) <= 0).all()
    assert set(scores.tolist()) <= set(confidence.tolist())
    if len(boxes):
        assert (boxes >= xyxy.min(axis=0) - 1e-3).all()
        assert (boxes <= xyxy.max(axis=0) + 1e-3).all()
    if mode != "dbscan":
        assert {tuple(box) for box in boxes.tolist()} <= {tuple(box) for box in xyxy.tolist()}
    np.testing.assert_array_equal(xyxy, before[0])
    np.testing.assert_array_equal(confidence, before[1])


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), eps=st.floats(0.05, 1.0), min_boxes=st.integers(1, 5))
def test_which_boxes_belong_to_a_group_does_not_depend_on_their_order(seed, count, eps, min_boxes):
    rng = np.random.default_rng(seed)
    xyxy, confidence = oracle.random_rows(rng, count)
    params = ClusterParams("hybrid", nms_iou_threshold=1.0, top_k=ALL, eps=eps, min_boxes=min_boxes)
    shuffle = rng.permutation(count)
    first, _ = cluster(xyxy, confidence, params)
    second, _ = cluster(xyxy[shuffle], confidence[shuffle], params)
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_no_candidates_give_no_faces():
    none = np.empty((0, 4), np.float32), np.empty(0, np.float32)
    for mode in ("nms", "dbscan", "hybrid", "none"):
        boxes, scores = cluster(*none, replace(DEFAULT, cluster_mode=mode))
        assert boxes.shape == (0, 4)
        assert scores.shape == (0,)


def test_the_iou_threshold_must_be_set():
    with pytest.raises(ValueError, match="nms_iou_threshold"):
        cluster(np.ones((1, 4), np.float32), np.ones(1, np.float32), ClusterParams())


def test_defaults_are_nvidias_shipped_configuration_and_every_field_is_described():
    assert ClusterParams() == ClusterParams("nms", None, 20, 0.0, 0.7, 3, 0.0)
    assert all(field.metadata["description"] for field in fields(ClusterParams))
