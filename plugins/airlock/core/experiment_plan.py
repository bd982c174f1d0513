"""The plan of an A/B test: how many units it needs, how long they take to come, and what could be found.

See core/experiment.py for what the numbers mean, and core/experiment_statistics.py for the formulas and sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from airlock.core.errors import DataInvalid
from airlock.core.experiment_statistics import (
    Floats,
    effect_for,
    explained,
    fixed_deviates,
    looked_deviates,
    units_for,
)
from airlock.core.spec import Experiment, Outcome, OutcomeGuard

_DAY = timedelta(days=1)


class Baseline(NamedTuple):
    """What is known of an outcome before the experiment. ``explained`` is the share that the covariate explains."""

    mean: float
    sd: float
    proportion: bool = False
    explained: float = 0.0


class OutcomePlan(BaseModel):
    """How many units one outcome needs, both groups together: looked at once at the end, or at any time.

    ``units`` is unset where no number is enough: a guard whose margin is 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    role: Literal["primary", "guard"]
    mean: float
    sd: float
    effect: float
    alpha: float
    explained: float
    units_once: int | None
    units: int | None


class Plan(BaseModel):
    """An experiment's size and length. Units count both groups; ``units_per_day`` is the traffic that was seen.

    ``detectable`` is the primary's effect that the spec's duration finds at that traffic. ``unplanned`` are the guards
    of which nothing is known: they may need more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcomes: tuple[OutcomePlan, ...]
    weight: float
    power: float
    units: int
    candidate: int
    champion: int
    units_per_day: float | None
    days: float | None
    detectable: float | None
    unplanned: tuple[str, ...]
    summary: str


def alphas(experiment: Experiment) -> tuple[float, float]:
    """The part of the primary (two-sided) and of each guard (one-sided) in the experiment's alpha."""
    if not experiment.guards:
        return experiment.alpha, experiment.alpha
    return experiment.alpha / 2, experiment.alpha / 2 / len(experiment.guards)


def baseline(values: Floats, before: Floats | None = None) -> Baseline:
    """What the champion's past outcomes, one a unit, tell a plan.

    Raises:
        DataInvalid: too few, or all the same.
    """
    if values.size < 2 or values.std() == 0:
        raise DataInvalid(f"{values.size} past outcomes, or all of them the same, tell no variance to plan with")
    return Baseline(
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)),
        proportion=bool(((values == 0) | (values == 1)).all()),
        explained=0.0 if before is None else explained(values, before),
    )


def plan(experiment: Experiment, baselines: Mapping[str, Baseline], units_per_day: float | None = None) -> Plan:
    """How many units and days the experiment needs. Guards without a baseline are left out.

    Raises:
        DataInvalid: the primary has no baseline, a number cannot be, or a proportion cannot change by so much.
    """
    if units_per_day is not None and not 0 < units_per_day < math.inf:
        raise DataInvalid(f"{units_per_day} units a day are none to plan with; give a number above 0")
    primary = experiment.primary
    if primary.name not in baselines:
        raise DataInvalid(f"nothing is known of {primary.name!r} to plan with; give its mean and standard deviation")
    known = [guard for guard in experiment.guards if guard.name in baselines]
    parts = (
        _planned(experiment, primary, baselines[primary.name]),
        *(_planned(experiment, guard, baselines[guard.name]) for guard in known),
    )
    units = max(part.units for part in parts if part.units is not None)
    share = experiment.weight / 100
    candidate = math.ceil(units * share)
    champion = math.ceil(units * (1 - share))
    days = detectable = None
    if units_per_day is not None:
        days = (candidate + champion) / units_per_day
        variances = _variances(baselines[primary.name], 0.0)
        reachable = units_per_day * (experiment.duration / _DAY)
        deviates = looked_deviates(alphas(experiment)[0], experiment.power, sides=2)
        detectable = effect_for(reachable, variances, share, deviates)
    return Plan(
        outcomes=parts,
        weight=experiment.weight,
        power=experiment.power,
        units=candidate + champion,
        candidate=candidate,
        champion=champion,
        units_per_day=units_per_day,
        days=days,
        detectable=detectable,
        unplanned=tuple(guard.name for guard in experiment.guards if guard not in known),
        summary=_plan_in_words(experiment, candidate, champion, days, detectable),
    )


def _planned(experiment: Experiment, outcome: Outcome, known: Baseline) -> OutcomePlan:
    if not (math.isfinite(known.mean) and 0 < known.sd < math.inf and 0 <= known.explained < 1):
        raise DataInvalid(
            f"{outcome.name} cannot have a mean of {known.mean}, a standard deviation of {known.sd} and a covariate "
            f"that explains {known.explained} of its variance; expected numbers, the second above 0, the third below 1"
        )
    for_primary, for_guard = alphas(experiment)
    guards = isinstance(outcome, OutcomeGuard)
    effect = outcome.margin if isinstance(outcome, OutcomeGuard) else experiment.minimum_effect
    alpha, sides = (for_guard, 1) if guards else (for_primary, 2)
    # A guard is planned for a candidate that is as good as the champion, the primary for one that is better.
    moved = 0.0 if guards else effect * (1 if outcome.better == "higher" else -1)
    share = experiment.weight / 100
    counts: list[int | None] = [None, None]
    if effect > 0:
        variances = _variances(known, moved)
        counts = [
            math.ceil(units_for(effect, variances, share, deviates(alpha, experiment.power, sides=sides)))
            for deviates in (fixed_deviates, looked_deviates)
        ]
    return OutcomePlan(
        name=outcome.name,
        role="guard" if guards else "primary",
        mean=known.mean,
        sd=known.sd,
        effect=effect,
        alpha=alpha,
        explained=known.explained,
        units_once=counts[0],
        units=counts[1],
    )


def _variances(known: Baseline, moved: float) -> tuple[float, float]:
    """The variance of one unit of champion and candidate, less what the covariate explains."""
    left = 1 - known.explained
    if not known.proportion:
        return known.sd**2 * left, known.sd**2 * left
    changed = known.mean + moved
    if not 0 < changed < 1:
        raise DataInvalid(
            f"a proportion of {known.mean:g} cannot change by {moved:g}; lower the experiment's minimum_effect"
        )
    return known.mean * (1 - known.mean) * left, changed * (1 - changed) * left


def _plan_in_words(
    experiment: Experiment, candidate: int, champion: int, days: float | None, detectable: float | None
) -> str:
    effect, name = experiment.minimum_effect, experiment.primary.name
    text = (
        f"{candidate:,} units for the candidate and {champion:,} for the champion find a difference of {effect:g} in "
        f"{name} with a chance of {experiment.power:.0%}, however often it is looked at"
    )
    if days is None or detectable is None:
        return f"{text}; how long that takes is not known: no traffic was seen"
    allowed = experiment.duration / _DAY
    fits = "within" if days <= allowed else "more than"
    return (
        f"{text}; at the traffic seen that takes {in_words(days)}, {fits} the {in_words(allowed)} allowed, in which a "
        f"difference of {detectable:.3g} can be found"
    )


def in_words(days: float) -> str:
    """A length of time as a person says it."""
    if days >= 2:
        return f"{days:,.0f} days"
    hours = days * 24
    if hours >= 2:
        return f"{hours:,.0f} hours"
    return f"{hours * 60:.0f} minutes" if hours * 60 >= 2 else "a minute"
