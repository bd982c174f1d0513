"""What a model's DAGs have in common: names, owner, retries, parameters, documentation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param

from airlock.core.spec import ModelSpec

START = datetime(2024, 1, 1, tzinfo=UTC)
RETRY_AFTER = timedelta(seconds=5)


def model_dag(spec: ModelSpec, kind: str, *, description: str, **kwargs: Any) -> DAG:
    """The DAG ``<model>__<kind>``, still without tasks."""
    return DAG(
        dag_id=f"{spec.model}__{kind}",
        description=description,
        doc_md=_documentation(spec, description),
        tags=["airlock", spec.model, kind],
        start_date=START,
        catchup=False,
        default_args=task_defaults(spec.owner),
        **kwargs,
    )


def task_defaults(owner: str = "") -> dict[str, Any]:
    """What every task has unless it says otherwise."""
    return {
        "owner": owner or "airlock",
        "retries": 2,
        "retry_delay": RETRY_AFTER,
        "retry_exponential_backoff": 2.0,
    }


def run_param(dag: DAG, name: str) -> Any:
    """A parameter of the run, as an argument of a step: Airflow resolves it before the step runs."""
    return dag.param(name)


def cron(expression: str) -> CronTriggerTimetable:
    return CronTriggerTimetable(expression, timezone="UTC")


def until_param(description: str) -> Param:
    return Param(
        None,
        type=["null", "string"],
        format="date-time",
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)$",
        title="Until",
        description=description,
    )


def _documentation(spec: ModelSpec, description: str) -> str:
    lines = [f"### {spec.model}", spec.description or "", "", description, ""]
    lines += ["| gate | bound |", "| --- | --- |"]
    lines += [f"| {gate.kind} | {_bounds(gate.model_dump(exclude_none=True))} |" for gate in spec.gates]
    lines += ["", "| guard | bound |", "| --- | --- |"]
    lines += [f"| {guard.kind} | {_bounds(guard.model_dump(exclude_none=True))} |" for guard in spec.guards]
    lines += [
        "",
        f"A version that keeps every bound is taken back with a chance of at most {spec.false_rollback_budget:g}.",
    ]
    return "\n".join(lines)


def _bounds(policy: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in policy.items() if name != "kind")
