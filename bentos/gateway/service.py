"""The BentoML service: ``bentoml serve gateway.service:Gateway --working-dir bentos``."""

from __future__ import annotations

from typing import Any

import bentoml


class _InFront(bentoml.Service[Any]):  # type: ignore[misc]
    """A service whose hot routes do not pass through BentoML's middlewares, which cost more than the model."""

    def to_asgi(self, is_main: bool = True) -> Any:
        from gateway.app import App
        from gateway.gateway import Gateway as State
        from gateway.paths import from_environment

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

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def begin(self) -> None:
        await self.state.start()

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def end(self) -> None:
        await self.state.stop()
