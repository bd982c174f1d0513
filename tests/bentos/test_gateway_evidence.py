"""What a gateway counts: by step and by release, across routes and restarts, and what a lost or torn file costs."""

from __future__ import annotations

import asyncio
import errno
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from airlock.core.counters import Counters
from airlock.core.guards import breach, judge
from airlock.core.route import Bundle, Limit, Route, place
from airlock.core.tally import GatewayStatus, Sums
from airlock.prediction_log import read
from airlock.settings import Settings
from gateway.evidence import SERVED, SHADOW, Evidence, Kept, Lost, read_kept
from gateway.paths import write_durably
from tests.support.gateway_in_process import Running, in_gateway
from tests.support.tiny_models import GOOD_ROW, bundle, publish, route
from tests.support.waiting import wait_until_async

ERRORS = (Limit(name="error_rate", signal="errors", bound=0.05, alpha=0.01),)


@pytest.fixture
def champion(tmp_path: Path) -> Bundle:
    return bundle(tmp_path / "bundles" / "1")


@pytest.fixture
def better(tmp_path: Path) -> Bundle:
    return bundle(tmp_path / "bundles" / "2", bias=0.1)


@pytest.fixture
def to_step(champion: Bundle, better: Bundle) -> Callable[..., Route]:
    """A route of release r1 at a step."""

    def make(step: str | None, generation: int = 1, release: str = "r1") -> Route:
        return route(champion, candidate=better, share=100, step=step, generation=generation, release=release)

    return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The monotonic clock that the evidence sees."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("gateway.evidence.time", clock)
    return clock


def compared(count: int) -> Callable[[GatewayStatus], bool]:
    """Whether so many of the candidate's answers were paired."""
    return lambda status: "2" in status.total and status.total["2"]["served"].difference.n == count


def test_a_step_s_counts_begin_anew_and_the_release_s_go_on(tmp_path: Path, to_step: Callable[..., Route]) -> None:
    publish(tmp_path, to_step("canary_5"))

    async def body(gateway: Running) -> None:
        for _ in range(3):
            await gateway.ask()
        await gateway.until(compared(3))
        publish(tmp_path, to_step("canary_5", 2))
        status = await gateway.until(lambda s: s.generation == 2)
        assert status.rollout_step == "canary_5"
        assert status.step["2"]["served"].requests == 3, "another document of the same step"
        publish(tmp_path, to_step("canary_25", 3))
        status = await gateway.until(lambda s: s.generation == 3)
        assert (status.rollout_step, status.step) == ("canary_25", {})
        await gateway.ask()
        status = await gateway.until(compared(4))
        assert status.step["2"]["served"].requests == status.step["2"]["served"].difference.n == 1
        assert status.total["2"]["served"].requests == 4
        publish(tmp_path, to_step("canary_25", 4, release="r2"))
        status = await gateway.until(lambda s: s.generation == 4)
        assert (status.step, status.total) == ({}, {}), "another release"

    in_gateway(tmp_path, body)


def test_the_log_says_in_which_step_and_in_which_order_it_was_counted(
    tmp_path: Path, to_step: Callable[..., Route]
) -> None:
    """What came under a step and is scored under the next one counts there; what a release left behind, nowhere."""
    publish(tmp_path, to_step("canary_5"))

    async def body(gateway: Running) -> None:
        await gateway.ask()
        await gateway.until(compared(1))
        served = gateway.gateway.served("late")
        old = served.effect
        publish(tmp_path, to_step("canary_25", 2))
        await gateway.until(lambda s: s.generation == 2)
        assert served.step_of(old) == "canary_25"
        await gateway.ask()
        await gateway.until(compared(2))
        publish(tmp_path, to_step("canary_5", 3, release="r2"))
        await gateway.until(lambda s: s.generation == 3)
        assert served.step_of(old) is None

    in_gateway(tmp_path, body)
    settings = Settings(tmp_path, tmp_path, *["http://127.0.0.1:9"] * 3, "sqlite://")
    rows = read(settings, "late", columns=["sequence", "step", "version", "role"], roles=("served", "shadow"))
    told = [tuple(row) for row in rows.sort_values("sequence").to_numpy()]
    assert told == [
        (1, "canary_5", "2", "served"),
        (2, "canary_5", "1", "shadow"),
        (3, "canary_25", "2", "served"),
        (4, "canary_25", "1", "shadow"),
    ]


def test_a_restart_goes_on_where_the_stop_was(tmp_path: Path, to_step: Callable[..., Route]) -> None:
    publish(tmp_path, to_step("canary_5"))
    before: list[GatewayStatus] = []

    async def at_first(gateway: Running) -> None:
        for _ in range(3):
            await gateway.ask()
        before.append(await gateway.until(compared(3)))

    async def again(gateway: Running) -> None:
        status = await gateway.status()
        for part in ("step", "total", "since", "rollout_step", "release"):
            assert getattr(status, part) == getattr(before[0], part)
        await gateway.ask()
        status = await gateway.until(compared(4))
        assert status.step["2"]["served"].requests == status.total["2"]["served"].requests == 4

    in_gateway(tmp_path, at_first)
    in_gateway(tmp_path, again)
    publish(tmp_path, to_step("canary_25", 2))

    async def at_the_next_step(gateway: Running) -> None:
        status = await gateway.status()
        assert status.step == {}
        assert status.total["2"]["served"].requests == 4

    in_gateway(tmp_path, at_the_next_step)


def test_what_was_counted_is_written_while_it_runs(
    tmp_path: Path, to_step: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.evidence.KEEP_SECONDS", 0.01)
    publish(tmp_path, to_step("canary_5"))

    async def body(gateway: Running) -> None:
        await gateway.ask()
        file = gateway.gateway.paths.evidence / "late.json"

        async def written() -> Kept | None:
            kept = read_kept(file, "late")
            return kept if kept and kept.current else None

        kept = await wait_until_async(written, "what was counted to be written", seen=lambda: read_kept(file, "late"))
        assert kept.current["2"]["served"].requests == 1

    in_gateway(tmp_path, body)


@pytest.mark.parametrize("content", [None, "", '{"model": "late"', "[]", "null", '{"current": {"2": 1}}'])
def test_without_a_file_that_can_be_read_counting_starts_anew(
    tmp_path: Path, to_step: Callable[..., Route], caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    publish(tmp_path, to_step("canary_5"))

    async def ask(gateway: Running) -> None:
        assert (await gateway.ask())["version"] == "2"

    in_gateway(tmp_path, ask)
    file = tmp_path / "gateway" / "evidence" / "late.json"
    if content is None:
        file.unlink()
    else:
        file.write_text(content)

    told: list[str | None] = []

    async def body(gateway: Running) -> None:
        status = await gateway.status()
        assert status.total == {}
        told.append(status.lost)
        await ask(gateway)

    in_gateway(tmp_path, body)
    assert "counting starts anew" in caplog.text
    in_gateway(tmp_path, lambda gateway: _note_lost(gateway, told))
    assert told[0] == told[1], "it is lost for as long as the release lasts"
    assert "counting starts anew" in (told[0] or "")
    assert len(told[0] or "") < 400, "it ends up in the reasons of decisions"


async def _note_lost(gateway: Running, told: list[str | None]) -> None:
    told.append((await gateway.status()).lost)


def test_evidence_of_the_release_before_is_none_of_this_one(tmp_path: Path, to_step: Callable[..., Route]) -> None:
    """The disk was full from one release to the next, and then the gateway was killed."""
    publish(tmp_path, to_step("canary_5"))
    in_gateway(tmp_path, _asked)
    file = tmp_path / "gateway" / "evidence" / "late.json"
    before = file.read_text()
    publish(tmp_path, to_step("shadow", generation=2, release="r2"))
    in_gateway(tmp_path, _asked)
    file.write_text(before)

    async def body(gateway: Running) -> None:
        status = await gateway.status()
        assert status.total == {}
        assert "is the evidence of release r1" in (status.lost or "")

    in_gateway(tmp_path, body)


async def _asked(gateway: Running) -> None:
    await gateway.ask()


def test_a_file_of_an_unknown_form_is_told_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "late.json"
    file.write_text(json.dumps({"model": "late", "current": {str(version): None for version in range(200)}}))
    lost = read_kept(file, "late")
    assert isinstance(lost, Lost)
    assert len(lost.reason) < 300
    assert "more)" in lost.reason


def test_that_nothing_can_be_written_down_is_told(
    tmp_path: Path, to_step: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    def write(path: Path, content: str) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_durably(path, content)

    monkeypatch.setattr("gateway.evidence.KEEP_SECONDS", 0.01)
    monkeypatch.setattr("gateway.evidence.write_durably", write)
    publish(tmp_path, to_step("canary_5"))

    async def body(gateway: Running) -> None:
        nonlocal full

        async def told() -> bool:
            return "No space left" in ((await gateway.status()).lost or "")

        async def settled() -> bool:
            return (await gateway.status()).lost is None

        await wait_until_async(told, "the full disk to be told", seen=gateway.status)
        full = False
        await wait_until_async(settled, "the disk with room to be noticed", seen=gateway.status)

    in_gateway(tmp_path, body)


def test_sums_that_are_not_finite_come_back_as_they_were(tmp_path: Path, to_step: Callable[..., Route]) -> None:
    """They are what ejected the candidate: to lose them would be to forget why."""
    counted = Evidence(to_step("canary_5"))
    for tally in counted.tallies("2", SERVED):
        tally.compared([math.inf], 0)
        tally.compared([-math.inf], 0)
    file = tmp_path / "late.json"
    file.write_text(counted.kept().model_dump_json())
    kept = read_kept(file, "late")
    assert isinstance(kept, Kept)
    again = Evidence(to_step("canary_5"), kept).counters.all.sums.difference
    assert (again.n, again.squares, again.smallest) == (2, math.inf, -math.inf)
    assert math.isnan(again.total)
    json.loads(file.read_text(), parse_constant=pytest.fail)


def test_another_model_s_or_release_s_file_counts_for_nothing(
    tmp_path: Path, to_step: Callable[..., Route], caplog: pytest.LogCaptureFixture
) -> None:
    counted = Evidence(to_step("canary_5"))
    for tally in counted.tallies("2", SERVED):
        tally.answered(1.0)
    file = tmp_path / "late.json"
    file.write_text(counted.kept().model_dump_json())
    assert isinstance(read_kept(file, "early"), Lost)
    assert "is the evidence of late" in caplog.text
    kept = read_kept(file, "late")
    assert Evidence(to_step("canary_5"), kept).counters.all.sums.requests == 1
    assert Evidence(to_step("canary_5", release="r2"), kept).counters.all.sums.requests == 0


def test_a_file_with_figures_that_cannot_be_is_refused(tmp_path: Path, to_step: Callable[..., Route]) -> None:
    file = tmp_path / "late.json"
    whole = json.loads(Evidence(to_step("canary_5")).kept().model_dump_json())
    for wrong in ({"observed_s": -1}, {"observed_s": float("inf")}, {"since": "2013-04-01T00:00:00"}, {"more": 1}):
        file.write_text(json.dumps(whole | wrong))
        assert isinstance(read_kept(file, "late"), Lost)
    file.write_text(json.dumps(whole))
    assert isinstance(read_kept(file, "late"), Kept)


def test_only_time_that_was_watched_counts(clock: SimpleNamespace, to_step: Callable[..., Route]) -> None:
    first = Evidence(to_step("canary_5"))
    clock.now += 30
    assert first.observed_s == 30
    kept = first.kept()
    clock.now = 5.0  # another process, another clock
    again = Evidence(to_step("canary_5", 2), kept)
    assert again.observed_s == 30
    clock.now += 12
    assert again.observed_s == 42
    assert again.since == first.since
    following = Evidence(to_step("canary_25", 3), again.kept())
    assert following.observed_s == 0
    assert following.since > again.since


def test_the_candidate_s_sums_are_over_both_roles(to_step: Callable[..., Route]) -> None:
    evidence = Evidence(to_step("canary_5"))
    for version, role, count in (("2", SERVED, 3), ("2", SHADOW, 4), ("1", SERVED, 50)):
        for _ in range(count):
            for tally in evidence.tallies(version, role):
                tally.answered(1.0)
    counters = evidence.counters
    assert (counters.all.sums.requests, counters.served.sums.requests) == (7, 3)
    later = Evidence(to_step("canary_25", 2), evidence.kept())
    for tally in later.tallies("2", SHADOW):
        tally.failed(1.0)
    step, total = later.counters.all.step, later.counters.all.sums
    assert (step.requests, total.requests, total.errors) == (1, 8, 1)
    assert (later.counters.served.step.requests, later.counters.served.sums.requests) == (0, 3)
    assert later.total["2"]["served"].requests == 3
    assert later.total["2"]["shadow"].requests == 5
    assert evidence.total["2"]["shadow"].requests == 4


def test_failures_of_both_roles_together_eject(tmp_path: Path, champion: Bundle) -> None:
    raising = bundle(tmp_path / "bundles" / "raising", carriers=("UA",))
    limit = Limit(name="error_rate", signal="errors", bound=0.3, alpha=0.01)
    publish(tmp_path, route(champion, candidate=raising, share=50, limits=(limit,)))
    bad = GOOD_ROW | {"carrier": "EV"}
    served = next(key for key in map(str, range(100)) if place("salt", key) < 50)
    shadowed = next(key for key in map(str, range(100)) if place("salt", key) >= 50)

    def scored(count: int) -> Callable[[GatewayStatus], bool]:
        return lambda status: "2" in status.total and status.total["2"]["shadow"].errors == count

    async def body(gateway: Running) -> None:
        for asked in range(1, 30):
            await gateway.ask(shadowed, bad)
            status = await gateway.until(scored(asked))
            if status.ejection:
                break
            await gateway.ask(served, bad)
            if (status := await gateway.status()).ejection:
                break
        roles = status.total["2"]
        assert status.ejection is not None
        assert status.ejection.requests == roles["served"].requests + roles["shadow"].requests
        assert abs(roles["served"].errors - roles["shadow"].errors) <= 1
        for role, tally in roles.items():
            assert breach((limit,), Counters({role: tally})) is None, "neither role alone would have been enough"
        assert roles["shadow"].fallbacks == roles["shadow"].errors

    in_gateway(tmp_path, body)


def test_evidence_of_a_version_that_went_bad_in_a_later_step_is_fresh(tmp_path: Path, champion: Bundle) -> None:
    """A good past of 3,000 requests does not hide 40 failures of 60: the step's own sums are looked at too."""
    raising = bundle(tmp_path / "bundles" / "raising", carriers=("UA",))

    def at(step: str, generation: int) -> Route:
        return route(champion, candidate=raising, share=100, step=step, generation=generation, limits=ERRORS)

    publish(tmp_path, at("canary_50", 1))

    async def body(gateway: Running) -> None:
        served = gateway.gateway.routes.models["late"]
        for _ in range(3000):
            for tally in served.tallies(served.effect, "2", SERVED):
                tally.answered(1.0)
        publish(tmp_path, at("canary_100", 2))
        await gateway.until(lambda s: s.generation == 2)
        for _ in range(60):
            await gateway.ask(row=GOOD_ROW | {"carrier": "EV"})
        status = await gateway.status()
        assert status.ejection is not None
        assert status.ejection.requests > 3000

    in_gateway(tmp_path, body)


def test_a_request_of_a_release_that_is_over_counts_for_no_other(tmp_path: Path, champion: Bundle) -> None:
    slow = bundle(tmp_path / "slow", work=1500)
    publish(tmp_path, route(champion, candidate=slow, share=100, timeout_ms=5_000))

    async def body(gateway: Running) -> None:
        version = gateway.gateway.routes.models["late"].effect.candidate
        assert version is not None
        version.ms_per_row = 100.0
        question = asyncio.create_task(gateway.ask())
        await asyncio.sleep(0)
        served = gateway.gateway.routes.models["late"]
        served.follow(route(champion, candidate=slow, generation=2, release="r2"), served.effect.versions)
        assert (await question)["version"] == "2"
        assert (await gateway.status()).total == {}

    in_gateway(tmp_path, body)


def test_slow_answers_are_counted_by_limit(tmp_path: Path, champion: Bundle, better: Bundle) -> None:
    limits = tuple(
        Limit(name=name, signal="slow", bound=0.5, alpha=0.001, over_ms=ms)
        for name, ms in (("latency_p50", 1e-6), ("latency_p99", 1e6))
    )
    late = Limit(name="paired_loss_brier", signal="late", bound=0.1, alpha=0.001, reach=2.0)
    publish(tmp_path, route(champion, candidate=better, share=100, limits=(*limits, late)))

    async def body(gateway: Running) -> None:
        await gateway.ask()
        assert (await gateway.status()).total["2"]["served"].slow == {"latency_p50": 1, "latency_p99": 0}

    in_gateway(tmp_path, body)


def test_decisions_that_differ_are_flips(tmp_path: Path, champion: Bundle) -> None:
    """One observation a request: the share of its rows that champion (0.52) and candidate (0.40) decide differently."""
    lower = bundle(tmp_path / "lower", bias=-0.5)
    publish(tmp_path, route(champion, candidate=lower, share=100))

    async def body(gateway: Running) -> None:
        rows = [GOOD_ROW, GOOD_ROW | {"distance": 9000.0}]  # 0.62 and 0.71: no flip
        response = await gateway.client.post("/v1/models/late/predict", json={"rows": rows})
        assert [row["prediction"] for row in response.json()["predictions"]] == [0, 1]
        tally = (await gateway.until(compared(1))).total["2"]["served"]
        assert tally.flips == Sums(n=1, total=0.5, squares=0.25, smallest=0.5, largest=0.5)
        assert tally.difference.total == pytest.approx(-tally.absolute.total)

    in_gateway(tmp_path, body)


class TestCheckpoints:
    """What is judged afresh: it survives a restart, is reported, and finds what its past and its shadow would hide."""

    @staticmethod
    def counted(to_step: Callable[..., Route]) -> Evidence:
        """400 requests in shadow, then 300 served in a step of their own."""
        evidence: Evidence | None = None
        for step, generation, role, count in (("shadow", 1, SHADOW, 400), ("canary_5", 2, SERVED, 300)):
            evidence = Evidence(to_step(step, generation), evidence.kept() if evidence else None)
            for _ in range(count):
                for tally in evidence.tallies("2", role):
                    tally.answered(1.0)
                evidence.counters.restart_if_due()
        assert evidence is not None
        return evidence

    def test_a_killed_gateway_has_them_again(self, tmp_path: Path, to_step: Callable[..., Route]) -> None:
        before = self.counted(to_step)
        file = tmp_path / "late.json"
        file.write_text(before.kept().model_dump_json())
        again = Evidence(to_step("canary_5", 2), read_kept(file, "late"))
        assert again.counters.checkpoints == before.counters.checkpoints
        assert {c.kind for c in again.counters.checkpoints["all"]} == {"step", "restart"}
        assert again.counters.all.step.requests == again.counters.served.sums.requests == 300
        for evidence in (before, again):
            for _ in range(50):
                for tally in evidence.tallies("2", SERVED):
                    tally.failed(1.0)
                evidence.counters.restart_if_due()
        assert again.counters.checkpoints == before.counters.checkpoints

    def test_a_file_of_before_there_were_any_keeps_its_counts(
        self, tmp_path: Path, to_step: Callable[..., Route]
    ) -> None:
        content = self.counted(to_step).kept().model_dump(mode="json")
        del content["checkpoints"]
        file = tmp_path / "late.json"
        file.write_text(json.dumps(content))
        again = Evidence(to_step("canary_5", 2), read_kept(file, "late"))
        assert (again.counters.all.sums.requests, again.counters.served.sums.requests) == (700, 300)
        assert again.counters.all.step.requests == 300, "where the step began is known from its tallies"
        assert [c.kind for c in again.counters.checkpoints["all"]] == ["step"]

    def test_the_control_plane_finds_what_the_gateway_found(
        self, tmp_path: Path, to_step: Callable[..., Route]
    ) -> None:
        """A version that goes bad after 20,000 good requests of a step, through the status as it is sent."""
        publish(tmp_path, to_step("canary_5").model_copy(update={"limits": ERRORS}))

        async def body(gateway: Running) -> None:
            served = gateway.gateway.routes.models["late"]
            for request in range(1, 20_401):
                for tally in served.tallies(served.effect, "2", SERVED):
                    (tally.failed if request > 20_000 and request % 5 == 0 else tally.answered)(1.0)
                if served.must_go("2"):
                    break
            status = await gateway.status()
            assert status.ejection is not None
            assert request <= 20_200, "the good past weighs 1,000 failures"
            assert "the last" in status.ejection.reason
            counters = Counters(status.total["2"], status.checkpoints)
            assert breach(ERRORS, counters) == status.ejection.reason
            assert judge(ERRORS, counters)[0].reason == status.ejection.reason
            whole = Counters({"served": status.total["2"]["served"]})
            assert breach(ERRORS, whole) is None, "over the whole release it keeps its bound"

        in_gateway(tmp_path, body)

    def test_failures_where_it_answers_eject_whatever_the_shadow_says(
        self, tmp_path: Path, to_step: Callable[..., Route]
    ) -> None:
        publish(tmp_path, to_step("canary_5").model_copy(update={"limits": ERRORS}))

        async def body(gateway: Running) -> None:
            served = gateway.gateway.routes.models["late"]
            for role, count, bad in ((SHADOW, 2_000, False), (SERVED, 20, True)):
                for _ in range(count):
                    for tally in served.tallies(served.effect, "2", role):
                        (tally.failed if bad else tally.answered)(1.0)
                    if served.must_go("2"):
                        break
            status = await gateway.status()
            assert status.ejection is not None
            assert "requests that were for it to answer (100%)" in status.ejection.reason
            assert status.total["2"]["served"].requests < 10

        in_gateway(tmp_path, body)
