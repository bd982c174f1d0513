"""Join late labels to what was predicted."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context

from airlock.operators.base import ModelOperator, refusals_are_final
from airlock.operators.features import time_or_now


class JoinLabelsOperator(ModelOperator):
    """Join the labels that have arrived to the prediction log, over the monitoring window.

    :param until: ISO time with offset at which the window ends; None: the triggering event's, or now
    :return: ``{"since", "until", "predictions", "labelled"}``; no label at all is no error here
    """

    template_fields = ("until",)

    def __init__(self, *, until: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.until = until

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        from airlock.steps import labels

        until = time_or_now(self.until, context)
        since = until - self.spec.monitoring.drift.current
        joined = labels.joined(self.spec, self.settings, since, until)
        self.log.info("%s labelled predictions between %s and %s", len(joined), since, until)
        return {"since": since.isoformat(), "until": until.isoformat(), "labelled": len(joined)}
