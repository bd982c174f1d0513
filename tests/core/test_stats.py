"""Metrics and intervals against scikit-learn, scipy and definitions written out."""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn import metrics as sklearn_metrics

from airlock.core import stats
from airlock.core.roc import covariance, placements
from airlock.core.spec import METRICS, Metric, Task
from airlock.core.stats import (
    HIGHER_IS_BETTER,
    metric_gain,
    metric_interval,
    quantile_interval,
    relative_gain,
    roc_auc,
    row_influence,
    shortfall_p_value,
    wilson,
)
from airlock.core.uncertainty import TooFew

RNG = np.random.default_rng(8)
TRUTH = RNG.uniform(0, 1, 600)
LABELS = (RNG.uniform(size=600) < TRUTH).astype(float)
SCORES = np.round(np.clip(TRUTH + RNG.normal(0, 0.3, 600), 0, 1), 2)  # rounded: many ties
OTHER = np.clip(TRUTH + RNG.normal(0, 0.5, 600), 0, 1)
VALUES = RNG.normal(10, 3, 600)
GUESSES = VALUES + RNG.normal(0.2, 1, 600)
WORSE = VALUES + RNG.normal(0.2, 2, 600)

REFERENCES: dict[Metric, Any] = {
    "roc_auc": sklearn_metrics.roc_auc_score,
    "pr_auc": sklearn_metrics.average_precision_score,
    "log_loss": lambda labels, scores: sklearn_metrics.log_loss(labels, np.clip(scores, 2**-23, 1 - 2**-23)),
    "brier": sklearn_metrics.brier_score_loss,
    "accuracy": lambda labels, scores: sklearn_metrics.accuracy_score(labels, scores >= 0.5),
    "rmse": sklearn_metrics.root_mean_squared_error,
    "mae": sklearn_metrics.mean_absolute_error,
    "r2": sklearn_metrics.r2_score,
}


def rows_of(metric: Metric) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (LABELS, SCORES, OTHER) if metric in METRICS[Task.CLASSIFICATION] else (VALUES, GUESSES, WORSE)


def test_every_metric_of_the_spec_is_tried() -> None:
    assert set(REFERENCES) == set(get_args(Metric)) == {name for names in METRICS.values() for name in names}


@pytest.mark.parametrize("metric", REFERENCES)
def test_estimates_are_those_of_scikit_learn(metric: Metric) -> None:
    labels, scores, other = rows_of(metric)
    expected, second = REFERENCES[metric](labels, scores), REFERENCES[metric](labels, other)
    interval = metric_interval(metric, labels, scores)
    assert interval.estimate == pytest.approx(expected, rel=1e-9)
    assert interval.low < interval.estimate < interval.high
    gain = metric_gain(metric, labels, scores, other)
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    assert gain.estimate == pytest.approx(sign * (expected - second), rel=1e-9)
    assert gain.low > 0, "the better model is shown to be better"


@pytest.mark.parametrize("metric", REFERENCES)
def test_a_model_against_itself_gains_nothing(metric: Metric) -> None:
    labels, scores, _ = rows_of(metric)
    assert metric_gain(metric, labels, scores, scores) == (0, 0, 0)


@pytest.mark.parametrize("metric", REFERENCES)
def test_swapping_the_models_turns_the_gain_round(metric: Metric) -> None:
    labels, scores, other = rows_of(metric)
    there, back = metric_gain(metric, labels, scores, other), metric_gain(metric, labels, other, scores)
    assert (there.estimate, there.low, there.high) == pytest.approx((-back.estimate, -back.high, -back.low))


class TestDeLong:
    def test_variance_by_its_definition(self) -> None:
        """Every pair of a positive and a negative row, written out as in DeLong et al. (1988)."""
        labels, first, second = LABELS[:80], SCORES[:80], OTHER[:80]
        components = []
        for scores in (first, second):
            high, low = scores[labels == 1], scores[labels == 0]
            wins = np.array([[(a > b) + 0.5 * (a == b) for b in low] for a in high])
            components.append((wins.mean(), wins.mean(axis=1), wins.mean(axis=0)))
        (auc, rows, columns), (other, other_rows, other_columns) = components
        expected = np.cov(rows, other_rows) / len(rows) + np.cov(columns, other_columns) / len(columns)
        mine, theirs = placements(labels, first), placements(labels, second)
        assert (mine.area, theirs.area) == pytest.approx((auc, other))
        assert covariance(mine, theirs) == pytest.approx(expected)

    def test_the_area_is_the_mann_whitney_statistic(self) -> None:
        high, low = SCORES[LABELS == 1], SCORES[LABELS == 0]
        statistic = scipy_stats.mannwhitneyu(high, low).statistic
        assert roc_auc(LABELS, SCORES) == pytest.approx(statistic / (high.size * low.size))

    def test_a_constant_reference_is_a_coin(self) -> None:
        gain = metric_gain("roc_auc", LABELS, SCORES, np.full(600, 0.3))
        assert gain == pytest.approx([value - 0.5 for value in metric_interval("roc_auc", LABELS, SCORES)])

    def test_bounds_miss_as_often_as_they_say(self) -> None:
        """2,000 samples of 200 rows with a true gain of 0; each bound misses about 5 %; seed 30."""
        rng, misses = np.random.default_rng(30), np.zeros(2)
        for _ in range(2000):
            signal = rng.normal(size=200)
            labels = (rng.random(200) < 1 / (1 + np.exp(-signal))).astype(float)
            first, second = signal + rng.normal(size=200), signal + rng.normal(size=200)
            gain = metric_gain("roc_auc", labels, first, second)
            misses += [gain.low > 0, gain.high < 0]
        assert (misses / 2000 < 0.065).all()
        assert (misses / 2000 > 0.035).all()

    @pytest.mark.parametrize("positives", [0, 1, 599, 600])
    def test_one_class_carries_nothing(self, positives: int) -> None:
        labels = (np.arange(600) < positives).astype(float)
        for metric in ("roc_auc", "pr_auc"):
            with pytest.raises(TooFew, match="at least 2 of each"):
                metric_interval(metric, labels, SCORES)
            with pytest.raises(TooFew):
                metric_gain(metric, labels, SCORES, OTHER)

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=4, max_size=40))
    def test_ties_count_half_whatever_the_sample(self, rows: list[tuple[bool, int]]) -> None:
        labels = np.array([float(label) for label, _ in rows])
        assume(2 <= labels.sum() <= len(rows) - 2)
        scores = np.array([float(score) for _, score in rows])
        pairs = itertools.product(scores[labels == 1], scores[labels == 0])
        expected = np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs])
        assert roc_auc(labels, scores) == pytest.approx(expected)
        assert roc_auc(labels, scores * 3 + 1) == pytest.approx(expected)
        assert roc_auc(labels, -scores) == pytest.approx(1 - expected)


class TestNormalApproximations:
    def test_paired_means_are_a_z_test_of_the_differences(self) -> None:
        gain = metric_gain("brier", LABELS, SCORES, OTHER, confidence=0.95)
        differences = (OTHER - LABELS) ** 2 - (SCORES - LABELS) ** 2
        low, high = scipy_stats.norm.interval(0.9, differences.mean(), scipy_stats.sem(differences))
        assert gain == pytest.approx((differences.mean(), low, high))

    @pytest.mark.parametrize("metric", ["rmse", "r2", "log_loss", "mae", "pr_auc", "accuracy"])
    def test_half_widths_agree_with_the_bootstrap_of_scipy(self, metric: Metric) -> None:
        labels, scores, other = rows_of(metric)
        sign = 1 if metric in HIGHER_IS_BETTER else -1

        def difference(truth: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> float:
            return sign * float(REFERENCES[metric](truth, mine) - REFERENCES[metric](truth, theirs))

        reference = scipy_stats.bootstrap(
            (labels, scores, other),
            difference,
            n_resamples=400,
            paired=True,
            vectorized=False,
            confidence_level=0.9,
            method="percentile",
            rng=np.random.default_rng(2),
        ).confidence_interval
        gain = metric_gain(metric, labels, scores, other, confidence=0.95)
        assert gain.high - gain.low == pytest.approx(reference.high - reference.low, rel=0.15)
        assert gain.low == pytest.approx(reference.low, abs=0.15 * (gain.high - gain.low))

    def test_the_average_precision_misses_as_often_as_it_says(self) -> None:
        """1,000 samples of 400 rows, a fifth of them positive, two equally good models; about 5 % a bound; seed 32."""
        rng, misses = np.random.default_rng(32), np.zeros(2)
        for _ in range(1000):
            signal = rng.normal(size=400)
            labels = (rng.random(400) < 1 / (1 + np.exp(2 - signal))).astype(float)
            first, second = signal + rng.normal(size=400), signal + rng.normal(size=400)
            gain = metric_gain("pr_auc", labels, np.round(first, 1), np.round(second, 1))
            misses += [gain.low > 0, gain.high < 0]
        assert (misses / 1000 < 0.07).all()
        assert (misses / 1000 > 0.03).all()

    def test_perfect_answers_have_no_spread(self) -> None:
        assert metric_interval("rmse", VALUES, VALUES) == (0, 0, 0)
        assert metric_interval("r2", VALUES, VALUES) == (1, 1, 1)

    def test_certain_and_wrong_costs_a_finite_log_loss(self) -> None:
        assert metric_interval("log_loss", LABELS, 1 - LABELS).estimate == pytest.approx(23 * math.log(2))

    def test_labels_without_spread_explain_nothing(self) -> None:
        with pytest.raises(TooFew, match="all labels are equal"):
            metric_interval("r2", np.ones(50), np.ones(50))

    @pytest.mark.parametrize("metric", REFERENCES)
    def test_no_rows(self, metric: Metric) -> None:
        empty = np.array([])
        with pytest.raises(TooFew, match="no rows"):
            metric_interval(metric, empty, empty)
        with pytest.raises(TooFew, match="no rows"):
            metric_gain(metric, empty, empty, empty)

    def test_one_row_has_no_spread_to_speak_of(self) -> None:
        with pytest.raises(TooFew, match="at least 2"):
            metric_interval("mae", np.ones(1), np.ones(1))

    def test_the_threshold_turns_probabilities_into_decisions(self) -> None:
        expected = sklearn_metrics.accuracy_score(LABELS, SCORES >= 0.7)
        assert metric_interval("accuracy", LABELS, SCORES, threshold=0.7).estimate == pytest.approx(expected)


class TestRelative:
    @pytest.mark.parametrize("metric", REFERENCES)
    def test_it_is_the_gain_as_a_share(self, metric: Metric) -> None:
        labels, scores, other = rows_of(metric)
        gain, share = metric_gain(metric, labels, scores, other), relative_gain(metric, labels, scores, other)
        reference = REFERENCES[metric](labels, other)
        assert share.estimate == pytest.approx(gain.estimate / reference)
        assert share.low < share.estimate < share.high

    @pytest.mark.parametrize("metric", ["roc_auc", "brier", "rmse", "r2"])
    def test_half_widths_agree_with_the_bootstrap_of_scipy(self, metric: Metric) -> None:
        labels, scores, other = rows_of(metric)
        sign = 1 if metric in HIGHER_IS_BETTER else -1

        def share(truth: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> float:
            return sign * float(REFERENCES[metric](truth, mine) / REFERENCES[metric](truth, theirs) - 1)

        reference = scipy_stats.bootstrap(
            (labels, scores, other),
            share,
            n_resamples=400,
            paired=True,
            vectorized=False,
            confidence_level=0.9,
            method="percentile",
            rng=np.random.default_rng(2),
        ).confidence_interval
        gain = relative_gain(metric, labels, scores, other)
        assert gain.high - gain.low == pytest.approx(reference.high - reference.low, rel=0.15)

    def test_nothing_is_a_share_of_zero(self) -> None:
        with pytest.raises(TooFew, match="share of 0"):
            relative_gain("rmse", VALUES, GUESSES, VALUES)


class TestShortfall:
    @pytest.mark.parametrize("metric", REFERENCES)
    @pytest.mark.parametrize("at_least", [True, False])
    def test_it_agrees_with_the_interval(self, metric: Metric, at_least: bool) -> None:
        """A bound at the one-sided 95 % limit of the interval has a p-value of about 5 %."""
        labels, scores, _ = rows_of(metric)
        interval = metric_interval(metric, labels, scores)
        bound = interval.high if at_least else interval.low
        assert shortfall_p_value(metric, labels, scores, bound, at_least=at_least) == pytest.approx(0.05, abs=0.006)
        kept = interval.low if at_least else interval.high
        assert shortfall_p_value(metric, labels, scores, kept, at_least=at_least) == pytest.approx(0.95, abs=0.02)

    @given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
    def test_accuracy_is_a_binomial_test(self, n: int, share: float, bound: float) -> None:
        labels, scores = np.ones(n), (np.arange(n) < round(share * n)).astype(float)
        hits = round(share * n)
        less, greater = (scipy_stats.binomtest(hits, n, bound, alternative=how).pvalue for how in ("less", "greater"))
        assert shortfall_p_value("accuracy", labels, scores, bound, at_least=True) == pytest.approx(less, abs=1e-12)
        assert shortfall_p_value("accuracy", labels, scores, bound, at_least=False) == pytest.approx(greater, abs=1e-12)

    @pytest.mark.parametrize(("bound", "p_value"), [(0.0, 1.0), (0.1, 0.0)])
    def test_what_has_no_spread_is_certain(self, bound: float, p_value: float) -> None:
        assert shortfall_p_value("r2", VALUES, VALUES, 1 + bound, at_least=True) == p_value

    def test_one_class_carries_nothing(self) -> None:
        with pytest.raises(TooFew):
            shortfall_p_value("roc_auc", np.ones(50), np.ones(50), 0.6, at_least=True)


@pytest.mark.parametrize("metric", REFERENCES)
def test_a_rows_influence_is_what_its_weight_moves(metric: Metric) -> None:
    """Against a row that is there twice: the influence is n times the change, up to 1/n."""
    labels, scores, _ = (values[:300] for values in rows_of(metric))
    influence = row_influence(metric, labels, scores, 0.5)
    whole = REFERENCES[metric](labels, scores)
    moved = []
    for row in range(300):
        twice = np.append(np.arange(300), row)
        moved.append(301 * (REFERENCES[metric](labels[twice], scores[twice]) - whole))
    assert influence.mean() == pytest.approx(0, abs=1e-9)
    assert np.corrcoef(influence, moved)[0, 1] > 0.999
    assert np.abs(influence - moved).max() < 0.03 * np.abs(influence).max()


class TestWilson:
    @given(st.integers(1, 10_000), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.995]))
    def test_against_scipy(self, n: int, share: float, confidence: float) -> None:
        hits = round(share * n)
        expected = scipy_stats.binomtest(hits, n).proportion_ci(2 * confidence - 1, method="wilson")
        assert wilson(hits, n, confidence) == pytest.approx((hits / n, expected.low, expected.high), abs=1e-12)

    def test_nothing_observed(self) -> None:
        with pytest.raises(TooFew):
            wilson(0, 0, 0.95)


class TestQuantile:
    def test_the_estimate_is_a_measured_value(self) -> None:
        values = RNG.gamma(2, 3, 1234)
        interval = quantile_interval(values, 0.99)
        assert interval.estimate == np.quantile(values, 0.99, method="inverted_cdf")
        assert interval.low <= interval.estimate <= interval.high
        assert {interval.low, interval.high} <= set(values)

    @pytest.mark.parametrize(("n", "enough"), [(0, False), (99, False), (100, True)])
    def test_a_p99_needs_a_hundred(self, n: int, enough: bool) -> None:
        if enough:
            assert quantile_interval(np.arange(float(n)), 0.99).high == n - 1
        else:
            with pytest.raises(TooFew, match="at least 100"):
                quantile_interval(np.arange(float(n)), 0.99)

    def test_bounds_miss_as_often_as_they_say(self) -> None:
        """1,000 samples of 1,000 exponential values; each bound of the p90 misses about 5 %; seed 31."""
        rng, truth, misses = np.random.default_rng(31), -math.log(0.1), np.zeros(2)
        for _ in range(1000):
            interval = quantile_interval(rng.exponential(size=1000), 0.9)
            misses += [interval.low > truth, interval.high < truth]
        assert (misses / 1000 < 0.07).all()
        assert (misses / 1000 > 0.02).all()


def test_what_is_no_mean_over_rows_has_no_influence() -> None:
    with pytest.raises(ValueError, match="not a mean"):
        stats._estimate("roc_auc", LABELS, SCORES, 0.5)
