"""``airlock policy``: try a policy on traffic that was, or might have been. Needs no running stack."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airlock import settings
from airlock.cli.output import AsJson, Exit, err, fail, out, print_json, reported
from airlock.cli.policy_report import as_document, tell, tell_plot, tell_repeated

if TYPE_CHECKING:
    from airlock.control import ReleaseControl
    from airlock.core.release import Release
    from airlock.core.replay_traffic import Glance, Rhythm
    from airlock.core.spec import ModelSpec
    from airlock.steps.replay import Recorded
    from airlock.steps.simulation import Simulation

app = typer.Typer(help="Try a policy before anyone trusts it with traffic.", no_args_is_help=True)


@app.callback()
def _policy() -> None:
    """Keep ``replay`` a verb of its own."""


@app.command(epilog='Example: airlock policy replay flight_delay --simulate "error_rate=0.08,rate=600" --repeats 100')
def replay(  # noqa: PLR0917 - one for each option
    model: Annotated[str, typer.Argument(help="Name of the model.", metavar="MODEL")],
    policy: Annotated[
        Path | None,
        typer.Option(
            help="Another spec of the model, <model>.yaml in another folder, to try.", exists=True, dir_okay=False
        ),
    ] = None,
    release: Annotated[str | None, typer.Option(help="Replay what was logged of this release.")] = None,
    candidate: Annotated[str | None, typer.Option(help="Replay what this version was asked; with --champion.")] = None,
    champion: Annotated[str | None, typer.Option(help="The version it is compared with.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="Only events from this time on, ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option(help="Only events before this time, ISO 8601.")] = None,
    simulate: Annotated[
        str | None,
        typer.Option(
            help="Simulate instead: error_rate, shift, noise, flips, latency (1: at the bound), loss, spread, delay "
            "(seconds), requests, rate (a minute), as KEY=VALUE,KEY=VALUE."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=100_000, help="How often to simulate.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the first simulation; the next ones count up.")] = 7,
    roles: Annotated[
        str,
        typer.Option(
            help="logged: the candidate's role is what it was; plan: the router's hash decides by the policy's shares."
        ),
    ] = "logged",
    poll: Annotated[
        float, typer.Option(min=0.01, help="Seconds between two looks of the control plane at the gateway's figures.")
    ] = 1.0,
    labels_every: Annotated[
        float, typer.Option(min=0.01, help="Seconds between two looks at labels, while nothing else wants one.")
    ] = 900.0,
    plot: Annotated[Path | None, typer.Option(help="Draw it: a .png, .svg or .pdf file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a policy decides about recorded or simulated traffic, when, and how wrong.

    Without --simulate, --release or --candidate it replays the newest release in the ledger, by the spec that it was
    opened with unless --policy names another. Every request is counted and judged as the gateway does, in the order in
    which it did. A release that is replayed by its own spec changes steps where it did; with --policy, or for versions,
    a step begins when the control plane would have gone on.
    """
    from airlock import specs
    from airlock.core.replay_traffic import Rhythm

    with reported():
        here = settings.load()
        spec = specs.load_spec(policy) if policy is not None else None
        if spec is not None and spec.model != model:
            fail(f"{policy} is the spec of {spec.model}, not of {model}", Exit.USAGE)
        if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
            fail(f"--plot {plot}: expected a name that ends in .png, .svg or .pdf", Exit.USAGE)
        if roles not in ("logged", "plan"):
            fail(f"--roles {roles}: expected logged or plan", Exit.USAGE)
        rhythm = Rhythm(poll_s=poll, labels_s=labels_every)
        if simulate is not None:
            of_log = (release, candidate, champion, since, until, roles if roles != "logged" else None)
            if given := [f"--{name}" for name, value in _recorded(*of_log) if value]:
                fail(f"--simulate makes up its traffic: leave {', '.join(given)} out", Exit.USAGE)
            spec = spec or specs.find(here, model)
            _simulated(spec, _simulation(simulate), repeats, seed, rhythm, plot, as_json=as_json)
            return
        if repeats != 1:
            fail("a recorded log has happened once: --repeats goes with --simulate", Exit.USAGE)
        if release is not None and (candidate or champion):
            fail("--release says which versions they are: leave --candidate and --champion out", Exit.USAGE)
        if (candidate is None) != (champion is None):
            fail("--candidate and --champion go together", Exit.USAGE)
        if candidate is None or champion is None:
            found, champion = _release(here, model, release)
            release, candidate = found.id, found.version
            control = _control(here, model)
            spec, champion = spec or control.spec_of(found), control.opponent_of(found) or champion
        spec = spec or specs.find(here, model)
        from airlock.steps.replay import recorded

        with err.status("reading the prediction log", spinner="dots"):
            traffic = recorded(
                spec,
                here,
                candidate=candidate,
                champion=champion,
                release=release,
                since=_time(since),
                until=_time(until),
                roles="plan" if roles == "plan" else "logged",
                follow=release is not None and policy is None,
            )
        _replay_recorded(spec, traffic, f"version {candidate} against {champion}", rhythm, plot, as_json=as_json)


def _recorded(*values: str | None) -> list[tuple[str, str | None]]:
    return list(zip(("release", "candidate", "champion", "from", "until", "roles"), values, strict=True))


def _control(here: settings.Settings, model: str) -> ReleaseControl:
    """What knows by which spec, and against whom, a release was judged."""
    from airlock.control import ReleaseControl
    from airlock.ledger import Ledger

    return ReleaseControl(model, here, Ledger(here.ledger_url))


def _release(here: settings.Settings, model: str, wanted: str | None) -> tuple[Release, str]:
    """A release of the ledger, and the champion that it was compared with."""
    from sqlalchemy.engine import make_url

    from airlock.core.errors import NotFound
    from airlock.ledger import Ledger

    file = make_url(here.ledger_url).database if here.ledger_url.startswith("sqlite") else None
    releases = [] if file and not Path(file).exists() else Ledger(here.ledger_url).releases(model)
    found = next((one for one in releases if wanted in (None, one.id) and one.champion), None)
    if found is None or found.champion is None:
        asked = f"release {wanted}" if wanted else "release"
        raise NotFound(
            f"the ledger has no {asked} of {model} with a champion beside it; "
            "name the versions with --candidate and --champion, or try --simulate"
        )
    return found, found.champion


def _replay_recorded(
    spec: ModelSpec, log: Recorded, who: str, rhythm: Rhythm, plot: Path | None, *, as_json: bool
) -> None:
    from airlock.core.replay import replay
    from airlock.steps.replay_plot import Line, draw_one, line

    lines: list[Line] = []
    with err.status("", spinner="dots") as status:

        def watch(glance: Glance) -> None:
            status.update(f"{glance.request:,} of {log.requests:,} requests, {glance.step}")
            if plot is not None:
                lines.append(line(spec, glance))

        report = replay(spec, log.traffic, watch, rhythm=rhythm)
    if plot is not None:
        draw_one(plot, f"{spec.model}: {who}", lines, report)
    if as_json:
        document = {
            "model": spec.model,
            "recorded": {"since": log.since, "until": log.until, "requests": log.requests},
            "caveat": log.caveat,
            **as_document(report),
        }
        print_json(document)
        return
    out.print(f"{spec.model}: {who}, {log.requests:,} requests from {log.since} to {log.until}")
    tell(report)
    out.print(f"[bold]how wrong[/bold]: {report.wrong or 'all of the traffic says the same'}", markup=True)
    for fact in report.unknown:
        out.print(f"not known: {fact}", markup=False)
    out.print(f"\n{log.caveat}.", markup=False)
    tell_plot(plot)


def _simulated(
    spec: ModelSpec,
    simulation: Simulation,
    repeats: int,
    seed: int,
    rhythm: Rhythm,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    from rich.progress import track

    from airlock.core.replay import replay
    from airlock.core.replay_report import repeated
    from airlock.steps.replay_plot import Line, draw_many, draw_one, line
    from airlock.steps.simulation import simulated, truth

    true = truth(spec, simulation)
    lines: list[Line] = []
    watch = (lambda glance: lines.append(line(spec, glance))) if plot is not None and repeats == 1 else None
    seeds = track(range(seed, seed + repeats), "replaying", console=err, transient=True, disable=repeats == 1)
    reports = [replay(spec, simulated(spec, simulation, seed=one), watch, rhythm=rhythm) for one in seeds]
    found = repeated(reports, true.bad)
    if plot is not None and repeats == 1:
        draw_one(plot, f"{spec.model}, simulated", lines, reports[0])
    elif plot is not None:
        draw_many(plot, f"{spec.model}, {repeats} simulated releases", reports)
    if as_json:
        document = {
            "model": spec.model,
            "simulation": simulation.model_dump(),
            "seed": seed,
            "truth": {"means": true.means, "bad": true.bad},
            "repeated": found.model_dump(mode="json"),
            **as_document(reports[0]),
        }
        print_json(document)
        return
    out.print(f"{spec.model}: {simulation.requests:,} simulated requests at {simulation.rate:g} a minute, seed {seed}")
    tell(reports[0])
    tell_repeated(found)
    tell_plot(plot)


def _simulation(text: str) -> Simulation:
    """``KEY=VALUE,KEY=VALUE``."""
    from difflib import get_close_matches

    from pydantic import ValidationError

    from airlock.steps.simulation import Simulation

    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = pair.partition("=")
        if not separator:
            fail(f"--simulate: expected KEY=VALUE, got {pair!r}", Exit.USAGE)
        if key not in Simulation.model_fields:
            close = get_close_matches(key, Simulation.model_fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            fail(f"--simulate: there is no {key!r}{hint}; known: {', '.join(Simulation.model_fields)}", Exit.USAGE)
        found[key] = value
    try:
        return Simulation.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"--simulate: {first['loc'][0]}={first['input']}: {first['msg']}", Exit.USAGE)


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        fail(f"expected a time such as 2013-03-31 or 2013-03-31T12:00:00+00:00, got {text!r}", Exit.USAGE)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
