"""Buttons on a task's page in the Airflow UI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from airflow.sdk import BaseOperator, BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey


@attrs.define()
class _Link(BaseOperatorLink):
    """The address that the operator kept under the link's name while it ran."""

    @property
    def name(self) -> str:
        raise NotImplementedError

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002
        links: dict[str, str] = getattr(operator, "links", {})
        return links.get(self.name, "")


@attrs.define()
class MlflowRunLink(_Link):
    """The training run in the MLflow UI."""

    @property
    def name(self) -> str:
        return "MLflow run"


@attrs.define()
class DriftReportLink(_Link):
    """The Evidently report, as MLflow serves it."""

    @property
    def name(self) -> str:
        return "Evidently report"


@attrs.define()
class GatewayLink(_Link):
    """The gateway's API page."""

    @property
    def name(self) -> str:
        return "Gateway"
