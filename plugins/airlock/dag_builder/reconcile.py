"""``airlock__reconcile``: every few minutes, what the ledger says is made true again, for every model."""

from __future__ import annotations

from collections.abc import Sequence

from airflow.sdk import DAG

from airlock import assets
from airlock.dag_builder.common import START, cron, task_defaults
from airlock.operators.reconcile import ReconcileOperator

_DESCRIPTION = "Repair route, aliases and gateway from the ledger; find lost asset events and orphaned releases."


def reconcile_dag(models: Sequence[str]) -> DAG:
    """One mapped task a model, one run at a time."""
    dag = DAG(
        dag_id="airlock__reconcile",
        description=_DESCRIPTION,
        doc_md=_DESCRIPTION,
        tags=["airlock", "reconcile"],
        schedule=cron("*/5 * * * *"),
        start_date=START,
        catchup=False,
        max_active_runs=1,
        default_args=task_defaults(),
    )
    with dag:
        ReconcileOperator.partial(task_id="reconcile", outlets=[assets.repairs()]).expand(model=sorted(models))
    return dag
