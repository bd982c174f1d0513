"""An A/B test of a candidate against the champion: planned beforehand, looked at at any time, concluded in words.

A unit is a routing key: all that it asks is answered by one version, and an outcome counts once a unit, as the mean
of its answers' values. The primary outcome is judged by a two-sided confidence sequence of the difference of means,
each guard outcome by one-sided ones against its margin, all reduced by CUPED where the spec names a covariate.

``alpha`` is the chance that the experiment ever says something that is not so. Without guards the primary has all of
it; with guards one half is the primary's and the other is split evenly over the guards. What is planned counts the
looks in (core/experiment_statistics.py, ``looked_deviates``): about 1.9 times the units of a test that looks once.

A sample ratio that is not the one asked for means that something other than chance put units into groups, or lost
them, and then no difference means anything (Kohavi, Tang, Xu 2020, chapter 21): the experiment is invalid,
whatever it shows. The ratio is tested at :data:`MISMATCH_ALPHA`, for the units and for those whose outcome has come.

Sources: those of core/experiment_statistics.py, and Kohavi, Tang, Xu (2020), Trustworthy Online Controlled
Experiments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from airlock.core.experiment_plan import alphas, in_words
from airlock.core.experiment_statistics import (
    Difference,
    Measured,
    difference,
    half_width,
    interval,
    ratio_log_e_value,
    ratio_p_value,
)
from airlock.core.sequential import Interval
from airlock.core.spec import Experiment, Outcome, OutcomeGuard
from airlock.core.uncertainty import TooFew
from airlock.core.verdict import Status, Verdict

MISMATCH_ALPHA = 0.001
"""Chance that a ratio that is as asked for is ever called a mismatch."""
MOST_CROSSED = 0.01
"""Share of the units that may have been answered by both versions; more, and the groups are not what they seem."""
UNPLANNED_UNITS = 10_000
"""At how many units the intervals are narrowest when nothing was known to plan with."""

_DAY = timedelta(days=1)
_ENDLESS = 10**12

Action = Literal["promote", "keep", "go_on", "invalid"]


class Evidence(NamedTuple):
    """What an experiment has shown so far. ``crossed`` units were answered by both versions and are left out.

    ``elapsed`` is the time since the first unit came.
    """

    candidate: int
    champion: int
    crossed: int
    outcomes: Mapping[str, Measured]
    elapsed: timedelta


class Conclusion(BaseModel):
    """What to do, why, and what it rests on. ``pass`` is to promote, ``fail`` to keep the champion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action
    status: Status
    reason: str
    verdicts: tuple[Verdict, ...]


def analyse(experiment: Experiment, evidence: Evidence, sharpest: Mapping[str, int]) -> Conclusion:
    """Judge an experiment at any time. ``sharpest`` is the planned number of units of each outcome.

    It must not depend on what the experiment has shown; :data:`UNPLANNED_UNITS` stands in for what is missing.
    """
    ratios = (
        _ratio(experiment, "assignment", evidence.candidate, evidence.champion),
        *(
            _ratio(experiment, f"{name} known", int(seen.candidate.size), int(seen.champion.size))
            for name, seen in evidence.outcomes.items()
        ),
        _crossing(evidence),
    )
    needs = [
        _judged(experiment, outcome, evidence, sharpest.get(outcome.name, UNPLANNED_UNITS))
        for outcome in (experiment.primary, *experiment.guards)
    ]
    verdicts = (*ratios, *(need.verdict for need in needs))
    if broken := [verdict for verdict in ratios if verdict.status is Status.ERROR]:
        reason = f"do not trust this experiment: {'; '.join(verdict.reason for verdict in broken)}"
        return Conclusion(action="invalid", status=Status.ERROR, reason=reason, verdicts=verdicts)
    return _concluded(experiment, evidence, needs, verdicts)


class _Judged(NamedTuple):
    """A verdict, and how many units its outcome is likely to need until it is decided."""

    verdict: Verdict
    units: float | None = None


def _ratio(experiment: Experiment, name: str, candidate: int, champion: int) -> Verdict:
    share, units = experiment.weight / 100, candidate + champion
    log_e = ratio_log_e_value(candidate, champion, share)
    mismatch = log_e >= -math.log(MISMATCH_ALPHA)
    found = candidate / units if units else None
    if not units:
        status, reason = Status.INCONCLUSIVE, f"{name}: no units yet"
    elif mismatch:
        status = Status.ERROR
        reason = (
            f"{name}: {candidate:,} of {units:,} units are the candidate's, {found:.2%} where {share:.2%} were asked "
            "for, which is not chance: find out what assigns or loses units before anything is read from them"
        )
    else:
        status, reason = Status.PASS, f"{name}: {candidate:,} of {units:,} units are the candidate's, as asked for"
    return Verdict(
        name=f"sample ratio, {name}",
        status=status,
        reason=reason,
        metric="candidate's share of the units",
        estimate=found,
        threshold=share,
        n=units,
        details={"log_e_value": log_e, "chi_squared_p": ratio_p_value(candidate, champion, share)},
    )


def _crossing(evidence: Evidence) -> Verdict:
    units = evidence.candidate + evidence.champion + evidence.crossed
    share = evidence.crossed / units if units else 0.0
    status = Status.ERROR if share > MOST_CROSSED else Status.PASS if units else Status.INCONCLUSIVE
    reason = f"{evidence.crossed:,} of {units:,} units were answered by both versions and are left out"
    if status is Status.ERROR:
        reason += f"; at most {MOST_CROSSED:.0%} may: what chose the version did not keep to the unit's key"
    return Verdict(name="crossed units", status=status, reason=reason, estimate=share, threshold=MOST_CROSSED, n=units)


def _judged(experiment: Experiment, outcome: Outcome, evidence: Evidence, sharpest: int) -> _Judged:
    seen = evidence.outcomes.get(outcome.name)
    title = f"{'guard' if isinstance(outcome, OutcomeGuard) else 'primary'} {outcome.name}"
    if seen is None or not seen.n:
        reason = f"no {outcome.name} has come in"
        return _Judged(Verdict(name=title, status=Status.INCONCLUSIVE, reason=reason, metric=outcome.name, n=0))
    try:
        found = difference(seen)
    except TooFew as few:
        reason = f"{outcome.name}: {few}"
        return _Judged(Verdict(name=title, status=Status.INCONCLUSIVE, reason=reason, metric=outcome.name, n=seen.n))
    if isinstance(outcome, OutcomeGuard):
        return _guard(experiment, outcome, found, sharpest, title)
    return _primary(experiment, found, sharpest, title)


def _primary(experiment: Experiment, found: Difference, sharpest: int, title: str) -> _Judged:
    outcome, alpha, worth = experiment.primary, alphas(experiment)[0], experiment.minimum_effect
    bounds = interval(found, alpha, sides=2, sharpest=sharpest)
    gain = _oriented(outcome, bounds)
    units = None
    if gain.low > 0:
        status, told = Status.PASS, "the candidate is better"
    elif gain.high < 0:
        status, told = Status.FAIL, "the candidate is worse"
    elif gain.high < worth:
        status, told = Status.FAIL, f"the candidate is not better by {worth:g}, the least that is worth it"
    else:
        status, told = Status.INCONCLUSIVE, f"neither better nor less than {worth:g} better for sure"
        # The nearest of the bounds that would decide it, if the estimate stays where it is.
        nearest = max(gain.estimate, worth - gain.estimate)
        units = _until(found, nearest, alpha, sides=2, sharpest=sharpest)
    return _Judged(_verdict(outcome, title, status, told, bounds, found, alpha, 0.0), units)


def _guard(experiment: Experiment, outcome: OutcomeGuard, found: Difference, sharpest: int, title: str) -> _Judged:
    alpha = alphas(experiment)[1]
    bounds = interval(found, alpha, sides=1, sharpest=sharpest)
    gain = _oriented(outcome, bounds)
    units = None
    if gain.low > -outcome.margin:
        status, told = Status.PASS, f"not worse by {outcome.margin:g}"
    elif gain.high < -outcome.margin:
        status, told = Status.FAIL, f"worse by more than {outcome.margin:g}"
    else:
        status, told = Status.INCONCLUSIVE, f"may be worse by {outcome.margin:g}"
        distance = abs(gain.estimate + outcome.margin)
        units = _until(found, distance, alpha, sides=1, sharpest=sharpest)
    return _Judged(_verdict(outcome, title, status, told, bounds, found, alpha, outcome.margin), units)


def _oriented(outcome: Outcome, bounds: Interval) -> Interval:
    """The interval of how much better the candidate is."""
    if outcome.better == "higher":
        return bounds
    return Interval(-bounds.estimate, -bounds.high, -bounds.low)


def _verdict(
    outcome: Outcome,
    title: str,
    status: Status,
    told: str,
    bounds: Interval,
    found: Difference,
    alpha: float,
    margin: float,
) -> Verdict:
    relative = f" ({bounds.estimate / abs(found.champion_mean):+.2%})" if found.champion_mean else ""
    reason = (
        f"{outcome.name}: {told}; the difference is {bounds.estimate:+.4g}{relative}, "
        f"[{bounds.low:+.4g}, {bounds.high:+.4g}], {outcome.better} is better, n {found.n:,}"
    )
    return Verdict(
        name=title,
        status=status,
        reason=reason,
        metric=outcome.name,
        estimate=bounds.estimate,
        low=bounds.low,
        high=bounds.high,
        threshold=margin if outcome.better == "lower" else -margin,
        n=found.n,
        details={"alpha": alpha, "champion_mean": found.champion_mean, "variance_reduction": found.reduction},
    )


def _until(found: Difference, distance: float, alpha: float, *, sides: int, sharpest: int) -> float | None:
    """At how many units the bounds come as near as ``distance``; ``None``: at no number."""
    if distance <= 0:
        return None

    def too_wide(n: int) -> bool:
        return half_width(found.variance * found.n / n, n, alpha, sides=sides, sharpest=sharpest) > distance

    high = found.n
    while too_wide(high):
        high *= 2
        if high > _ENDLESS:
            return None
    low = high // 2
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if too_wide(middle) else (low, middle)
    return high


def _concluded(
    experiment: Experiment, evidence: Evidence, needs: list[_Judged], verdicts: tuple[Verdict, ...]
) -> Conclusion:
    """What valid evidence comes to: all must pass for a promotion, one that fails is enough to keep the champion."""
    judged = [need.verdict for need in needs]
    open_ = [verdict for verdict in judged if verdict.status not in (Status.PASS, Status.FAIL)]
    if failed := [verdict for verdict in judged if verdict.status is Status.FAIL]:
        action, status, shown = "keep", Status.FAIL, failed
        advice = "keep the champion"
    elif not open_:
        action, status, shown = "promote", Status.PASS, judged
        advice = "promote the candidate"
    elif evidence.elapsed >= experiment.duration:
        action, status, shown = "keep", Status.INCONCLUSIVE, open_
        advice = f"its time of {in_words(experiment.duration / _DAY)} is over without a decision: keep the champion"
    else:
        action, status, shown = "go_on", Status.INCONCLUSIVE, open_
        advice = f"go on; {_how_long(experiment, evidence, needs)}"
    reason = f"{advice}. {'; '.join(verdict.reason for verdict in shown)}"
    return Conclusion(action=action, status=status, reason=reason, verdicts=verdicts)


def _how_long(experiment: Experiment, evidence: Evidence, needs: list[_Judged]) -> str:
    """How long the slowest open outcome still takes, should the estimates and the traffic stay as they are."""
    open_ = [need for need in needs if need.verdict.status is Status.INCONCLUSIVE]
    days, allowed = evidence.elapsed / _DAY, experiment.duration / _DAY
    longest = 0.0
    for need in open_:
        if need.units is None or not need.verdict.n or days <= 0:
            return f"how much longer cannot be told yet, at most {in_words(max(0.0, allowed - days))}"
        longest = max(longest, days * (need.units / need.verdict.n - 1))
    text = f"as it stands, a decision takes about {in_words(longest)} more"
    if days + longest > allowed:
        text += f", which is later than the {in_words(allowed)} allowed"
    return text
