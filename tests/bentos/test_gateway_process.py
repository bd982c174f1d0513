"""The gateway as the stack starts it: killed, restarted and given broken documents."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from airlock.core.bundle import ONNX
from airlock.core.errors import DataInvalid, NotFound, Unavailable
from airlock.core.route import Limit
from airlock.core.tally import GatewayStatus
from airlock.gateway_client import GatewayClient
from airlock.prediction_log import count, read
from airlock.settings import Settings
from tests.support.gateway_process import REPOSITORY, GatewayProcess, running_gateway
from tests.support.ports import free_port
from tests.support.tiny_models import GOOD_ROW, bundle, publish, route
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.integration


def settings_at(home: Path) -> Settings:
    unused = "http://127.0.0.1:9"
    return Settings(REPOSITORY, home, unused, unused, unused, "sqlite://")


def until(client: GatewayClient, reached: Callable[[GatewayStatus], bool]) -> GatewayStatus:
    def found() -> GatewayStatus | None:
        status = client.status("late")
        return status if reached(status) else None

    return wait_until(found, "what the status should say", seen=lambda: client.status("late"))


@contextmanager
def canary(home: Path) -> Iterator[GatewayProcess]:
    """A gateway with a candidate at 30 %."""
    champion = bundle(home / "bundles" / "1")
    publish(home, route(champion, candidate=bundle(home / "bundles" / "2", bias=0.1), share=30))
    with running_gateway(home, "/readyz") as process:
        yield process


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """One that the test may end."""
    with canary(tmp_path) as process:
        yield process


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One for the tests that let it live."""
    with canary(tmp_path_factory.mktemp("shared")) as process:
        yield process


def test_every_answer_is_in_the_log_after_a_stop(gateway: GatewayProcess) -> None:
    asked: list[int] = []

    def ask_until_it_ends(name: int) -> int:
        done = 0
        with httpx.Client(base_url=gateway.url, timeout=5) as client:
            for n in range(100_000):
                try:
                    response = client.post(
                        "/v1/models/late/predict", json={"rows": [GOOD_ROW, GOOD_ROW], "key": f"{name}-{n}"}
                    )
                except httpx.TransportError:
                    return done
                assert response.status_code == 200
                done += 1
                asked.append(n)
        return done

    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(ask_until_it_ends, n) for n in range(4)]
        wait_until(lambda: len(asked) > 200, "200 answers", seen=lambda: len(asked))
        gateway.process.send_signal(signal.SIGTERM)
        answers = sum(client.result(30) for client in clients)
    assert gateway.process.wait(PATIENCE_S) == 0
    assert answers > 200
    frame = read(settings_at(gateway.home), "late")
    assert len(frame) == 2 * answers
    assert frame["request_id"].nunique() == answers
    assert set(frame["variant"]) == {"champion", "candidate"}
    counted = count(settings_at(gateway.home), "late", roles=("served", "shadow"))
    assert sum(counted.values()) == 2 * 2 * answers, "each answer was scored by the other version as well"
    assert not list(gateway.home.rglob("*.tmp"))


def test_sigterm_is_a_clean_end_without_requests_too(gateway: GatewayProcess) -> None:
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(PATIENCE_S) == 0
    assert "generation 1 in effect" in gateway.log.read_text()


def test_it_listens_on_one_loopback_port_and_says_nothing_of_requests(shared: GatewayProcess) -> None:
    GatewayClient(shared.url).predict("late", rows=[GOOD_ROW])
    process = psutil.Process(shared.process.pid)
    assert process.children(recursive=True) == []
    sockets = [s.laddr for s in process.net_connections("all") if s.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in sockets] == [("127.0.0.1", int(shared.url.rsplit(":", 1)[1]))]
    assert "predict" not in shared.log.read_text()


def test_what_is_there_and_what_is_not(shared: GatewayProcess) -> None:
    with httpx.Client(base_url=shared.url) as client:
        for path in ("/", "/docs", "/livez", "/healthz", "/readyz", "/openapi.json", "/v1/models"):
            assert client.get(path).status_code == 200, path
        for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
            assert client.get(f"/static_content/{name}").status_code == 200
        assert "airlock_requests" in client.get("/metrics").text
        nowhere = client.get("/nowhere")
        assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_path")
        for method, path, allowed in (("GET", "/v1/models/late/predict", "POST"), ("POST", "/readyz", "GET, HEAD")):
            refused = client.request(method, path)
            assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
            assert refused.json()["error"]["code"] == "method_not_allowed"


def test_a_body_that_is_too_large_is_refused_before_it_is_read(shared: GatewayProcess) -> None:
    with httpx.Client(base_url=shared.url, timeout=10) as client:
        for content in (b" " * 5_000_000, (b" " * 100_000 for _ in range(50))):
            headers = {"content-type": "application/json"}
            response = client.post("/v1/models/late/predict", content=content, headers=headers)
            assert response.status_code == 413
            assert "1000000" in response.json()["error"]["message"]
        assert client.post("/v1/models/late/predict", json={"rows": [GOOD_ROW]}).status_code == 200


def test_broken_documents_leave_the_last_good_route(shared: GatewayProcess) -> None:
    client = GatewayClient(shared.url)
    champion = bundle(shared.home / "bundles" / "3")
    publish(shared.home, route(champion, generation=5))
    good = until(client, lambda status: status.generation == 5)
    assert good.error is None
    path = shared.home / "routes" / "late.json"

    whole = path.read_text()
    for broken, why in (
        (whole[: len(whole) // 2], "not a route document"),
        (whole.replace('"generation": 5', '"generation": 6'), "checksum"),
        (route(champion, generation=4).to_json(), "older"),
        (route(champion, generation=5, timeout_ms=1).to_json(), "two different routes"),
    ):
        path.write_text(broken)
        status = until(client, lambda status, why=why: status.error is not None and why in status.error)  # type: ignore[misc]
        assert status.generation == 5
        assert client.predict("late", rows=[GOOD_ROW])["version"] == "1"

    flipped = bundle(shared.home / "bundles" / "4")
    with (shared.home / "bundles" / "4" / ONNX).open("ab") as file:
        file.write(b"x")
    publish(shared.home, route(champion, candidate=flipped, generation=7, share=50))
    assert until(client, lambda s: s.error is not None and ONNX in s.error).generation == 5
    shutil.rmtree(shared.home / "bundles" / "4")
    bundle(shared.home / "bundles" / "4")
    assert until(client, lambda status: status.generation == 7).error is None, "taken as soon as it is repaired"


def test_a_killed_gateway_comes_back_with_its_route_and_its_ejection(gateway: GatewayProcess) -> None:
    client = GatewayClient(gateway.url)
    raising = bundle(gateway.home / "bundles" / "raising", carriers=("UA",))
    champion = bundle(gateway.home / "bundles" / "5")
    limits = (Limit(name="error_rate", signal="errors", bound=0.05, alpha=0.01),)
    publish(gateway.home, route(champion, candidate=raising, generation=2, release="r9", share=100, limits=limits))
    until(client, lambda status: status.generation == 2)
    for _ in range(60):
        answer = client.predict("late", rows=[GOOD_ROW | {"carrier": "EV"}])
        assert answer["version"] == "1"
    ejection = until(client, lambda status: status.ejection is not None).ejection
    assert ejection is not None
    file = gateway.home / "ejections" / "late.json"
    wait_until(file.exists, "the ejection to be written")
    gateway.kill()
    (gateway.home / "routes" / "late.json").write_text("{")

    with running_gateway(gateway.home, "/readyz") as again:
        status = GatewayClient(again.url).status("late")
        assert (status.generation, status.share, status.ejection) == (2, 0.0, ejection)
        assert status.error is not None
        assert GatewayClient(again.url).predict("late", rows=[GOOD_ROW])["version"] == "1"


def test_the_client_s_errors_are_ours(shared: GatewayProcess) -> None:
    with GatewayClient(shared.url) as client:
        assert client.ready()
        assert client.models() == ("late",)
        with pytest.raises(NotFound, match="late"):
            client.status("early")
        with pytest.raises(DataInvalid, match="row 1, distance"):
            client.predict("late", rows=[GOOD_ROW, GOOD_ROW | {"distance": "far"}])
    with pytest.raises(Unavailable, match="airlock status"):
        GatewayClient(f"http://127.0.0.1:{free_port()}").ready()
