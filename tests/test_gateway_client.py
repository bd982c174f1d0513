"""The client's side of every answer a gateway can give."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from airlock.core.errors import DataInvalid, NotFound, Unavailable
from airlock.core.tally import GatewayStatus
from airlock.gateway_client import GatewayClient

STATUS = GatewayStatus(
    model="late",
    generation=3,
    checksum="sha256:0",
    release="r1",
    champion="1",
    candidate="2",
    share=5,
    loaded=("1", "2"),
    since=datetime(2013, 4, 1, tzinfo=UTC),
)


class Gateway:
    """Answers what it is told to, and keeps the last body it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self.body: Any = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, text = outer.answers.get(self.path, (404, '{"error": {"message": "no such thing"}}'))
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def do_POST(self) -> None:
                outer.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    thread = threading.Thread(target=gateway.server.serve_forever, daemon=True)
    thread.start()
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()
    thread.join(5)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[GatewayClient]:
    with GatewayClient(gateway.url + "/") as client:
        yield client


def test_ready_and_not_ready(gateway: Gateway, client: GatewayClient) -> None:
    gateway.answers["/readyz"] = (200, "{}")
    assert client.ready()
    gateway.answers["/readyz"] = (503, "{}")
    assert not client.ready()


def test_a_status_is_typed(gateway: Gateway, client: GatewayClient) -> None:
    gateway.answers["/v1/models/late/status"] = (200, STATUS.model_dump_json())
    assert client.status("late") == STATUS


@pytest.mark.parametrize(
    ("status", "text", "error", "reason"),
    [
        (404, '{"error": {"message": "models: late"}}', NotFound, "models: late"),
        (422, '{"error": {"message": "row 3, distance"}}', DataInvalid, "row 3, distance"),
        (413, '{"error": {"message": "too many"}}', DataInvalid, "too many"),
        (503, '{"error": {"message": "no route"}}', Unavailable, "no route"),
        (500, "<html>oops</html>", Unavailable, "oops"),
        (502, '{"error": "plain"}', Unavailable, "plain"),
        (200, '{"model": "late"}', Unavailable, "not answer with a gateway's status"),
        (200, "<html>a proxy</html>", Unavailable, "not answer with a gateway's status"),
    ],
)
def test_what_is_no_status_is_an_error_of_ours(
    gateway: Gateway, client: GatewayClient, status: int, text: str, error: type[Exception], reason: str
) -> None:
    gateway.answers["/v1/models/late/status"] = (status, text)
    with pytest.raises(error, match=reason):
        client.status("late")


def test_a_question_carries_only_what_was_given(gateway: Gateway, client: GatewayClient) -> None:
    gateway.answers["/v1/models/late/predict"] = (200, '{"version": "1"}')
    assert client.predict("late", rows=[{"a": 1}], key="k") == {"version": "1"}
    assert gateway.body == {"rows": [{"a": 1}], "key": "k"}
    client.predict("late", entities=[{"carrier": "UA"}])
    assert gateway.body == {"entities": [{"carrier": "UA"}]}
    client.predict("late", rows=[{"a": 1}], attributes={"group": "staff"})
    assert gateway.body == {"rows": [{"a": 1}], "attributes": {"group": "staff"}}
