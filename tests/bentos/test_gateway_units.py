"""Limits by key and by minute: what the gateway counts of a customer or a minute, and what a restart costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from airlock.core.counters import Counters
from airlock.core.guards import judge
from airlock.core.route import Bundle, Limit, Route
from airlock.core.tally import GatewayStatus, Scope
from airlock.core.verdict import Status
from gateway import clock as clock_module
from gateway.evidence import SERVED, Evidence
from tests.support.gateway_in_process import PREDICT, Running, in_gateway
from tests.support.tiny_models import GOOD_ROW, bundle, publish, route

BY_KEY = Limit(name="error_rate_by_key", signal="errors", bound=0.05, alpha=0.01, minimum=2, by="key")
SHIFT = Limit(name="prediction_shift_by_key", signal="difference", bound=0.5, alpha=0.01, reach=2, least=-1, by="key")
BY_MINUTE = Limit(name="error_rate_by_minute", signal="errors", bound=0.05, alpha=0.01, by="minute")


def units(status: GatewayStatus, limit: Limit, scope: Scope = "served") -> tuple[int, float]:
    sums = status.units.get(scope, {}).get(limit.name)
    return (sums.n, sums.total) if sums else (0, 0.0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Version 2 answers everything and is judged by key."""
    one, two = bundle(tmp_path / "bundles" / "1"), bundle(tmp_path / "bundles" / "2", bias=0.1)
    publish(tmp_path, route(one, candidate=two, share=100, step="canary_100", limits=(BY_KEY, SHIFT, BY_MINUTE)))
    return tmp_path


async def ask_without_key(gateway: Running) -> None:
    response = await gateway.client.post(PREDICT, json={"rows": [GOOD_ROW]})
    assert response.status_code == 200, response.text


def test_a_customer_counts_once_also_after_a_restart(home: Path) -> None:
    async def first(gateway: Running) -> None:
        for key in ("ann", "ann", "bob"):
            await gateway.ask(key)
        await ask_without_key(gateway)
        await ask_without_key(gateway)
        status = await gateway.until(lambda s: units(s, SHIFT, "all")[0] == 4)
        assert units(status, BY_KEY) == (4, 0.0), "two customers, and two requests that nobody can be told from"
        assert status.total["2"]["served"].requests == 5
        (verdict,) = judge([BY_KEY], Counters(status.total["2"], status.checkpoints, status.units))
        assert (verdict.status, verdict.n) == (Status.PASS, 4)

    async def again(gateway: Running) -> None:
        for key in ("ann", "bob", "cid"):
            await gateway.ask(key)
        status = await gateway.until(lambda s: units(s, SHIFT, "all")[0] == 5)
        assert units(status, BY_KEY) == (5, 0.0)

    in_gateway(home, first)
    in_gateway(home, again)


def test_a_file_that_lost_who_was_asked_loses_what_was_counted_of_them_too(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(gateway: Running) -> None:
        await gateway.ask("ann")

    in_gateway(home, ask)
    path = home / "gateway" / "evidence" / "late.json"
    kept = json.loads(path.read_text())
    kept["units"]["keys"] = {name: bits[:100] for name, bits in kept["units"]["keys"].items()}
    path.write_text(json.dumps(kept))

    async def body(gateway: Running) -> None:
        status = await gateway.status()
        assert units(status, BY_KEY) == (0, 0.0)
        (verdict,) = judge([BY_KEY], Counters(status.total.get("2"), status.checkpoints, status.units))
        assert verdict.status is Status.INCONCLUSIVE

    in_gateway(home, body)
    assert "counting starts anew" in caplog.text


def test_another_step_goes_on_with_the_same_customers_and_another_release_does_not(home: Path) -> None:
    one, two = (
        Bundle.model_validate(json.loads((home / "routes" / "late.json").read_text())["versions"][v]) for v in "12"
    )

    async def body(gateway: Running) -> None:
        await gateway.ask("ann")
        for generation, step, release, n in ((2, "canary_50", "r1", 1), (3, "canary_50", "r2", 0)):
            limits = (BY_KEY, SHIFT, BY_MINUTE)
            following = route(
                one, candidate=two, share=100, step=step, generation=generation, release=release, limits=limits
            )
            publish(home, following)
            status = await gateway.until(lambda s, wanted=generation: s.generation == wanted)
            assert units(status, BY_KEY)[0] == n
            await gateway.ask("ann")
            assert units(await gateway.status(), BY_KEY)[0] == 1

    in_gateway(home, body)


def test_failures_by_key_eject(tmp_path: Path) -> None:
    one = bundle(tmp_path / "bundles" / "1")
    bad = bundle(tmp_path / "bundles" / "2", carriers=("UA",))
    publish(tmp_path, route(one, candidate=bad, share=100, step="canary_100", limits=(BY_KEY,)))

    async def body(gateway: Running) -> None:
        for _ in range(20):
            await gateway.ask("ann", GOOD_ROW | {"carrier": "EV"})
        assert (await gateway.status()).ejection is None, "one customer who tries again is one observation"
        for number in range(20):
            await gateway.ask(f"customer {number}", GOOD_ROW | {"carrier": "EV"})
        ejection = (await gateway.status()).ejection
        assert ejection is not None
        assert "the first request of" in ejection.reason

    in_gateway(tmp_path, body)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The clock by which the evidence counts."""
    clock = SimpleNamespace(now=1200.0, now_us=lambda: round(clock.now * 1e6))
    monkeypatch.setattr("gateway.evidence.clock", clock)
    return clock


def test_minutes_are_those_of_the_clock_that_the_log_is_written_by(clock: SimpleNamespace, home: Path) -> None:
    one, two = (
        Bundle.model_validate(json.loads((home / "routes" / "late.json").read_text())["versions"][v]) for v in "12"
    )

    def step(name: str, generation: int) -> Route:
        return route(one, candidate=two, share=100, step=name, generation=generation, limits=(BY_MINUTE,))

    evidence = Evidence(step("canary_50", 1))

    def minutes() -> tuple[int, float]:
        evidence.settle()
        sums = evidence.counters.units["all"].get(BY_MINUTE.name)
        return (sums.n, sums.total) if sums else (0, 0.0)

    def answered(version: str, *, failed: bool) -> None:
        for tally in evidence.tallies(version, SERVED):
            tally.answered(1.0)
        evidence.answered(version, SERVED, "ann", 1.0, failed=failed, at_us=clock.now_us())

    for failed in (True, False):
        answered("2", failed=failed)
        answered("1", failed=True)
    assert minutes() == (0, 0.0)
    clock.now += 60
    assert minutes() == (1, 0.5), "it closes although nobody asks"
    clock.now += 6000
    assert minutes() == (1, 0.5), "minutes without requests are no observations"
    answered("2", failed=False)
    evidence = Evidence(step("canary_50", 2), evidence.kept())
    assert minutes() == (1, 0.5), "neither another route nor a restart ends a minute"
    evidence = Evidence(step("canary_100", 3), evidence.kept())
    assert minutes() == (2, 0.5), "another step does"
    assert evidence.counters.all.step.units[BY_MINUTE.name].n == 0


def test_the_clock_follows_the_time_of_day_and_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    system = SimpleNamespace(day=10**9, steady=0)
    system.time_ns, system.monotonic_ns = lambda: system.day, lambda: system.steady
    monkeypatch.setattr(clock_module, "time", system)
    monkeypatch.setattr(clock_module, "_ahead_ns", 0)
    assert clock_module.now_us() == 10**6
    system.day, system.steady = 5 * 10**9, 10**6
    assert clock_module.now_us() == 5 * 10**6, "put forward, or the machine slept"
    system.day, system.steady = 10**9, 3 * 10**6
    assert clock_module.now_us() == 5 * 10**6 + 2000, "put back: it goes on from where it was"
