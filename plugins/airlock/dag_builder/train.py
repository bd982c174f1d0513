"""``<model>__train``: from data to a judged, registered candidate."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, AssetAny, AssetOrTimeSchedule, Param

from airlock import assets
from airlock.core.spec import ModelSpec
from airlock.dag_builder.common import cron, model_dag, run_param, until_param
from airlock.operators.candidate import EvaluateGatesOperator, ExportOnnxOperator, RegisterVersionOperator
from airlock.operators.snapshot import FreezeSnapshotOperator, ValidateSnapshotOperator
from airlock.operators.training import BuildTrainingSetOperator, TrainOperator


def train_dag(spec: ModelSpec) -> DAG:
    model = spec.model
    dag = model_dag(
        spec,
        "train",
        description="Snapshot, validation, features, tuning, ONNX, gates; ends in a registered candidate.",
        schedule=_schedule(spec),
        max_active_runs=1,
        params=_params(spec),
    )
    with dag:
        frozen = FreezeSnapshotOperator(
            task_id="freeze_snapshot", model=model, until=run_param(dag, "until"), options=run_param(dag, "options")
        )
        valid = ValidateSnapshotOperator(task_id="validate_snapshot", model=model, snapshot=frozen.output)
        built = BuildTrainingSetOperator(task_id="build_training_set", model=model, snapshot=valid.output)
        trained = TrainOperator(
            task_id="train",
            model=model,
            training_set=built.output,
            recipe_params=run_param(dag, "params"),
            trials=run_param(dag, "trials"),
        )
        exported = ExportOnnxOperator(task_id="export_onnx", model=model, trained=trained.output)
        evaluated = EvaluateGatesOperator(task_id="evaluate_gates", model=model, candidate=exported.output)
        RegisterVersionOperator(
            task_id="register_version",
            model=model,
            evaluated=evaluated.output,
            skip_shadow=run_param(dag, "skip_shadow"),
            outlets=[assets.candidate(model)],
        )
    return dag


def _schedule(spec: ModelSpec) -> Any:
    """Time, new data and drift, each if the spec asks for it. Any one of them starts a training."""
    retrain = spec.retrain
    wanted = [assets.data(spec.model)] * retrain.on_data + [assets.drift(spec.model)] * retrain.on_drift
    if retrain.schedule and wanted:
        return AssetOrTimeSchedule(timetable=cron(retrain.schedule), assets=AssetAny(*wanted))
    if wanted:
        return AssetAny(*wanted)
    return cron(retrain.schedule) if retrain.schedule else None


def _params(spec: ModelSpec) -> dict[str, Param]:
    return {
        "until": until_param(
            "Train on what was known at this time (ISO 8601 with offset). Empty: the triggering event's time, "
            "or everything there is."
        ),
        "options": Param(
            {},
            type=["object", "null"],
            title="Load options",
            description="Keyword arguments for the recipe's load(), as JSON.",
        ),
        "params": Param(
            None,
            type=["null", "object"],
            title="Recipe parameters",
            description="Parameters that override the spec's, as JSON. Those given here are not tuned.",
        ),
        "trials": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Trials",
            description=f"How many Optuna trials. Empty: {spec.recipe.trials}, as the spec says.",
        ),
        "skip_shadow": Param(
            False,
            type="boolean",
            title="Skip the shadow",
            description="Let the release of this candidate go from the warm-up to the canary at once.",
        ),
    }
