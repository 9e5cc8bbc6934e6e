"""Quality of faces, and their crops."""

from dataclasses import replace
from datetime import datetime, timezone
from typing import Tuple

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.frame import LIMITED_RANGE, Image, Levels
from edge_agent.core.presence.crops import (
    CropParams,
    acceptable,
    assess,
    better,
    clearly_better,
    cut,
    laplacian_variance,
    obscure,
)
from edge_agent.core.types import FrameInfo, Moment, Quality

INFO = FrameInfo("door", 1, Moment(0.0, datetime(2026, 1, 1, tzinfo=timezone.utc)), 640, 480)
QUALITY = Quality(0.5, 100.0, 80, 0.5, False)


def textured(height: int = 480, width: int = 640, mean: float = 128.0, seed: int = 1) -> np.ndarray:
    """Soft blobs, as faces have: (H, W) uint8 around `mean`."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width))
    soft = cv2.GaussianBlur(noise, (0, 0), 3.0)
    return np.clip(mean + soft / soft.std() * 25, 0, 255).astype(np.uint8)


def box(left: float, top: float, side: float) -> np.ndarray:
    return np.array([left, top, left + side, top + side], np.float32)


FACE = box(200, 150, 100)


def score(pixels: np.ndarray, xyxy: np.ndarray = FACE, confidence: float = 0.9) -> float:
    return assess(Image(pixels), xyxy, confidence).score


def test_sharper_larger_more_confident_and_better_lit_faces_score_higher() -> None:
    good = score(textured())
    assert 0.0 < good < 1.0
    assert score(cv2.GaussianBlur(textured(), (0, 0), 4.0)) < 0.5 * good
    assert score(textured(), box(200, 150, 30)) < good
    assert score(textured(), confidence=0.4) < good
    assert score(textured(mean=20)) < good
    assert score(textured(mean=240)) < good


@pytest.mark.parametrize("xyxy", [box(0, 150, 100), box(200, -20, 100), box(545, 150, 100), box(200, 379.5, 100)])
def test_a_face_at_the_edge_scores_low(xyxy: np.ndarray) -> None:
    quality = assess(Image(textured()), xyxy, 0.9)
    assert quality.edge
    assert quality.score < 0.5 * score(textured())


def test_fields_of_quality() -> None:
    pixels = np.full((480, 640), 51, np.uint8)
    quality = assess(Image(pixels), np.array([100, 100, 180, 210], np.float32), 0.9)
    assert quality == Quality(0.0, 0.0, 80, pytest.approx(0.2), False)


@pytest.mark.parametrize("xyxy", [box(700, 500, 50), box(-90, -90, 50), box(100, 100, 0), np.array([90, 90, 50, 50])])
def test_a_box_without_pixels_scores_zero_or_is_at_the_edge(xyxy: np.ndarray) -> None:
    quality = assess(Image(textured()), xyxy, 0.9)
    assert quality.score == 0.0 or quality.edge


@pytest.mark.parametrize("levels", [LIMITED_RANGE, Levels(0.0, 0.25), Levels(64.0, 1 / 16)])
def test_levels_change_only_the_rounding(levels: Levels) -> None:
    gray = textured()
    dtype = np.uint8 if levels is LIMITED_RANGE else np.uint16
    raw = np.rint(gray / levels.gain + levels.offset).astype(dtype)
    plain, levelled = assess(Image(gray), FACE, 0.9), assess(Image(raw, levels), FACE, 0.9)
    assert levelled.score == pytest.approx(plain.score, rel=0.15)
    assert levelled.exposure == pytest.approx(plain.exposure, abs=0.01)
    crops = [cut(p, FACE, CropParams(), QUALITY, INFO).pixels for p in (Image(gray), Image(raw, levels))]
    assert np.abs(crops[0].astype(int) - crops[1]).max() <= 1


def test_gray_and_colour_score_alike() -> None:
    gray = textured()
    assert score(np.dstack([gray] * 3)) == pytest.approx(score(gray), rel=0.02)


def test_laplacian_variance_is_that_of_opencv() -> None:
    gray = textured().astype(np.float32)
    expected = cv2.Laplacian(gray, cv2.CV_32F)[1:-1, 1:-1].var()
    assert laplacian_variance(gray) == pytest.approx(expected, rel=1e-3)
    assert laplacian_variance(gray[:2]) == 0.0


def test_a_large_face_is_averaged_before_its_sharpness_is_measured() -> None:
    noise = np.random.default_rng(2).normal(128, 10, (480, 640)).astype(np.uint8)
    assert assess(Image(noise), box(50, 50, 300), 0.9).sharpness == pytest.approx(20 * 10**2 / 4, rel=0.1)


def test_better_and_clearly_better() -> None:
    slightly, clearly = replace(QUALITY, score=0.55), replace(QUALITY, score=0.65)
    assert better(slightly, QUALITY)
    assert not better(QUALITY, QUALITY)
    assert not clearly_better(slightly, QUALITY)
    assert clearly_better(clearly, QUALITY)


def test_acceptable_needs_size_and_score() -> None:
    params = CropParams(min_face_px=80, min_quality=0.5)
    assert acceptable(QUALITY, params)
    assert not acceptable(replace(QUALITY, face_px=79), params)
    assert not acceptable(replace(QUALITY, score=0.49), params)


def test_a_crop_owns_its_pixels_and_shows_the_face_with_its_margin() -> None:
    pixels = textured()
    crop = cut(Image(pixels), FACE, CropParams(margin=0.25), QUALITY, INFO)
    np.testing.assert_array_equal(crop.pixels, pixels[125:275, 175:325])
    assert not np.shares_memory(crop.pixels, pixels)
    assert crop.pixels.flags.c_contiguous
    assert (crop.box.left, crop.box.top) == (round(175 / 640, 4), round(125 / 480, 4))
    assert (crop.box.right, crop.box.bottom) == (round(325 / 640, 4), round(275 / 480, 4))
    assert (crop.quality, crop.info) == (QUALITY, INFO)


def test_a_large_crop_is_downscaled_by_area_averaging() -> None:
    pixels = textured()
    crop = cut(Image(pixels), box(100, 100, 240), CropParams(margin=0, max_side_px=80), QUALITY, INFO)
    expected = cv2.resize(pixels[100:340, 100:340], (80, 80), interpolation=cv2.INTER_AREA)
    assert np.abs(crop.pixels.astype(int) - expected).max() <= 1


sides = st.floats(-400, 900, allow_nan=False)


@settings(max_examples=200)
@given(
    st.tuples(sides, sides, sides, sides),
    st.sampled_from([(480, 640), (33, 700), (2, 2), (1, 1)]),
    st.sampled_from([32, 100, 320]),
    st.booleans(),
)
def test_any_box_gives_a_crop_within_its_bounds(
    xyxy: Tuple[float, float, float, float], shape: Tuple[int, int], max_side_px: int, color: bool
) -> None:
    pixels = np.full((*shape, 3) if color else shape, 77, np.uint8)
    face = np.array(xyxy, np.float32)
    quality = assess(Image(pixels), face, 0.9)
    crop = cut(Image(pixels), face, CropParams(max_side_px=max_side_px), quality, INFO)
    longer_side = max(crop.pixels.shape[:2])
    # Only a needle, thinner than the factor, stays longer than asked: there is nothing to average across.
    assert longer_side <= max_side_px or min(crop.pixels.shape[:2]) == 1
    assert (crop.pixels == 77).all()
    assert crop.pixels.dtype == np.uint8
    assert 0.0 <= crop.box.left < crop.box.right <= 1.0
    assert 0.0 <= crop.box.top < crop.box.bottom <= 1.0
    assert 0.0 <= quality.score <= 1.0


# --- Privacy.

PRIVACY_RNG = np.random.default_rng(1)
PRIVACY_SHAPES = [(97, 61), (61, 97, 3), (8, 8), (3, 2), (1, 1), (320, 40)]


def random_image(shape):
    return PRIVACY_RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", PRIVACY_SHAPES)
def test_pixelate_keeps_only_the_means_of_blocks(shape):
    before = random_image(shape)
    after = obscure(before, "pixelate")
    assert after.shape == before.shape and after.dtype == np.uint8 and after.flags["C_CONTIGUOUS"]
    side = -(-max(shape[:2]) // 8)
    for y in range(0, shape[0], side):
        for x in range(0, shape[1], side):
            block = after[y : y + side, x : x + side]
            assert (block == block[0, 0]).all()
            mean = before[y : y + side, x : x + side].reshape(-1, *shape[2:]).mean(axis=0)
            assert np.abs(block[0, 0] - mean).max() <= 0.5
    assert len(np.unique(after.reshape(-1, *shape[2:]), axis=0)) <= 64


@pytest.mark.parametrize("shape", PRIVACY_SHAPES)
def test_full_is_one_gray_level(shape):
    after = obscure(random_image(shape), "full")
    assert after.shape == shape and (after == after[0, 0]).all()


def test_privacy_off_returns_the_same_pixels():
    before = random_image((5, 5))
    assert obscure(before, "off") is before


def test_obscure_does_not_modify_its_input():
    before = random_image((50, 50))
    kept = before.copy()
    obscure(before, "pixelate")
    assert (before == kept).all()
