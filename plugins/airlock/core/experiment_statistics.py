"""The statistics of an A/B test: sample sizes, the difference of two groups, CUPED, and the sample ratio.

One observation is one unit (a routing key); the groups are the champion's and the candidate's. Differences are
candidate minus champion, in the outcome's units. Sample sizes hold for one look at the end, whereas intervals and
the sample-ratio test hold at all times at once, however often they are looked at.

Sources:
    Student (1908), The probable error of a mean; Welch (1938), The significance of the difference between two means
    when the population variances are unequal (the larger of their two variances is taken).
    Boneau (1960), The effects of violations of assumptions underlying the t test (skewed values in unequal groups).
    Chow, Shao, Wang, Lokhnygina (2017), Sample Size Calculations in Clinical Research, chapters 3 and 4.
    Deng, Xu, Kohavi, Walker (2013), Improving the sensitivity of online controlled experiments by utilizing
    pre-experiment data (CUPED).
    Johari, Koomen, Pekelis, Walsh (2017), Peeking at A/B tests.
    Howard, Ramdas, McAuliffe, Sekhon (2021), Time-uniform, nonparametric, nonasymptotic confidence sequences.
    Lindon, Malek (2022), Anytime-valid inference for multinomial count data (the sample-ratio mismatch).
    Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024), Time-uniform central limit theory and asymptotic
    confidence sequences, Annals of Statistics 52(6).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from airlock.core.sequential import Interval
from airlock.core.uncertainty import TooFew, deviate

Floats = npt.NDArray[np.float64]

MINIMUM_UNITS = 100
"""Units that each group needs before its mean is looked at. The difference of two means is less skewed than one mean,
so fewer do than for a guard's single stream: skewed outcomes keep alpha from here on (tests/benchmarks/RESULTS.md)."""
TELLING_UNITS = 10
"""Units of each group whose value is not the group's most frequent one: under it the variance is not known well
enough for an interval (the rule of thumb that asks for ten hits and ten misses of a proportion)."""

_CONCENTRATIONS = (100.0, 10_000.0)


class Measured(NamedTuple):
    """One outcome of both groups, one value a unit; ``before`` are the same units' covariates, NaN where unknown."""

    champion: Floats
    candidate: Floats
    champion_before: Floats | None = None
    candidate_before: Floats | None = None

    @property
    def n(self) -> int:
        return int(self.champion.size + self.candidate.size)


class Difference(NamedTuple):
    """Candidate's mean minus champion's. ``variance`` is that of the estimate; ``reduction`` is CUPED's share of it."""

    estimate: float
    variance: float
    n: int
    champion_mean: float
    reduction: float = 0.0


def units_for(effect: float, variances: tuple[float, float], share: float, deviates: float) -> float:
    """Units of both groups together that find ``effect`` by the normal approximation (Chow et al. 2017, 3.2 and 4.2).

    ``variances`` are of one unit of champion and candidate, ``share`` is the candidate's part of the units and
    ``deviates`` the sum of the test's critical value and the power's normal quantile.
    """
    return (deviates / effect) ** 2 * (variances[0] / (1 - share) + variances[1] / share)


def effect_for(units: float, variances: tuple[float, float], share: float, deviates: float) -> float:
    """The smallest effect that ``units`` find: :func:`units_for` solved for the effect."""
    return deviates * math.sqrt((variances[0] / (1 - share) + variances[1] / share) / units)


def fixed_deviates(alpha: float, power: float, *, sides: int) -> float:
    """Critical value and power's quantile, of a test that looks once, at the end."""
    return deviate(1 - alpha / sides) + deviate(power)


def looked_deviates(alpha: float, power: float, *, sides: int) -> float:
    """The same where every look counts: the critical value is the half width of the confidence sequence.

    It is that at the planned number of units, where the sequence is narrowest, in standard errors. The power is then
    that of the look at the planned number alone; earlier looks add to it.
    """
    return half_width(1.0, 1, alpha, sides=sides, sharpest=1) + deviate(power)


def half_width(variance: float, n: int, alpha: float, *, sides: int, sharpest: int) -> float:
    """How far the bounds of a confidence sequence lie from an estimate of that ``variance`` from ``n`` units.

    With two ``sides`` both bounds together ever miss with a chance of about ``alpha``, with one each alone does. A
    difference of means is asymptotically a mean over units of their influences, whose variance is ``n`` times the
    estimate's (Waudby-Smith et al. 2024, theorem 2.2 and section 3); the mixture is over a normal distribution, for
    one side over half of one (Howard et al. 2021, section 3.2). ``sharpest`` is the ``n`` at which it is narrowest.
    """
    both = alpha * 2 / sides
    doubt = -2 * math.log(both)
    spread = n * (doubt + math.log(doubt + 1)) / sharpest
    growth = math.sqrt(spread + 1)
    needed = math.log(growth / alpha) if sides == 2 else math.log1p(growth / (2 * alpha))
    return math.sqrt(variance * 2 * (spread + 1) / spread * needed)


def difference(measured: Measured) -> Difference:
    """The groups' difference, with the variance reduced by CUPED where there is a covariate.

    The coefficient is pooled within the groups, so that the estimate is that of the regression of the outcome on
    group and covariate; a unit without a covariate has the mean of the others (Deng et al. 2013).

    Raises:
        TooFew: a group is too small, too uniform, or has values that are not finite.
    """
    champion, candidate = measured.champion, measured.candidate
    for name, values in (("champion", champion), ("candidate", candidate)):
        _check(name, values)
    plain = Difference(
        estimate=float(candidate.mean() - champion.mean()),
        variance=_variance(champion, candidate),
        n=measured.n,
        champion_mean=float(champion.mean()),
    )
    if measured.champion_before is None or measured.candidate_before is None:
        return plain
    before = _filled(measured.champion_before, measured.candidate_before)
    theta = _theta((champion, candidate), before)
    variance = _variance(champion - theta * before[0], candidate - theta * before[1])
    return plain._replace(
        estimate=plain.estimate - theta * float(before[1].mean() - before[0].mean()),
        variance=variance,
        reduction=1 - variance / plain.variance,
    )


def explained(values: Floats, before: Floats) -> float:
    """The share of an outcome's variance that its covariate explains: the squared correlation."""
    (filled,) = _filled(before)
    if values.size < 3 or filled.std() == 0 or values.std() == 0:
        return 0.0
    return float(np.corrcoef(values, filled)[0, 1] ** 2)


def _check(name: str, values: Floats) -> None:
    if not np.isfinite(values).all():
        raise TooFew(f"{int((~np.isfinite(values)).sum())} values of the {name}'s group are not finite numbers")
    if values.size < MINIMUM_UNITS:
        raise TooFew(f"{values.size} of at least {MINIMUM_UNITS} units with this outcome in the {name}'s group")
    telling = values.size - int(np.unique(values, return_counts=True)[1].max())
    if telling < TELLING_UNITS:
        raise TooFew(
            f"all but {telling} of {values.size} units in the {name}'s group have the same value; at least "
            f"{TELLING_UNITS} must differ"
        )


def _variance(champion: Floats, candidate: Floats) -> float:
    """Variance of the difference of means: each group's own (Welch), or as if both had one, where that is more.

    A small group of skewed values that lacks its rare large ones has a mean and a variance that are both too small,
    and by its own variance alone such a group looks surely worse: at 5 to 95 % of the units 5 % become 12 %
    (lognormal values; tests/benchmarks/RESULTS.md). The pooled variance (Student) knows the large values from the
    other group. Groups of one size have the same variance either way.
    """
    first, second = float(champion.var(ddof=1)), float(candidate.var(ddof=1))
    own = first / champion.size + second / candidate.size
    weights = champion.size - 1, candidate.size - 1
    together = (weights[0] * first + weights[1] * second) / sum(weights)
    return max(own, together * (1 / champion.size + 1 / candidate.size))


def _filled(*groups: Floats) -> tuple[Floats, ...]:
    """Covariates without gaps."""
    known = np.concatenate([group[~np.isnan(group)] for group in groups])
    mean = float(known.mean()) if known.size else 0.0
    return tuple(np.where(np.isnan(group), mean, group) for group in groups)


def _theta(values: tuple[Floats, ...], before: tuple[Floats, ...]) -> float:
    together = sum(float(((x - x.mean()) * (y - y.mean())).sum()) for x, y in zip(before, values, strict=True))
    spread = sum(float(((x - x.mean()) ** 2).sum()) for x in before)
    return together / spread if spread > 0 else 0.0


def interval(found: Difference, alpha: float, *, sides: int, sharpest: int) -> Interval:
    """Confidence sequence of a difference; ``alpha`` is as :func:`half_width` has it."""
    half = half_width(found.variance, found.n, alpha, sides=sides, sharpest=sharpest)
    return Interval(found.estimate, found.estimate - half, found.estimate + half)


def ratio_log_e_value(candidate: int, champion: int, share: float) -> float:
    """Log of the e-value against "each unit is the candidate's with a chance of ``share``".

    The Bayes factor of a beta prior around ``share`` (Lindon and Malek 2022), averaged over a wide prior, which finds
    gross mismatches soon, and a narrow one, which finds small ones. Under the null it is a martingale that starts
    at 1: it ever reaches ``1 / alpha`` with a chance of at most ``alpha``, however often it is looked at.
    """
    null = candidate * math.log(share) + champion * math.log1p(-share)
    logs = [
        _log_beta(concentration * share + candidate, concentration * (1 - share) + champion)
        - _log_beta(concentration * share, concentration * (1 - share))
        - null
        for concentration in _CONCENTRATIONS
    ]
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))


def ratio_p_value(candidate: int, champion: int, share: float) -> float:
    """P-value of the chi-squared test of the sample ratio, for one look only (Kohavi, Tang, Xu 2020, chapter 21)."""
    units = candidate + champion
    if units == 0:
        return 1.0
    statistic = (candidate - units * share) ** 2 / (units * share * (1 - share))
    return math.erfc(math.sqrt(statistic / 2))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
