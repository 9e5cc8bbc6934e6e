"""Matching and figures, against cases worked by hand and scikit-learn's curve."""

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
    verdict = match(detections((0, 0, 10, 10, 0.5), (0, 0, 10, 10, 0.9)), truth([(0, 0, 10, 10)]), 0.5)
    assert verdict.confidence.tolist() == pytest.approx([0.9, 0.5])
    assert verdict.hit.tolist() == [True, False]
    assert verdict.missed == ()
    assert len(verdict.false_alarms) == 1


def test_iou_at_the_threshold_counts_and_below_does_not():
    half = detections((0, 0, 10, 5, 0.9))  # IoU exactly 0.5
    assert match(half, truth([(0, 0, 10, 10)]), 0.5).hit.tolist() == [True]
    verdict = match(half, truth([(0, 0, 10, 10)]), 0.51)
    assert verdict.hit.tolist() == [False] and verdict.missed == (0,)


def test_ignored_regions_neither_reward_nor_punish():
    verdict = match(
        detections((0, 0, 10, 10, 0.9), (50, 50, 60, 60, 0.8), (95, 0, 105, 10, 0.7)),
        truth([(0, 0, 10, 10)], [(40, 40, 100, 100), (100, 0, 200, 100)]),
        0.5,
    )
    # The third lies exactly half inside an ignored region: it does not count.
    assert verdict.hit.tolist() == [True]
    assert len(verdict.false_alarms) == 0


def test_a_face_s_size_is_its_height_wherever_it_lies():
    tally = Evaluation()
    tally.add(detections(), truth([(0, 80, 60, 92)]), 100)
    assert tally.recall_by_size() == [("10-20 %", 0, 1)]


def test_figures_of_a_case_worked_by_hand():
    tally = Evaluation()
    tally.add(detections((0, 0, 10, 10, 0.9), (50, 50, 60, 60, 0.8)), truth([(0, 0, 10, 10), (20, 20, 70, 70)]), 100)
    tally.add(detections(), truth([(0, 0, 4, 4)]), 100)
    tally.add(detections((0, 0, 10, 10, 0.3)), truth(), 100)
    assert (tally.hits, tally.false_alarms, tally.faces) == (1, 2, 3)
    assert tally.precision == pytest.approx(1 / 3)
    assert tally.recall == pytest.approx(1 / 3)
    assert tally.accuracy == pytest.approx(1 / 5)
    assert tally.recall_by_size() == [("under 5 %", 0, 1), ("10-20 %", 1, 1), ("over 40 %", 0, 1)]


def test_nothing_at_all_is_not_a_perfect_score():
    tally = Evaluation()
    tally.add(detections(), truth(), 100)
    assert (tally.precision, tally.recall, tally.accuracy, tally.average_precision()) == (None, None, None, 0.0)


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
    tally = Evaluation()
    for face, score in zip(is_face, scores):
        tally.add(detections((0, 0, 10, 10, score)), truth([(0, 0, 10, 10)] if face else []), 100)
    precision, recall, threshold = tally.curve()
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
    tally = Evaluation()
    verdict = tally.add(result, truth(boxes(faces)), 100)
    assert tally.hits + len(verdict.missed) == faces
    assert tally.hits + tally.false_alarms == found
    assert sum(total for _, _, total in tally.recall_by_size()) == faces
