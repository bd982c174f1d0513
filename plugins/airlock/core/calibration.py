"""Calibration: whether probabilities are what they say.

The expected calibration error (ECE) compares, in bins of equal count, the mean probability with the share of
positives. Chance alone makes it larger than 0: a perfect model of 2,000 rows shows 0.02, and an interval around that
reaches past 0.05 in nine of ten samples. Every resample of the rows makes it larger still. So the estimate here has
the part of chance taken off (Kumar et al. 2019), and its upper bound comes from the sum of the bins' squared
standardised errors, of which is known how large it is by chance alone.

Sources:
    Naeini, Cooper, Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning (ECE).
    Nixon et al. (2019), Measuring calibration in deep learning (bins of equal count).
    Kumar, Liang, Ma (2019), Verified uncertainty calibration (debiasing).
    Roelofs, Cain, Shlens, Mozer (2022), Mitigating bias in calibration error estimation (comparison of estimators).
    Johnson, Kotz, Balakrishnan (1995), Continuous Univariate Distributions 2, chapter 29 (noncentral chi-squared).
    Scheffé (1953), A method for judging all contrasts in the analysis of variance (simultaneous bounds).
    Steyerberg (2009), Clinical Prediction Models, chapter 15 (calibration in the large).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from airlock.core.sequential import Interval
from airlock.core.uncertainty import Floats, TooFew, deviate

MINIMUM_IN_BIN = 20
"""Rows of a bin under which its share of positives is not taken for normally distributed."""

_BISECTIONS = 60


class Bin(NamedTuple):
    """Rows of similar probability."""

    rows: int
    probability: float
    share: float


class Calibration(NamedTuple):
    """ECE, debiased, with its interval; as measured; the bins; the share of positives minus the mean probability."""

    error: Interval
    measured: float
    bins: tuple[Bin, ...]
    in_the_large: Interval


def calibration(labels: Floats, scores: Floats, bins: int, *, confidence: float = 0.95) -> Calibration:
    """ECE over at most ``bins`` bins of equal count; rows of the same probability share a bin.

    Each bound holds with ``confidence``, as the better of two that each hold with half of the rest. The upper one:
    with e, v and w a bin's error, its variance and its share of the rows, the sum of e^2 / v has a noncentral
    chi-squared distribution, whose noncentrality bounds the true ECE (Cauchy-Schwarz); and the bins' true errors lie
    in an ellipsoid around those measured (Scheffé), the better one where few bins make the error. The lower one:
    Scheffé's, and the bound of the absolute mean residual, which no ECE falls short of. A bin's variance is the
    largest of that of its residuals, that implied by its probabilities, and that of its share of positives with one
    hit and one miss added, so that a bin without a miss is not taken for certain.

    Raises:
        TooFew: a bin would have fewer than 20 rows.
    """
    from scipy.special import chdtri

    if labels.size < bins * MINIMUM_IN_BIN:
        raise TooFew(f"{labels.size} rows; {bins} bins need at least {bins * MINIMUM_IN_BIN}")
    place = _bins(scores, bins)
    counts = np.bincount(place)
    residuals = labels - scores
    errors = np.bincount(place, residuals) / counts
    weights = counts / labels.size
    variance = _variances(labels, scores, place)
    each = 1 - (1 - confidence) / 2
    off, half = float(residuals.mean()), float(residuals.std(ddof=1)) / math.sqrt(labels.size)
    measured = float(np.sum(weights * np.abs(errors)))
    width = math.sqrt(float(np.sum(weights**2 * variance)))
    reach = width * math.sqrt(float(chdtri(counts.size, 1 - each)))
    # Fewer than one a bin would be less than chance gives a perfect model: no evidence of being better than that.
    squares = max(float(np.sum(errors**2 / variance)), float(counts.size))
    high = min(1.0, measured + reach, width * math.sqrt(_most_noncentrality(squares, counts.size, each)))
    low = min(high, max(0.0, measured - reach, abs(off) - deviate(each) * half))
    debiased = float(np.sum(weights * (2 * np.abs(errors) - _expected_size(errors, np.sqrt(variance)))))
    found = zip(counts, np.bincount(place, scores) / counts, np.bincount(place, labels) / counts, strict=True)
    return Calibration(
        error=Interval(min(max(debiased, low), high), low, high),
        measured=measured,
        bins=tuple(Bin(int(rows), float(probability), float(share)) for rows, probability, share in found),
        in_the_large=Interval(off, off - deviate(confidence) * half, off + deviate(confidence) * half),
    )


def _variances(labels: Floats, scores: Floats, place: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Floats:
    """The variance of each bin's mean residual."""
    counts = np.bincount(place)
    residuals = labels - scores
    found = np.bincount(place, residuals**2) / counts - (np.bincount(place, residuals) / counts) ** 2
    implied = np.bincount(place, scores * (1 - scores)) / counts
    share = (np.bincount(place, labels) + 1) / (counts + 2)
    variances: Floats = np.maximum(np.maximum(found, implied), share * (1 - share)) / counts
    return variances


def _most_noncentrality(squares: float, bins: int, confidence: float) -> float:
    """The largest noncentrality of a chi-squared variable that ``squares`` does not refute."""
    from scipy.special import chndtr

    low, high = 0.0, (math.sqrt(squares) + 12) ** 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if chndtr(squares, bins, middle) > 1 - confidence else (low, middle)
    return high


def _expected_size(means: Floats, deviations: Floats) -> Floats:
    """The mean absolute value of normal variables."""
    from scipy.special import ndtr

    ratio = means / deviations
    sizes: Floats = deviations * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + means * (1 - 2 * ndtr(-ratio))
    return sizes


def _bins(scores: Floats, bins: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Each row's bin, from 0: in the order of the scores, each full when it has its share of the rows."""
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    up_to = np.cumsum(counts)
    ends: list[int] = []
    taken = 0
    while taken < scores.size:
        end = min(int(np.searchsorted(up_to, taken + scores.size / bins - 1e-9)), values.size - 1)
        if scores.size - int(up_to[end]) < MINIMUM_IN_BIN:  # too few would be left for a bin of their own
            end = values.size - 1
        ends.append(end)
        taken = int(up_to[end])
    places: np.ndarray[tuple[int], np.dtype[np.intp]] = np.searchsorted(ends, np.arange(values.size))[inverse]
    return places
