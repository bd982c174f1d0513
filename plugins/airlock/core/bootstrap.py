"""The paired bootstrap of a difference of two models' metrics on the same rows.

Rows are drawn again with replacement, each with its label and both scores, so that what both models get
wrong alike cancels out in every resample. The bounds are bias-corrected and accelerated (BCa).

Sources:
    Efron (1987), Better bootstrap confidence intervals.
    Efron, Tibshirani (1993), An Introduction to the Bootstrap, chapters 14 and 22 (BCa; acceleration from
    empirical influence values).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from airlock.core.sequential import Interval
from airlock.core.spec import Metric
from airlock.core.stats import HIGHER_IS_BETTER, log_losses, metric_gain, row_influence
from airlock.core.uncertainty import Floats, TooFew, deviate

RESAMPLES = 2000
SEED = 20130101
"""The same evidence gives the same interval."""

_CHUNK = 64
_Weighted = Callable[[Floats], Floats]
"""A metric of rows that count as often as the weights say: weights of shape (resamples, rows), one value each."""


def bootstrap_gain(
    metric: Metric,
    labels: Floats,
    candidate: Floats,
    reference: Floats,
    *,
    confidence: float = 0.95,
    threshold: float = 0.5,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """How much better the candidate is than the reference, as ``stats.metric_gain``, with bootstrap bounds.

    Raises:
        TooFew: the rows cannot carry the metric, or a resample of them cannot.
    """
    estimate = metric_gain(metric, labels, candidate, reference, threshold=threshold).estimate
    rows, sign = labels.size, 1 if metric in HIGHER_IS_BETTER else -1
    mine, other = (_weighted(metric, labels, scores, threshold) for scores in (candidate, reference))
    random, parts = np.random.default_rng(seed), []
    for start in range(0, resamples, _CHUNK):
        drawn = [
            np.bincount(random.integers(0, rows, rows), minlength=rows) for _ in range(min(_CHUNK, resamples - start))
        ]
        weights = np.array(drawn, np.float64)
        parts.append(sign * (mine(weights) - other(weights)))
    found: Floats = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise TooFew(f"resamples of the {rows} rows cannot carry {metric}: too few rows of a class")
    influence = row_influence(metric, labels, candidate, threshold) - row_influence(
        metric, labels, reference, threshold
    )
    low, high = _bca(found, estimate, sign * influence, confidence)
    return Interval(estimate, low, high)


def _bca(found: Floats, estimate: float, influence: Floats, confidence: float) -> tuple[float, float]:
    """Bounds that hold each with ``confidence``."""
    if np.ptp(found) <= 1e-12 * max(1.0, abs(estimate)):
        return float(found.min()), float(found.max())
    below = (float(np.mean(found < estimate)) + float(np.mean(found <= estimate))) / 2
    if not 0 < below < 1:
        raise TooFew("all resamples lie on one side of the estimate: the rows are too few or too much alike")
    squares = float(np.sum(influence**2))
    acceleration = float(np.sum(influence**3)) / (6 * squares**1.5) if squares else 0.0
    bias = NormalDist().inv_cdf(below)
    bounds = []
    for deviation in (-deviate(confidence), deviate(confidence)):
        shifted = bias + deviation
        if (scale := 1 - acceleration * shifted) <= 0:
            raise TooFew("the resamples are too skewed for bounds: more rows are needed")
        bounds.append(float(np.quantile(found, NormalDist().cdf(bias + shifted / scale))))
    return bounds[0], bounds[1]


def _weighted(metric: Metric, labels: Floats, scores: Floats, threshold: float) -> _Weighted:
    squares = (scores - labels) ** 2
    match metric:
        case "roc_auc":
            return _ranked(labels, scores, _area)
        case "pr_auc":
            return _ranked(labels, scores, _average_precision)
        case "rmse":
            return lambda weights: np.sqrt(weights @ squares / labels.size)
        case "r2":
            return lambda weights: _explained(weights, labels, squares)
        case "log_loss":
            rows = log_losses(labels, scores)
        case "brier":
            rows = squares
        case "accuracy":
            rows = ((scores >= threshold) == (labels == 1)).astype(np.float64)
        case "mae":
            rows = np.abs(scores - labels)
    return lambda weights: weights @ rows / labels.size


def _explained(weights: Floats, labels: Floats, squares: Floats) -> Floats:
    centred = labels - labels.mean()  # the sums of squares cancel less
    means = weights @ centred / labels.size
    spread = weights @ centred**2 / labels.size - means**2
    with np.errstate(divide="ignore", invalid="ignore"):
        explained: Floats = 1 - weights @ squares / labels.size / spread
    return explained


def _ranked(labels: Floats, scores: Floats, summed: Callable[[Floats, Floats], Floats]) -> _Weighted:
    """A metric of the order of the scores, from how many positives and negatives there are at each distinct score."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts: npt.NDArray[np.intp] = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    positive = labels[order]

    def metric(weights: Floats) -> Floats:
        sorted_weights = weights[:, order]
        hits = np.add.reduceat(sorted_weights * positive, starts, axis=1)
        return summed(hits, np.add.reduceat(sorted_weights, starts, axis=1) - hits)

    return metric


def _area(hits: Floats, misses: Floats) -> Floats:
    """ROC AUC: the share of pairs whose positive has the higher score; ties count half."""
    lower = np.cumsum(misses, axis=1) - misses / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        area: Floats = np.sum(hits * lower, axis=1) / (hits.sum(axis=1) * misses.sum(axis=1))
    return area


def _average_precision(hits: Floats, misses: Floats) -> Floats:
    """The mean, over the positives, of the precision at their scores."""
    found = np.cumsum(hits[:, ::-1], axis=1)[:, ::-1]
    asked = found + np.cumsum(misses[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(asked > 0, found / asked, 0.0)
        average: Floats = np.sum(hits * precision, axis=1) / hits.sum(axis=1)
    return average
