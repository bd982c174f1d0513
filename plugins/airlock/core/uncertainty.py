"""What every statistic with an interval is made of: its rows, its normal deviates, and the error of having too few."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class TooFew(ValueError):
    """The rows cannot carry the statistic: too few, or all of one class."""


def deviate(confidence: float) -> float:
    """Standard normal quantile: what one bound at ``confidence`` is multiplied with."""
    return NormalDist().inv_cdf(confidence)


def split_classes(labels: Floats, at_least: int) -> npt.NDArray[np.bool_]:
    """Which rows are positive.

    Raises:
        TooFew: a class has fewer than ``at_least`` rows.
    """
    if labels.size == 0:
        raise TooFew("no rows")
    positive: npt.NDArray[np.bool_] = labels == 1
    found = int(positive.sum()), int((~positive).sum())
    if min(found) < at_least:
        raise TooFew(f"{found[0]} positive and {found[1]} negative rows; at least {at_least} of each are needed")
    return positive
