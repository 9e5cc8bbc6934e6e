"""Obscured crops: what remains visible."""

import numpy as np
import pytest

from edge_agent.core.presence.crops import obscure

RNG = np.random.default_rng(1)
SHAPES = [(97, 61), (61, 97, 3), (8, 8), (3, 2), (1, 1), (320, 40)]


def image(shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_pixelate_keeps_only_the_means_of_blocks(shape):
    before = image(shape)
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


@pytest.mark.parametrize("shape", SHAPES)
def test_full_is_one_gray_level(shape):
    after = obscure(image(shape), "full")
    assert after.shape == shape and (after == after[0, 0]).all()


def test_off_returns_the_same_pixels():
    before = image((5, 5))
    assert obscure(before, "off") is before


def test_the_input_is_not_modified():
    before = image((50, 50))
    kept = before.copy()
    obscure(before, "pixelate")
    assert (before == kept).all()
