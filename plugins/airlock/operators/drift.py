"""Measure drift, and start a training where there is some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

from airlock.core.verdict import Status, Verdict
from airlock.operators.base import ModelOperator, refusals_are_final, run_key
from airlock.operators.features import time_or_now
from airlock.operators.links import DriftReportLink


class DriftReportOperator(ModelOperator):
    """Compare what was asked lately with what the champion was trained on, with Evidently.

    :param until: ISO time with offset at which the current window ends; None: the triggering event's, or now
    :return: ``{"until", "verdict", "report"}``, the report as a URL
    """

    template_fields = ("until",)
    operator_extra_links = (DriftReportLink(),)

    def __init__(self, *, until: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.until = until

    @refusals_are_final
    def execute(self, context: Context) -> dict[str, Any]:
        from airlock.steps import drift

        until = time_or_now(self.until, context)
        verdict, report = drift.drift_report(self.spec, self.settings, until=until, run_key=run_key(context))
        self.links[DriftReportLink().name] = report
        self.log.info("%s: %s", verdict.status, verdict.reason)
        return {"until": until.isoformat(), "verdict": verdict.model_dump(mode="json"), "report": report}


class SignalDriftOperator(ModelOperator):
    """Emit the drift asset if the report failed; otherwise skip, so that nothing is started.

    :param report: what ``DriftReportOperator`` returned
    :return: the verdict's reason
    """

    template_fields = ("report",)

    def __init__(self, *, report: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.report = report

    def execute(self, context: Context) -> str:
        verdict = Verdict.model_validate(self.report["verdict"])
        if verdict.status is not Status.FAIL:
            raise AirflowSkipException(f"no drift to answer: {verdict.status}, {verdict.reason}")
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = {
                "until": self.report["until"],
                "reason": verdict.reason,
                "report": self.report["report"],
            }
        return verdict.reason
