"""Calibration: whether probabilities are what they say.

The expected calibration error (ECE) compares, in bins of equal count, the mean probability with the share of
positives. Chance alone makes it larger than 0, and every resample of the rows makes it larger still, so that
a bootstrap's interval lies beside the truth; what is here bounds the bins' errors together instead.

Sources:
    Naeini, Cooper, Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning (ECE).
    Nixon et al. (2019), Measuring calibration in deep learning (bins of equal count).
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


class Bin(NamedTuple):
    """Rows of similar probability."""

    rows: int
    probability: float
    share: float


class Calibration(NamedTuple):
    """ECE with its interval; the bins; the share of positives minus the mean probability, with its interval."""

    error: Interval
    bins: tuple[Bin, ...]
    in_the_large: Interval


def calibration(labels: Floats, scores: Floats, bins: int, *, confidence: float = 0.95) -> Calibration:
    """ECE over at most ``bins`` bins of equal count; rows of the same probability share a bin.

    The bins' true errors lie, all together and with ``confidence``, in an ellipsoid around those measured
    (Scheffé); the ECE's bounds are its smallest and largest value in there, or wider. A bin's variance is that
    of its residuals, or what its own probabilities imply if that is more.

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
    measured = np.bincount(place, residuals**2) / counts - errors**2
    implied = np.bincount(place, scores * (1 - scores)) / counts
    shares = counts / labels.size
    variance = np.maximum(measured, implied) / counts
    error = float(np.sum(shares * np.abs(errors)))
    # |ECE - truth| <= sum of shares * |error - its truth| <= (Cauchy-Schwarz) what the ellipsoid allows.
    reach = math.sqrt(float(chdtri(counts.size, 1 - confidence)) * float(np.sum(shares**2 * variance)))
    off, half = float(residuals.mean()), deviate(confidence) * float(residuals.std(ddof=1)) / math.sqrt(labels.size)
    found = zip(counts, np.bincount(place, scores) / counts, np.bincount(place, labels) / counts, strict=True)
    return Calibration(
        error=Interval(error, max(0.0, error - reach), min(1.0, error + reach)),
        bins=tuple(Bin(int(rows), float(probability), float(share)) for rows, probability, share in found),
        in_the_large=Interval(off, off - half, off + half),
    )


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
