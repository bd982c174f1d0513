"""The replay against a gateway that is a small HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from airlock.demo.feed import Tick
from airlock.demo.world import World
from tests.support.waiting import wait_until

START = datetime(2013, 4, 1, tzinfo=UTC)


class Gateway(ThreadingHTTPServer):
    """Answers everything, but refuses flights whose id begins with ``bad``."""

    daemon_threads = True

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.connections: set[int] = set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/models/m/predict"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.connections.add(self.client_address[1])
        refused = body["key"].startswith("bad")
        answer = b'{"error": "no such flight"}' if refused else b"{}"
        self.send_response(424 if refused else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


class Flights:
    """So many flights an hour, evenly spaced; remembers what it was asked."""

    def __init__(self, an_hour: int = 4, names: str = "flight") -> None:
        self.an_hour = an_hour
        self.names = names
        self.asked: list[tuple[datetime, float]] = []
        self.broken = False

    def tick(self, since: datetime, until: datetime, share: float) -> Tick:
        if self.broken:
            raise RuntimeError("the feed is gone")
        assert until - since == timedelta(hours=1)
        self.asked.append((since, share))
        step = 3600 / self.an_hour
        rows = [(i * step, {"flight_id": f"{self.names}-{since:%d%H}-{i}"}) for i in range(self.an_hour)]
        return Tick(flights=rows, landed=1)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_every_flight_asks_once_in_order_over_kept_connections(gateway: Gateway) -> None:
    flights = Flights()
    world = World(flights, gateway.url, START, key="flight_id", speed=24)
    world.start()
    wait_until(lambda: world.traffic().requests >= 40, "40 requests")
    world.stop()
    traffic = world.traffic(latencies=True)
    asked = [body["key"] for body in gateway.bodies]
    assert len(asked) == len(set(asked)) == traffic.requests == len(traffic.latencies)
    assert traffic.failed == 0
    assert sorted(asked)[:3] == ["flight-0100-0", "flight-0100-1", "flight-0100-2"]
    assert all(body["entities"] == [{"flight_id": body["key"]}] for body in gateway.bodies)
    assert len(gateway.connections) <= 4
    assert [since for since, _ in flights.asked] == [START + timedelta(hours=i) for i in range(len(flights.asked))]


def test_a_refused_flight_is_lost_and_told(gateway: Gateway) -> None:
    world = World(Flights(names="bad"), gateway.url, START, key="flight_id", speed=24)
    world.start()
    wait_until(lambda: world.traffic().requests >= 4, "four requests")
    world.stop()
    traffic = world.traffic()
    assert traffic.failed == traffic.requests
    assert traffic.first_failure == '424: {"error": "no such flight"}'


def test_no_gateway_is_a_lost_request_too() -> None:
    world = World(Flights(), "http://127.0.0.1:9/predict", START, key="flight_id", speed=24)
    world.start()
    wait_until(lambda: world.traffic().requests >= 4, "four requests")
    world.stop()
    assert world.traffic().failed == world.traffic().requests
    assert "ConnectError" in (world.traffic().first_failure or "")


def test_a_fast_clock_asks_of_fewer_flights(gateway: Gateway) -> None:
    flights = Flights(an_hour=1)
    world = World(flights, gateway.url, START, key="flight_id", speed=24, max_rate=60)
    world.start()
    wait_until(lambda: len(flights.asked) >= 3, "three hours")
    world.stop()
    assert all(share == pytest.approx(60 / (24 * 40)) for _, share in flights.asked)


def test_a_braked_clock_slows_down_and_asks_of_more(gateway: Gateway) -> None:
    flights = Flights(an_hour=1)
    world = World(flights, gateway.url, START, key="flight_id", speed=24, max_rate=60)
    world.brake(START + timedelta(hours=14_400))
    world.start()
    wait_until(lambda: len(flights.asked) >= 9, "nine hours")
    world.stop()
    shares = [share for _, share in flights.asked]
    assert shares[0] == pytest.approx(60 / (24 * 40))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(60 / (40 * (14_400 - len(shares) + 1) / 600))


def test_a_clock_at_its_brake_stands_nearly_still_and_goes_on_at_once_when_told(gateway: Gateway) -> None:
    flights = Flights(an_hour=1)
    world = World(flights, gateway.url, START, key="flight_id", speed=24)
    world.brake(START)
    world.start()
    wait_until(lambda: len(flights.asked) == 1, "the first hour")
    world.skip(START + timedelta(days=9))
    world.brake(None)
    wait_until(lambda: len(flights.asked) >= 4, "the hours after the skip", seen=lambda: flights.asked)
    world.stop()
    assert [since for since, _ in flights.asked[:2]] == [START, START + timedelta(days=9)]
    assert len({body["key"] for body in gateway.bodies}) == len(gateway.bodies)


def test_a_skip_goes_forward_only(gateway: Gateway) -> None:
    flights = Flights(an_hour=1)
    world = World(flights, gateway.url, START, key="flight_id", speed=24)
    world.skip(START - timedelta(days=9))
    world.start()
    wait_until(lambda: len(flights.asked) >= 2, "two hours")
    world.skip(START + timedelta(days=9))
    wait_until(lambda: world.now >= START + timedelta(days=9), "the clock to skip")
    world.stop()
    assert flights.asked[0][0] == START


def test_what_stops_the_replay_is_told_to_whoever_asks(gateway: Gateway) -> None:
    flights = Flights()
    flights.broken = True
    world = World(flights, gateway.url, START, key="flight_id", speed=24)
    world.start()
    with pytest.raises(RuntimeError, match="the feed is gone"):
        wait_until(lambda: world.traffic() is None, "an error")
    world.stop()


def test_a_replay_that_never_began_can_be_stopped(gateway: Gateway) -> None:
    World(Flights(), gateway.url, START, key="flight_id", speed=24).stop()
