"""Drift: what the model is asked now, held against what its champion was trained on, by Evidently.
What is measured, its verdict and its report are one module, because they must speak of the same columns.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from airlock import prediction_log
from airlock.core.drift_policy import Measure
from airlock.core.errors import DataInvalid, NotFound, Unavailable
from airlock.core.spec import ModelSpec, Task
from airlock.core.stats import metric_interval
from airlock.core.uncertainty import TooFew
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger, VersionRecord
from airlock.settings import Settings
from airlock.steps import labels, tracking
from airlock.steps.inference import OnnxModel, as_inputs
from airlock.steps.registry import Registry

REPORT = "report.html"
VERDICT = "verdict.json"
_PREDICTION = "prediction"
_ROWS = 10_000
_INCOMPARABLE = 1e6
"""The distance of two constants that differ; infinity does not survive JSON."""


def drift_report(spec: ModelSpec, settings: Settings, *, until: datetime, run_key: str) -> tuple[Verdict, str]:
    """Measure drift of the watched inputs over ``spec.monitoring.drift.current`` before ``until``.

    The inputs are those that were served, from the prediction log; the reference is a sample of the
    champion's training rows. Drift of the answers and the metrics on labels that have arrived are reported
    in the verdict's details and do not decide. The HTML report and the verdict are written to
    ``settings.reports`` and to a run of the MLflow experiment ``<model>.monitoring``.

    Returns:
        The verdict (``FAIL``: the data has drifted) and the address of the report in MLflow.

    Raises:
        NotFound: there is no champion, or MLflow lacks its training sample.
        DataInvalid: ``until`` has no time zone, or the reference is empty.
        Unavailable: MLflow does not answer.
    """
    if until.tzinfo is None:
        raise DataInvalid(f"until {until} has no time zone; give an aware time such as 2013-07-01T00:00:00+00:00")
    champion = Ledger(settings.ledger_url).champion(spec.model)
    if champion is None:
        raise NotFound(f"{spec.model} has no champion to measure drift against; release a version first")
    client = tracking.client(settings.mlflow_url)
    experiment = tracking.experiment(client, f"{spec.model}.monitoring")
    folder = settings.reports / spec.model / tracking.scratch(settings, spec.model, run_key).name
    folder.mkdir(parents=True, exist_ok=True)
    earlier = tracking.find_run(client, experiment, run_key)
    if earlier is not None:
        if earlier.info.status == "FINISHED" and (folder / VERDICT).is_file():
            verdict = Verdict.model_validate_json((folder / VERDICT).read_text())
            return verdict, _address(settings, experiment, earlier.info.run_id)
        client.set_terminated(earlier.info.run_id, "FAILED")
    tags = {
        tracking.RUN_KEY: run_key,
        "airlock.kind": "monitor",
        "airlock.model": spec.model,
        "airlock.until": until.isoformat(),
        "airlock.champion": champion.version,
    }
    run_id = client.create_run(experiment, tags=tags, run_name=f"drift until {until:%Y-%m-%d %H:%M}").info.run_id
    with tracking.failing(settings, run_id):
        verdict = _measure(spec, settings, champion, until, folder)
        _write(folder / VERDICT, verdict.model_dump_json(indent=2))
        columns = verdict.details["columns"]
        metrics = {f"drift_{name}": found["score"] for name, found in columns.items() if found["score"] is not None}
        metrics |= {
            f"late_{name}": value for name, value in verdict.details["performance"].items() if value is not None
        }
        if verdict.estimate is not None:
            metrics["drifted_share"] = verdict.estimate
        policy = spec.monitoring.drift
        params = policy.model_dump(mode="json", exclude={"columns"}, exclude_none=True)
        params |= {"bound_of_numbers": policy.numbers.bound, "bound_of_strings": policy.strings.bound}
        tracking.log_values(client, run_id, metrics=metrics, params=params, tags={"airlock.drift": verdict.status})
        client.log_artifacts(run_id, str(folder), "drift")
        client.set_terminated(run_id, "FINISHED")
    return verdict, _address(settings, experiment, run_id)


def latest_report(spec: ModelSpec, settings: Settings) -> str | None:
    """The address of the newest finished report in MLflow; ``None`` before the first.

    Raises:
        Unavailable: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    client = tracking.client(settings.mlflow_url)
    experiment = tracking.experiment(client, f"{spec.model}.monitoring")
    finished, newest = "attributes.status = 'FINISHED'", ["attributes.start_time DESC"]
    try:
        runs = client.search_runs([experiment], finished, max_results=1, order_by=newest)
    except MlflowException as error:
        raise Unavailable(f"MLflow at {settings.mlflow_url} does not answer: {error.message}") from error
    return _address(settings, experiment, runs[0].info.run_id) if runs else None


def _address(settings: Settings, experiment: str, run_id: str) -> str:
    return f"{settings.mlflow_url}/#/experiments/{experiment}/runs/{run_id}/artifacts/drift/{REPORT}"


def _write(path: Path, content: str) -> None:
    making = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    making.write_text(content)
    making.replace(path)


def _measure(spec: ModelSpec, settings: Settings, champion: VersionRecord, until: datetime, folder: Path) -> Verdict:
    policy = spec.monitoring.drift
    since = until - policy.current
    reference = _reference(spec, settings, champion)
    current = _current(spec, settings, since, until)
    performance = _performance(spec, settings, since, until)
    window = f"{since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M}"
    base: dict[str, Any] = {
        "method": policy.method,
        "threshold": policy.numbers.bound,
        "p_value": policy.numbers.p_value,
        "since": since.isoformat(),
        "until": until.isoformat(),
        "champion": champion.version,
        "reference_rows": len(reference),
        "performance": performance,
    }
    if len(current) < policy.min_rows:
        reason = f"{len(current)} answers from {window}; at least {policy.min_rows} are needed"
        _write(folder / REPORT, _empty_page(spec.model, reason))
        details = {**base, "columns": {}}
        return Verdict(name="drift", status=Status.INCONCLUSIVE, reason=reason, n=len(current), details=details)
    watched = list(policy.columns or spec.inputs)
    found = _scores(spec, reference, current, [*watched, _PREDICTION], folder / REPORT)
    return _decide(spec, watched, found, len(current), window, base)


def _decide(
    spec: ModelSpec, watched: list[str], found: dict[str, dict[str, Any]], rows: int, window: str, base: dict[str, Any]
) -> Verdict:
    policy = spec.monitoring.drift
    measured = {name: _measure_of(spec, name) for name in watched if found[name]["score"] is not None}
    nearest = sorted(measured, key=lambda name: -measured[name].nearness(found[name]["score"]))
    drifted = [name for name in nearest if found[name]["drifted"]]
    unknown = [name for name in watched if name not in measured]
    share, most = len(drifted) / len(watched), (len(drifted) + len(unknown)) / len(watched)
    status = Status.FAIL if share > policy.share else Status.INCONCLUSIVE if most > policy.share else Status.PASS
    reason = (
        f"{len(drifted)} of {len(watched)} inputs drifted by {policy.method} in {rows} answers from {window}; more "
        f"than {policy.share:.0%} count as drift, {_beyond(len(drifted), len(watched), policy.share)}"
    )
    if drifted:
        told = (f"{name} {_in_words(measured[name], found[name]['score'])}" for name in drifted[:5])
        reason += f": {'; '.join(told)}"
    if status is not Status.FAIL and (calm := [name for name in nearest if name not in drifted]):
        reason += f"; nearest to it {calm[0]} {_in_words(measured[calm[0]], found[calm[0]]['score'])}"
    if unknown:
        reason += f"; {len(unknown)} could not be measured: {', '.join(unknown[:5])}"
    return Verdict(
        name="drift",
        status=status,
        reason=reason,
        metric="drifted_share",
        estimate=share,
        threshold=policy.share,
        n=rows,
        details={**base, "columns": found, "prediction": found[_PREDICTION]},
    )


def _measure_of(spec: ModelSpec, name: str) -> Measure:
    policy = spec.monitoring.drift
    return policy.strings if name in spec.inputs and spec.inputs[name].type == "string" else policy.numbers


def _in_words(measure: Measure, score: float) -> str:
    return "is another constant" if score == _INCOMPARABLE else measure.in_words(score)


def _beyond(drifted: int, watched: int, share: float) -> str:
    """By how many inputs the trigger was passed or missed."""
    allowed = max(count for count in range(watched + 1) if count / watched <= share)
    if drifted > allowed:
        return f"which is {drifted - allowed} more than the {allowed} that may"
    return f"which would take {allowed + 1 - drifted} more"


def _reference(spec: ModelSpec, settings: Settings, champion: VersionRecord) -> pd.DataFrame:
    """The champion's training sample with the champion's answers to it."""
    registry = Registry(settings.mlflow_url, bundles=settings.bundles)
    run_id = registry.run_of(spec.model, champion.version)
    with tempfile.TemporaryDirectory() as work:
        frame = pd.read_parquet(registry.artifact(run_id, tracking.REFERENCE, Path(work)))
    if frame.empty:
        raise DataInvalid(f"{spec.model}: the training sample of version {champion.version} is empty; train again")
    model = OnnxModel(Path(champion.bundle.path), digest=champion.bundle.digest)
    return as_inputs(frame, model.manifest.inputs).assign(**{_PREDICTION: model.scores(frame)})


def _current(spec: ModelSpec, settings: Settings, since: datetime, until: datetime) -> pd.DataFrame:
    """Inputs and answers as served."""
    log = prediction_log.read(settings, spec.model, since, until)
    answer = "probability" if spec.task is Task.CLASSIFICATION else "prediction"
    log = log[log[answer].notna()] if answer in log else log.iloc[:0]
    if len(log) > _ROWS:
        log = log.sample(_ROWS, random_state=spec.recipe.seed)
    frame = pd.DataFrame({name: log.get(f"x_{name}", np.nan) for name in spec.inputs}, index=log.index)
    return as_inputs(frame, spec.inputs).assign(**{_PREDICTION: log[answer].astype(float)})


def _performance(spec: ModelSpec, settings: Settings, since: datetime, until: datetime) -> dict[str, float | None]:
    """Metrics on the labels that have arrived, each ``None`` while there are too few."""
    frame = labels.joined(spec, settings, since, until)
    classified = spec.task is Task.CLASSIFICATION
    answers = frame["probability" if classified else "prediction"].to_numpy(np.float64)
    found: dict[str, float | None] = {"labelled": float(len(frame))}
    for metric in ("roc_auc", "log_loss", "brier") if classified else ("rmse", "mae"):
        try:
            truth = frame["label"].to_numpy(np.float64)
            value = metric_interval(metric, truth, answers, threshold=spec.label.threshold)
            found[metric], found[f"{metric}_low"], found[f"{metric}_high"] = value
        except TooFew:
            found[metric] = None
    return found


def _scores(
    spec: ModelSpec, reference: pd.DataFrame, current: pd.DataFrame, columns: list[str], report: Path
) -> dict[str, dict[str, Any]]:
    """Each column's drift score, ``None`` where there is nothing to compare; writes Evidently's report."""
    policy, found = spec.monitoring.drift, {}
    strings = {name for name in columns if name in spec.inputs and spec.inputs[name].type == "string"}
    measured = []
    for name in columns:
        before, now = (_present(frame[name], name in strings) for frame in (reference, current))
        measure = _measure_of(spec, name)
        found[name] = {
            "method": measure.method,
            "threshold": measure.bound,
            "score": None,
            "drifted": False,
            "missing_reference": 1 - len(before) / len(reference),
            "missing_current": 1 - len(now) / len(current),
        }
        if min(len(before), len(now)) < policy.min_rows:
            continue
        if before.nunique() == 1 and now.nunique() == 1:
            # A constant has no distribution to compare; two constants are the same or they are not.
            same = before.iloc[0] == now.iloc[0]
            alike, apart = (1.0, 0.0) if measure.p_value else (0.0, _INCOMPARABLE)
            found[name] |= {"score": alike if same else apart, "drifted": not same}
            continue
        measured.append(name)
    if measured:
        for name, score in _evidently(spec, reference, current, measured, strings, report).items():
            if math.isfinite(score):
                found[name] |= {"score": score, "drifted": _measure_of(spec, name).drifted(score)}
    else:
        _write(report, _empty_page(spec.model, "no column has enough values to be measured"))
    return found


def _present(column: pd.Series[Any], string: bool) -> pd.Series[Any]:
    return column[column != ""] if string else column.dropna()


def _evidently(
    spec: ModelSpec, reference: pd.DataFrame, current: pd.DataFrame, columns: list[str], strings: set[str], report: Path
) -> dict[str, float]:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    policy = spec.monitoring.drift
    numbers = [name for name in columns if name not in strings]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=[n for n in columns if n in strings])
    preset = DataDriftPreset(
        columns=columns,
        drift_share=policy.share,
        num_method=policy.numbers.method,
        cat_method=policy.strings.method,
        num_threshold=policy.numbers.bound,
        cat_threshold=policy.strings.bound,
    )
    sets = (Dataset.from_pandas(frame[columns], data_definition=definition) for frame in (current, reference))
    with np.errstate(all="ignore"):
        snapshot = Report([preset]).run(*sets)
    making = report.with_name(f".{report.name}.{os.getpid()}.tmp")
    snapshot.save_html(str(making))
    making.replace(report)
    scores = {}
    for metric in json.loads(snapshot.json())["metrics"]:
        column = metric.get("config", {}).get("column")
        if column is not None:
            scores[column] = float(metric["value"]) if metric["value"] is not None else math.nan
    return scores


def _empty_page(model: str, reason: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Drift of {model}</title>'
        f"<body><h1>Drift of {model}</h1><p>Not measured: {reason}</p></body></html>"
    )
