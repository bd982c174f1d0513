"""Experiments of real models: planned from what was seen, judged by what came, with a picture of how it went."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from airlock.core.errors import DataInvalid, NotFound
from airlock.core.experiment import UNPLANNED_UNITS, Conclusion, analyse
from airlock.core.experiment_plan import Baseline, Plan, alphas
from airlock.core.experiment_plan import plan as planned
from airlock.core.experiment_statistics import difference, interval
from airlock.core.release import Release
from airlock.core.sequential import Interval
from airlock.core.spec import Experiment, ModelSpec, OutcomeGuard
from airlock.core.uncertainty import TooFew
from airlock.core.verdict import Status
from airlock.settings import Settings
from airlock.steps.experiment_evidence import (
    Gathered,
    baselines,
    gather,
    measured,
    names_of,
    newest_answer,
    units_per_day,
)

if TYPE_CHECKING:
    from airlock.core.route import Route

STEP = "experiment"
"""The rollout step in which a candidate is tested."""
_LOOKS = 60


class Share(BaseModel):
    """How many units of each group an outcome has come of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    champion: int
    candidate: int
    of_champion: float | None
    of_candidate: float | None


class Report(BaseModel):
    """An experiment as it stands. ``known`` is what has come of each outcome; ``picture`` a PNG file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    release: str
    version: str
    champion_version: str | None
    phase: str
    until: datetime
    started: datetime | None
    days: float
    champion: int
    candidate: int
    crossed: int
    known: dict[str, Share]
    planned_units: int | None
    conclusion: Conclusion
    picture: str | None


def experiment_of(spec: ModelSpec) -> Experiment:
    """The spec's experiment.

    Raises:
        NotFound: it has none.
    """
    if spec.experiment is None:
        raise NotFound(
            f"{spec.model} has no experiment: declare its primary outcome and minimum_effect under experiment:, and "
            "rollout.plan: experiment"
        )
    return spec.experiment


def plan(
    spec: ModelSpec,
    settings: Settings,
    *,
    now: datetime,
    primary: Baseline | None = None,
    per_day: float | None = None,
    correlation: float | None = None,
) -> Plan:
    """Plan the spec's experiment from the newest answers; what is given goes before what was seen.

    ``per_day`` counts units; ``correlation`` is the covariate's with the primary outcome.

    Raises:
        DataInvalid: nothing is known of the primary outcome.
        NotFound: the spec has no experiment.
    """
    experiment = experiment_of(spec)
    newest_at = newest_answer(settings, spec.model)
    known: dict[str, Baseline] = {}
    if newest_at is not None:
        until = newest_at + timedelta(microseconds=1)
        known = baselines(settings, spec.model, experiment, until=until, known_by=now)
        if per_day is None:
            per_day = units_per_day(settings, spec.model, experiment, until=until)
    name = experiment.primary.name
    if primary is not None:
        known[name] = primary
    if correlation is not None and name in known:
        known[name] = known[name]._replace(explained=correlation**2)
    return planned(experiment, known, per_day)


def routes_of(routes: list[Route], release: Release) -> list[Route]:
    """The generations of the route under which a release was tested."""
    return [route for route in routes if route.release == release.id and route.step == STEP]


def newest(releases: list[Release], routes: list[Route], model: str) -> Release:
    """The newest release that was tested, whether or not it still is.

    Raises:
        NotFound: there is none.
    """
    for release in releases:
        if routes_of(routes, release):
            return release
    raise NotFound(
        f"{model} has no experiment that has begun; it begins when a release with rollout.plan: experiment is approved"
    )


def report(
    spec: ModelSpec, settings: Settings, release: Release, routes: list[Route], *, until: datetime, draw: bool = True
) -> Report:
    """Judge the experiment of a release by what is known at ``until``, and draw how it went.

    Raises:
        DataInvalid: the prediction log cannot be used.
        NotFound: the spec has no experiment.
    """
    experiment = experiment_of(spec)
    under = routes_of(routes, release)
    if strange := sorted({route.share for route in under if not math.isclose(route.share, experiment.weight)}):
        raise DataInvalid(
            f"the candidate had {', '.join(f'{share:g}' for share in strange)} % of the traffic, the spec's experiment "
            f"says {experiment.weight:g} %: groups of changing size cannot be compared; set the weight back"
        )
    gathered = gather(
        settings,
        spec.model,
        experiment,
        candidate=release.version,
        generations=[route.generation for route in under],
        until=until,
    )
    sharpest = _sharpest(spec, settings, experiment, gathered)
    if gathered is None:
        nothing = Conclusion(
            action="go_on", status=Status.INCONCLUSIVE, reason="go on; no unit has been answered yet", verdicts=()
        )
        return _report(spec, release, until, None, sharpest, nothing, None)
    conclusion = analyse(experiment, gathered.evidence, sharpest)
    picture = settings.reports / spec.model / f"experiment-{release.id}.png" if draw else None
    if picture is not None and not _draw(spec, release, experiment, gathered, sharpest, picture):
        picture = None
    return _report(spec, release, until, gathered, sharpest, conclusion, picture)


def _report(
    spec: ModelSpec,
    release: Release,
    until: datetime,
    gathered: Gathered | None,
    sharpest: dict[str, int],
    conclusion: Conclusion,
    picture: Path | None,
) -> Report:
    evidence = gathered.evidence if gathered else None
    units = (evidence.champion, evidence.candidate) if evidence else (0, 0)
    known = {
        name: Share(
            champion=int(seen.champion.size),
            candidate=int(seen.candidate.size),
            of_champion=seen.champion.size / units[0] if units[0] else None,
            of_candidate=seen.candidate.size / units[1] if units[1] else None,
        )
        for name, seen in (evidence.outcomes.items() if evidence else ())
    }
    return Report(
        model=spec.model,
        release=release.id,
        version=release.version,
        champion_version=release.champion,
        phase=release.phase,
        until=until,
        started=gathered.started if gathered else None,
        days=evidence.elapsed.total_seconds() / 86_400 if evidence else 0.0,
        champion=units[0],
        candidate=units[1],
        crossed=evidence.crossed if evidence else 0,
        known=known,
        planned_units=max(sharpest.values(), default=None),
        conclusion=conclusion,
        picture=str(picture) if picture else None,
    )


def _sharpest(spec: ModelSpec, settings: Settings, experiment: Experiment, gathered: Gathered | None) -> dict[str, int]:
    """The planned units of each outcome, from what was known before the experiment began and from nothing later."""
    if gathered is None:
        return {}
    try:
        parts = planned(experiment, baselines(settings, spec.model, experiment, until=gathered.started)).outcomes
    except DataInvalid:
        return {}
    return {part.name: part.units for part in parts if part.units is not None}


def path(experiment: Experiment, gathered: Gathered, name: str, sharpest: int) -> list[tuple[datetime, Interval]]:
    """The confidence sequence of an outcome as it went: when, and the interval of the difference then."""
    frame = gathered.values[name]
    primary, guard = alphas(experiment)
    alpha, sides = (primary, 2) if name == experiment.primary.name else (guard, 1)
    points = []
    known = frame["known"].astype("int64").to_numpy()
    looks = np.linspace(1, len(frame), min(_LOOKS, len(frame)), dtype=int)
    # What came in at one time is looked at together.
    for count in np.unique(np.searchsorted(known, known[looks - 1], side="right")):
        so_far = frame.iloc[:count]
        try:
            found = difference(measured(so_far, covariate=experiment.covariate is not None))
        except TooFew:
            continue
        points.append(
            (so_far["known"].iloc[-1].to_pydatetime(), interval(found, alpha, sides=sides, sharpest=sharpest))
        )
    return points


def _draw(
    spec: ModelSpec,
    release: Release,
    experiment: Experiment,
    gathered: Gathered,
    sharpest: dict[str, int],
    picture: Path,
) -> bool:
    """Write the confidence sequences over time as a PNG file; whether there was anything to draw."""
    paths = {
        name: path(experiment, gathered, name, sharpest.get(name, UNPLANNED_UNITS)) for name in names_of(experiment)
    }
    drawn = {name: points for name, points in paths.items() if points}
    if not drawn:
        return False
    # Figure without pyplot: no global state, no display back end.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 2.5 * len(drawn)), layout="tight")
    for axes, (name, points) in zip(figure.subplots(len(drawn), squeeze=False)[:, 0], drawn.items(), strict=True):
        when = [moment for moment, _ in points]
        widths = [bounds.high - bounds.estimate for _, bounds in points]
        axes.errorbar(when, [bounds.estimate for _, bounds in points], yerr=widths, marker=".", capsize=3)
        for level in _levels(experiment, name):
            axes.axhline(level, color="k", linestyle=":", linewidth=1)
        axes.set(title=name, ylabel="candidate - champion")
        axes.tick_params(axis="x", rotation=20, labelsize=7)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{spec.model} version {release.version} against {release.champion}: differences and bounds")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=90)
    return True


def _levels(experiment: Experiment, name: str) -> tuple[float, ...]:
    """The differences that decide: none and the least worth it, or a guard's margin."""
    for outcome in (experiment.primary, *experiment.guards):
        if outcome.name == name:
            sign = 1 if outcome.better == "higher" else -1
            if isinstance(outcome, OutcomeGuard):
                return (-sign * outcome.margin,)
            return 0.0, sign * experiment.minimum_effect
    return ()
