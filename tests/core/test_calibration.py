"""Calibration error: how rows fall into bins, and that its interval holds the truth."""

from __future__ import annotations

from collections.abc import Callable

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
    assert found.measured >= abs(found.in_the_large.estimate) - 1e-12


def test_distinct_scores_make_bins_of_equal_count() -> None:
    scores = np.random.default_rng(2).random(1000)
    assert [each.rows for each in calibration(np.zeros(1000), scores, 10).bins] == [100] * 10


def test_too_few_rows_for_the_bins() -> None:
    with pytest.raises(TooFew, match="10 bins need at least 200"):
        calibration(np.zeros(199), np.linspace(0, 1, 199), 10)


def _shifted(scores: np.ndarray) -> np.ndarray:
    return scores + 0.08


def _steep(scores: np.ndarray) -> np.ndarray:
    return np.clip(scores.mean() + (scores - scores.mean()) * 1.5, 0, 1)


def _top(scores: np.ndarray) -> np.ndarray:
    """Wrong in the top tenth alone."""
    return np.where(scores > 0.42, scores - 0.3, scores)


@pytest.mark.parametrize("truth", [lambda scores: scores, _shifted, _steep, _top])
@pytest.mark.parametrize("rows", [400, 1500])
def test_the_interval_holds_the_truth(truth: Callable[[np.ndarray], np.ndarray], rows: int) -> None:
    """300 samples; each bound misses 5 % at most, three standard errors allowed; seed 50."""
    rng, misses = np.random.default_rng(50), np.zeros(2)
    scores = rng.beta(2, 6, rows) * 0.9
    chances = truth(scores)
    places = np.argsort(np.argsort(scores)) * 10 // rows
    error = np.abs(np.bincount(places, chances - scores)).sum() / rows
    for _ in range(300):
        found = calibration((rng.random(rows) < chances).astype(float), scores, 10).error
        misses += [found.low > error + 1e-12, found.high < error]
    assert (misses / 300 <= 0.088).all()


def test_chance_is_taken_off() -> None:
    """200 samples of 1,000 rows of a perfect model and of one that is 0.08 off; seed 51."""
    rng, debiased, measured = np.random.default_rng(51), np.zeros(2), np.zeros(2)
    for _ in range(200):
        scores = rng.beta(2, 6, 1000) * 0.9
        for place, off in enumerate((0.0, 0.08)):
            found = calibration((rng.random(1000) < scores + off).astype(float), scores, 10)
            debiased[place] += found.error.estimate / 200
            measured[place] += found.measured / 200
    assert measured[0] > 0.025
    assert debiased[0] < 0.6 * measured[0]
    assert debiased[1] == pytest.approx(0.08, abs=0.006)


@pytest.mark.parametrize(("rows", "bound", "least"), [(2000, 0.05, 0.95), (5000, 0.03, 0.9)])
def test_a_perfect_model_passes_where_there_are_rows_enough(rows: int, bound: float, least: float) -> None:
    """200 samples; seed 52. By bounds around the measured error 2 % passed 0.05 with 2,000 rows."""
    rng, passed = np.random.default_rng(52), 0
    for _ in range(200):
        scores = rng.beta(2, 6, rows) * 0.9
        passed += calibration((rng.random(rows) < scores).astype(float), scores, 10).error.high <= bound
    assert passed / 200 >= least


def test_a_model_on_the_bound_seldom_passes_and_seldom_fails() -> None:
    """300 samples of 2,000 rows of a model that is 0.05 off; seed 53."""
    rng, passed, failed = np.random.default_rng(53), 0, 0
    for _ in range(300):
        scores = rng.beta(2, 6, 2000) * 0.9
        error = calibration((rng.random(2000) < scores + 0.05).astype(float), scores, 10).error
        passed += error.high <= 0.05
        failed += error.low > 0.05
    assert max(passed, failed) / 300 <= 0.088


def test_certain_scores_that_are_right_are_calibrated_as_far_as_the_rows_show() -> None:
    for rows in (50, 5000):
        labels = np.repeat([0.0, 1.0], rows)
        error = calibration(labels, labels, 2).error
        assert (error.low, error.estimate) == (0, 0)
        assert 0.5 / rows < error.high < 10 / rows, "no miss in so many rows does not mean that there is none"
