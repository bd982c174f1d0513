"""Freeze what is known at a time, and validate it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

from airlock import assets
from airlock.core.refs import SnapshotRef
from airlock.operators.base import ModelOperator, refusals_are_final, run_name, time_of, triggering_extra


class FreezeSnapshotOperator(ModelOperator):
    """Load the model's tables as known at ``until`` and freeze them under their content's hash.

    A run that was started by the drift asset takes ``until`` from the event, and is skipped when
    another run has answered the same drift within the spec's cool-down.

    :param until: ISO time with offset; None: the triggering event's, or everything
    :param options: keyword arguments for the recipe's ``load``
    :return: a ``SnapshotRef``
    """

    template_fields = ("until", "options")

    def __init__(
        self,
        *,
        until: str | None = None,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.until = until
        self.options = options

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        from airlock.steps import snapshot

        said = self.until or triggering_extra(context).get("until")
        until = time_of(said) if said else None
        if context["triggering_asset_events"].get(assets.drift(self.model)):
            self._answer_drift(context, until or datetime.now(UTC))
        frozen = snapshot.freeze(
            self.spec,
            self.settings,
            until=until,
            options=dict(self.options or {}),
        )
        self.log.info("Snapshot %s until %s: rows %s", frozen.digest, frozen.until, frozen.tables)
        return frozen.model_dump(mode="json")

    def _answer_drift(self, context: Context, until: datetime) -> None:
        key = run_name(context)
        ledger = self.ledger_hook.get_conn()
        owner = ledger.claim(self.model, "drift", key, at=until, window=self.spec.retrain.cool_down)
        if owner != key:
            raise AirflowSkipException(f"run {owner} has answered this drift: it lies within the cool-down of {until}")


class ValidateSnapshotOperator(ModelOperator):
    """Check a snapshot against the spec's tables with Great Expectations.

    :param snapshot: a ``SnapshotRef``
    :return: the same ``SnapshotRef``, fit to train on; data that breaks a rule fails the task
    """

    template_fields = ("snapshot",)

    def __init__(self, *, snapshot: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.snapshot = snapshot

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002
        from airlock.steps import validation

        snapshot = SnapshotRef.model_validate(self.snapshot)
        verdict = validation.validate(self.spec, self.settings, snapshot)
        self.log.info("%s: %s", verdict.status, verdict.reason)
        validation.require_valid(verdict)
        return snapshot.model_dump(mode="json")
