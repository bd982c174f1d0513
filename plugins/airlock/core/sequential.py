"""Statistics that may be looked at after every request: anytime-valid tests and confidence sequences.

A fixed-sample test that is repeated until it is significant rejects a true null sooner or later. What
is here holds at all times at once: the chance of *ever* crossing is at most alpha (Ville's inequality).
All of it is computed from sums, so that a look costs the same after a million requests as after ten.
Standard library only, because the gateway calls it between requests.

Rates and means of bounded observations are tested exactly, by betting against the bound; means of
unbounded ones asymptotically.

Sources:
    Robbins (1970), Statistical methods related to the law of the iterated logarithm.
    Howard, Ramdas, McAuliffe, Sekhon (2021), Time-uniform, nonparametric, nonasymptotic confidence sequences.
    Waudby-Smith, Ramdas (2023), Estimating means of bounded random variables by betting.
    Ryu, Bhatt (2024), On confidence sequences for bounded random processes via universal gambling strategies.
    Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024), Time-uniform central limit theory and asymptotic
    confidence sequences, Annals of Statistics 52(6).
    Wang, Ramdas (2024), Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

ASYMPTOTIC_MINIMUM = 1000
"""Observations under which an asymptotic confidence sequence is not looked at. It leans on the central limit
theorem: values with an exponential's tail on either side keep alpha from here on, in simulation (from 100 on they do
not). No number of observations is enough for outliers on the far side of the bound that are rarer than one in it:
until the first of them comes, the mean lies where it is not. Only a known range helps against these."""

_POINTS = 12
_EVEN = 0.4
_STEADY = 0.99
_BISECTIONS = 40
_PRECISION = 1e-12


class Interval(NamedTuple):
    """An estimate between its bounds."""

    estimate: float
    low: float
    high: float


@functools.lru_cache(maxsize=256)
def _bets(share: float) -> tuple[tuple[float, float], ...]:
    """The bets that are mixed against a bound that lies at ``share`` of the range, each with the log of its weight.

    Against a rate, the bet ``(p - share) / (1 - share)`` is the likelihood ratio of the rate ``p``. These rates go
    from 1.02 times the bound's odds to seven tenths of the way from the bound to 1, spaced evenly in the log of their
    log odds over the bound's. Up to log odds of 0.4 the weights grow with these, from there on they are even: a small
    excess takes so many observations that it can pay for its bet's small weight, a larger one cannot.

    The last bet stakes nearly everything. It is the best one against values that scatter little, which a mean of
    differences may have and a rate never has: it weighs as much as ``share``, and at most as much as all the others.
    """
    odds = math.log(share / (1 - share))
    first, last = math.log(1.02), math.log((1 - 0.3 * (1 - share)) / (0.3 * (1 - share))) - odds
    excess = [first * (last / first) ** (index / (_POINTS - 1)) for index in range(_POINTS)]
    weights = [min(value, _EVEN) for value in excess]
    rates = (1 / (1 + math.exp(-odds - value)) for value in excess)
    steady = min(share, 0.5)
    rest = (1 - steady) / sum(weights)
    mixed = [
        ((rate - share) / (1 - share), math.log(rest * weight)) for rate, weight in zip(rates, weights, strict=True)
    ]
    return (*mixed, (_STEADY, math.log(steady)))


def _log_sum(logs: list[float]) -> float:
    """Log of the sum of what the logs are of."""
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs))


@functools.lru_cache(maxsize=256)
def _rate_bets(bound: float) -> tuple[tuple[float, float, float], ...]:
    """What a hit and a miss add to the log of each bet against a rate, and the log of the bet's weight."""
    return tuple((math.log1p(bet * (1 / bound - 1)), math.log1p(-bet), weight) for bet, weight in _bets(bound))


def rate_log_e_value(hits: int, n: int, bound: float) -> float:
    """Log of the e-value against "each of ``n`` events is a hit with a chance of at most ``bound``".

    A mixture of likelihood ratios against rates above the bound. Under that null each ratio is a
    non-negative supermartingale that starts at 1, whatever came before each event, and so is their
    mixture: by Ville's inequality it ever reaches ``1 / alpha`` with a chance of at most alpha (Robbins
    1970; Howard et al. 2021, section 3). ``bound`` lies in (0, 1).
    """
    misses = n - hits
    return _log_sum([hits * hit + misses * miss + weight for hit, miss, weight in _rate_bets(bound)])


def mean_log_e_value(
    n: int,
    total: float,
    squares: float,
    bound: float,
    *,
    least: float = 0.0,
    greatest: float = 1.0,
    smallest: float | None = None,
) -> float:
    """Log of an e-value against "the mean of ``n`` observations in ``least``..``greatest`` is at most ``bound``".

    With y = (x - least) / (bound - least), a gambler who stakes the share ``bet`` of his wealth on each
    observation holds the product of 1 + bet * (y - 1): under the null, which is on each observation's mean given
    those before it, a non-negative supermartingale that starts at 1, and so is a mixture over bets (Waudby-Smith and
    Ramdas 2023; Ryu and Bhatt 2024).

    The product is not known from the sums, but a lower bound of it is. Let no observation lie below ``smallest``
    (unset: ``least``), where y is a: log(1 + bet * (y - 1)) has a positive third derivative, so that from a on it
    lies above the parabola that meets it at a and touches it further up, and the sum of a parabola is known. Touching
    at a + (sum of z^2) / (sum of z) for z = y - a, it adds up to the wealth of k = (sum of z)^2 / (sum of z^2)
    observations there among others at a, which for hits and misses is the likelihood ratio itself.

    ``smallest`` may lie lower than the smallest observation does, never higher: the bound is then less sharp.
    """
    scale = bound - least
    if scale <= 0:
        return math.inf if total > n * bound else 0.0
    if bound >= greatest or n == 0:
        return 0.0
    # Sums that were rounded may put the mean a hair below the smallest value.
    start = least if smallest is None else max(least, min(smallest, total / n))
    summed = max(0.0, total - n * start)
    squared = max(squares - 2 * start * total + n * start * start, summed * summed / n)
    high, size = 0.0, 0.0
    if summed > 0 and squared > 0:
        high, size = summed * summed / squared, squared / summed / scale
    low, lowest = max(0.0, n - high), (start - least) / scale
    return _log_sum(
        [
            high * math.log1p(bet * (lowest + size - 1)) + low * math.log1p(bet * (lowest - 1)) + weight
            for bet, weight in _bets(scale / (greatest - least))
        ]
    )


def mean_interval(
    n: int,
    total: float,
    squares: float,
    alpha: float,
    *,
    least: float = 0.0,
    greatest: float = 1.0,
    smallest: float | None = None,
    largest: float | None = None,
) -> Interval:
    """Confidence sequence for the mean of observations in ``least``..``greatest``, from their sums.

    At all times at once each bound misses with a chance of at most alpha. The bounds are the means that
    :func:`mean_log_e_value` does not reject; the upper one is that of the mirrored observations, of which
    ``largest`` is the smallest. Without observations it is the whole range.
    """
    if n == 0:
        return Interval(math.nan, least, greatest)
    mirrored = None if largest is None else -largest
    return Interval(
        total / n,
        _lowest(n, total, squares, alpha, least, greatest, smallest),
        -_lowest(n, -total, squares, alpha, -greatest, -least, mirrored),
    )


def _lowest(
    n: int, total: float, squares: float, alpha: float, least: float, greatest: float, smallest: float | None
) -> float:
    wanted = -math.log(alpha)
    low, high = least, min(max(total / n, least), greatest)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle - least < _PRECISION * (greatest - least):
            break
        log_e = mean_log_e_value(n, total, squares, middle, least=least, greatest=greatest, smallest=smallest)
        if log_e >= wanted:
            low = middle
        else:
            high = middle
    return low


def rate_interval(hits: int, n: int, alpha: float) -> Interval:
    """Confidence sequence for a rate: :func:`mean_interval` of hits and misses."""
    return mean_interval(n, hits, hits, alpha)


def sharpest_prior(sharpest: int, alpha: float) -> float:
    """The prior, in observations, with which a mean without bounds is known best after ``sharpest`` observations."""
    doubt = -2 * math.log(alpha)
    return sharpest / (doubt + math.log(doubt + 1))


def unbounded_mean_log_e_value(
    n: int, total: float, squares: float, bound: float, *, prior: float, two_sided: bool = False
) -> float:
    """Log of the e-value whose inversion :func:`unbounded_mean_interval` is: against a mean of ``bound``.

    Exact for normal observations, asymptotic for others (Wang and Ramdas 2024, section 4). ``two_sided`` it mixes
    over effects on both sides, and otherwise speaks against means of at most ``bound`` alone. The mixture over both
    sides, E, is half of that over the positive effects and half of that over the negative ones, which is at most 1
    where the mean lies above the bound: so that over the positive ones is at least 2 E - 1.
    """
    excess = total - n * bound
    around = squares - 2 * bound * total + n * bound * bound  # the sum of squares around the bound
    if n < 2 or not around > 0:
        return 0.0
    explained = min(1.0, excess * excess / ((n + prior) * around))
    if explained == 1:
        return math.inf if two_sided or excess > 0 else -math.inf
    both = -math.log1p(n / prior) / 2 - n / 2 * math.log1p(-explained)
    if two_sided:
        return both
    # log(2 exp(both) - 1)
    return both + math.log(2 - math.exp(-both)) if excess > 0 and both > -math.log(2) else -math.inf


def one_sided(alpha: float) -> float:
    """At what alpha each bound of :func:`unbounded_mean_interval` alone misses with a chance of at most ``alpha``.

    It is where 2 E - 1 reaches 1 / alpha: see :func:`unbounded_mean_log_e_value`.
    """
    return 2 * alpha / (1 + alpha)


def unbounded_mean_interval(
    n: int, total: float, squares: float, alpha: float, *, sharpest: int, prior: float | None = None
) -> Interval:
    """Confidence sequence for the mean of observations without known bounds, from their sums.

    Both bounds together miss at any time with a chance of at most alpha if the observations are normal with any
    variance (the sequential t-test mixed over a normal effect size: Wang and Ramdas 2024, section 4), and
    asymptotically, with a finite variance, whatever they are: it is a little wider than the asymptotic confidence
    sequence of Waudby-Smith et al. (2024, theorem 2.2), with which it agrees in the end. ``sharpest`` is the number
    of observations at which it is narrowest for its time, unless the ``prior`` is given itself.
    """
    if n < 2:
        return Interval(total / n if n else math.nan, -math.inf, math.inf)
    mean = total / n
    scatter = max(0.0, squares - mean * total)
    prior = prior or sharpest_prior(sharpest, alpha)
    # How much of (n + prior) * V the square of the sum may be: V is the sum of squares around the tested mean.
    most = -math.expm1((2 * math.log(alpha) - math.log1p(n / prior)) / n)
    room = n - (n + prior) * most
    if room <= 0:
        return Interval(mean, -math.inf, math.inf)
    half = math.sqrt((n + prior) * scatter * most / (n * room))
    return Interval(mean, mean - half, mean + half)
