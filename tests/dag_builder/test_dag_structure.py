"""The DAGs of a model: tasks, edges, schedules, assets, parameters; and the one that repairs all models."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, AssetAny, AssetOrTimeSchedule, CronTriggerTimetable
from airflow.sdk.definitions.asset import Asset
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.decoders import decode_deadline_alert
from airflow.serialization.encoders import encode_deadline_alert
from airflow.serialization.serialized_objects import DagSerialization

from airlock.core.spec import ModelSpec
from airlock.dag_builder import dags_of
from airlock.dag_builder.reconcile import reconcile_dag
from airlock.operators.reconcile import ListModelsOperator


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "model": "toy",
            "task": "regression",
            "description": "A toy.",
            "owner": "toys",
            "data": {"key": "id", "event_time": "t"},
            "label": {"name": "y"},
            "inputs": {"x": "float"},
            "gates": [{"kind": "threshold", "metric": "rmse", "max": 3.5}],
            **changes,
        }
    )


LATE = {"guards": [{"kind": "label_metric", "metric": "rmse", "max": 3.0}]}
FEATURES = {"features": {"service": "toy", "entities": ["x"], "request": {}}}


def by_kind(model: ModelSpec) -> dict[str, DAG]:
    return {dag.dag_id.removeprefix("toy__"): dag for dag in dags_of(model)}


def edges(dag: DAG) -> set[tuple[str, str]]:
    return {(task.task_id, downstream) for task in dag.tasks for downstream in task.downstream_task_ids}


def chained(*tasks: str) -> set[tuple[str, str]]:
    return set(itertools.pairwise(tasks))


TRAIN = (
    "freeze_snapshot",
    "validate_snapshot",
    "build_training_set",
    "train",
    "export_onnx",
    "evaluate_gates",
    "register_version",
)
CANARY = ("canary_5", "canary_25", "canary_50", "canary_100")
TEARDOWN = {
    *(("package", "restore_traffic"), ("restore_traffic", "write_record"), ("package", "write_record")),
}
ROLLOUT_END = {("promote", "restore_traffic"), ("warm_up", "promote"), *TEARDOWN}
NOBODY = {"approvals": {"required": 0}}


def asked(before: str, after: str, *names: str) -> set[tuple[str, str]]:
    """The questions between two tasks: all at once, and again after all of them."""
    again = [f"{name}_again" for name in names]
    return {
        *((before, name) for name in names),
        *itertools.product(names, again),
        *itertools.product([*names, *again], [after]),
    }


STRUCTURES = [
    ("train", {}, chained(*TRAIN)),
    (
        "release",
        {},
        asked("package", "warm_up", "approve") | chained("warm_up", "shadow", *CANARY, "promote") | ROLLOUT_END,
    ),
    ("release", NOBODY, chained("package", "warm_up", "shadow", *CANARY, "promote") | ROLLOUT_END),
    (
        "release",
        {"approvals": {"required": 2}},
        asked("package", "warm_up", "approve_1", "approve_2")
        | chained("warm_up", "shadow", *CANARY, "promote")
        | ROLLOUT_END,
    ),
    (
        "release",
        {"approvals": {"required": 2, "before": "promotion"}},
        chained("package", "warm_up", "shadow", *CANARY)
        | asked("canary_100", "promote", "approve_1", "approve_2")
        | chained("canary_100", "watch", "promote")
        | ROLLOUT_END,
    ),
    (
        "release",
        {**NOBODY, "rollout": {"plan": "blue_green"}},
        chained("package", "warm_up", "shadow", "green", "promote") | ROLLOUT_END,
    ),
    (
        "release",
        {"approvals": {"before": "promotion"}, "rollout": {"plan": "shadow_only"}},
        chained("package", "warm_up", "shadow", "complete", "restore_traffic") | TEARDOWN,
    ),
    (
        "release",
        {
            **NOBODY,
            "rollout": {"plan": "experiment", "shadow": None},
            "experiment": {"primary": {"name": "label"}, "minimum_effect": 0.1},
        },
        chained("package", "warm_up", "experiment", "promote") | ROLLOUT_END,
    ),
    (
        "release",
        {
            "rollout": {
                "shadow": None,
                "steps": [{"weight": 2.5, "min_requests": 9}, {"weight": 100, "min_requests": 9}],
            }
        },
        asked("package", "warm_up", "approve")
        | chained("warm_up", "canary_2_5", "canary_100", "promote")
        | ROLLOUT_END,
    ),
    ("control", {}, set()),
    ("monitor", {}, chained("join_labels", "drift_report", "signal_drift")),
    ("monitor", FEATURES, chained("materialize_features", "join_labels", "drift_report", "signal_drift")),
    (
        "monitor",
        LATE,
        chained("join_labels", "drift_report", "signal_drift") | chained("join_labels", "judge_labels"),
    ),
    ("rollback", {}, set()),
    ("score", {}, chained("list_partitions", "score_partition")),
]


@pytest.mark.parametrize(("kind", "changes", "expected"), STRUCTURES)
def test_tasks_and_edges(kind: str, changes: dict[str, Any], expected: set[tuple[str, str]]) -> None:
    dag = by_kind(spec(**changes))[kind]
    assert edges(dag) == expected
    dag.validate()
    dag.check_cycle()


def test_the_teardown_neither_hides_a_failure_nor_needs_a_success() -> None:
    release = by_kind(spec())["release"]
    restore = release.get_task("restore_traffic")
    assert restore.is_teardown
    assert restore.on_failure_fail_dagrun is False  # or Airflow would no longer count promote as a leaf
    assert release.get_task("package").is_setup
    assert restore.trigger_rule == "all_done_setup_success"


def test_what_is_skipped_skips_nothing_after_it() -> None:
    release = by_kind(spec(approvals={"before": "promotion"}))["release"]
    rules = {task.task_id: task.trigger_rule.value for task in release.tasks}
    assert {rules[name] for name in ("shadow", *CANARY, "approve", "watch")} == {"none_failed"}
    assert by_kind(spec())["release"].get_task("warm_up").trigger_rule.value == "none_failed"
    assert rules["approve_again"] == "all_success"
    assert release.get_task("promote").trigger_rule.value == "none_failed_min_one_success"


def uris(dag: DAG) -> dict[str, list[str]]:
    return {task.task_id: [outlet.uri for outlet in task.outlets] for task in dag.tasks if task.outlets}


def test_assets_connect_the_dags() -> None:
    dags = by_kind(spec())
    assert uris(dags["train"]) == {"register_version": ["airlock://toy/candidate"]}
    assert uris(dags["release"]) == {"promote": ["airlock://toy/champion"]}
    assert uris(dags["monitor"]) == {"signal_drift": ["airlock://toy/drift"]}
    assert uris(dags["rollback"]) == {"roll_back": ["airlock://toy/champion"]}
    assert [asset.uri for asset in dags["release"].schedule] == ["airlock://toy/candidate"]
    assert watched(dags["train"].schedule) == {"airlock://toy/data", "airlock://toy/drift"}


def watched(condition: Any) -> set[str]:
    assert isinstance(condition, AssetAny)
    return {asset.uri for asset in condition.objects if isinstance(asset, Asset)}


def test_training_is_scheduled_by_what_the_spec_asks_for() -> None:
    def schedule(**retrain: Any) -> Any:
        return by_kind(spec(retrain=retrain))["train"].schedule

    both = schedule(schedule="0 3 * * *")
    assert isinstance(both, AssetOrTimeSchedule)
    assert watched(both.asset_condition) == {"airlock://toy/data", "airlock://toy/drift"}
    assert watched(schedule(on_data=False)) == {"airlock://toy/drift"}
    assert isinstance(schedule(schedule="0 3 * * *", on_data=False, on_drift=False), CronTriggerTimetable)
    assert schedule(on_data=False, on_drift=False) is None
    assert isinstance(by_kind(spec(monitoring={"schedule": "@hourly"}))["monitor"].schedule, CronTriggerTimetable)


def test_an_unanswered_question_holds_up_no_later_candidate() -> None:
    dags = by_kind(spec())
    assert dags["release"].max_active_runs > 1
    assert dags["train"].max_active_runs == 1


@pytest.mark.parametrize(
    ("changes", "hours"),
    [
        ({}, 24 + 6 * 2 + 0.5),
        ({**NOBODY, "rollout": {"shadow": None, "steps": [{"weight": 100, "min_requests": 9}]}}, 2 * 2 + 0.5),
    ],
)
def test_airflow_tells_of_a_release_that_takes_too_long(changes: dict[str, Any], hours: float) -> None:
    release = by_kind(spec(**changes))["release"]
    assert release.deadline is not None
    (alert,) = release.deadline
    assert alert.interval == timedelta(hours=hours)
    assert alert.callback.path == "airlock.triggers.overdue.release_overdue"
    assert alert.callback.kwargs["model"] == "toy"
    assert decode_deadline_alert(encode_deadline_alert(alert)).reference.evaluate_with(
        session=None, interval=alert.interval
    ) - datetime.now(UTC) > alert.interval - timedelta(minutes=1)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("train", {"until": "2013-04-01T00:00:00+00:00", "options": {"a": 1}, "trials": 3}, {"until": "April"}),
        ("train", {"params": None, "skip_shadow": True}, {"trials": 0}),
        ("release", {"version": "12"}, {"version": "latest"}),
        ("monitor", {"until": None}, {"until": 5}),
        ("rollback", {"to": "3", "reason": "wrong answers"}, {"reason": ""}),
        ("control", {"action": "abort", "reason": "wrong answers", "extend_by": None}, {"action": "promote_all"}),
        ("control", {"action": "extend", "extend_by": "36h"}, {"extend_by": "1 day"}),
        ("score", {"partitions": ["/a.parquet"]}, {"partitions": "/a.parquet"}),
    ],
)
def test_parameters_are_typed(kind: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    params = by_kind(spec())[kind].params
    for name in params:
        assert params.get_param(name).description
    for name, value in good.items():
        assert params.get_param(name).resolve(value) == value
    for name, value in bad.items():
        with pytest.raises(ParamValidationError):
            params.get_param(name).resolve(value)


def test_dags_tell_what_they_are_for() -> None:
    for kind, dag in by_kind(spec()).items():
        assert dag.tags == {"airlock", "toy", kind}
        assert "A toy." in str(dag.doc_md)
        assert "metric rmse, max 3.5" in str(dag.doc_md)
        assert dag.default_args["owner"] == "toys"


def test_built_twice_is_serialised_the_same() -> None:
    first, second = (
        [json.dumps(DagSerialization.to_dict(dag), sort_keys=True) for dag in dags_of(spec(**FEATURES))] for _ in "ab"
    )
    assert first == second
    assert all("0x" not in text for text in first)


def test_every_model_is_repaired_by_one_dag() -> None:
    dag = reconcile_dag()
    dag.validate()
    assert dag.max_active_runs == 1
    assert isinstance(dag.schedule, CronTriggerTimetable)
    models, task = dag.tasks
    assert isinstance(models, ListModelsOperator)
    assert isinstance(task, MappedOperator)
    assert task.upstream_task_ids == {"list_models"}
    assert (task.execution_timeout, task.retries) == (timedelta(minutes=4), 0), "one that hangs delays no next sweep"
    assert DagSerialization.to_dict(dag)


def test_the_approval_names_its_approvers() -> None:
    approve = by_kind(spec(approvals={"approvers": ["ada"], "expires": "1h"}))["release"].get_task("approve")
    assert approve.assigned_users == [{"id": "ada", "name": "ada"}]
    assert approve.response_timeout.total_seconds() == 3600
    assert set(approve.params) == {"comment"}


def test_specs_of_the_project_are_in_the_loader() -> None:
    assert "airflow" in (loader := Path("dags/model_releases.py").read_text().lower())
    assert "dag" in loader
    assert len([line for line in loader.splitlines() if line and not line.startswith('"""')]) == 3
