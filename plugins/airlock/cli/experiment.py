"""``airlock experiment``: plan an A/B test of a candidate, look at it, and conclude it. Needs no Airflow."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from airlock import settings
from airlock.cli.models import Model
from airlock.cli.output import AsJson, Exit, fail, out, print_json, reported
from airlock.cli.steer import Actor

if TYPE_CHECKING:
    from airlock.control import ReleaseControl
    from airlock.core.experiment_plan import Baseline
    from airlock.core.release import Release
    from airlock.ledger import Ledger
    from airlock.settings import Settings
    from airlock.steps.experiment import Report

app = typer.Typer(
    no_args_is_help=True, help="A/B tests: plan one, look at it whenever you like, and conclude it. Needs no Airflow."
)


@app.command(epilog="Example: airlock experiment plan flight_delay --baseline-mean 0.21 --units-per-day 20000")
def plan(
    model: Model,
    baseline_mean: Annotated[
        float | None, typer.Option(help="Mean of the primary outcome; default: the champion's, from the log.")
    ] = None,
    baseline_sd: Annotated[
        float | None, typer.Option(min=0.0, help="Its standard deviation; unset: the outcome is 0 or 1.")
    ] = None,
    units_per_day: Annotated[
        float | None, typer.Option(min=0.0, help="Routing keys a day; default: as many as the log shows.")
    ] = None,
    correlation: Annotated[
        float | None, typer.Option(min=-1.0, max=1.0, help="Of the spec's covariate with the primary outcome.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how many units the spec's experiment needs, how long they take to come, and what could be found."""
    from airlock import specs
    from airlock.steps import experiment

    with reported():
        here = settings.load()
        found = experiment.plan(
            specs.find(here, model),
            here,
            now=datetime.now(UTC),
            primary=_baseline(baseline_mean, baseline_sd),
            per_day=units_per_day,
            correlation=correlation,
        )
        if as_json:
            print_json(found.model_dump(mode="json"))
            return
        out.print(found.summary, markup=False)
        for part in found.outcomes:
            many = "no number is enough" if part.units is None else f"{part.units:,} ({part.units_once:,} for one look)"
            size = (
                f"mean {part.mean:.4g}, standard deviation {part.sd:.4g}, effect {part.effect:g}, alpha {part.alpha:g}"
            )
            out.print(f"  {part.role:<8} {part.name:<20} units {many}; {size}", markup=False)

        for name in found.unplanned:
            out.print(f"  guard    {name:<20} nothing is known of it, it may need more", markup=False)


@app.command(epilog="Example: airlock experiment status flight_delay --json")
def status(model: Model, as_json: AsJson = False) -> None:
    """Tell how the newest experiment stands: assignments, differences with their bounds, and what to do."""
    from airlock.control import ReleaseControl

    with reported():
        here = settings.load()
        found = _report(ReleaseControl(model, here, _ledger(here)))
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            _tell(found)


@app.command(epilog='Example: airlock experiment conclude flight_delay --keep --reason "the season is over"')
def conclude(
    model: Model,
    promote: Annotated[bool, typer.Option("--promote", help="Promote the candidate, whatever was found.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the champion, whatever was found.")] = False,
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger. Needed with --promote and --keep.")] = "",
    actor: Actor = None,
    as_json: AsJson = False,
) -> None:
    """End the experiment that runs: as was found, or as somebody decides. Guards still hold a promotion back."""
    from airlock.control import ReleaseControl

    if promote and keep:
        fail("--promote and --keep cannot both be", Exit.USAGE)
    if (promote or keep) and not reason:
        fail("who decides against or ahead of the evidence says why: --reason TEXT", Exit.USAGE)
    with reported():
        here = settings.load()
        ledger = _ledger(here)
        control = ReleaseControl(model, here, ledger)
        found = _report(control)
        _require_running(control.current(), found)
        forced = "promote" if promote else "keep" if keep else None
        action, why = _decided(found, forced, reason)
        ledger.record(
            ledger.release(found.release), found.conclusion.verdicts, step="conclusion", now=datetime.now(UTC)
        )
        end = control.promote_now if action == "promote" else control.abort
        release = end(found.release, actor=actor or getpass.getuser(), reason=why)
        if as_json:
            print_json({**found.model_dump(mode="json"), "concluded": action, "reason": why, "phase": release.phase})
        else:
            done = f"version {found.version} goes on to promotion" if action == "promote" else "the champion is kept"
            out.print(f"{model}: {done}: {why}", markup=False)


def _decided(found: Report, forced: str | None, reason: str) -> tuple[str, str]:
    """What is done, and the reason that the ledger keeps."""
    from airlock.core.errors import NotYet
    from airlock.core.verdict import Status

    conclusion = found.conclusion
    if forced is not None:
        return forced, f"{reason} (decided by hand; the experiment said: {conclusion.reason})"
    if conclusion.status not in (Status.PASS, Status.FAIL):
        raise NotYet(
            f"the experiment of {found.model} version {found.version} is {conclusion.status}: {conclusion.reason}. "
            "Wait, or decide yourself: --promote or --keep, with --reason"
        )
    return conclusion.action, f"{reason}: {conclusion.reason}" if reason else conclusion.reason


def _require_running(current: Release | None, found: Report) -> None:
    from airlock.core.errors import NotPossible
    from airlock.steps.experiment import STEP

    if current is None or current.id != found.release or current.step != STEP:
        where = f"release {current.id} stands in {current.step or current.phase}" if current else "no release is going"
        raise NotPossible(
            f"the experiment of {found.model} version {found.version} (release {found.release}) is over: it is "
            f"{found.phase} and {where}; there is nothing to conclude"
        )


def _report(control: ReleaseControl) -> Report:
    """The newest experiment, by the spec that it was opened with."""
    from airlock.steps import experiment

    releases, routes = control.ledger.releases(control.model), control.ledger.routes(control.model)
    if not releases:
        experiment.experiment_of(control.spec)
    release = experiment.newest(releases, routes, control.model)
    return experiment.report(control.spec_of(release), control.settings, release, routes, until=datetime.now(UTC))


def _ledger(here: Settings) -> Ledger:
    from airlock.ledger import Ledger

    return Ledger(here.ledger_url)


def _baseline(mean: float | None, sd: float | None) -> Baseline | None:
    from airlock.core.experiment_plan import Baseline

    if mean is None:
        if sd is not None:
            fail("--baseline-sd goes with --baseline-mean", Exit.USAGE)
        return None
    if sd is not None:
        return Baseline(mean, sd)
    if not 0 < mean < 1:
        fail(f"a mean of {mean:g} is not a proportion: give --baseline-sd as well", Exit.USAGE)
    return Baseline(mean, (mean * (1 - mean)) ** 0.5, proportion=True)


def _tell(found: Report) -> None:
    champion = f"version {found.champion_version}" if found.champion_version else "nothing"
    out.print(f"{found.model} version {found.version} against {champion}, {found.phase}", markup=False)
    planned = f" of {found.planned_units:,} planned" if found.planned_units else ""
    units = f"{found.champion + found.candidate:,}{planned} units in {found.days:.1f} days"
    out.print(f"  {units}: {found.champion:,} champion, {found.candidate:,} candidate", markup=False)
    for name, came in found.known.items():
        shares = (came.of_champion, came.of_candidate)
        of = " and ".join("-" if share is None else f"{share:.1%}" for share in shares)
        out.print(f"  {name} has come of {of} of them", markup=False)
    for verdict in found.conclusion.verdicts:
        out.print(f"  {verdict.status:<12} {verdict.reason}", markup=False)
    out.print(found.conclusion.reason, markup=False)
    if found.picture:
        out.print(found.picture, markup=False)
