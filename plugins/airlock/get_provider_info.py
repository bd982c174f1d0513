"""What Airflow shows and loads of this provider."""

from __future__ import annotations

from typing import Any

_URL_FORM = {"hidden-fields": ["schema", "port", "login", "password", "extra"], "relabeling": {"host": "URL"}}


def get_provider_info() -> dict[str, Any]:
    """The provider's description, after ``airflow/provider_info.schema.json``."""
    integration = "Airlock"
    return {
        "package-name": "airflow-provider-airlock",
        "name": "Airlock",
        "description": "Release machine-learning models: gated, shadowed, rolled out in steps, rolled back by itself.",
        "integrations": [{"integration-name": integration, "external-doc-url": "", "tags": ["machine-learning"]}],
        "operators": [
            {
                "integration-name": integration,
                "python-modules": [
                    f"airlock.operators.{noun}"
                    for noun in (
                        "snapshot",
                        "training",
                        "candidate",
                        "release",
                        "step",
                        "approval",
                        "steering",
                        "rollback",
                        "features",
                        "labels",
                        "drift",
                        "scoring",
                        "record",
                        "reconcile",
                    )
                ],
            }
        ],
        "sensors": [{"integration-name": integration, "python-modules": ["airlock.sensors.version"]}],
        "hooks": [
            {
                "integration-name": integration,
                "python-modules": ["airlock.hooks.gateway", "airlock.hooks.ledger", "airlock.hooks.registry"],
            }
        ],
        "triggers": [
            {
                "integration-name": integration,
                "python-modules": [
                    f"airlock.triggers.{noun}" for noun in ("release", "approval", "ledger", "version", "way")
                ],
            }
        ],
        "connection-types": [
            {
                "connection-type": "airlock_gateway",
                "hook-class-name": "airlock.hooks.gateway.GatewayHook",
                "hook-name": "Airlock gateway",
                "ui-field-behaviour": {**_URL_FORM, "placeholders": {"host": "http://127.0.0.1:8502"}},
            },
            {
                "connection-type": "airlock_mlflow",
                "hook-class-name": "airlock.hooks.registry.RegistryHook",
                "hook-name": "Airlock MLflow",
                "ui-field-behaviour": {**_URL_FORM, "placeholders": {"host": "http://127.0.0.1:8501"}},
            },
            {
                "connection-type": "airlock_ledger",
                "hook-class-name": "airlock.hooks.ledger.LedgerHook",
                "hook-name": "Airlock ledger",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "port", "extra"],
                    "relabeling": {"host": "SQLAlchemy URL"},
                    "placeholders": {
                        "host": "postgresql+psycopg://db:5432/airlock",
                        "login": "put into the URL",
                        "password": "put into the URL",
                    },
                },
            },
        ],
        "asset-uris": [{"schemes": ["airlock"], "handler": None}],
        "extra-links": [
            "airlock.operators.links.MlflowRunLink",
            "airlock.operators.links.DriftReportLink",
            "airlock.operators.links.GatewayLink",
        ],
    }
