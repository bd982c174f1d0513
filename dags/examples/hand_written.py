"""An Airflow DAG written by hand: Airlock's operators without the DAG builder.

Trains ``disease_progression`` every night and releases what passes its gates, in one DAG. Each operator
takes what the one before it returned; gates, rollout steps and guards are those of the model's spec.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable, TriggerRule, chain

from airlock.operators.approval import ApproveReleaseOperator
from airlock.operators.candidate import EvaluateGatesOperator, ExportOnnxOperator, RegisterVersionOperator
from airlock.operators.release import PackageBentoOperator, PromoteOperator, RestoreTrafficOperator
from airlock.operators.snapshot import FreezeSnapshotOperator, ValidateSnapshotOperator
from airlock.operators.step import ReleaseStepOperator
from airlock.operators.training import BuildTrainingSetOperator, TrainOperator
from airlock.sensors.version import VersionServedSensor

MODEL = "disease_progression"

with DAG(
    dag_id="example_nightly_release",
    schedule=CronTriggerTimetable("0 2 * * *", timezone="UTC"),
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    default_args={"model": MODEL},
    tags=["airlock", "example"],
    doc_md=__doc__,
) as dag:
    snapshot = FreezeSnapshotOperator(task_id="freeze_snapshot")
    valid = ValidateSnapshotOperator(task_id="validate_snapshot", snapshot=snapshot.output)
    training_set = BuildTrainingSetOperator(task_id="build_training_set", snapshot=valid.output)
    trained = TrainOperator(task_id="train", training_set=training_set.output, trials=5)
    exported = ExportOnnxOperator(task_id="export_onnx", trained=trained.output)
    evaluated = EvaluateGatesOperator(task_id="evaluate_gates", candidate=exported.output)
    registered = RegisterVersionOperator(task_id="register_version", evaluated=evaluated.output)

    version = "{{ ti.xcom_pull('register_version')['version'] }}"
    package = PackageBentoOperator(task_id="package", version=version)
    release = "{{ ti.xcom_pull('package')['id'] }}"
    approve = ApproveReleaseOperator(task_id="approve", release=release, response_timeout=timedelta(hours=8))
    warm_up = ReleaseStepOperator(task_id="warm_up", release=release, step="warm_up")
    rollout = [
        # Whatever is skipped, such as every step of a first version, skips nothing after it.
        ReleaseStepOperator(task_id=step, release=release, step=step, trigger_rule=TriggerRule.NONE_FAILED)
        for step in ("shadow", "canary_5", "canary_25", "canary_50", "canary_100")
    ]
    promote = PromoteOperator(task_id="promote", release=release, trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    served = VersionServedSensor(task_id="served", version=version)
    restore = RestoreTrafficOperator(task_id="restore_traffic", release=release)

    chain(registered, package, approve, warm_up, *rollout, promote, served)
    warm_up >> promote
    served >> restore.as_teardown(setups=package)
