"""The gates' statistics against published figures, other implementations, and tables worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from airlock.core.bootstrap import bootstrap_gain
from airlock.core.calibration import calibration
from airlock.core.comparisons import benjamini_hochberg, difference_of_shares
from airlock.core.roc import covariance, placements
from airlock.core.spec import Metric
from airlock.core.stats import quantile_interval, wilson

NORMAL = (33, 6, 6, 11, 2)
ABNORMAL = (3, 2, 2, 11, 33)
"""Hanley and McNeil (1982), table I: 109 CT images, rated from definitely normal to definitely abnormal."""


def rated() -> tuple[np.ndarray, np.ndarray]:
    scores = np.repeat([*range(5), *range(5)], [*NORMAL, *ABNORMAL]) / 4
    return np.repeat([0.0, 1.0], [sum(NORMAL), sum(ABNORMAL)]), scores


class TestDeLong:
    def test_hanley_and_mcneil(self) -> None:
        """The area is in the paper; its DeLong error and interval are those of Stata's ``roctab``, on the same data."""
        labels, scores = rated()
        found = placements(labels, scores)
        error = math.sqrt(covariance(found, found)[0, 0])
        assert found.area == pytest.approx(0.8932, abs=5e-5)
        assert error == pytest.approx(0.0307, abs=5e-5)
        half = 1.959964 * error
        assert (found.area - half, found.area + half) == pytest.approx((0.83295, 0.95339), abs=1e-5)

    def test_a_pair_against_the_jackknife(self) -> None:
        """Leaving out one row of a class at a time gives DeLong's covariance; the areas are scikit-learn's."""
        rng = np.random.default_rng(9)
        labels = (rng.random(70) < 0.4).astype(float)
        first = np.round(labels + rng.normal(0, 1.2, 70), 1)
        second = np.round(labels + rng.normal(0, 1.8, 70), 1)

        def gain(rows: np.ndarray) -> float:
            mine, theirs = (sklearn_metrics.roc_auc_score(labels[rows], scores[rows]) for scores in (first, second))
            return float(mine - theirs)

        whole, variance = gain(np.arange(70)), 0.0
        for label in (0, 1):
            left_out = [gain(np.delete(np.arange(70), row)) for row in np.flatnonzero(labels == label)]
            rows = len(left_out)
            pseudo_values = rows * whole - (rows - 1) * np.array(left_out)
            variance += np.var(pseudo_values, ddof=1) / rows
        mine, other = placements(labels, first), placements(labels, second)
        assert mine.area - other.area == pytest.approx(whole)
        assert np.array([1, -1]) @ covariance(mine, other) @ np.array([1, -1]) == pytest.approx(variance)


class TestShares:
    @given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.9, 0.975, 0.995]))
    def test_wilson_against_statsmodels(self, n: int, share: float, confidence: float) -> None:
        hits = round(share * n)
        low, high = proportion_confint(hits, n, alpha=2 * (1 - confidence), method="wilson")
        assert wilson(hits, n, confidence) == pytest.approx((hits / n, max(0, low), min(1, high)), abs=1e-12)

    @pytest.mark.parametrize(
        ("first", "second", "low", "high"),
        [
            ((56, 70), (48, 80), 0.0524, 0.3339),
            ((9, 10), (3, 10), 0.1705, 0.8090),
            ((10, 10), (0, 20), 0.6791, 1.0),
            ((0, 10), (0, 20), -0.1611, 0.2775),
        ],
    )
    def test_newcombes_own_examples(
        self, first: tuple[int, int], second: tuple[int, int], low: float, high: float
    ) -> None:
        """Newcombe (1998), table II, method 10: 95 % intervals."""
        difference = first[0] / first[1] - second[0] / second[1]
        expected = (difference, low, high)
        assert difference_of_shares(first, second, 0.975) == pytest.approx(expected, abs=6e-5)

    @given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
    def test_newcombe_against_statsmodels(self, n: int, m: int, one: float, two: float) -> None:
        first, second = (round(one * n), n), (round(two * m), m)
        low, high = confint_proportions_2indep(*first, *second, method="newcomb", alpha=0.1)
        found = difference_of_shares(first, second, 0.95)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


class TestFalseDiscoveryRate:
    def test_benjamini_and_hochbergs_own_example(self) -> None:
        """Benjamini and Hochberg (1995), section 3.2: at q = 0.05 the first four of fifteen are rejected."""
        p_values = [
            *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
            *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
        ]
        rejected = [adjusted <= 0.05 for adjusted in benjamini_hochberg(p_values)]
        assert rejected == [True] * 4 + [False] * 11

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
    def test_against_statsmodels(self, p_values: list[float]) -> None:
        expected = multipletests(p_values, method="fdr_bh")[1]
        assert benjamini_hochberg(p_values) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("p_value", [math.nan, -0.1, 1.1])
    def test_what_is_no_p_value_is_refused(self, p_value: float) -> None:
        with pytest.raises(ValueError, match="between 0 and 1"):
            benjamini_hochberg([0.5, p_value])

    def test_nothing_to_adjust(self) -> None:
        assert benjamini_hochberg([]) == ()


@pytest.mark.parametrize(("n", "q"), [(100, 0.5), (500, 0.9), (1000, 0.99), (5000, 0.99)])
def test_quantile_bounds_against_the_exact_binomial_ones_of_scipy(n: int, q: float) -> None:
    """Within two places in the order of those that scipy takes from the binomial distribution itself."""
    values = np.arange(float(n))
    exact = scipy_stats.quantile_test(values, p=q).confidence_interval(confidence_level=0.9)
    found = quantile_interval(values, q, confidence=0.95)
    assert abs(found.low - exact.low) <= 2
    assert abs(found.high - exact.high) <= 2


class TestCalibration:
    def test_worked_by_hand(self) -> None:
        """40 rows at 0.2 of which 12 are positive, 40 at 0.7 of which 30 are, 20 at 0.9 of which all are.

        ECE = 0.4 * |12/40 - 0.2| + 0.4 * |30/40 - 0.7| + 0.2 * |20/20 - 0.9| = 0.04 + 0.02 + 0.02.
        In the large: 62/100 - (8 + 28 + 18)/100.
        """
        scores = np.repeat([0.2, 0.7, 0.9], [40, 40, 20])
        labels = np.repeat([1.0, 0.0, 1.0, 0.0, 1.0], [12, 28, 30, 10, 20])
        found = calibration(labels, scores, 3)
        assert found.measured == pytest.approx(0.08)
        assert found.in_the_large.estimate == pytest.approx(0.08)
        assert [each.rows for each in found.bins] == [40, 40, 20]
        assert [each.share for each in found.bins] == [0.3, 0.75, 1.0]

    def test_against_scikit_learn(self) -> None:
        rng = np.random.default_rng(3)
        scores = rng.beta(2, 5, 2000)
        labels = (rng.random(2000) < scores**1.3).astype(float)
        shares, probabilities = calibration_curve(labels, scores, n_bins=10, strategy="quantile")
        assert calibration(labels, scores, 10).measured == pytest.approx(np.mean(np.abs(shares - probabilities)))


def mann_whitney(labels: np.ndarray, scores: np.ndarray) -> float:
    positives = labels.sum()
    ranks = scipy_stats.rankdata(scores)[labels == 1].sum() - positives * (positives + 1) / 2
    return float(ranks / positives / (labels.size - positives))


METRICS: dict[Metric, Any] = {
    "roc_auc": mann_whitney,
    "pr_auc": sklearn_metrics.average_precision_score,
    "log_loss": lambda labels, scores: np.log(np.where(labels == 1, scores, 1 - scores)).mean(),
    "brier": lambda labels, scores: -((labels - scores) ** 2).mean(),
    "rmse": lambda labels, scores: -np.sqrt(((labels - scores) ** 2).mean()),
    "mae": lambda labels, scores: -np.abs(labels - scores).mean(),
    "r2": lambda labels, scores: 1 - ((labels - scores) ** 2).sum() / ((labels - labels.mean()) ** 2).sum(),
}
"""Higher is better for each of them here."""


@pytest.mark.parametrize("metric", METRICS)
def test_the_bootstrap_against_that_of_scipy(metric: Metric) -> None:
    """Both BCa, paired, of 2,000 resamples: what is left between them is the resamples' own noise."""
    rng = np.random.default_rng(4)
    truth = rng.uniform(0.05, 0.95, 120)
    labels = (rng.random(120) < truth).astype(float)
    first, second = (np.clip(truth + rng.normal(0, spread, 120), 0.01, 0.99) for spread in (0.1, 0.35))

    def gain(rows: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> float:
        return float(METRICS[metric](rows, mine) - METRICS[metric](rows, theirs))

    reference = scipy_stats.bootstrap(
        (labels, first, second),
        gain,
        n_resamples=2000,
        paired=True,
        vectorized=False,
        confidence_level=0.9,
        method="BCa",
        rng=np.random.default_rng(5),
    )
    found = bootstrap_gain(metric, labels, first, second, confidence=0.95)
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert found.estimate == pytest.approx(gain(labels, first, second))
    assert found.low == pytest.approx(reference.confidence_interval.low, abs=0.06 * width)
    assert found.high == pytest.approx(reference.confidence_interval.high, abs=0.06 * width)


def test_the_bootstrap_corrects_bias_and_skew_as_that_of_scipy_does() -> None:
    """40 rows whose errors have a long tail: here BCa lies far from the plain percentiles."""
    rng = np.random.default_rng(6)
    first, second = rng.lognormal(0, 0.8, 40), rng.lognormal(0.3, 1.1, 40)
    zeros = np.zeros(40)

    def gain(mine: np.ndarray, theirs: np.ndarray, axis: int = -1) -> Any:
        return np.sqrt((theirs**2).mean(axis=axis)) - np.sqrt((mine**2).mean(axis=axis))

    bca, percentile = (
        scipy_stats.bootstrap(
            (first, second),
            gain,
            n_resamples=20_000,
            paired=True,
            vectorized=True,
            confidence_level=0.9,
            method=method,
            rng=np.random.default_rng(5),
        ).confidence_interval
        for method in ("BCa", "percentile")
    )
    width = bca.high - bca.low
    assert abs(bca.high - percentile.high) > 0.1 * width
    found = bootstrap_gain("rmse", zeros, first, second, confidence=0.95, resamples=20_000)
    assert found.low == pytest.approx(bca.low, abs=0.05 * width)
    assert found.high == pytest.approx(bca.high, abs=0.05 * width)
