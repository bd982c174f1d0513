"""``airlock up``, ``down`` and ``status``: the embedded stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from airlock import settings
from airlock.cli.output import AsJson, Exit, err, out, print_json, reported

if TYPE_CHECKING:
    from airlock.stack import StackStatus

_STATES = {
    (True, True): "[green]healthy[/green]",
    (True, False): "[yellow]no answer[/yellow]",
    (False, False): "[red]ended[/red]",
}
PortBase = Annotated[
    int | None,
    typer.Option(
        min=1024,
        max=65000,
        help="First of three ports: Airflow, MLflow (+1), gateway (+2). [default: 8500; of up: those of the last time]",
    ),
]


def up(port_base: PortBase = None, as_json: AsJson = False) -> None:
    """Start the embedded stack and wait until all of it is healthy. Already up: says so, and exits with 0."""
    from airlock.stack import Stack

    def progress(part: str, seconds: float) -> None:
        err.print(f"  {part:<14} healthy {seconds:5.1f} s")

    with reported():
        stack = Stack(settings.load())
        started = stack.up(port_base, progress=progress)
        status = stack.status()
        if as_json:
            print_json({"started": started, **status.model_dump(mode="json")})
            return
        out.print("[green]up[/green]" if started else "already up")
        _addresses(status)


def down(as_json: AsJson = False) -> None:
    """End every process of the embedded stack. Nothing is deleted."""
    from airlock.stack import Stack
    from airlock.stack.signals import undisturbed

    with reported(), undisturbed():
        stopped = Stack(settings.load()).down()
        if as_json:
            print_json({"stopped": stopped})
        else:
            out.print("down" if stopped else "nothing was up")


def status(as_json: AsJson = False) -> None:
    """Tell what runs and whether it answers. Exits with 3 unless the whole stack is up."""
    from airlock.stack import Stack

    with reported():
        found, releases = Stack(settings.load()).status(), _releases()
        if as_json:
            print_json({**found.model_dump(mode="json"), "releases": releases})
        else:
            _table(found)
            for each in releases:
                where = (each["step"] or each["phase"]) + (", paused" if each["paused"] else "")
                out.print(f"release   {each['release']} of {each['model']} version {each['version']}: {where}")
                if each["note"]:
                    out.print(f"          {each['note']}", markup=False)
        if not found.up:
            raise typer.Exit(Exit.UNAVAILABLE)


def _releases() -> list[dict[str, Any]]:
    """Every model's releases whose end is still to come; none where there is no ledger yet, or it does not answer."""
    from airlock.control import ReleaseControl
    from airlock.core.errors import AirlockError
    from airlock.ledger import Ledger, schema
    from airlock.ledger.engine import engine_of

    here = settings.load()
    try:
        if schema.current(engine_of(here.ledger_url)) is None:
            return []
        ledger = Ledger(here.ledger_url)
        controls = [ReleaseControl(model, here, ledger) for model in ledger.models()]
        return [
            {
                "model": release.model,
                "release": release.id,
                "version": release.version,
                "phase": release.phase,
                "step": release.step,
                "paused": release.paused,
                "note": control.spec_note(release),
            }
            for control in controls
            for release in control.open_releases()
        ]
    except AirlockError as error:
        err.print(f"the ledger does not tell of releases: {error}", markup=False)
        return []


def _table(found: StackStatus) -> None:
    from rich.table import Table

    if not found.parts:
        out.print(f"no stack is up in {found.home}; start one with: airlock up")
        return
    table = Table("part", "pid", "state", "log")
    for part in found.parts:
        table.add_row(part.name, str(part.pid or ""), _STATES[part.running, part.healthy], part.log)
    out.print(table)
    _addresses(found)
    out.print(f"memory    {found.memory_mb:,.0f} MB")


def _addresses(found: StackStatus) -> None:
    from airlock.stack import USERS

    for name, url in found.urls.items():
        out.print(f"{name:<9} {url}")
    if found.passwords:
        out.print(f"users     {', '.join(USERS)} (passwords: {found.passwords})")
