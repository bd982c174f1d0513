"""F10 to F13 of the fault table: candidates that die or hang, and gateways that are killed, with real processes.

Every answer that a client gets is counted; what is injected and how often stands in each test.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest

from airlock.control.projection import project_route
from airlock.core.route import Limit, Route, parse_route
from airlock.core.tally import GatewayStatus
from airlock.gateway_client import GatewayClient
from airlock.tls import trusted
from tests.support.gateway_process import GatewayProcess, running_gateway
from tests.support.tiny_models import GOOD_ROW, bundle, publish, route
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.integration

ERRORS = (Limit(name="error_rate", signal="errors", bound=0.05, alpha=0.01),)
PREDICT = "/v1/models/late/predict"


def until(client: GatewayClient, reached: Callable[[GatewayStatus], bool]) -> GatewayStatus:
    def found() -> GatewayStatus | None:
        status = client.status("late")
        return status if reached(status) else None

    return wait_until(found, "what the status should say", seen=lambda: client.status("late"))


class Clients:
    """Clients that ask without a pause; who finds the first address dead asks the next one. Every answer is kept."""

    def __init__(self, *urls: str, count: int = 3) -> None:
        self.urls = urls
        self.row = GOOD_ROW
        self.answers: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._ended = Event()
        self._threads = ThreadPoolExecutor(count)
        self._running = [self._threads.submit(self._ask, number) for number in range(count)]

    def _ask(self, number: int) -> None:
        asked = 0
        with httpx.Client(timeout=10, verify=trusted()) as http:
            while not self._ended.is_set():
                asked += 1
                self._answered(http, {"rows": [self.row], "key": f"{number}-{asked}"})
                self._ended.wait(0.01)

    def _answered(self, http: httpx.Client, question: dict[str, Any]) -> None:
        said = "no address"
        for url in self.urls:
            try:
                response = http.post(url + PREDICT, json=question)
            except httpx.TransportError as error:
                said = repr(error)
                continue
            if response.status_code == 200:
                self.answers.append(response.json())
                return
            said = response.text
        self.errors.append(said)

    def more(self, count: int) -> None:
        """Wait until so many more requests were answered."""
        wanted = len(self.answers) + count
        wait_until(
            lambda: len(self.answers) >= wanted,
            f"{wanted} answers",
            seen=lambda: f"{len(self.answers)} answers; {self.errors[:3]}",
        )

    def stop(self) -> None:
        self._ended.set()
        for client in self._running:
            client.result(30)
        self._threads.shutdown()


def ejection_is_written(home: Path) -> None:
    wait_until((home / "ejections" / "late.json").exists, "the ejection to be written")


def canary(home: Path, share: float = 50, **options: Any) -> Route:
    """A route with a candidate that ``options`` make go wrong."""
    champion = bundle(home / "bundles" / "1")
    return route(champion, candidate=bundle(home / "bundles" / "2", **options), share=share, limits=ERRORS)


def test_f10_a_candidate_s_session_dies_at_half_of_the_traffic(tmp_path: Path) -> None:
    publish(tmp_path, canary(tmp_path, carriers=("UA",)))
    with running_gateway(tmp_path, "/readyz") as gateway:
        control = GatewayClient(gateway.url)
        clients = Clients(gateway.url)
        try:
            clients.more(100)
            assert {answer["version"] for answer in clients.answers} == {"1", "2"}
            clients.row = GOOD_ROW | {"carrier": "EV"}
            ejection = until(control, lambda status: status.ejection is not None).ejection
            seen = len(clients.answers)
            clients.more(200)
        finally:
            clients.stop()
        assert clients.errors == []
        assert {answer["version"] for answer in clients.answers[seen + 10 :]} == {"1"}
        assert all(a["fallback"] is None or (a["fallback"], a["version"]) == ("champion", "1") for a in clients.answers)
        ejection_is_written(tmp_path)
        gateway.kill()
    with running_gateway(tmp_path, "/readyz") as again:
        status = GatewayClient(again.url).status("late")
        assert (status.ejection, status.share) == (ejection, 0.0)


def test_f11_a_candidate_hangs(tmp_path: Path) -> None:
    """It was quick and is asked on the event loop when it stops coming back."""
    hanging = canary(tmp_path, hangs_above=("distance", 9000.0))
    publish(tmp_path, hanging.model_copy(update={"timeout_ms": 500.0}).sealed())
    with running_gateway(tmp_path, "/readyz") as gateway:
        control = GatewayClient(gateway.url)
        clients = Clients(gateway.url)
        try:
            clients.more(100)
            clients.row = GOOD_ROW | {"distance": 9500.0}
            status = until(control, lambda status: status.ejection is not None)
            clients.more(200)
        finally:
            clients.stop()
        assert clients.errors == []
        assert status.ejection is not None
        assert status.total["2"]["served"].timeouts + status.total["2"]["shadow"].timeouts >= 2
        assert clients.answers[-1]["version"] == "1"
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.wait(PATIENCE_S)  # what hangs for ever does not hold up the stop


def _write_routes(home: Path, first: Route, second: Route, seed: int) -> None:
    """In a process of its own: write one document after the other, as control does, until killed."""
    generation, documents = seed, (first, second)
    while True:
        generation += 1
        step = {"generation": generation, "weights": {"1": 100.0 - generation % 100, "2": float(generation % 100)}}
        project_route(home / "routes", documents[generation % 2].model_copy(update=step).sealed())


def test_f12_the_writer_is_killed_a_hundred_times(tmp_path: Path) -> None:
    """SIGKILL at any moment leaves the old or the new document, whole, with shares that add up."""
    one = canary(tmp_path)
    two = one.model_copy(update={"reason": "another document, and a longer one " * 20})
    chance, generation, path = np.random.default_rng(5), 0, tmp_path / "routes" / "late.json"
    context = multiprocessing.get_context("fork")
    for _ in range(100):
        writer = context.Process(target=_write_routes, args=(tmp_path, one, two, generation))
        written = path.stat().st_ino if path.exists() else None
        writer.start()
        wait_until(lambda old=written: path.exists() and path.stat().st_ino != old, "a first document", every=0.001)
        time.sleep(chance.uniform(0.0, 0.02))  # sleeps because: the moment of the kill is drawn at random
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        found = parse_route(path.read_bytes())
        assert sum(found.weights.values()) == 100
        assert found.generation > generation
        generation = found.generation


@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_f12_the_gateway_is_killed_while_routes_are_written(tmp_path: Path, kills: int) -> None:
    """Killed with SIGKILL while its route changes many times a second; restored from its own copy alone."""
    document = canary(tmp_path)
    publish(tmp_path, document)
    chance, generation = np.random.default_rng(7), 1
    context = multiprocessing.get_context("fork")
    for _ in range(kills):
        with running_gateway(tmp_path, "/readyz") as gateway:
            writer = context.Process(target=_write_routes, args=(tmp_path, document, document, generation))
            writer.start()
            try:
                control = GatewayClient(gateway.url)
                taken = until(control, lambda status, old=generation: status.generation > old + 5)  # type: ignore[misc]
                time.sleep(chance.uniform(0.0, 0.3))  # sleeps because: the moment of the kill is drawn at random
                gateway.kill()
            finally:
                assert writer.pid is not None
                os.kill(writer.pid, signal.SIGKILL)
                writer.join()
        copy = parse_route((tmp_path / "gateway" / "late.json").read_bytes())
        lying = parse_route((tmp_path / "routes" / "late.json").read_bytes())
        assert sum(copy.weights.values()) == sum(lying.weights.values()) == 100
        assert taken.generation <= copy.generation <= lying.generation
        # The ledger is out of reach and the route's file is torn: what it took last is enough.
        (tmp_path / "routes" / "late.json").write_text(lying.to_json()[:200])
        with running_gateway(tmp_path, "/readyz") as restored:
            control = GatewayClient(restored.url)
            status = control.status("late")
            assert (status.generation, status.share) == (copy.generation, copy.share)
            assert status.error is not None
            assert control.predict("late", rows=[GOOD_ROW])["fallback"] is None
        publish(tmp_path, lying)
        generation = lying.generation


def test_f13_a_gateway_is_restarted_in_a_canary_with_a_second_replica(tmp_path: Path) -> None:
    """Killed and restarted three times under load: no request is lost, and who was ejected stays ejected."""
    homes = [tmp_path / "one", tmp_path / "two"]
    document = canary(tmp_path, carriers=("UA",))
    for home in homes:
        publish(home, document)
    with running_gateway(homes[1], "/readyz") as other:
        first = GatewayProcess(homes[0])
        clients: Clients | None = None
        try:
            first.wait_until_up("/readyz")
            control = GatewayClient(first.url)
            for _ in range(10):
                control.predict("late", rows=[GOOD_ROW | {"carrier": "EV"}])
            ejection = until(control, lambda status: status.ejection is not None).ejection
            ejection_is_written(homes[0])
            port = int(first.url.rsplit(":", 1)[1])
            clients = Clients(first.url, other.url)
            for _ in range(3):
                clients.more(30)
                first.kill()
                clients.more(30)
                first = GatewayProcess(homes[0], port=port)
                first.wait_until_up("/readyz")
                status = GatewayClient(first.url).status("late")
                assert (status.ejection, status.share) == (ejection, 0.0)
                assert status.observed_s > 0
                answer = GatewayClient(first.url).predict("late", rows=[GOOD_ROW], key="any")
                assert answer["version"] == "1"
        finally:
            if clients:
                clients.stop()
            first.kill()
        assert clients.errors == []


def test_a_killed_gateway_goes_on_counting_where_it_last_wrote(tmp_path: Path) -> None:
    """SIGKILL may lose about a second of evidence; what was written before it is all there."""
    publish(tmp_path, canary(tmp_path))
    with running_gateway(tmp_path, "/readyz") as gateway:
        control = GatewayClient(gateway.url)
        for number in range(50):
            control.predict("late", rows=[GOOD_ROW], key=str(number))
        before = until(control, everything_is_counted)
        kept = tmp_path / "gateway" / "evidence" / "late.json"
        for _ in range(2):  # the first of the two may have been under way
            written = kept.stat().st_mtime_ns if kept.exists() else 0
            wait_until(lambda old=written: kept.exists() and kept.stat().st_mtime_ns > old, "the next write")
        gateway.kill()
    with running_gateway(tmp_path, "/readyz") as again:
        after = GatewayClient(again.url).status("late")
        assert (after.step, after.total, after.since) == (before.step, before.total, before.since)
        assert after.observed_s > before.observed_s


def everything_is_counted(status: GatewayStatus) -> bool:
    """Fifty requests, each answered by one version, scored by the other and compared."""
    tallies = [list(status.total.get(version, {}).values()) for version in ("1", "2")]
    return all(sum(t.requests for t in each) == 50 for each in tallies) and (
        sum(t.difference.n for t in tallies[1]) == 50
    )
