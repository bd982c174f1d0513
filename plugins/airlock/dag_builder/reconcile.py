"""``airlock__reconcile``: every few minutes, what the ledger says is made true again, for every model."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airlock import assets
from airlock.dag_builder.common import START, cron, task_defaults
from airlock.operators.reconcile import ListModelsOperator, ReconcileOperator

_DESCRIPTION = "Repair route, aliases and gateway from the ledger; find lost asset events and orphaned releases."

_LONGEST = timedelta(minutes=4)
"""How long one model may take. The next sweep comes five minutes after, which is the next try too."""


def reconcile_dag() -> DAG:
    """One mapped task a model, one run at a time. Which models there are, each run finds out: files come and go."""
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
        models = ListModelsOperator(task_id="list_models")
        ReconcileOperator.partial(
            task_id="reconcile", outlets=[assets.repairs()], execution_timeout=_LONGEST, retries=0
        ).expand(model=models.output)
    return dag
