"""The verbs. Each module behind them is imported when its verb runs, so that help is quick."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from airlock.cli import deliver, demo, experiment, ledger, models, policy, reconcile, record, spec, stack, steer

app = typer.Typer(
    name="airlock",
    help="Release machine-learning models through Airflow: gated, shadowed, in steps, rolled back by itself.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)


@app.callback()
def _everywhere(
    home: Annotated[
        Path | None, typer.Option(help="Where all state lies.", envvar="AIRLOCK_HOME", show_default=".airlock")
    ] = None,
    project: Annotated[
        Path | None,
        typer.Option(help="The project: dags/, include/.", envvar="AIRLOCK_PROJECT", show_default="this folder"),
    ] = None,
) -> None:
    from airlock.stack.signals import interrupt_on_termination

    interrupt_on_termination()
    if home is not None:
        os.environ["AIRLOCK_HOME"] = str(home.resolve())
    if project is not None:
        os.environ["AIRLOCK_PROJECT"] = str(project.resolve())


app.command(epilog="Example: airlock up --port-base 8600")(stack.up)
app.command(epilog="Example: airlock down")(stack.down)
app.command(epilog="Example: airlock status --json")(stack.status)
app.command(epilog="Example: airlock demo --exit --summary out.json")(demo.demo)
app.add_typer(spec.app, name="spec")
app.add_typer(experiment.app, name="experiment")
app.add_typer(deliver.app, name="deliver")
app.add_typer(ledger.app, name="ledger")
app.add_typer(record.app, name="record")
app.add_typer(policy.app, name="policy")
app.command(epilog="Example: airlock train flight_delay --until 2013-03-31 --trials 10")(models.train)
app.command(epilog="Example: airlock release flight_delay --version 3")(models.release)
app.command(epilog='Example: airlock approve flight_delay --comment "looks right"')(models.approve)
app.command(epilog='Example: airlock reject flight_delay --comment "too many inputs changed"')(models.reject)
app.command(epilog='Example: airlock pause flight_delay --reason "the feed looks odd"')(steer.pause)
app.command(epilog="Example: airlock resume flight_delay")(steer.resume)
app.command(epilog="Example: airlock extend flight_delay 6h")(steer.extend)
app.command(epilog='Example: airlock promote flight_delay --reason "concluded by hand"')(steer.promote)
app.command(epilog='Example: airlock abort flight_delay --reason "wrong data"')(steer.abort)
app.command(epilog='Example: airlock rollback flight_delay --to 1 --reason "complaints"')(steer.rollback)
app.command(epilog="Example: airlock pin flight_delay beta --version 2 --when carrier=EV,9E")(steer.pin)
app.command(epilog="Example: airlock unpin flight_delay beta")(steer.unpin)
app.command(epilog="Example: airlock reconcile --dry-run")(reconcile.reconcile)
app.command(epilog="Example: airlock monitor flight_delay --until 2013-07-01")(models.monitor)
app.command(epilog="Example: airlock history flight_delay --json")(models.history)


def main() -> None:
    """Entry point of the ``airlock`` command."""
    app()
