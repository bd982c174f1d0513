"""Export a trained pipeline, judge it by the gates and register it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Context

from airlock.core.errors import GateRefused
from airlock.core.refs import EvaluatedRef, OnnxRef, Ref, TrainedRef
from airlock.core.verdict import Status, fold
from airlock.operators.base import ModelOperator, actor, refusals_are_final, run_key
from airlock.operators.links import MlflowRunLink


class ExportOnnxOperator(ModelOperator):
    """Convert a trained pipeline to an ONNX bundle and compare the two on real and boundary rows.

    :param trained: a ``TrainedRef``
    :return: an ``OnnxRef``; a poor parity is for the gates to judge
    """

    template_fields = ("trained",)
    operator_extra_links = (MlflowRunLink(),)

    def __init__(self, *, trained: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trained = trained

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002
        from airlock.steps import export

        exported = export.export(self.spec, self.settings, TrainedRef.model_validate(self.trained))
        self.links[MlflowRunLink().name] = self.registry_hook.run_url(exported.trained.run_id)
        self.log.info("Parity %s: %s", exported.parity.status, exported.parity.reason)
        return exported.model_dump(mode="json")


class EvaluateGatesOperator(ModelOperator):
    """Judge a candidate by every gate, against the champion on the same fresh rows.

    :param candidate: an ``OnnxRef``
    :return: an ``EvaluatedRef``; unless every gate that is enforced passed, the task fails with the reasons
    """

    template_fields = ("candidate",)
    operator_extra_links = (MlflowRunLink(),)

    def __init__(self, *, candidate: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.candidate = candidate

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002
        from airlock.steps import evaluation

        candidate = OnnxRef.model_validate(self.candidate)
        self.links[MlflowRunLink().name] = self.registry_hook.run_url(candidate.trained.run_id)
        champion = self.ledger_hook.get_conn().champion(self.model)
        evaluated = evaluation.evaluate(
            self.spec,
            self.settings,
            candidate,
            champion=Ref(path=champion.bundle.path, digest=champion.bundle.digest) if champion else None,
            champion_version=champion.version if champion else None,
        )
        for verdict in evaluated.verdicts:
            self.log.info("%s %s: %s", verdict.status.upper(), verdict.name, verdict.reason)
        if fold(evaluated.verdicts) is not Status.PASS:
            refused = "; ".join(f"{v.name}: {v.reason}" for v in evaluated.verdicts if v.holds_back)
            raise GateRefused(
                f"{self.model}: the candidate may not be registered. {refused or 'no gate gave a verdict'}"
            )
        return evaluated.model_dump(mode="json")


class RegisterVersionOperator(ModelOperator):
    """Register a judged candidate as a version in MLflow and announce it.

    The outlet's event carries the version, and whether its release is to skip the shadow.

    :param evaluated: an ``EvaluatedRef`` whose gates passed
    :param skip_shadow: go from the warm-up to the canary at once
    :return: a ``VersionRef``
    """

    template_fields = ("evaluated", "skip_shadow")
    operator_extra_links = (MlflowRunLink(),)

    def __init__(self, *, evaluated: Mapping[str, Any], skip_shadow: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.evaluated = evaluated
        self.skip_shadow = skip_shadow

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        evaluated = EvaluatedRef.model_validate(self.evaluated)
        if fold(evaluated.verdicts) is not Status.PASS:
            raise GateRefused(f"{self.model}: only a candidate that passed its gates can be registered")
        registry = self.registry_hook.get_conn()
        version = registry.register(self.spec, evaluated, key=run_key(context), author=actor(context))
        registry.set_alias(self.model, "candidate", version.version)
        self.links[MlflowRunLink().name] = self.registry_hook.run_url(version.run_id)
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = {
                "version": version.version,
                "skip_shadow": bool(self.skip_shadow),
            }
        self.log.info("Registered %s version %s (%s)", version.model, version.version, version.semantic)
        return version.model_dump(mode="json")
