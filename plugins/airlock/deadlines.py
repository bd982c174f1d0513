"""When a run's deadline begins to run, for Airflow's deadline alerts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow.sdk.definitions.deadline import BaseDeadlineReference

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class RunCreated(BaseDeadlineReference):
    """The moment at which a run is created.

    Airflow's own ``DAGRUN_QUEUED_AT`` says nearly the same, but in Airflow 3.3.2 no task of a run that has such a
    deadline can be cleared (``TypeError: unsupported type for timedelta seconds component: dict``).
    """

    def _evaluate_with(self, *, session: Session) -> datetime:  # noqa: ARG002 - Airflow hands it over
        return datetime.now(UTC)
