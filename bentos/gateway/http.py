"""Reading a request and sending an answer over ASGI, without a framework in between."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson

from runtime.refusals import Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = b"application/json"


class Disconnected(Exception):
    """The client went away before its request was whole."""


async def body(receive: Receive, declared: bytes | None, limit: int) -> bytes:
    """The request's body of at most ``limit`` bytes.

    Raises:
        Refused: 413, as soon as the limit is known to be passed.
    """
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit, int(declared))
    message = await receive()
    content: bytes = message.get("body", b"")
    while message.get("more_body", False):
        if len(content) > limit:
            raise _too_large(limit, len(content))
        message = await receive()
        content += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise Disconnected
    if len(content) > limit:
        raise _too_large(limit, len(content))
    return content


def _too_large(limit: int, got: int) -> Refused:
    return Refused(413, "body_too_large", f"the body has {got} bytes or more; this model takes at most {limit}",
                   expected=f"at most {limit} bytes", got=got)  # fmt: skip


def require_json(content_type: bytes) -> None:
    """Refuse whatever is not JSON: nothing that arrives here is ever unpickled.

    Raises:
        Refused: 415.
    """
    if content_type == JSON or content_type.split(b";", 1)[0].strip().lower() == JSON:
        return
    got = content_type.decode("latin-1") or None
    raise Refused(415, "unsupported_media_type", "only application/json is read", expected="application/json", got=got)


def parse(content: bytes) -> Any:
    """The JSON document in a body.

    ``NaN`` and ``Infinity`` are no JSON, but some encoders write them: they are read, so that the
    check of the rows can name the row and the feature.

    Raises:
        Refused: 400, with the offset.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        try:
            return _lenient(content)
        except (ValueError, RecursionError):
            offset = len(error.doc[: error.pos].encode()) if isinstance(error.doc, str) else error.pos
            code = "too_deep" if "depth" in error.msg else "malformed_json"
            raise Refused(400, code, f"not JSON: {error.msg} at offset {offset}", expected="a JSON object",
                          got=f"offset {offset}") from error  # fmt: skip


def _lenient(content: bytes) -> Any:
    document = json.loads(content)
    # Half of a surrogate pair passes for a string here, but nothing after this could write it down.
    json.dumps(document, ensure_ascii=False).encode()
    return document


async def respond(
    send: Send, status: int, content: bytes, media_type: bytes = JSON, more: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send an answer. ``more`` are further headers."""
    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(content)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
