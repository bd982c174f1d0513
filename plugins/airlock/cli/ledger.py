"""``airlock ledger``: the tables of the ledger. Needs no Airflow."""

from __future__ import annotations

import typer

from airlock import settings
from airlock.cli.output import AsJson, out, print_json, reported

app = typer.Typer(help="Look at the ledger's tables and bring them up to date.", no_args_is_help=True)


@app.command(epilog="Example: airlock ledger current --json")
def current(as_json: AsJson = False) -> None:
    """Say which revision the ledger's tables are at, and which one this Airlock works with. Changes nothing."""
    from airlock.ledger import schema
    from airlock.ledger.engine import engine_of

    with reported():
        engine = engine_of(settings.load().ledger_url)
        where, found = engine.url.render_as_string(hide_password=True), schema.current(engine)
        if as_json:
            print_json({"ledger": where, "revision": found, "newest": schema.HEAD, "current": found == schema.HEAD})
        elif found == schema.HEAD:
            out.print(f"{where} is up to date, at revision {found}", markup=False)
        else:
            at = f"at revision {found}" if found else "without a revision: new, or of Airlock 0.1.0"
            out.print(f"{where} is {at}; this Airlock works with {schema.HEAD}: airlock ledger upgrade", markup=False)


@app.command(epilog="Example: airlock ledger upgrade")
def upgrade(as_json: AsJson = False) -> None:
    """Bring the ledger's tables up to date, as the first use of a new Airlock does by itself."""
    from airlock.ledger import schema
    from airlock.ledger.engine import engine_of

    with reported():
        engine = engine_of(settings.load().ledger_url)
        where, before = engine.url.render_as_string(hide_password=True), schema.current(engine)
        schema.require_current(engine)
        if as_json:
            print_json({"ledger": where, "before": before, "revision": schema.HEAD})
        elif before == schema.HEAD:
            out.print(f"{where} was up to date, at revision {before}", markup=False)
        else:
            out.print(f"{where} is at revision {schema.HEAD} now, it was at {before or 'none'}", markup=False)
