"""The MLflow server that tracks runs and registers versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airlock.hooks.url import UrlHook

if TYPE_CHECKING:
    from airlock.steps.registry import Registry


class RegistryHook(UrlHook):
    """The model registry. Connection: the MLflow server's URL as host.

    It can stand for the registry's aliases in release control, and imports MLflow only when one moves.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "airlock_mlflow"
    conn_type = "airlock_mlflow"
    hook_name = "Airlock MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name) -> None:
        super().__init__(mlflow_conn_id)

    def get_conn(self) -> Registry:
        from airlock.steps.registry import Registry

        return Registry(self.url)

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.get_conn().set_alias(model, alias, version)

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        """Remove the alias if it names ``version``."""
        self.get_conn().clear_alias(model, alias, version)

    def alias(self, model: str, alias: str) -> str | None:
        """The number of the version that the alias names."""
        return self.get_conn().alias(model, alias)

    def run_url(self, run_id: str) -> str:
        """The page of a run in the MLflow UI."""
        return f"{self.url}/#/runs/{run_id}"
