"""``airlock reconcile``: make what lies outside the ledger agree with it again. Needs no Airflow."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from airlock import settings
from airlock.cli.output import AsJson, Exit, err, out, print_json, reported
from airlock.cli.steer import control_of

if TYPE_CHECKING:
    from airlock.control.reconcile import Repair
    from airlock.control.release import ReleaseControl
    from airlock.core.release import Release


def reconcile(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Default: every model.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what does not agree.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make routes, aliases and releases agree with the ledger again. Exits with 1 if something is left to do."""
    from airlock.control.reconcile import models
    from airlock.ledger import Ledger

    with reported():
        here = settings.load()
        names = [model] if model is not None else models(here, Ledger(here.ledger_url))
        found: dict[str, list[Repair]] = {}
        failed: typer.Exit | None = None
        for name in names:
            try:
                found[name] = _reconciled(name, dry_run=dry_run)
            except typer.Exit as stopped:  # what was wrong is told already
                if model is not None or stopped.exit_code == Exit.INTERRUPTED:
                    raise
                err.print(f"{name} was not reconciled", markup=False)
                failed = failed or stopped
        if as_json:
            print_json(
                {name: [repair.model_dump(mode="json") for repair in repairs] for name, repairs in found.items()}
            )
        else:
            _tell_repairs(found)
        if failed is not None:
            raise failed
        if any(not repair.done for repairs in found.values() for repair in repairs):
            raise typer.Exit(Exit.FAILED)


def _reconciled(model: str, *, dry_run: bool) -> list[Repair]:
    from airlock.control.reconcile import reconcile as repair
    from airlock.core.errors import NotFound, Unavailable
    from airlock.core.tally import GatewayStatus
    from airlock.gateway_client import GatewayClient
    from airlock.stack import settings_of

    here = settings_of(settings.load())

    def status() -> GatewayStatus | None:
        try:
            with GatewayClient(here.gateway_url) as gateway:
                return gateway.status(model)
        except (Unavailable, NotFound):
            return None

    with control_of(model, aliases=True) as control:
        if not dry_run:
            _confirm_announced(control)
        found = repair(control, status=status, run_state=_run_state, now=datetime.now(UTC), dry_run=dry_run)
        return [*found, *_records(control, dry_run=dry_run)]


def _confirm_announced(control: ReleaseControl) -> None:
    """Take the events of a champion that Airflow has for told; where it does not answer, they stay due."""
    from airlock import assets
    from airlock.airflow_api import AirflowApi
    from airlock.core.errors import AirlockError
    from airlock.stack import ADMIN, password_of

    if not control.pending("champion_asset"):
        return
    here = control.settings
    try:
        with AirflowApi(here.airflow_url, ADMIN, password_of(here, ADMIN)) as api:
            events = api.asset_events(assets.champion(control.model).uri)
    except AirlockError:
        return
    extras = (event.extra for event in events)
    control.announced(assets.newest_generation(control.model, extras, route=control.generation))


def _records(control: ReleaseControl, *, dry_run: bool) -> list[Repair]:
    from airlock.control.reconcile import Repair
    from airlock.control.records import write_pending
    from airlock.core.errors import AirlockError
    from airlock.steps.registry import Registry

    due = control.pending("record")
    if dry_run or not due:
        return [Repair(kind="record", what=f"the record of release {effect.release}", done=False) for effect in due]
    try:
        written = write_pending(control, Registry(control.settings.mlflow_url))
    except AirlockError as error:
        return [Repair(kind="record", what=f"not written: {error}", done=False)]
    return [Repair(kind="record", what=f"written to {record.path}", done=True) for record in written]


def _run_state(release: Release) -> str | None:
    """The state of the run that carries a release, or ``None`` if Airflow has no such run.

    Raises:
        Unavailable: Airflow does not answer.
    """
    from airlock.airflow_api import AirflowApi
    from airlock.core.errors import NotFound
    from airlock.stack import ADMIN, password_of, settings_of

    here = settings_of(settings.load())
    dag_id, _, run_id = (release.run or "").partition("/")
    with AirflowApi(here.airflow_url, ADMIN, password_of(here, ADMIN)) as api:
        try:
            return api.run(dag_id, run_id).state
        except NotFound:
            return None


def _tell_repairs(found: dict[str, list[Repair]]) -> None:
    for name, repairs in found.items():
        for repair in repairs:
            out.print(f"{name}  {'repaired' if repair.done else 'to do':<9} {repair.kind}: {repair.what}", markup=False)
        if not repairs:
            out.print(f"{name}  agrees with the ledger", markup=False)
