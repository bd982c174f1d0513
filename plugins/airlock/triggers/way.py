"""Wait until no other release of the model is in the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Unpack

import httpx
from airflow.triggers.base import TriggerEvent

from airlock.tls import trusted
from airlock.triggers.gateway import gateway_status
from airlock.triggers.ledger import LedgerTrigger, LedgerWatch, Watched


class ClearWayTrigger(LedgerTrigger):
    """Fire once when the ledger has moved on, or when the gateway has ejected the release in the way.

    Its own tasks may not be able to run, and whoever waits for it may take it back as well.

    :param model: name of the model
    :param gateway_url: where the gateway is
    """

    def __init__(self, *, model: str, gateway_url: str, **watched: Unpack[Watched]) -> None:
        super().__init__(**watched)
        self.model = model
        self.gateway_url = gateway_url

    def serialize(self) -> tuple[str, dict[str, Any]]:
        path, kwargs = super().serialize()
        return path, {**kwargs, "model": self.model, "gateway_url": self.gateway_url}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async with httpx.AsyncClient(base_url=self.gateway_url, timeout=2.0, verify=trusted()) as self._client:
            async for event in super().run():
                yield event

    async def look(self, watch: LedgerWatch) -> dict[str, Any] | None:
        if (said := await super().look(watch)) is not None:
            return said
        status = await gateway_status(self._client, self.model)
        if status is None or status.ejection is None or status.ejection.release != self.seen["in_the_way"]:
            return None
        return {"reason": f"the gateway ejected version {status.ejection.version}, which was in the way"}
