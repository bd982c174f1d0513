"""The paired bootstrap: what its resamples count, and that its bounds miss as often as they say."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from airlock.core import bootstrap
from airlock.core.bootstrap import bootstrap_gain
from airlock.core.spec import METRICS, Metric, Task
from airlock.core.stats import metric_gain, metric_interval
from airlock.core.uncertainty import TooFew

RNG = np.random.default_rng(12)
TRUTH = RNG.uniform(0, 1, 300)
LABELS = (RNG.uniform(size=300) < TRUTH).astype(float)
SCORES = np.round(np.clip(TRUTH + RNG.normal(0, 0.2, 300), 0, 1), 1)  # rounded: many ties
OTHER = np.round(np.clip(TRUTH + RNG.normal(0, 0.4, 300), 0, 1), 1)
VALUES = RNG.normal(10, 3, 300)


def rows_of(metric: Metric) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if metric in METRICS[Task.CLASSIFICATION]:
        return LABELS, SCORES, OTHER
    return VALUES, VALUES + SCORES, VALUES + 2 * OTHER


@pytest.mark.parametrize("metric", get_args(Metric))
def test_a_resample_is_the_metric_of_the_rows_it_repeats(metric: Metric) -> None:
    labels, scores, _ = rows_of(metric)
    drawn = np.random.default_rng(1).integers(0, 300, 300)
    weights = np.bincount(drawn, minlength=300)[None, :].astype(float)
    (found,) = bootstrap._weighted(metric, labels, scores, 0.5)(weights)
    assert found == pytest.approx(metric_interval(metric, labels[drawn], scores[drawn]).estimate)


@pytest.mark.parametrize("metric", get_args(Metric))
def test_a_model_against_itself_gains_nothing(metric: Metric) -> None:
    labels, scores, _ = rows_of(metric)
    assert bootstrap_gain(metric, labels, scores, scores, resamples=200) == (0, 0, 0)


@pytest.mark.parametrize("metric", get_args(Metric))
def test_the_same_seed_gives_the_same_bounds_near_those_of_the_formula(metric: Metric) -> None:
    labels, scores, other = rows_of(metric)
    found = bootstrap_gain(metric, labels, scores, other)
    assert found == bootstrap_gain(metric, labels, scores, other)
    formula = metric_gain(metric, labels, scores, other)
    width = formula.high - formula.low
    assert found.estimate == formula.estimate
    assert (found.low, found.high) == pytest.approx((formula.low, formula.high), abs=0.12 * width)


@pytest.mark.parametrize("metric", ["roc_auc", "pr_auc"])
def test_resamples_without_a_class_are_not_glossed_over(metric: Any) -> None:
    labels = (np.arange(60) < 3).astype(float)
    with pytest.raises(TooFew, match="too few rows of a class"):
        bootstrap_gain(metric, labels, np.linspace(0, 1, 60), np.linspace(1, 0, 60))


@pytest.mark.parametrize("metric", get_args(Metric))
def test_no_rows(metric: Metric) -> None:
    with pytest.raises(TooFew):
        bootstrap_gain(metric, np.array([]), np.array([]), np.array([]))


def test_bounds_miss_as_often_as_they_say() -> None:
    """400 samples of 150 rows, the Brier scores of two equally good models; about 5 % a bound; seed 33."""
    rng, misses = np.random.default_rng(33), np.zeros(2)
    for _ in range(400):
        truth = rng.beta(1, 4, 150)
        labels = (rng.random(150) < truth).astype(float)
        first, second = (np.clip(truth + rng.normal(0, 0.2, 150), 0, 1) for _ in range(2))
        gain = bootstrap_gain("brier", labels, first, second, resamples=400)
        misses += [gain.low > 0, gain.high < 0]
    assert (misses / 400 < 0.09).all()
    assert (misses / 400 > 0.015).all()
