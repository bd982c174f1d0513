"""Tuning and training: from a training set to a fitted pipeline and the MLflow run that tells how.
It is one module because it is one run: the trials, the fit and the figures share the split and the seed.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from airlock.core.bundle import sha256
from airlock.core.errors import ArtifactCorrupt, DataInvalid
from airlock.core.refs import TrainedRef, TrainingSetRef
from airlock.core.spec import METRICS, ModelSpec, Task
from airlock.core.stats import metric_interval
from airlock.settings import Settings
from airlock.steps import plots, tracking
from airlock.steps.conversion import to_onnx
from airlock.steps.inference import as_inputs
from airlock.steps.recipes import RecipeModule, definition_digest, load_recipe

if TYPE_CHECKING:
    import optuna
    from mlflow import MlflowClient

PIPELINE = "pipeline.joblib"
FACTS = "facts.json"
_REF = "trained.json"
_QUICK = {Task.CLASSIFICATION: ("roc_auc", "log_loss", "brier"), Task.REGRESSION: ("rmse", "mae", "r2")}
"""Metrics whose estimate costs little, for trials and baselines."""

OBJECTIVE = {Task.CLASSIFICATION: "log_loss", Task.REGRESSION: "rmse"}
"""What a trial minimises on the inner validation rows."""

_TUNING_ROWS = 15_000
_VALIDATION_ROWS = 8_000
_VALIDATION_SHARE = 0.2
_TRIAL_CONVERSION_ROWS = 400
_IMPORTANCE_ROWS = 2_500
_CONFIDENCE = 0.975  # of each bound: both together are a 95 % interval
_PRIOR_ROWS = 50.0


def read_rows(ref: TrainingSetRef) -> pd.DataFrame:
    """A training set's rows.

    Raises:
        ArtifactCorrupt: the file is gone or not what its digest says.
    """
    try:
        content = Path(ref.path).read_bytes()
    except OSError as error:
        raise ArtifactCorrupt(f"training set {ref.path} cannot be read ({error.strerror}); make it again") from error
    if (got := sha256(content)) != ref.digest:
        raise ArtifactCorrupt(f"training set {ref.path} is {got}, expected {ref.digest}; make it again")
    return pd.read_parquet(io.BytesIO(content))


class Split:
    """A training set in time order: ``train`` lies wholly before ``evaluation_from``, ``evaluation`` after it.

    Training rows whose label was not yet known at ``evaluation_from`` are left out.
    """

    def __init__(self, spec: ModelSpec, ref: TrainingSetRef) -> None:
        frame = read_rows(ref).sort_values([spec.data.event_time, spec.data.key], kind="stable")
        times = frame[spec.data.event_time]
        self.evaluation_from: datetime = ref.until - spec.data.evaluation
        before = times < pd.Timestamp(self.evaluation_from)
        if spec.label.time is not None:
            before &= frame[spec.label.time] < pd.Timestamp(self.evaluation_from)
        if spec.data.history is not None:
            before &= times >= pd.Timestamp(self.evaluation_from - spec.data.history)
        self.train = frame[before]
        self.evaluation = frame[times >= pd.Timestamp(self.evaluation_from)]
        for name, part in (("training", self.train), ("evaluation", self.evaluation)):
            if spec.task is Task.CLASSIFICATION and part[spec.label.name].nunique() < 2:
                raise DataInvalid(
                    f"{spec.model}: the {len(part)} {name} rows (split at {self.evaluation_from:%Y-%m-%d %H:%M}) do not"
                    " hold both classes; take more data or a shorter data.evaluation"
                )
            if part.empty:
                raise DataInvalid(f"{spec.model}: no {name} rows (split at {self.evaluation_from:%Y-%m-%d %H:%M})")


def one_thread() -> AbstractContextManager[Any]:
    """Keep OpenMP to one thread: threads that wait for each other spin.

    On a busy machine two of them are many times slower than one, and one gives the same model everywhere.
    To be entered after the recipe has been imported, which loads the libraries that this is about.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits


def positive_scores(pipeline: Any, typed: pd.DataFrame, task: Task) -> npt.NDArray[np.float64]:
    """The probability of the positive class, or the regression's value, shape ``(rows,)``."""
    if task is Task.CLASSIFICATION:
        return np.asarray(pipeline.predict_proba(typed)[:, 1], np.float64)
    return np.asarray(pipeline.predict(typed), np.float64).reshape(-1)


def train(
    spec: ModelSpec,
    settings: Settings,
    training_set: TrainingSetRef,
    *,
    run_key: str,
    params: Mapping[str, Any] | None,
    trials: int | None,
    origin: Mapping[str, str],
) -> TrainedRef:
    """Tune, fit on all training rows, evaluate on the held-out ones and log it all to one MLflow run.

    Args:
        run_key: names this training; a second call with it returns the first one's result, unless the rows or the
            recipe differ by now: then it trains anew.
        params: recipe parameters that are fixed rather than tuned.
        trials: Optuna trials; unset: the spec's; 0: none.
        origin: who or what asked, as tags of the run.

    Raises:
        SpecError: the pipeline cannot be converted to ONNX; found before tuning.
        DataInvalid: there is nothing to train on or to evaluate with.
        Unavailable: MLflow does not answer.
    """
    folder = tracking.scratch(settings, spec.model, run_key) / "trained"
    client = tracking.client(settings.mlflow_url)
    experiment = tracking.experiment(client, spec.model)
    earlier = tracking.find_run(client, experiment, run_key)
    definition = definition_digest(spec, settings)
    if earlier is not None:
        done = _done(folder, training_set, earlier)
        if done is not None and earlier.data.tags.get(tracking.DEFINITION) == definition:
            return done
        tracking.close_children(client, experiment, earlier.info.run_id)
        if earlier.info.status != "FINISHED":
            client.set_terminated(earlier.info.run_id, "FAILED")
    tags = {
        tracking.RUN_KEY: run_key,
        "airlock.kind": "train",
        "airlock.model": spec.model,
        "airlock.until": training_set.until.isoformat(),
        "airlock.data_digest": training_set.digest,
        "airlock.snapshot_digest": training_set.snapshot,
        "mlflow.source.git.commit": tracking.git_commit(settings.project),
        "airlock.lock_digest": tracking.lock_digest(settings.project),
        tracking.DEFINITION: definition,
        **{f"airlock.origin.{key}": value for key, value in origin.items()},
    }
    name = f"{spec.model} until {training_set.until:%Y-%m-%d}"
    run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    with tracking.failing(settings, run_id):
        work = _Training(spec, settings, training_set, client, run_id, experiment)
        with one_thread():
            ref = work.run(folder, fixed={**spec.recipe.params, **(params or {})}, trials=trials)
        client.set_terminated(run_id, "FINISHED")
    return ref


def _done(folder: Path, training_set: TrainingSetRef, run: Any) -> TrainedRef | None:
    """What an earlier call left, if it came to its end on the same data."""
    try:
        ref = TrainedRef.model_validate_json((folder / _REF).read_text())
    except (OSError, ValidationError):
        return None
    same = ref.run_id == run.info.run_id and ref.training_set.digest == training_set.digest
    return ref if same and run.info.status == "FINISHED" and ref.digest == _digest(folder) else None


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (PIPELINE, FACTS):
        digest.update((folder / name).read_bytes())
    return "sha256:" + digest.hexdigest()


class _Training:
    """One training run; holds what its parts share."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        training_set: TrainingSetRef,
        client: MlflowClient,
        run_id: str,
        experiment: str,
    ) -> None:
        self.spec, self.settings, self.training_set = spec, settings, training_set
        self.client, self.run_id, self.experiment = client, run_id, experiment
        self.recipe: RecipeModule = load_recipe(spec, settings)
        self.split = Split(spec, training_set)

    def run(self, folder: Path, *, fixed: dict[str, Any], trials: int | None) -> TrainedRef:
        import joblib

        self._check_convertible(fixed if trials == 0 else self._first_trial(fixed))
        best, tuned = self._tune(fixed, self.spec.recipe.trials if trials is None else trials)
        started = time.monotonic()
        pipeline = self._fit(best, self.split.train)
        fit_seconds = time.monotonic() - started
        evaluation = self.split.evaluation
        typed, labels = as_inputs(evaluation, self.spec.inputs), evaluation[self.spec.label.name].to_numpy(np.float64)
        try:
            scores = positive_scores(pipeline, typed, self.spec.task)
        except ValueError as error:
            raise DataInvalid(f"{self.spec.model}: the fitted pipeline refuses the evaluation rows: {error}") from error
        metrics = {**self._metrics(labels, scores), **self._baselines(labels), **tuned, "fit_seconds": fit_seconds}
        metrics["rows_train"], metrics["rows_evaluation"] = len(self.split.train), len(evaluation)
        facts = self._facts(metrics, best)
        folder.mkdir(parents=True, exist_ok=True)
        joblib.dump(pipeline, folder / PIPELINE, compress=1)
        (folder / FACTS).write_text(json.dumps(facts, indent=2, default=str))
        importance = self._importance(pipeline, typed, labels, scores)
        self._log(folder, best, metrics, labels, scores, importance)
        ref = TrainedRef(
            path=str(folder),
            digest=_digest(folder),
            run_id=self.run_id,
            training_set=self.training_set,
            evaluation_from=self.split.evaluation_from,
            metrics=metrics,
            params=best,
        )
        (folder / _REF).write_text(ref.model_dump_json(indent=2))
        return ref

    def _fit(self, params: Mapping[str, Any], rows: pd.DataFrame) -> Any:
        labels = rows[self.spec.label.name].to_numpy()
        return self.recipe.pipeline(params).fit(as_inputs(rows, self.spec.inputs), labels)

    def _first_trial(self, fixed: dict[str, Any]) -> dict[str, Any]:
        """Parameters as tuning would try them."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=self.spec.recipe.seed))
        return {**self.recipe.search_space(study.ask()), **fixed}

    def _check_convertible(self, params: Mapping[str, Any]) -> None:
        """Fit a few rows and convert: an estimator without a converter is refused before it costs anything."""
        rows = self.split.train
        few = rows.sample(min(len(rows), _TRIAL_CONVERSION_ROWS), random_state=self.spec.recipe.seed)
        if self.spec.task is Task.CLASSIFICATION:
            each = rows.groupby(self.spec.label.name).head(2)
            few = pd.concat([few, each.loc[each.index.difference(few.index)]])
        to_onnx(self._fit(params, few), self.spec.inputs, self.spec.task)

    def _tune(self, fixed: dict[str, Any], trials: int) -> tuple[dict[str, Any], dict[str, float]]:
        """The best trial's parameters with the fixed ones, judged on the later part of the training rows."""
        if trials == 0:
            return fixed, {}
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed, rows, objective = self.spec.recipe.seed, self.split.train, OBJECTIVE[self.spec.task]
        later = max(1, int(len(rows) * _VALIDATION_SHARE))
        fit_on, judge_on = rows.iloc[:-later], rows.iloc[-later:]
        fit_on = fit_on.sample(min(len(fit_on), _TUNING_ROWS), random_state=seed)
        judge_on = judge_on.sample(min(len(judge_on), _VALIDATION_ROWS), random_state=seed)
        typed, labels = as_inputs(judge_on, self.spec.inputs), judge_on[self.spec.label.name].to_numpy(np.float64)

        def attempt(trial: optuna.Trial) -> float:
            started = time.time()
            params = {**self.recipe.search_space(trial), **fixed}
            try:
                scores = positive_scores(self._fit(params, fit_on), typed, self.spec.task)
            except ValueError as error:
                self._log_trial(trial.number, params, {}, started, error=error)
                raise
            found = {metric: self._estimate(metric, labels, scores) for metric in _QUICK[self.spec.task]}
            self._log_trial(trial.number, params, found, started)
            trial.set_user_attr("params", params)
            return found[objective]

        study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(attempt, n_trials=trials, catch=ValueError)
        if not study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
            raise DataInvalid(f"{self.spec.model}: none of {trials} trials could be fitted; their MLflow runs say why")
        best = study.best_trial
        return dict(best.user_attrs["params"]), {f"tuning_{objective}": float(best.value or 0.0), "trials": trials}

    def _log_trial(
        self,
        number: int,
        params: dict[str, Any],
        metrics: dict[str, float],
        started: float,
        *,
        error: ValueError | None = None,
    ) -> None:
        tags = {"mlflow.parentRunId": self.run_id, "airlock.kind": "trial"}
        if error is not None:
            tags["airlock.error"] = str(error)[:4000]
        name = f"trial {number}"
        run = self.client.create_run(self.experiment, int(started * 1000), tags=tags, run_name=name).info.run_id
        tracking.log_values(self.client, run, metrics=metrics, params=params)
        self.client.set_terminated(run, "FAILED" if error else "FINISHED")

    def _estimate(self, metric: str, labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> float:
        return self._interval(metric, labels, scores)[0]

    def _interval(
        self, metric: Any, labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]
    ) -> tuple[float, float, float]:
        found = metric_interval(metric, labels, scores, confidence=_CONFIDENCE, threshold=self.spec.label.threshold)
        return found.estimate, found.low, found.high

    def _metrics(self, labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """The held-out metrics, each with its 95 % interval as ``<metric>_low`` and ``<metric>_high``."""
        found: dict[str, float] = {}
        for metric in METRICS[self.spec.task]:
            found[metric], found[f"{metric}_low"], found[f"{metric}_high"] = self._interval(metric, labels, scores)
        return found

    def _baselines(self, labels: npt.NDArray[np.float64]) -> dict[str, float]:
        """The held-out metrics of two answers that need no model.

        ``baseline_constant``: the training rows' mean. ``baseline_groups``, if the recipe defines
        ``baseline(frame)``: the mean of the row's group in the training rows, drawn towards the mean of all
        by 50 rows' weight.
        """
        train, evaluation, name = self.split.train, self.split.evaluation, self.spec.label.name
        mean = float(train[name].mean())
        answers = {"baseline_constant": np.full(len(labels), mean)}
        group: Callable[[pd.DataFrame], pd.Series[Any]] | None = getattr(self.recipe, "baseline", None)
        if group is not None:
            by = train[name].groupby(group(train)).agg(["sum", "count"])
            rates = (by["sum"] + _PRIOR_ROWS * mean) / (by["count"] + _PRIOR_ROWS)
            answers["baseline_groups"] = group(evaluation).map(rates).fillna(mean).to_numpy(np.float64)
        return {
            f"{answer}_{metric}": self._estimate(metric, labels, scores)
            for answer, scores in answers.items()
            for metric in _QUICK[self.spec.task]
        }

    def _importance(
        self,
        pipeline: Any,
        typed: pd.DataFrame,
        labels: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64],
    ) -> dict[str, float]:
        """By how much the objective gets worse when one input is shuffled among the held-out rows."""
        random = np.random.default_rng(self.spec.recipe.seed)
        chosen = random.permutation(len(typed))[:_IMPORTANCE_ROWS]
        rows, labels, objective = typed.iloc[chosen], labels[chosen], OBJECTIVE[self.spec.task]
        whole = self._estimate(objective, labels, scores[chosen])
        found = {}
        for name in self.spec.inputs:
            shuffled = rows.assign(**{name: rows[name].to_numpy()[random.permutation(len(rows))]})
            found[name] = self._estimate(objective, labels, positive_scores(pipeline, shuffled, self.spec.task)) - whole
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _facts(self, metrics: dict[str, float], params: dict[str, Any]) -> dict[str, Any]:
        spec, train, evaluation = self.spec, self.split.train, self.split.evaluation
        time_column = spec.data.event_time
        return {
            "model": spec.model,
            "run_id": self.run_id,
            "training_set": self.training_set.model_dump(mode="json"),
            "seed": spec.recipe.seed,
            "train": {
                "rows": len(train),
                "from": train[time_column].min().isoformat(),
                "to": train[time_column].max().isoformat(),
            },
            "evaluation": {"rows": len(evaluation), "from": self.split.evaluation_from.isoformat()},
            "params": params,
            "metrics": metrics,
        }

    def _log(
        self,
        folder: Path,
        params: dict[str, Any],
        metrics: dict[str, float],
        labels: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64],
        importance: dict[str, float],
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        seed = self.spec.recipe.seed
        tracking.log_values(
            self.client, self.run_id, metrics=metrics, params={**params, "seed": seed}, tags={"airlock.seed": str(seed)}
        )
        dataset = Dataset(
            name=f"{self.spec.model} until {self.training_set.until:%Y-%m-%d}",
            digest=self.training_set.digest[7:39],
            source_type="local",
            source=json.dumps({"uri": self.training_set.path}),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        artifacts = folder / "artifacts"
        artifacts.mkdir(exist_ok=True)
        plots.curves(self.spec, labels, scores, importance, artifacts)
        (artifacts / "importance.json").write_text(json.dumps(importance, indent=2))
        (artifacts / "environment.txt").write_text(tracking.environment())
        (artifacts / FACTS).write_bytes((folder / FACTS).read_bytes())
        columns = [self.spec.data.event_time, *self.spec.inputs]
        train = self.split.train[columns]
        sample = train.sample(min(len(train), tracking.REFERENCE_ROWS), random_state=seed).sort_index()
        sample.to_parquet(artifacts / tracking.REFERENCE, index=False)
        self.client.log_artifacts(self.run_id, str(artifacts))
