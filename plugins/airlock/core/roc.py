"""The area under the ROC curve, with bounds that hold when one class is rare.

DeLong's variance is the sample variance of what each row contributes. Near an area of 1 most rows of the rarer class
contribute the same and the few that do not are the whole variance: with 5 positives at an area of 0.95 the variance
is often far too small, sometimes 0, and a bound made of it lets a model through that is worse by the margin in 25 of
100 samples. The bounds here are score bounds: an area is within them if the estimate lies within the deviate's
standard errors *at that area*, by the variance of a binormal model, or by DeLong's where that is the larger. A
difference of two areas combines their bounds and DeLong's correlation (MOVER). How often they miss is in
tests/benchmarks/RESULTS.md.

Sources:
    DeLong, DeLong, Clarke-Pearson (1988), Comparing the areas under two or more correlated ROC curves.
    Sun, Xu (2014), Fast implementation of DeLong's algorithm.
    Newcombe (2006), Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2
    (bounds from the variance at the bound; there by the model of Hanley and McNeil 1982).
    Obuchowski (1994), Computing sample size for receiver operating characteristic studies (binormal variance).
    Owen (1956), Tables for computing bivariate normal probabilities.
    Zou, Yue (2013), Using confidence intervals to compare several correlated areas under the ROC curves (MOVER).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from airlock.core.sequential import Interval
from airlock.core.uncertainty import Floats, deviate, split_classes

_BISECTIONS = 50


class Placements(NamedTuple):
    """An area and DeLong's structural components: for each positive row the share of negatives below it, and for
    each negative row the share of positives above it. ``order`` are the rows' ranks."""

    area: float
    high: Floats
    low: Floats
    order: Floats


def midranks(values: Floats) -> Floats:
    """Ranks from 1; ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def placements(labels: Floats, scores: Floats) -> Placements:
    """The ROC AUC and what each row contributes to it; tied scores count half.

    Raises:
        TooFew: fewer than two rows of a class.
    """
    positive = split_classes(labels, 2)
    order = midranks(scores)
    of_high = (order[positive] - midranks(scores[positive])) / float((~positive).sum())
    of_low = 1 - (order[~positive] - midranks(scores[~positive])) / float(positive.sum())
    return Placements(float(of_high.mean()), of_high, of_low, order)


def covariance(first: Placements, second: Placements) -> Floats:
    """DeLong's covariance matrix of two areas of the same rows, shape (2, 2)."""
    of_high: Floats = np.cov(first.high, second.high) / first.high.size
    of_low: Floats = np.cov(first.low, second.low) / first.low.size
    return of_high + of_low


def area_interval(found: Placements, confidence: float) -> Interval:
    """An area with its score bounds, in [0, 1]."""
    variance = float(covariance(found, found)[0, 0])
    if variance == 0 and np.ptp(found.order) == 0:
        return Interval(found.area, found.area, found.area)  # one score for all rows: no chance is in it
    rows = found.high.size, found.low.size
    excess = _excess(found.area, variance, rows)
    deviation = deviate(confidence)

    def bound(end: float) -> float:
        inside, outside = found.area, end
        for _ in range(_BISECTIONS):
            middle = (inside + outside) / 2
            if abs(found.area - middle) <= deviation * math.sqrt(excess * _binormal_variance(middle, rows)):
                inside = middle
            else:
                outside = middle
        return inside

    return Interval(found.area, bound(0.0), bound(1.0))


def gain_interval(mine: Placements, other: Placements, confidence: float) -> Interval:
    """How much larger one area is than another of the same rows."""
    gain = mine.area - other.area
    if np.array_equal(mine.order, other.order):
        return Interval(gain, gain, gain)  # all rows in the same order: the same area, whatever the rows
    matrix = covariance(mine, other)
    spread = math.sqrt(float(matrix[0, 0]) * float(matrix[1, 1]))
    correlation = float(matrix[0, 1]) / spread if spread > 0 else 0.0
    one, two = area_interval(mine, confidence), area_interval(other, confidence)

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down * down + up * up - 2 * correlation * down * up))

    low = gain - reach(mine.area - one.low, two.high - other.area)
    high = gain + reach(one.high - mine.area, other.area - two.low)
    return Interval(gain, low, high)


def shortfall(found: Placements, bound: float, *, at_least: bool) -> float:
    """One-sided p-value against "the area keeps its bound", by the variance at the bound (a score test)."""
    above = found.area - bound if at_least else bound - found.area
    variance = float(covariance(found, found)[0, 0])
    if not 0 < bound < 1 or (variance == 0 and np.ptp(found.order) == 0):
        return 0.0 if above < 0 else 1.0
    rows = found.high.size, found.low.size
    error = math.sqrt(_excess(found.area, variance, rows) * _binormal_variance(bound, rows))
    return NormalDist().cdf(above / error)


def _excess(area: float, variance: float, rows: tuple[int, int]) -> float:
    """How many times the binormal variance DeLong's is, at least once."""
    modelled = _binormal_variance(area, rows)
    return max(1.0, variance / modelled) if modelled > 0 else 1.0


def _binormal_variance(area: float, rows: tuple[int, int]) -> float:
    """Variance of an estimated area if the scores of both classes were normal with the same variance.

    The chance that two of one class both lie on the right side of one of the other is a bivariate normal
    probability of correlation 1/2, which Owen's T function gives.
    """
    from scipy.special import owens_t

    if not 0 < area < 1:
        return 0.0
    height = NormalDist().inv_cdf(area)
    both = area - 2 * float(owens_t(height, math.sqrt(1 / 3)))
    return (area * (1 - area) + (sum(rows) - 2) * (both - area * area)) / (rows[0] * rows[1])
