"""The BentoML service: ``bentoml serve gateway.service:Gateway --working-dir bentos``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Any

import bentoml

_PARENT_SECONDS = 1.0


class _InFront(bentoml.Service[Any]):  # type: ignore[misc]
    """A service whose hot routes do not pass through BentoML's middlewares, which cost more than the model."""

    def to_asgi(self, is_main: bool = True) -> Any:
        from gateway.app import App
        from gateway.gateway import Gateway as State
        from gateway.paths import from_environment

        # BentoML shows warnings only, of all but its own loggers.
        logging.getLogger("airlock").setLevel(logging.INFO)
        # Without a handler uvicorn does not even put a line together for each request.
        logging.getLogger("uvicorn.access").propagate = False
        state = State(from_environment())
        self.inner.state = state
        return App(state, super().to_asgi(is_main))


@bentoml.service(
    name="airlock_gateway",
    service_class=_InFront,
    # One process owns routes, tallies and ejections.
    workers=1,
    traffic={"timeout": 30},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Gateway:
    """Answers for every model, several versions side by side."""

    state: Any = None
    watch: Any = None

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def begin(self) -> None:
        await self.state.start()
        self.watch = asyncio.create_task(_end_with(os.getppid()))

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def end(self) -> None:
        self.watch.cancel()
        await self.state.stop()


async def _end_with(parent: int) -> None:
    """End when BentoML's parent process was killed: it could not tell, and the port would stay taken."""
    while os.getppid() == parent:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(_PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
