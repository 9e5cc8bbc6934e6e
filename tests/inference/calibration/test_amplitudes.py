"""Histograms of magnitudes, and the amplitude that INT8 is made to reach."""

import numpy as np

from edge_agent.inference.calibration.amplitudes import BINS, Amplitudes


def counted(*parts: np.ndarray) -> Amplitudes:
    found = Amplitudes()
    for part in parts:
        found.add(part.astype(np.float32))
    return found


def test_a_growing_range_loses_no_value() -> None:
    rng = np.random.default_rng(1)
    small, large = rng.normal(0, 1, 5000), rng.normal(0, 40, 5000)
    growing, at_once = counted(small, large), counted(large, small)
    assert growing.largest == at_once.largest == np.abs(large).astype(np.float32).max()
    for share in (0.5, 0.9, 0.999, 1.0):
        exact = np.quantile(np.abs(np.concatenate((small, large))), share)
        assert abs(growing.percentile(share) - exact) <= 3 * growing.largest / BINS + 0.01 * exact
        assert abs(growing.percentile(share) - at_once.percentile(share)) <= 2 * growing.largest / BINS
    assert (growing.low, growing.high) == (at_once.low, at_once.high)


def test_entropy_clips_outliers_but_not_a_flat_distribution() -> None:
    rng = np.random.default_rng(2)
    body = np.abs(rng.normal(0, 1, 200_000))
    with_outliers = counted(body, np.full(20, 60.0))
    assert 2.0 < with_outliers.entropy() < 10.0
    assert with_outliers.full_scale() >= with_outliers.percentile(0.999) > 3.0
    flat = counted(rng.uniform(0, 7, 200_000))
    assert flat.full_scale() > 6.5


def test_at_most_one_value_in_a_thousand_is_clipped() -> None:
    rng = np.random.default_rng(3)
    for heavy in (rng.standard_t(1.5, 300_000), rng.exponential(1, 300_000) ** 3):
        chosen = counted(heavy).full_scale()
        assert (np.abs(heavy) > chosen * 1.001).mean() <= 0.001


def test_no_values_and_zeros_have_amplitude_zero() -> None:
    assert counted().full_scale() == 0.0
    assert counted(np.zeros(10), np.zeros(0)).full_scale() == 0.0
    assert counted(np.zeros(10), np.full(3, -2.0)).full_scale() == 2.0
