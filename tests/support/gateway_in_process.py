"""A gateway in the test's own event loop, without BentoML around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from gateway.app import App
from gateway.gateway import Gateway
from gateway.paths import Paths

from airlock.core.tally import GatewayStatus
from tests.support.tiny_models import GOOD_ROW

PREDICT = "/v1/models/late/predict"


class Running:
    """A gateway in this event loop and a client of it."""

    def __init__(self, home: Path, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.home = home
        self.gateway = gateway
        self.client = client

    async def ask(self, key: str = "k", row: dict[str, Any] | None = None) -> dict[str, Any]:
        response = await self.client.post(PREDICT, json={"rows": [row or GOOD_ROW], "key": key})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def status(self) -> GatewayStatus:
        response = await self.client.get("/v1/models/late/status")
        assert response.status_code == 200, response.text
        return GatewayStatus.model_validate_json(response.content)

    async def until(self, reached: Callable[[GatewayStatus], bool]) -> GatewayStatus:
        for _ in range(500):
            if reached(status := await self.status()):
                return status
            await asyncio.sleep(0.01)
        raise AssertionError(f"did not come: {status}")


async def _no_bentoml(_scope: object, _receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def running(home: Path, project: Path) -> AsyncIterator[Running]:
    gateway = Gateway(Paths(home=home, project=project))
    await gateway.start()
    transport = httpx.ASGITransport(App(gateway, _no_bentoml))  # type: ignore[arg-type]
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield Running(home, gateway, client)
    finally:
        await gateway.stop()


def in_gateway(home: Path, body: Callable[[Running], Awaitable[None]], *, project: Path | None = None) -> None:
    """Run ``body`` with a gateway that is stopped cleanly after it."""

    async def run() -> None:
        async with running(home, project or home) as gateway:
            await body(gateway)

    asyncio.run(run())
