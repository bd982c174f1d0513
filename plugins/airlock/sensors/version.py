"""Wait until the gateway serves a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

from airflow.sdk import BaseSensorOperator, Context

from airlock.core.errors import NotFound, Unavailable
from airlock.hooks.gateway import GatewayHook
from airlock.triggers.version import VersionServedTrigger, serves


class VersionServedSensor(BaseSensorOperator):
    """Wait until the gateway answers with a version as the champion.

    :param model: name of the model
    :param version: number of the version; None: any
    :param gateway_conn_id: connection of the gateway
    """

    template_fields: Sequence[str] = ("model", "version")

    def __init__(
        self,
        *,
        model: str,
        version: str | None = None,
        gateway_conn_id: str = GatewayHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.version = version
        self.gateway_conn_id = gateway_conn_id

    @cached_property
    def hook(self) -> GatewayHook:
        return GatewayHook(self.gateway_conn_id)

    def poke(self, context: Context) -> bool:  # noqa: ARG002
        try:
            with self.hook.get_conn() as gateway:
                return serves(gateway.status(self.model), self.version)
        except (Unavailable, NotFound) as error:
            self.log.info("Not served yet: %s", error)
            return False

    def execute(self, context: Context) -> None:
        if not self.poke(context):
            self.defer(
                trigger=VersionServedTrigger(model=self.model, version=self.version, gateway_url=self.hook.url),
                method_name="execute_complete",
                timeout=self.timeout_after,
            )

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> None:  # noqa: ARG002
        self.log.info("Version %s of %s is served", event["version"], self.model)

    @property
    def timeout_after(self) -> timedelta:
        return timedelta(seconds=self.timeout)
