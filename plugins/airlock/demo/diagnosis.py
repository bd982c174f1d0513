"""What a person needs to know when an act failed: what was seen of each part, and which command looks closer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from airlock.airflow_api import AirflowApi, Run
from airlock.core.errors import AirlockError
from airlock.core.release import Release
from airlock.gateway_client import GatewayClient
from airlock.ledger import Ledger
from airlock.settings import Settings

_ENTRIES = 4


def diagnosis(settings: Settings, model: str, api: AirflowApi, ledger: Ledger, run: Run | None) -> list[str]:
    """Lines about the run that was followed last, its release, the journal and the gateway, and where to look.

    A part that cannot be asked says so in its line; nothing is raised.
    """
    return [
        _told("run", lambda: _run(api, run)),
        _told("release", lambda: _release(ledger, model, run)),
        _told("journal", lambda: _journal(ledger, model)),
        _told("gateway", lambda: _gateway(settings, model)),
        look_closer(settings, model),
    ]


def look_closer(settings: Settings, model: str) -> str:
    """Commands and files."""
    airlock = f"airlock --home {settings.home}"
    return (
        f"look closer: {airlock} history {model}; {airlock} status; logs of the parts: {settings.stack / 'logs'}, "
        f"of the tasks: {settings.airflow_home / 'logs'}"
    )


def release_of(ledger: Ledger, run: Run) -> Release | None:
    """The release that a run carries, if it has opened one."""
    name, model = f"{run.dag_id}/{run.dag_run_id}", run.dag_id.rpartition("__")[0]
    return next((release for release in ledger.releases(model) if release.run == name), None)


def _told(part: str, tell: Callable[[], str]) -> str:
    try:
        return f"{part}: {tell()}"
    except AirlockError as error:
        return f"{part}: cannot be asked: {error}"


def _run(api: AirflowApi, run: Run | None) -> str:
    if run is None:
        return "none was followed"
    run = api.run(run.dag_id, run.dag_run_id)
    tasks = [
        f"{task.task_id} {task.state or 'not reached'}{f' (try {task.try_number})' if task.try_number > 1 else ''}"
        for task in api.tasks(run.dag_id, run.dag_run_id)
    ]
    return f"{run.dag_id} {run.dag_run_id} is {run.state}; tasks: {', '.join(tasks) or 'none yet'}"


def _release(ledger: Ledger, model: str, run: Run | None) -> str:
    release = release_of(ledger, run) if run is not None else None
    release = release or next(iter(ledger.releases(model)), None)
    if release is None:
        return "none was opened"
    standing = f"{release.phase} at {release.step}" if release.step else str(release.phase)
    since = (datetime.now(UTC) - release.entered_at).total_seconds()
    return f"version {release.version} is {standing} for {since:.0f} s: {release.reason or 'no reason was given'}"


def _journal(ledger: Ledger, model: str) -> str:
    last = ledger.timeline(model)[-_ENTRIES:]
    entries = [
        f"{entry.at:%H:%M:%S} {entry.event}{f' {entry.step}' if entry.step else ''} by {entry.actor}"
        f"{f' ({entry.reason})' if entry.reason else ''}"
        for entry in last
    ]
    return "the last of it: " + "; ".join(entries) if entries else "nothing in it"


def _gateway(settings: Settings, model: str) -> str:
    with GatewayClient(settings.gateway_url) as gateway:
        status = gateway.status(model)
    told = f"route {status.generation}, champion {status.champion}"
    if status.candidate is not None:
        counted = sum(tally.requests for tally in status.step.get(status.candidate, {}).values())
        told += (
            f", candidate {status.candidate} at {status.share:g} % with {counted} requests in {status.rollout_step}, "
            f"watched for {status.observed_s:.0f} s"
        )
    if status.ejection is not None:
        told += f"; it ejected version {status.ejection.version}: {status.ejection.reason}"
    if status.error is not None:
        told += f"; the newest route was not taken: {status.error}"
    return told
