"""Build a training set and train on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Context

from airlock.core.refs import SnapshotRef, TrainingSetRef
from airlock.operators.base import ModelOperator, actor, refusals_are_final, run_key
from airlock.operators.links import MlflowRunLink


class BuildTrainingSetOperator(ModelOperator):
    """Join the features to the events as they were known then, losing no event.

    :param snapshot: a validated ``SnapshotRef``
    :return: a ``TrainingSetRef``
    """

    template_fields = ("snapshot",)

    def __init__(self, *, snapshot: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002
        from airlock.steps import features

        made = features.training_set(self.spec, self.settings, SnapshotRef.model_validate(self.snapshot))
        self.log.info("Training set %s: %s rows until %s", made.digest, made.rows, made.until)
        return made.model_dump(mode="json")


class TrainOperator(ModelOperator):
    """Tune and train the recipe's pipeline; trials are nested MLflow runs.

    :param training_set: a ``TrainingSetRef``
    :param recipe_params: parameters that override the spec's
    :param trials: how many Optuna trials; None: as the spec says
    :return: a ``TrainedRef``
    """

    template_fields = ("training_set", "recipe_params", "trials")
    operator_extra_links = (MlflowRunLink(),)

    def __init__(
        self,
        *,
        training_set: Mapping[str, Any],
        recipe_params: Mapping[str, Any] | None = None,
        trials: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.training_set = training_set
        self.recipe_params = recipe_params
        self.trials = trials

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        from airlock.steps import training

        trained = training.train(
            self.spec,
            self.settings,
            TrainingSetRef.model_validate(self.training_set),
            run_key=run_key(context),
            params=self.recipe_params,
            trials=self.trials,
            origin={
                "dag_id": context["dag"].dag_id,
                "dag_run_id": context["run_id"],
                "airflow_url": self.settings.airflow_url,
                "actor": actor(context),
                "host": os.uname().nodename,
            },
        )
        self.links[MlflowRunLink().name] = self.registry_hook.run_url(trained.run_id)
        self.log.info("Trained in MLflow run %s: %s", trained.run_id, trained.metrics)
        return trained.model_dump(mode="json")
