"""``<model>__monitor``: has the world moved away from what the champion was trained on."""

from __future__ import annotations

from airflow.sdk import DAG, chain

from airlock import assets
from airlock.core.spec import ModelSpec
from airlock.dag_builder.common import cron, model_dag, run_param, until_param
from airlock.operators.base import ModelOperator
from airlock.operators.drift import DriftReportOperator, SignalDriftOperator
from airlock.operators.features import MaterializeFeaturesOperator
from airlock.operators.labels import JoinLabelsOperator, JudgeLabelsOperator


def monitor_dag(spec: ModelSpec) -> DAG:
    model = spec.model
    schedule = spec.monitoring.schedule
    dag = model_dag(
        spec,
        "monitor",
        description="Online features, late labels and their verdict, Evidently report; drift starts a training.",
        schedule=cron(schedule) if schedule else None,
        max_active_runs=1,
        params={"until": until_param("Where the current window ends (ISO 8601 with offset). Empty: now.")},
    )
    with dag:
        until = run_param(dag, "until")
        tasks: list[ModelOperator] = []
        if spec.features is not None:
            tasks.append(MaterializeFeaturesOperator(task_id="materialize_features", model=model, until=until))
        joined = JoinLabelsOperator(task_id="join_labels", model=model, until=until)
        if spec.late_guards:
            # Beside the drift report: neither waits for the other, nor fails with it.
            joined >> JudgeLabelsOperator(
                task_id="judge_labels", model=model, until=until, outlets=[assets.champion_changes(model)]
            )
        report = DriftReportOperator(task_id="drift_report", model=model, until=until)
        signal = SignalDriftOperator(
            task_id="signal_drift", model=model, report=report.output, outlets=[assets.drift(model)]
        )
        chain(*tasks, joined, report, signal)
    return dag
