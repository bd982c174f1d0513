"""Asking the gateway over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import httpx
from pydantic import ValidationError

from airlock.core.errors import AirlockError, DataInvalid, NotFound, Unavailable
from airlock.core.tally import GatewayStatus
from airlock.tls import trusted


class GatewayClient:
    """A client of one gateway. ``timeout`` is in seconds and holds for each request.

    Connections are kept open between requests; :meth:`close` or a ``with`` block ends them.
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout

    def ready(self) -> bool:
        """Whether it can answer for at least one model.

        Raises:
            Unavailable: nothing answers there.
        """
        return self._send("GET", "/readyz").is_success

    def models(self) -> tuple[str, ...]:
        """Names of the models that have a route in effect.

        Raises:
            Unavailable: nothing answers there.
        """
        return tuple(_checked(self._send("GET", "/v1/models")).json()["models"])

    def status(self, model: str) -> GatewayStatus:
        """The route that the gateway observes for a model, and what it counted.

        Raises:
            NotFound: no such model is served.
            Unavailable: nothing answers there, or it has no route for the model that it could take.
        """
        response = _checked(self._send("GET", f"/v1/models/{model}/status"))
        try:
            return GatewayStatus.model_validate_json(response.content)
        except ValidationError as error:
            raise Unavailable(f"{response.url} does not answer with a gateway's status: {error}") from error

    def predict(
        self,
        model: str,
        *,
        rows: Sequence[Mapping[str, Any]] | None = None,
        entities: Sequence[Mapping[str, Any]] | None = None,
        key: str | None = None,
        attributes: Mapping[str, str | bool | int | float] | None = None,
    ) -> dict[str, Any]:
        """The gateway's answer: version, variant, request id and one prediction a row.

        ``fallback`` names what stood in for a version that could not answer, if something had to; ``version`` and
        ``variant`` are ``None`` where a rule or the default did.

        Args:
            rows: features by name, one mapping a row; or
            entities: join keys and request fields, whose features come from Feast.
            key: chooses the version; the same key is answered by the same one while shares stay.
            attributes: what pins and fallback rules may ask about beside the row's own values.

        Raises:
            DataInvalid: the request was refused; the message names the row and the field.
            NotFound: no such model is served.
            Unavailable: nothing answers there, or no version did.
        """
        body = {"rows": rows, "entities": entities, "key": key, "attributes": attributes}
        content = {name: value for name, value in body.items() if value is not None}
        answer: dict[str, Any] = _checked(self._send("POST", f"/v1/models/{model}/predict", content)).json()
        return answer

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=self.timeout, verify=trusted())

    def _send(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            return self._http.request(method, path, json=content)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise Unavailable(f"the gateway at {self.url} does not answer ({why}); see airlock status") from error


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    kind: type[AirlockError] = Unavailable
    if response.status_code == httpx.codes.NOT_FOUND:
        kind = NotFound
    elif response.is_client_error:
        kind = DataInvalid
    raise kind(f"the gateway at {response.url} answers {response.status_code}: {_reason(response)}")


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
