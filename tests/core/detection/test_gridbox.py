"""GridBox decoding, compared with a scalar reference implementation, and edge cases."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.detection import gridbox
from edge_agent.core.detection.model_contract import FACEDETECTIR, ModelContract
from edge_agent.errors import ModelError
from tests.core.detection import detection_oracles as oracle

PEOPLENET = ModelContract("gridbox", net=(960, 544), labels=("person", "bag", "face"), target=2)
FACEDETECT = ModelContract("gridbox", net=(736, 416))
# Pre-cluster and coverage thresholds that NVIDIA's own configurations use.
THRESHOLDS = [0.005, 0.05, 0.2, 0.4]


def blank(contract=FACEDETECTIR):
    columns, rows = contract.net[0] // 16, contract.net[1] // 16
    classes = len(contract.labels)
    return {
        "cov": np.zeros((classes, rows, columns), np.float32),
        "bbox": np.zeros((4 * classes, rows, columns), np.float32),
    }


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(
    ("contract", "grids"), [(FACEDETECTIR, 700), (FACEDETECT, 100), (PEOPLENET, 60)], ids=["240", "416", "544"]
)
def test_agrees_with_the_literal_loop(contract, grids, threshold):
    rng = np.random.default_rng(int(threshold * 1000) + contract.net[0])
    found = 0
    for _ in range(grids):
        columns, rows = contract.net[0] // 16, contract.net[1] // 16
        outputs = oracle.random_grid(rng, len(contract.labels), rows, columns, lit=rng.choice([0.0, 0.01, 0.1]))
        xyxy, confidence = gridbox.decode(outputs, contract, threshold)
        literal = oracle.gridbox(outputs["cov"], outputs["bbox"], contract.target, threshold, contract.net)
        expected = np.array(oracle.departures(literal, contract.net)).reshape(-1, 5)
        np.testing.assert_allclose(xyxy, expected[:, :4], atol=2e-3)
        np.testing.assert_array_equal(confidence, expected[:, 4].astype(np.float32))
        assert len(literal) >= len(xyxy)
        found += len(xyxy)
    assert found > grids


def test_the_offset_is_half_a_pixel_and_the_scale_is_35():
    outputs = blank()
    outputs["cov"][0, 7, 10] = 0.9
    outputs["bbox"][:, 7, 10] = [1, 2, 3, 0.5]
    xyxy, confidence = gridbox.decode(outputs, FACEDETECTIR, 0.4)
    np.testing.assert_allclose(xyxy, [[160.5 - 35, 112.5 - 70, 160.5 + 105, 112.5 + 17.5]])
    np.testing.assert_allclose(confidence, [0.9])
    assert xyxy.dtype == confidence.dtype == np.float32


def test_coverage_equal_to_the_threshold_is_kept():
    outputs = blank()
    outputs["bbox"][:] = 1
    outputs["cov"][0, 3, 3] = np.float32(0.4)
    outputs["cov"][0, 3, 4] = np.nextafter(np.float32(0.4), np.float32(0))
    assert len(gridbox.decode(outputs, FACEDETECTIR, 0.4)[0]) == 1


def test_a_box_is_clipped_to_the_last_pixel_and_an_empty_one_dropped():
    outputs = blank()
    outputs["cov"][0, 0, 0] = outputs["cov"][0, 14, 23] = 1
    outputs["bbox"][:, 0, 0] = 20
    outputs["bbox"][:, 14, 23] = [-3, 1, 4, 1]  # wholly to the right of the image
    xyxy, _ = gridbox.decode(outputs, FACEDETECTIR, 0.4)
    np.testing.assert_array_equal(xyxy, [[0, 0, 383, 239]])


def test_only_the_target_class_is_read():
    outputs = blank(PEOPLENET)
    outputs["cov"][:] = 1
    outputs["bbox"][:8] = np.nan
    outputs["bbox"][8:] = 1
    outputs["cov"][2, 1:] = 0
    assert len(gridbox.decode(outputs, PEOPLENET, 0.4)[0]) == 60
    assert len(gridbox.decode(outputs, replace(PEOPLENET, target=0), 0.4)[0]) == 0


def test_another_scale_offset_and_stride():
    contract = replace(FACEDETECTIR, stride=(8.0, 4.0), box_scale=10.0, box_offset=2.0)
    outputs = blank()
    outputs["cov"][0, 2, 3] = 1
    outputs["bbox"][:, 2, 3] = [1, 0.5, 2, 3]
    np.testing.assert_allclose(gridbox.decode(outputs, contract, 0.4)[0], [[16, 5, 46, 40]])


def test_nan_is_no_face():
    outputs = blank()
    outputs["cov"][0, 5, :3] = [np.nan, 1, 1]
    outputs["bbox"][:, 5, :3] = 1
    outputs["bbox"][1, 5, 1] = np.nan
    assert len(gridbox.decode(outputs, FACEDETECTIR, 0.4)[0]) == 1


def test_the_outputs_are_not_changed_and_the_result_is_not_a_view():
    outputs = oracle.random_grid(np.random.default_rng(0), 1, 15, 24, 0.2)
    before = {name: array.copy() for name, array in outputs.items()}
    first, _ = gridbox.decode(outputs, FACEDETECTIR, 0.2)
    kept = first.copy()
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, before[name])
        array[:] = 0
    gridbox.decode(before, FACEDETECTIR, 0.2)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("cov", "bbox", "target"),
    [
        ((1, 15, 24), (4, 24, 15), 0),
        ((2, 15, 24), (4, 15, 24), 0),
        ((1, 15, 24), (4, 15, 24), 1),
        ((15, 24), (4, 15, 24), 0),
    ],
)
def test_wrong_shapes_are_a_clear_error(cov, bbox, target):
    with pytest.raises(ModelError, match=r"cov \(.*bbox \(.*expected"):
        gridbox.decode(
            {"cov": np.ones(cov, np.float32), "bbox": np.ones(bbox, np.float32)},
            replace(FACEDETECTIR, target=target),
            0.4,
        )


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    columns=st.integers(1, 60),
    threshold=st.floats(0.01, 1.0),
    reach=st.floats(0.1, 100.0),
)
def test_boxes_lie_in_the_image_and_scores_reach_the_threshold(seed, rows, columns, threshold, reach):
    rng = np.random.default_rng(seed)
    outputs = oracle.random_grid(rng, 1, rows, columns, 0.3)
    outputs["bbox"] *= np.float32(reach)
    contract = ModelContract("gridbox", net=(columns * 16, rows * 16))
    xyxy, confidence = gridbox.decode(outputs, contract, threshold)
    assert xyxy.shape == (len(confidence), 4)
    assert (xyxy >= 0).all()
    assert (xyxy[:, [0, 2]] <= columns * 16 - 1).all()
    assert (xyxy[:, [1, 3]] <= rows * 16 - 1).all()
    assert (xyxy[:, 2:] > xyxy[:, :2]).all()
    assert (confidence >= np.float32(threshold)).all()
    assert (confidence <= 1).all()
