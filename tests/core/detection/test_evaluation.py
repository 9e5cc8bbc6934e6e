"""Matching and figures, compared with cases calculated by hand and scikit-learn's curve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.detection.evaluation import Evaluation, GroundTruth, match
from edge_agent.core.types import Detections


def truth(faces=(), ignored=()) -> GroundTruth:
    return GroundTruth("p", np.array(faces, np.float32).reshape(-1, 4), np.array(ignored, np.float32).reshape(-1, 4))


def detections(*rows) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4])


def test_best_score_first_and_one_detection_per_face():
    matched = match(detections((0, 0, 10, 10, 0.5), (0, 0, 10, 10, 0.9)), truth([(0, 0, 10, 10)]), 0.5)
    assert matched.confidence.tolist() == pytest.approx([0.9, 0.5])
    assert matched.hit.tolist() == [True, False]
    assert matched.missed == ()
    assert len(matched.false_alarms) == 1


@pytest.mark.parametrize(("height", "threshold"), [(5, 0.5), (6, 0.6), (7, 0.7), (3, 0.3), (9, 0.9)])
@pytest.mark.parametrize("size", [1, 37])
def test_iou_above_the_threshold_counts_and_at_the_threshold_does_not(height, threshold, size):
    """NVIDIA's model card counts an IoU greater than 0.5."""
    face = truth([(0, 0, 10 * size, 10 * size)])
    part = detections((0, 0, 10 * size, height * size, 0.9))
    matched = match(part, face, threshold)
    assert matched.hit.tolist() == [False] and matched.missed == (0,) and len(matched.false_alarms) == 1
    assert match(part, face, threshold - 1e-3).hit.tolist() == [True]
    more = detections((0, 0, 10 * size, height * size + 0.01 * size, 0.9))
    assert match(more, face, threshold).hit.tolist() == [True]


def test_detections_in_ignored_regions_do_not_count():
    matched = match(
        detections((0, 0, 10, 10, 0.9), (50, 50, 60, 60, 0.8), (95, 0, 105, 10, 0.7)),
        truth([(0, 0, 10, 10)], [(40, 40, 100, 100), (100, 0, 200, 100)]),
        0.5,
    )
    # The third lies exactly half inside an ignored region: it does not count.
    assert matched.hit.tolist() == [True]
    assert len(matched.false_alarms) == 0


def test_the_size_of_a_face_is_its_height():
    evaluation = Evaluation()
    evaluation.add(detections(), truth([(0, 80, 60, 92)]), 100)
    assert evaluation.recall_by_size() == [("10-20 %", 0, 1)]


def test_figures_of_a_case_calculated_by_hand():
    evaluation = Evaluation()
    evaluation.add(
        detections((0, 0, 10, 10, 0.9), (50, 50, 60, 60, 0.8)), truth([(0, 0, 10, 10), (20, 20, 70, 70)]), 100
    )
    evaluation.add(detections(), truth([(0, 0, 4, 4)]), 100)
    evaluation.add(detections((0, 0, 10, 10, 0.3)), truth(), 100)
    assert (evaluation.hits, evaluation.false_alarms, evaluation.faces) == (1, 2, 3)
    assert evaluation.precision == pytest.approx(1 / 3)
    assert evaluation.recall == pytest.approx(1 / 3)
    assert evaluation.accuracy == pytest.approx(1 / 5)
    assert evaluation.recall_by_size() == [("under 5 %", 0, 1), ("10-20 %", 1, 1), ("over 40 %", 0, 1)]


def test_no_faces_and_no_detections_have_no_score():
    evaluation = Evaluation()
    evaluation.add(detections(), truth(), 100)
    assert (evaluation.precision, evaluation.recall, evaluation.accuracy, evaluation.average_precision()) == (
        None,
        None,
        None,
        0.0,
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**31))
def test_curve_agrees_with_scikit_learn(count, seed):
    """Where every face is found at some score, both define the same curve."""
    from sklearn.metrics import precision_recall_curve

    rng = np.random.default_rng(seed)
    is_face = rng.random(count) < 0.6
    if not is_face.any():
        is_face[0] = True
    scores = rng.integers(1, 20, count) / 20.0
    evaluation = Evaluation()
    for face, score in zip(is_face, scores):
        evaluation.add(detections((0, 0, 10, 10, score)), truth([(0, 0, 10, 10)] if face else []), 100)
    precision, recall, threshold = evaluation.curve()
    oracle_p, oracle_r, oracle_t = precision_recall_curve(is_face, np.float32(scores))
    assert recall[-1] == pytest.approx(1.0)
    for p, r, t in zip(precision, recall, threshold):
        where = np.flatnonzero(np.isclose(oracle_t, t))
        assert len(where) == 1
        assert p == pytest.approx(oracle_p[where[0]])
        assert r == pytest.approx(oracle_r[where[0]])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 2**31))
def test_counts_always_add_up(faces, found, seed):
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.uniform(0, 80, (n, 2))
        return np.concatenate([corner, corner + rng.uniform(5, 20, (n, 2))], axis=1)

    result = Detections(boxes(found).reshape(-1, 4), rng.random(found))
    evaluation = Evaluation()
    matched = evaluation.add(result, truth(boxes(faces)), 100)
    assert evaluation.hits + len(matched.missed) == faces
    assert evaluation.hits + evaluation.false_alarms == found
    assert sum(total for _, _, total in evaluation.recall_by_size()) == faces
