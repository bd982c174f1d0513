"""Metrics with their uncertainty, for judgements that are made once, on held-out rows.

Labels are 0 or 1 (classification) or values (regression); scores are probabilities of 1 or values. Both
are float arrays of shape (rows,). Every interval's bounds hold each with the given ``confidence``: at 0.95
both together make a 90 % interval, and one alone is the bound of a one-sided test at 5 %.

Sources:
    Wilson (1927), Probable inference, the law of succession, and statistical inference.
    van der Vaart (1998), Asymptotic Statistics, chapters 3 (delta method) and 20 (influence functions).
    Conover (1999), Practical Nonparametric Statistics, section 3.2 (quantiles by order statistics).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from airlock.core.roc import area_interval, gain_interval, placements, shortfall
from airlock.core.sequential import Interval
from airlock.core.spec import Metric
from airlock.core.uncertainty import Floats, TooFew, deviate, split_classes

HIGHER_IS_BETTER: frozenset[Metric] = frozenset({"roc_auc", "pr_auc", "accuracy", "r2"})

_EPSILON = float(np.finfo(np.float32).eps)
"""Probabilities are kept this far from 0 and 1 in the log loss: served scores are 32-bit, where 1 is often exact."""


def wilson(hits: float, n: int, confidence: float) -> Interval:
    """Wilson's score interval of a share.

    Raises:
        TooFew: ``n`` is 0.
    """
    if n == 0:
        raise TooFew("no rows")
    z, share = deviate(confidence), hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends centre and half are the same number but for rounding.
    return Interval(share, centre - half if hits > 0 else 0.0, centre + half if hits < n else 1.0)


def roc_auc(labels: Floats, scores: Floats) -> float:
    """Area under the ROC curve; tied scores count half.

    Raises:
        TooFew: fewer than two rows of a class.
    """
    return placements(labels, scores).area


def _average_precision(labels: Floats, scores: Floats) -> tuple[float, Floats]:
    """Average precision and each row's influence on it.

    It is the mean precision at the positive rows' scores. A row moves it through its own place
    among them, and through the precision at every score that is not above its own.
    """
    split_classes(labels, 2)
    rows = labels.size
    values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    hits = np.bincount(place, weights=labels, minlength=values.size)
    reached = np.cumsum(counts[::-1])[::-1] / rows
    precision = np.cumsum(hits[::-1])[::-1] / rows / reached
    share = labels.mean()
    average = float(np.sum(hits * precision) / rows / share)
    up_to = np.cumsum(hits / reached) / rows
    up_to_expected = np.cumsum(hits * precision / reached) / rows
    moved = labels * precision[place] + labels * up_to[place] - up_to_expected[place] - labels * average
    influence: Floats = (moved - moved.mean()) / share
    return average, influence


def log_losses(labels: Floats, scores: Floats) -> Floats:
    """Each row's log loss."""
    clipped = np.clip(scores, _EPSILON, 1 - _EPSILON)
    losses: Floats = -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
    return losses


def _estimate(metric: Metric, labels: Floats, scores: Floats, threshold: float) -> tuple[float, Floats]:
    """A metric and each row's influence on it, so that its variance is that of a mean (delta method)."""
    squares = (scores - labels) ** 2
    mean_square = float(squares.mean())
    match metric:
        case "pr_auc":
            return _average_precision(labels, scores)
        case "log_loss":
            rows = log_losses(labels, scores)
        case "brier":
            rows = squares
        case "accuracy":
            rows = ((scores >= threshold) == (labels == 1)).astype(np.float64)
        case "mae":
            rows = np.abs(scores - labels)
        case "rmse":
            root = math.sqrt(mean_square)
            return root, (squares - mean_square) / (2 * root) if root else np.zeros_like(squares)
        case "r2":
            around = (labels - labels.mean()) ** 2
            variance = float(around.mean())
            if variance == 0:
                raise TooFew("all labels are equal: there is nothing to explain")
            return 1 - mean_square / variance, (mean_square * around / variance - squares) / variance
        case _:
            raise ValueError(f"{metric} is not a mean over rows")
    mean = float(rows.mean())
    return mean, rows - mean


_Parts = tuple[float, tuple[Floats, ...]]
"""A statistic, and independent samples whose means' variances add up to its own."""


def _parts(metric: Metric, labels: Floats, scores: Floats, threshold: float) -> _Parts:
    if labels.size == 0:
        raise TooFew("no rows")
    if metric == "roc_auc":
        found = placements(labels, scores)
        return found.area, (found.high, found.low)
    estimate, influence = _estimate(metric, labels, scores, threshold)
    if influence.size < 2:
        raise TooFew(f"{influence.size} rows; at least 2 are needed")
    return estimate, (influence,)


def row_influence(metric: Metric, labels: Floats, scores: Floats, threshold: float) -> Floats:
    """By how much each row pulls at a metric: its empirical influence, shape (rows,).

    Raises:
        TooFew: the rows cannot carry the metric.
    """
    estimate, parts = _parts(metric, labels, scores, threshold)
    if len(parts) == 1:
        return parts[0]
    positive = labels == 1
    influence = np.empty(labels.size)
    for rows, part in zip((positive, ~positive), parts, strict=True):
        influence[rows] = (part - estimate) * labels.size / part.size
    return influence


def _error(parts: tuple[Floats, ...]) -> float:
    """Standard error of a statistic."""
    return math.sqrt(sum(float(part.var(ddof=1)) / part.size for part in parts))


def _around(estimate: float, parts: tuple[Floats, ...], confidence: float) -> Interval:
    half = deviate(confidence) * _error(parts)
    return Interval(estimate, estimate - half, estimate + half)


def metric_interval(
    metric: Metric, labels: Floats, scores: Floats, *, confidence: float = 0.95, threshold: float = 0.5
) -> Interval:
    """A metric with its interval, in the metric's units; ``threshold`` turns probabilities into decisions.

    ROC AUC by score bounds (core/roc.py); accuracy by Wilson; the others by the normal approximation.

    Raises:
        TooFew: the rows cannot carry the metric.
    """
    if metric == "accuracy":
        return wilson(_right(labels, scores, threshold), labels.size, confidence)
    if metric == "roc_auc":
        return area_interval(placements(labels, scores), confidence)
    return _around(*_parts(metric, labels, scores, threshold), confidence)


def _right(labels: Floats, scores: Floats, threshold: float) -> int:
    return int(np.sum((scores >= threshold) == (labels == 1)))


def metric_gain(
    metric: Metric,
    labels: Floats,
    candidate: Floats,
    reference: Floats,
    *,
    confidence: float = 0.95,
    threshold: float = 0.5,
) -> Interval:
    """How much better the candidate is than the reference on the same rows; above 0 is better for every metric.

    Paired: what both get wrong alike cancels out. ROC AUC by score bounds and DeLong's correlation (core/roc.py),
    the others by the normal approximation of the differences of the rows' influences.

    Raises:
        TooFew: the rows cannot carry the metric.
    """
    if metric == "roc_auc":
        return gain_interval(placements(labels, candidate), placements(labels, reference), confidence)
    mine, of_mine = _parts(metric, labels, candidate, threshold)
    other, of_other = _parts(metric, labels, reference, threshold)
    sign = 1 if metric in HIGHER_IS_BETTER else -1
    return _around(
        sign * (mine - other), tuple(sign * (one - two) for one, two in zip(of_mine, of_other, strict=True)), confidence
    )


def relative_gain(
    metric: Metric,
    labels: Floats,
    candidate: Floats,
    reference: Floats,
    *,
    confidence: float = 0.95,
    threshold: float = 0.5,
) -> Interval:
    """:func:`metric_gain` as a share of the reference's metric, by the delta method for a ratio of paired metrics.

    Raises:
        TooFew: the rows cannot carry the metric, or the reference's is 0 and nothing is a share of it.
    """
    mine, of_mine = _parts(metric, labels, candidate, threshold)
    other, of_other = _parts(metric, labels, reference, threshold)
    if other == 0:
        raise TooFew(f"{metric} of the reference is 0, and nothing can be told as a share of 0")
    sign, ratio = 1 if metric in HIGHER_IS_BETTER else -1, mine / other
    parts = tuple(sign * (one - ratio * two) / abs(other) for one, two in zip(of_mine, of_other, strict=True))
    return _around(sign * (mine - other) / abs(other), parts, confidence)


def shortfall_p_value(
    metric: Metric, labels: Floats, scores: Floats, bound: float, *, at_least: bool, threshold: float = 0.5
) -> float:
    """One-sided p-value against "the metric keeps its bound": small when it falls short by more than chance.

    Exact (binomial) for accuracy, a score test for ROC AUC, by the normal approximation of the metric otherwise.

    Raises:
        TooFew: the rows cannot carry the metric.
    """
    if metric == "accuracy" and 0 <= bound <= 1 and labels.size:
        from scipy.special import bdtr, bdtrc

        right = _right(labels, scores, threshold)
        if at_least:
            return float(bdtr(right, labels.size, bound))
        return float(bdtrc(right - 1, labels.size, bound)) if right else 1.0
    if metric == "roc_auc":
        return shortfall(placements(labels, scores), bound, at_least=at_least)
    estimate, parts = _parts(metric, labels, scores, threshold)
    above, error = estimate - bound if at_least else bound - estimate, _error(parts)
    if error == 0:
        return 0.0 if above < 0 else 1.0
    return NormalDist().cdf(above / error)


def quantile_interval(values: Floats, q: float, *, confidence: float = 0.95) -> Interval:
    """A quantile and its interval by order statistics (Conover 1999), whatever the distribution.

    Raises:
        TooFew: too few values for one to be expected above the quantile.
    """
    n = values.size
    if n * (1 - q) < 1 - 1e-9:
        raise TooFew(f"{n} measurements; the {q:.0%} quantile needs at least {math.ceil(1 / (1 - q) - 1e-9)}")
    ordered = np.sort(values)
    spread = deviate(confidence) * math.sqrt(n * q * (1 - q))
    places = [math.ceil(n * q - 1e-9), math.floor(n * q - spread), math.ceil(n * q + spread) + 1]
    estimate, low, high = (float(ordered[min(max(place, 1), n) - 1]) for place in places)
    return Interval(estimate, low, high)
