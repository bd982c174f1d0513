"""Bring the online features up to date."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Context

from airlock.operators.base import ModelOperator, refusals_are_final, triggering_extra


class MaterializeFeaturesOperator(ModelOperator):
    """Apply the feature definitions and write the newest values into the online store.

    :param until: ISO time with offset up to which values are known; None: the triggering event's, or now
    :return: the time
    """

    template_fields = ("until",)

    def __init__(self, *, until: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.until = until

    @refusals_are_final
    def execute(self, context: Context) -> str:
        from airlock.steps import features

        until = time_of(self.until or triggering_extra(context).get("until"))
        features.apply_online(self.spec, self.settings)
        features.materialize(self.spec, self.settings, until)
        return until.isoformat()


def time_of(until: str | None) -> datetime:
    """The time that ``until`` says, or now."""
    return datetime.fromisoformat(until) if until else datetime.now(UTC)
