"""Training is later-judged, told to MLflow in full, and done once a key."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.semi_supervised import LabelSpreading

from airlock.core.errors import ArtifactCorrupt, DataInvalid, SpecError, Unavailable
from airlock.settings import Settings
from airlock.steps import tracking, training
from tests.support.toy_model import UNTIL, toy_rows, toy_settings, toy_spec, toy_training_set

SPEC = toy_spec()


def _train(settings: Settings, folder: Path, run_key: str, **changes: Any) -> Any:
    arguments = {"params": None, "trials": None, "origin": {"dag": "toy__train"}, **changes}
    frame = arguments.pop("frame", None)
    spec = arguments.pop("spec", SPEC)
    return training.train(spec, settings, toy_training_set(folder, frame), run_key=run_key, **arguments)


def test_evaluation_rows_are_the_last_and_no_label_is_known_too_early(tmp_path: Path) -> None:
    split = training.Split(SPEC, toy_training_set(tmp_path))
    assert split.evaluation_from == UNTIL - timedelta(days=5)
    assert (split.train["known_at"] < split.evaluation_from).all()
    assert (split.evaluation["at"] >= split.evaluation_from).all()
    assert 0 < 1500 - len(split.train) - len(split.evaluation) <= 4


def test_history_limits_what_is_learned_from(tmp_path: Path) -> None:
    spec = toy_spec(data={"key": "visit", "event_time": "at", "evaluation": "5d", "history": "2d"})
    assert len(training.Split(spec, toy_training_set(tmp_path)).train) == 2 * 96 - 4


@pytest.mark.parametrize("bought", [0, 1])
def test_one_class_alone_is_refused(tmp_path: Path, bought: int) -> None:
    with pytest.raises(DataInvalid, match="both classes"):
        training.Split(SPEC, toy_training_set(tmp_path, toy_rows().assign(bought=bought)))


def test_rows_that_are_not_what_their_digest_says_are_refused(tmp_path: Path) -> None:
    ref = toy_training_set(tmp_path)
    toy_rows(seed=4).to_parquet(ref.path)
    with pytest.raises(ArtifactCorrupt, match="expected sha256"):
        training.Split(SPEC, ref)


def test_without_mlflow_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match="does not answer"):
        _train(toy_settings(tmp_path), tmp_path, "key")


@pytest.mark.integration
def test_everything_is_told_to_mlflow(tmp_path: Path, mlflow_server: str) -> None:
    settings = toy_settings(tmp_path, mlflow_server)
    ref = _train(settings, tmp_path, "told: all/of it")
    client = tracking.client(mlflow_server)
    run = client.get_run(ref.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["roc_auc"] > run.data.metrics["baseline_groups_roc_auc"] > 0.5
    assert run.data.metrics["roc_auc_low"] < run.data.metrics["roc_auc"] < run.data.metrics["roc_auc_high"]
    assert run.data.params["leaves"] == str(ref.params["leaves"])
    assert run.data.params["seed"] == "7"
    tags = run.data.tags
    assert tags["airlock.data_digest"] == ref.training_set.digest
    assert tags["airlock.origin.dag"] == "toy__train"
    assert tags["mlflow.source.git.commit"] == "unknown"
    trials = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{ref.run_id}'")
    assert len(trials) == 2
    assert all(trial.info.status == "FINISHED" and "log_loss" in trial.data.metrics for trial in trials)
    assert [given.dataset.digest for given in run.inputs.dataset_inputs] == [ref.training_set.digest[7:39]]
    written = {artifact.path for artifact in client.list_artifacts(ref.run_id)}
    assert written >= {"roc.png", "precision_recall.png", "calibration.png", "importance.png", "environment.txt"}
    assert written >= {"facts.json", "importance.json", "reference.parquet"}
    facts = json.loads((Path(ref.path) / "facts.json").read_text())
    assert facts["metrics"]["roc_auc"] == pytest.approx(ref.metrics["roc_auc"])
    assert facts["train"]["to"] < facts["evaluation"]["from"]


@pytest.mark.integration
def test_the_same_key_trains_once_and_the_same_data_gives_the_same_model(tmp_path: Path, mlflow_server: str) -> None:
    settings = toy_settings(tmp_path, mlflow_server)
    first = _train(settings, tmp_path, "once")
    assert _train(settings, tmp_path, "once") == first
    second = _train(settings, tmp_path, "twice")
    assert second.run_id != first.run_id
    alike = ("roc_auc", "log_loss", "tuning_log_loss")
    assert [second.metrics[name] for name in alike] == [first.metrics[name] for name in alike]
    (Path(first.path) / "facts.json").write_text("{}")
    assert _train(settings, tmp_path, "once").run_id != first.run_id


@pytest.mark.integration
def test_a_run_that_was_killed_is_closed_by_the_retry(tmp_path: Path, mlflow_server: str) -> None:
    settings = toy_settings(tmp_path, mlflow_server)
    client = tracking.client(mlflow_server)
    experiment = tracking.experiment(client, "toy")
    left = client.create_run(experiment, tags={tracking.RUN_KEY: "killed"}).info.run_id
    trial = client.create_run(experiment, tags={"mlflow.parentRunId": left}).info.run_id
    ref = _train(settings, tmp_path, "killed", trials=1)
    assert ref.run_id != left
    assert {client.get_run(run).info.status for run in (left, trial)} == {"FAILED"}


@pytest.mark.integration
def test_a_step_that_fails_leaves_no_finished_run(tmp_path: Path, mlflow_server: str) -> None:
    settings = toy_settings(tmp_path, mlflow_server)
    estimator = LocalOutlierFactor()
    with pytest.raises((SpecError, AttributeError)):
        _train(settings, tmp_path, "broken", params={"estimator": estimator, "leaves": 4})
    client = tracking.client(mlflow_server)
    where = f"tags.`{tracking.RUN_KEY}` = 'broken'"
    (run,) = client.search_runs([tracking.experiment(client, "toy")], where)
    assert run.info.status == "FAILED"
    assert run.data.tags["airlock.error"]
    assert not list(settings.runs.rglob("pipeline.joblib"))


@pytest.mark.integration
def test_an_estimator_that_cannot_be_converted_is_refused_before_tuning(tmp_path: Path, mlflow_server: str) -> None:
    settings = toy_settings(tmp_path, mlflow_server)
    with pytest.raises(SpecError, match=r"LabelSpreading[\s\S]*Use estimators"):
        _train(settings, tmp_path, "unconvertible", params={"estimator": LabelSpreading()})
    client = tracking.client(mlflow_server)
    experiment = tracking.experiment(client, "toy")
    (run,) = client.search_runs([experiment], f"tags.`{tracking.RUN_KEY}` = 'unconvertible'")
    assert run.info.status == "FAILED"
    assert not client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run.info.run_id}'")


@pytest.mark.integration
def test_rows_that_the_pipeline_refuses_are_told(tmp_path: Path, mlflow_server: str) -> None:
    settings = toy_settings(tmp_path, mlflow_server)
    rows = toy_rows()
    rows.loc[rows.index[-50:], "shop"] = "west"
    with pytest.raises(DataInvalid, match=r"refuses the evaluation rows[\s\S]*west"):
        _train(settings, tmp_path, "refused", frame=rows, params={"unknown": "error"})
    rows.loc[rows.index[-680:], "shop"] = "west"
    with pytest.raises(DataInvalid, match="none of 2 trials"):
        _train(settings, tmp_path, "no trial", frame=rows, params={"unknown": "error"})


@pytest.mark.integration
def test_a_regression_is_judged_by_its_error(tmp_path: Path, mlflow_server: str) -> None:
    spec = toy_spec(
        model="toy_price",
        task="regression",
        label={"name": "price", "time": "known_at"},
        recipe={"module": "include.toy.recipe", "params": {"regression": True}, "trials": 1},
        inputs={name: declared for name, declared in SPEC.inputs.items() if name != "price"}
        | {"bought": {"type": "int"}},
        gates=[{"kind": "finite"}],
        monitoring={},
    )
    settings = toy_settings(tmp_path, mlflow_server)
    recipe = settings.project / "include" / "toy" / "recipe.py"
    recipe.write_text(recipe.read_text().replace('["age", "price"]', '["age", "bought"]'))
    ref = _train(settings, tmp_path, "price", spec=spec)
    assert ref.metrics["rmse"] < ref.metrics["baseline_constant_rmse"]
    assert np.isfinite(list(ref.metrics.values())).all()


def test_scratch_folders_of_awkward_keys_do_not_collide(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    keys = ["manual__2026-01-01T00:00:00+00:00", "a/b", "a_b", "../../x", "x" * 300]
    folders = [tracking.scratch(settings, "toy", key) for key in keys]
    assert len(set(folders)) == len(keys)
    assert all(folder.parent == settings.runs / "toy" for folder in folders)
    assert pd.Series([folder.name for folder in folders]).str.len().max() < 130
