"""What Airlock adds to the Airflow UI beside the buttons on its tasks."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airlock import settings
from airlock.deadlines import RunCreated


def _views() -> list[dict[str, Any]]:
    where = settings.load()
    return [
        {"name": "MLflow", "href": where.mlflow_url, "destination": "nav", "category": "browse"},
        {"name": "Gateway", "href": where.gateway_url, "destination": "nav", "category": "browse"},
    ]


class AirlockPlugin(AirflowPlugin):
    """Links to the model registry and to the gateway's API page in the navigation; what deadlines count from."""

    name = "airlock"
    external_views = _views()
    deadline_references = [RunCreated]  # noqa: RUF012 - Airflow reads it from the class
