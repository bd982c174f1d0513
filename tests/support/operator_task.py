"""Airflow's tasks as processes that can be killed: the real operators, without a scheduler around them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time.context import OutletEventAccessors, TriggeringAssetEventsAccessor

from airlock import assets
from airlock.operators.base import ModelOperator
from airlock.operators.release import PromoteOperator
from airlock.operators.rollback import RollbackOperator
from airlock.operators.snapshot import FreezeSnapshotOperator
from airlock.operators.step import ReleaseStepOperator
from tests.support.fault_worker import Points
from tests.support.fault_world import AHEAD, World, clock_ahead


def context_of(world: World, run_id: str, drift: Mapping[str, Any] | None = None) -> Any:
    """A task's context; ``drift`` is what the event says that started the run."""
    dag_run = SimpleNamespace(dag_id=f"{world.model}__release", run_id=run_id, triggering_user_name="ann")
    asset = assets.drift(world.model)
    events = [SimpleNamespace(asset=asset, source_aliases=(), timestamp=datetime.now(UTC), extra=drift)]
    return {
        "run_id": run_id,
        "dag_run": dag_run,
        "triggering_asset_events": TriggeringAssetEventsAccessor.build(events if drift else []),  # type: ignore[arg-type]
        "outlet_events": OutletEventAccessors(),
        "ti": SimpleNamespace(id="0", try_number=1, map_index=-1),
    }


def task(points: Points, world: World, name: str, release: str, attempt: int) -> str:
    """One attempt at a task of a release's run: ``done``, or ``deferred`` where it waits for its trigger.

    Each attempt's clock is ahead of the one before by as much as a lease lasts.
    """
    connection = {"conn_type": "airlock_gateway", "host": world.settings.gateway_url}
    os.environ["AIRFLOW_CONN_AIRLOCK_GATEWAY"] = json.dumps(connection)
    operator = _operator(world, name, release)
    operator.__dict__["settings"] = world.settings
    operator.__dict__["spec"] = world.spec
    operator.__dict__["control"] = world.control(points, clock=clock_ahead(attempt * AHEAD))
    try:
        operator.execute(context_of(world, "run-1"))
    except TaskDeferred:
        return "deferred"
    return "done"


def _operator(world: World, name: str, release: str) -> ModelOperator:
    known: dict[str, Any] = {"task_id": name, "model": world.model, "dag": DAG("a_release", schedule=None)}
    if name == "promote":
        return PromoteOperator(release=release, **known)
    if name == "rollback":
        return RollbackOperator(reason="complaints", **known)
    return ReleaseStepOperator(release=release, step=name, **known)


def answer_drift(points: Points, world: World, run_id: str, until: str) -> str:
    """A training's first task, started by an event of drift; what it goes on with is counted, not done."""
    from airflow.sdk.exceptions import AirflowSkipException

    from airlock.steps import snapshot

    points.watch(world.settings.ledger_url)
    world.folder.mkdir(parents=True, exist_ok=True)

    def freeze(*_: object, **__: object) -> Any:
        with (world.folder / "trainings").open("a") as file:
            file.write(run_id + "\n")
        return SimpleNamespace(digest="", until=until, tables={}, model_dump=lambda **_: {})

    snapshot.freeze = freeze
    operator = FreezeSnapshotOperator(
        task_id="freeze_snapshot", model=world.model, dag=DAG("a_training", schedule=None)
    )
    operator.__dict__["settings"] = world.settings
    operator.__dict__["spec"] = world.spec
    operator.__dict__["ledger_hook"] = SimpleNamespace(get_conn=lambda: world.ledger)
    try:
        operator.execute(context_of(world, run_id, {"until": until}))
    except AirflowSkipException:
        return "skipped"
    return "training"
