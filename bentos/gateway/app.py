"""The gateway as an ASGI application: its paths, their methods, and the beginning and end of its process."""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson

from gateway.gateway import Gateway
from gateway.http import JSON, Receive, Scope, Send, respond
from gateway.metrics import CONTENT_TYPE
from gateway.openapi import PAGE, document
from runtime.refusals import Refused, shown

_MODELS = "/v1/models/"
_PREDICT = "/predict"
_STATUS = "/status"
_STATIC = "/static_content/"
_STATIC_TYPES = {
    "swagger-ui.css": b"text/css; charset=utf-8",
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
}

Page = tuple[int, bytes, bytes]
"""Status, content and its type."""


class App:
    """Answers by path; what is refused has the same form everywhere."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pages: dict[str, Callable[[], Page]] = {
            "/": _page,
            "/docs": _page,
            "/healthz": _alive,
            "/livez": _alive,
            "/readyz": self._ready,
            "/metrics": lambda: (200, gateway.metrics.text(), CONTENT_TYPE),
            "/openapi.json": self._document,
            "/docs.json": self._document,
            "/v1/models": lambda: (200, orjson.dumps({"models": sorted(gateway.routes.models)}), JSON),
            **{f"{_STATIC}{name}": _static(name) for name in _STATIC_TYPES},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.startswith(_MODELS) and path.endswith(_PREDICT):
                if scope["method"] == "POST":
                    await self._gateway.predict(path[len(_MODELS) : -len(_PREDICT)], scope, receive, send)
                else:
                    await _wrong_method(send, path, "POST")
            else:
                await self._read(path, scope["method"], send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start with the server, and stop when it has answered the last request."""
        for what, do in (("startup", self._gateway.start), ("shutdown", self._gateway.stop)):
            await receive()
            await _told(what, do, send)

    async def _read(self, path: str, method: str, send: Send) -> None:
        page = self._pages.get(path)
        if page is None and path.startswith(_MODELS) and path.endswith(_STATUS):
            model = path[len(_MODELS) : -len(_STATUS)]
            page = lambda: (200, self._gateway.status(model).model_dump_json().encode(), JSON)  # noqa: E731
        if page is None:
            paths = f"{_MODELS}MODEL{_PREDICT}, {_MODELS}MODEL{_STATUS}, {', '.join(self._pages)}"
            await _refuse(send, Refused(404, "unknown_path", "there is nothing at this path", expected=paths, got=path))
        elif method not in ("GET", "HEAD"):
            await _wrong_method(send, path, "GET, HEAD")
        else:
            try:
                status, content, media_type = page()
            except Refused as refused:
                await _refuse(send, refused)
            else:
                await respond(send, status, content, media_type)

    def _ready(self) -> Page:
        ready, reason = self._gateway.ready()
        return 200 if ready else 503, orjson.dumps({"ready": ready, "reason": reason}), JSON

    def _document(self) -> Page:
        return 200, orjson.dumps(document(self._gateway.routes.models)), JSON


async def _told(what: str, do: Callable[[], Awaitable[None]], send: Send) -> None:
    try:
        await do()
    except Exception as error:
        await send({"type": f"lifespan.{what}.failed", "message": f"{type(error).__name__}: {error}"})
        raise
    await send({"type": f"lifespan.{what}.complete"})


def _page() -> Page:
    return 200, PAGE, b"text/html; charset=utf-8"


def _alive() -> Page:
    return 200, b'{"status":"alive"}', JSON


def _static(name: str) -> Callable[[], Page]:
    """A file of Swagger UI out of BentoML's package, which is not imported for it."""

    def read() -> Page:
        found = importlib.util.find_spec("bentoml")
        assert found is not None  # noqa: S101 - installed with Airlock
        assert found.origin is not None  # noqa: S101
        file = Path(found.origin).parent / "_internal" / "server" / "static_content" / name
        return 200, file.read_bytes(), _STATIC_TYPES[name]

    return read


async def _wrong_method(send: Send, path: str, allowed: str) -> None:
    refused = Refused(405, "method_not_allowed", f"{shown(path)} takes {allowed}", expected=allowed)
    await respond(send, refused.status, refused.body, more=[(b"allow", allowed.encode())])


async def _refuse(send: Send, refused: Refused) -> None:
    await respond(send, refused.status, refused.body)
