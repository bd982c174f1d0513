"""Bring the online features up to date."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Context

from airlock.operators.base import ModelOperator, refusals_are_final, time_of, triggering_extra


class MaterializeFeaturesOperator(ModelOperator):
    """Apply the feature definitions and write the newest values into the online store.

    :param until: ISO time with offset up to which values are known; None: the triggering event's, or now
    :return: ``{"until", "rows"}``, rows by feature view
    """

    template_fields = ("until",)

    def __init__(self, *, until: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.until = until

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        from airlock.steps import features

        until = time_or_now(self.until, context)
        rows = features.materialize(self.spec, self.settings, until)
        self.log.info("Feature rows until %s: %s", until, rows)
        return {"until": until.isoformat(), "rows": rows}


def time_or_now(until: str | None, context: Context) -> datetime:
    """The time that ``until`` says, or the triggering event, or the clock."""
    said = until or triggering_extra(context).get("until")
    return time_of(said) if said else datetime.now(UTC)
