"""Statistics that may be looked at after every request: anytime-valid tests and confidence sequences.

A fixed-sample test that is repeated until it is significant rejects a true null sooner or later. What
is here holds at all times at once: the chance of *ever* crossing is at most alpha. Standard library
only, because the gateway calls it between requests.

Sources:
    Robbins (1970), Statistical methods related to the law of the iterated logarithm.
    Howard, Ramdas, McAuliffe, Sekhon (2021), Time-uniform, nonparametric, nonasymptotic confidence sequences.
    Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024), Time-uniform central limit theory and asymptotic
    confidence sequences, Annals of Statistics 52(6).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

ASYMPTOTIC_MINIMUM = 100
"""Observations under which an asymptotic confidence sequence is not looked at. It leans on the central limit
theorem: values about as skewed as an exponential keep alpha from here on, in simulation; rarer and larger
outliers on the far side of the bound need more."""

_POINTS = 24
_BISECTIONS = 30


class Interval(NamedTuple):
    """An estimate between its bounds."""

    estimate: float
    low: float
    high: float


@functools.lru_cache(maxsize=256)
def _alternatives(bound: float) -> tuple[tuple[float, float], ...]:
    """Log likelihood ratios (of a hit, of a miss) of each alternative rate against ``bound``.

    The rates lie evenly on the log-odds scale, from 1.05 times the bound's odds to nine tenths of
    the way from the bound to 1: a small excess is found in the end and a large one at once.
    """
    odds = bound / (1 - bound)
    first, last = math.log(1.05 * odds), math.log((1 - 0.1 * (1 - bound)) / (0.1 * (1 - bound)))
    pairs = []
    for index in range(_POINTS):
        rate = 1 / (1 + math.exp(-(first + (last - first) * index / (_POINTS - 1))))
        pairs.append((math.log(rate / bound), math.log1p(-rate) - math.log1p(-bound)))
    return tuple(pairs)


def rate_log_e_value(hits: int, n: int, bound: float) -> float:
    """Log of the e-value against "each of ``n`` events is a hit with a chance of at most ``bound``".

    A uniform mixture of likelihood ratios against rates above the bound. Under that null each ratio is
    a non-negative supermartingale that starts at 1, whatever came before each event, and so is their
    mean: by Ville's inequality it ever reaches ``1 / alpha`` with a chance of at most alpha (Robbins
    1970; Howard et al. 2021, section 3). ``bound`` lies in (0, 1).
    """
    misses = n - hits
    logs = [hits * hit + misses * miss for hit, miss in _alternatives(bound)]
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / _POINTS)


def _rate_low(hits: int, n: int, alpha: float) -> float:
    if hits == 0:
        return 0.0
    wanted = -math.log(alpha)
    low, high = 0.0, hits / n
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if 0 < middle < 1 and rate_log_e_value(hits, n, middle) >= wanted:
            low = middle
        else:
            high = middle
    return low


def rate_interval(hits: int, n: int, alpha: float) -> Interval:
    """Confidence sequence for a rate: at all times at once each bound misses with a chance of at most alpha.

    The bounds are the rates that :func:`rate_log_e_value` does not reject; the upper one is that of
    the misses. Without observations it is (0, 1).
    """
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    return Interval(hits / n, _rate_low(hits, n, alpha), 1 - _rate_low(n - hits, n, alpha))


def mean_interval(n: int, total: float, squares: float, alpha: float, *, sharpest: int) -> Interval:
    """Asymptotic confidence sequence for a mean from its sums (Waudby-Smith et al. 2024, theorem 2.2).

    Both bounds together miss at any time from :data:`ASYMPTOTIC_MINIMUM` on with a chance of about
    alpha, given finite variance. ``total`` and ``squares`` are the sums of the values and of their
    squares; ``sharpest`` is the number of observations at which it is narrowest.
    """
    if n < 2:
        return Interval(total if n else math.nan, -math.inf, math.inf)
    mean = total / n
    variance = max(0.0, (squares - mean * total) / (n - 1))
    doubt = -2 * math.log(alpha)
    spread = n * (doubt + math.log(doubt + 1)) / sharpest
    half = math.sqrt(variance * 2 * (spread + 1) / (n * spread) * math.log(math.sqrt(spread + 1) / alpha))
    return Interval(mean, mean - half, mean + half)
