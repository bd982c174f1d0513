"""Wait until the gateway serves a version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airlock.core.tally import GatewayStatus
from airlock.tls import trusted
from airlock.triggers.gateway import gateway_status


def serves(status: GatewayStatus, version: str | None) -> bool:
    """Whether the gateway has the version (any, if None) loaded and answers with it as the champion."""
    return status.champion in status.loaded and version in {None, status.champion}


class VersionServedTrigger(BaseTrigger):
    """Fire once when the version is served.

    :param model: name of the model
    :param version: number of the version; None: any
    :param gateway_url: where the gateway is
    :param interval: seconds between two looks
    """

    def __init__(self, *, model: str, version: str | None, gateway_url: str, interval: float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.version = version
        self.gateway_url = gateway_url
        self.interval = interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "model": self.model,
                "version": self.version,
                "gateway_url": self.gateway_url,
                "interval": self.interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async with httpx.AsyncClient(base_url=self.gateway_url, timeout=2.0, verify=trusted()) as client:
            while True:
                # Waiting comes first: a task that is woken up before the scheduler has seen it pause counts as killed.
                await asyncio.sleep(self.interval)
                status = await gateway_status(client, self.model)
                if status is not None and serves(status, self.version):
                    yield TriggerEvent({"version": status.champion})  # type: ignore[no-untyped-call]
                    return
