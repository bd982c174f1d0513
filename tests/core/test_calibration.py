"""Calibration error: how rows fall into bins, and that its interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.core.calibration import MINIMUM_IN_BIN, calibration
from airlock.core.uncertainty import TooFew


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), min_size=60, max_size=300),
    st.integers(2, 3),
    st.integers(0, 2**31),
)
def test_rows_of_one_score_share_a_bin_and_no_bin_is_thin(values: list[float], bins: int, seed: int) -> None:
    scores = np.array(values)
    labels = np.random.default_rng(seed).integers(0, 2, scores.size).astype(float)
    found = calibration(labels, scores, bins)
    assert 1 <= len(found.bins) <= bins
    assert sum(each.rows for each in found.bins) == scores.size
    assert all(each.rows >= MINIMUM_IN_BIN for each in found.bins)
    assert [each.probability for each in found.bins] == sorted({each.probability for each in found.bins})
    assert 0 <= found.error.low <= found.error.estimate <= found.error.high <= 1
    assert found.error.estimate >= abs(found.in_the_large.estimate) - 1e-12


def test_distinct_scores_make_bins_of_equal_count() -> None:
    scores = np.random.default_rng(2).random(1000)
    assert [each.rows for each in calibration(np.zeros(1000), scores, 10).bins] == [100] * 10


def test_too_few_rows_for_the_bins() -> None:
    with pytest.raises(TooFew, match="10 bins need at least 200"):
        calibration(np.zeros(199), np.linspace(0, 1, 199), 10)


@pytest.mark.parametrize("off", [0.0, 0.08])
def test_the_interval_holds_the_truth(off: float) -> None:
    """300 samples of 1,000 rows whose every chance is ``off`` above its score; each bound misses <= 5 %; seed 50."""
    rng, misses = np.random.default_rng(50), np.zeros(2)
    for _ in range(300):
        scores = rng.beta(2, 6, 1000) * 0.9
        labels = (rng.random(1000) < scores + off).astype(float)
        error = calibration(labels, scores, 10).error
        misses += [error.low > off, error.high < off]
    assert (misses / 300 <= 0.05).all()


def test_certain_scores_that_are_right_are_calibrated() -> None:
    labels = np.repeat([0.0, 1.0], 50)
    assert calibration(labels, labels, 2).error == (0, 0, 0)
