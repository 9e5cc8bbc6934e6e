"""CenterFace decoding, compared with a scalar reference implementation, and edge cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.detection import centerface
from edge_agent.core.detection.model_contract import CENTERFACE
from edge_agent.errors import ModelError


def blank(rows=64, columns=96):
    return {
        "heatmap": np.zeros((1, rows, columns), np.float32),
        "scale": np.zeros((2, rows, columns), np.float32),
        "offset": np.zeros((2, rows, columns), np.float32),
    }


def random_outputs(rng, rows=64, columns=96, lit=0.005):
    outputs = blank(rows, columns)
    heat = rng.random((1, rows, columns))
    outputs["heatmap"][:] = np.where(rng.random(heat.shape) < lit, heat, heat * 0.05)
    outputs["scale"][:] = rng.uniform(-1, 5, outputs["scale"].shape)
    outputs["offset"][:] = rng.uniform(-1, 1, outputs["offset"].shape)
    return outputs


def literal(outputs, threshold):
    """The formula of the contract, cell by cell: height and y first, stride 4."""
    heat, scale, offset = (outputs[name].tolist() for name in ("heatmap", "scale", "offset"))
    rows, columns = len(heat[0]), len(heat[0][0])
    found = []
    for i in range(rows):
        for j in range(columns):
            if heat[0][i][j] > threshold:
                y, x = (i + offset[0][i][j] + 0.5) * 4, (j + offset[1][i][j] + 0.5) * 4
                h, w = math.exp(scale[0][i][j]) * 4, math.exp(scale[1][i][j]) * 4
                left, right = (min(max(v, 0), columns * 4) for v in (x - w / 2, x + w / 2))
                top, bottom = (min(max(v, 0), rows * 4) for v in (y - h / 2, y + h / 2))
                if right > left and bottom > top:
                    found.append((left, top, right, bottom, heat[0][i][j]))
    return np.array(found).reshape(-1, 5)


@pytest.mark.parametrize(("rows", "columns", "grids"), [(64, 96, 300), (72, 96, 200), (8, 8, 2000)])
def test_agrees_with_the_literal_loop(rows, columns, grids):
    rng = np.random.default_rng(rows)
    found = 0
    for _ in range(grids):
        outputs = random_outputs(rng, rows, columns, lit=40 / (rows * columns))
        threshold = rng.choice([0.2, 0.35, 0.5])
        xyxy, confidence = centerface.decode(outputs, CENTERFACE, threshold)
        expected = literal(outputs, threshold)
        np.testing.assert_allclose(xyxy, expected[:, :4], atol=2e-3)
        np.testing.assert_array_equal(confidence, expected[:, 4].astype(np.float32))
        found += len(xyxy)
    assert found > grids


def test_height_and_y_come_first():
    outputs = blank()
    outputs["heatmap"][0, 10, 20] = 0.9
    outputs["scale"][:, 10, 20] = np.log([10, 5])
    outputs["offset"][:, 10, 20] = [0.25, -0.25]
    xyxy, confidence = centerface.decode(outputs, CENTERFACE, 0.35)
    np.testing.assert_allclose(xyxy, [[81 - 10, 43 - 20, 81 + 10, 43 + 20]], atol=1e-4)
    np.testing.assert_allclose(confidence, [0.9])
    assert xyxy.dtype == confidence.dtype == np.float32


def test_heat_equal_to_the_threshold_is_not_enough():
    outputs = blank()
    outputs["heatmap"][0, 3, 3] = np.float32(0.35)
    assert len(centerface.decode(outputs, CENTERFACE, float(np.float32(0.35)))[0]) == 0
    assert len(centerface.decode(outputs, CENTERFACE, 0.34)[0]) == 1


def test_a_face_over_the_edge_keeps_its_inner_edge():
    outputs = blank()
    outputs["heatmap"][0, 0, 0] = 1
    outputs["scale"][:, 0, 0] = np.log(10)
    xyxy, _ = centerface.decode(outputs, CENTERFACE, 0.35)
    np.testing.assert_allclose(xyxy, [[0, 0, 22, 22]], atol=1e-4)


def test_nan_is_no_face_and_an_infinite_face_is_clipped():
    outputs = blank()
    outputs["heatmap"][0, 5, :4] = [np.nan, 1, 1, 1]
    outputs["scale"][:, 5, 1] = np.nan
    outputs["offset"][:, 5, 2] = np.inf
    outputs["scale"][:, 5, 3] = np.inf
    xyxy, _ = centerface.decode(outputs, CENTERFACE, 0.35)
    np.testing.assert_array_equal(xyxy, [[0, 0, 384, 256]])


@pytest.mark.parametrize("name", ["heatmap", "scale", "offset"])
def test_wrong_shapes_are_a_clear_error(name):
    outputs = blank()
    outputs[name] = outputs[name][:, :, :-1]
    with pytest.raises(ModelError, match=r"heatmap \(.*expected"):
        centerface.decode(outputs, CENTERFACE, 0.35)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 80),
    columns=st.integers(1, 80),
    threshold=st.floats(0.01, 1.0),
)
def test_boxes_lie_in_the_image_and_scores_exceed_the_threshold(seed, rows, columns, threshold):
    outputs = random_outputs(np.random.default_rng(seed), rows, columns, lit=0.1)
    xyxy, confidence = centerface.decode(outputs, CENTERFACE, threshold)
    assert xyxy.shape == (len(confidence), 4)
    assert (xyxy >= 0).all()
    assert (xyxy <= np.array([columns, rows] * 2) * 4).all()
    assert (xyxy[:, 2:] > xyxy[:, :2]).all()
    assert (confidence > np.float32(threshold)).all()
    assert (confidence <= 1).all()
