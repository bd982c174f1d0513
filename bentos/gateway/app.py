"""The gateway's own routes, in front of BentoML's application and its middlewares."""

from __future__ import annotations

import orjson

from gateway.gateway import Gateway
from gateway.http import Asgi, Receive, Scope, Send, respond
from gateway.metrics import CONTENT_TYPE
from gateway.openapi import PAGE, document
from runtime.refusals import Refused

_MODELS = "/v1/models/"
_PREDICT = "/predict"
_STATUS = "/status"


class App:
    """Answers what is the gateway's; everything else falls through to BentoML."""

    def __init__(self, gateway: Gateway, bentoml: Asgi) -> None:
        self._gateway = gateway
        self._bentoml = bentoml

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path.startswith(_MODELS) and path.endswith(_PREDICT):
                if scope["method"] == "POST":
                    await self._gateway.predict(path[len(_MODELS) : -len(_PREDICT)], scope, receive, send)
                else:
                    await _refuse(send, Refused(405, "method_not_allowed", "predict takes POST", expected="POST"))
                return
            if scope["method"] in ("GET", "HEAD") and await self._read(path, send):
                return
        await self._bentoml(scope, receive, send)

    async def _read(self, path: str, send: Send) -> bool:
        gateway = self._gateway
        if path == "/healthz":
            await respond(send, 200, b'{"status":"alive"}')
        elif path == "/readyz":
            ready, reason = gateway.ready()
            await respond(send, 200 if ready else 503, orjson.dumps({"ready": ready, "reason": reason}))
        elif path == "/metrics":
            await respond(send, 200, gateway.metrics.text(), CONTENT_TYPE)
        elif path in ("/openapi.json", "/docs.json"):
            await respond(send, 200, orjson.dumps(document(gateway.routes.models)))
        elif path in ("/", "/docs"):
            await respond(send, 200, PAGE, b"text/html; charset=utf-8")
        elif path == "/v1/models":
            await respond(send, 200, orjson.dumps({"models": sorted(gateway.routes.models)}))
        elif path.startswith(_MODELS) and path.endswith(_STATUS):
            try:
                status = gateway.status(path[len(_MODELS) : -len(_STATUS)])
            except Refused as refused:
                await _refuse(send, refused)
            else:
                await respond(send, 200, status.model_dump_json().encode())
        else:
            return False
        return True


async def _refuse(send: Send, refused: Refused) -> None:
    await respond(send, refused.status, refused.body)
