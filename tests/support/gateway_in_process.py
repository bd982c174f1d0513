"""A gateway in the test's own event loop, without a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from airlock.core.tally import GatewayStatus
from gateway.app import App
from gateway.gateway import Gateway
from gateway.paths import Paths
from tests.support.tiny_models import GOOD_ROW, bundle, publish, route
from tests.support.waiting import wait_until_async

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
        seen: list[GatewayStatus] = []

        async def found() -> GatewayStatus | None:
            seen[:] = [await self.status()]
            return seen[0] if reached(seen[0]) else None

        return await wait_until_async(found, "what the status should say", seen=lambda: seen)

    async def ready(self) -> None:
        """Wait until it says that it is."""
        await self.readiness(lambda response: response.status_code == 200)

    async def readiness(self, reached: Callable[[httpx.Response], bool]) -> None:
        """Wait until what it says of being ready is as wished."""
        seen: list[str] = []

        async def found() -> bool:
            response = await self.client.get("/readyz")
            seen[:] = [f"{response.status_code} {response.text}"]
            return reached(response)

        await wait_until_async(found, "the gateway's readiness", seen=lambda: seen)

    async def shadow_settled(self) -> None:
        """Wait until everything that was handed to shadow scoring before now has been counted.

        One thread scores in the order of the requests, so a request of another model is the mark.
        """
        folder, url = self.home / "mark", "/v1/models/mark"
        if not folder.exists():
            one, two = (bundle(folder / name, model="mark") for name in ("1", "2"))
            publish(self.home, route(one, model="mark", candidate=two, shadow=True))

        async def scored() -> int:
            status = await self.client.get(f"{url}/status")
            if status.status_code != httpx.codes.OK:
                return -1
            total = GatewayStatus.model_validate_json(status.content).total
            return total["2"]["shadow"].requests if "2" in total else 0

        async def known() -> bool:
            return await scored() >= 0

        await wait_until_async(known, "the route of the model that marks the end of the queue")
        before = await scored()
        response = await self.client.post(f"{url}/predict", json={"rows": [GOOD_ROW]})
        assert response.status_code == httpx.codes.OK, response.text

        async def counted() -> bool:
            return await scored() > before

        await wait_until_async(counted, "the request that marks the end of the queue")


@asynccontextmanager
async def running(home: Path, project: Path) -> AsyncIterator[Running]:
    gateway = Gateway(Paths(home=home, project=project))
    await gateway.start()
    transport = httpx.ASGITransport(App(gateway))  # type: ignore[arg-type]
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
