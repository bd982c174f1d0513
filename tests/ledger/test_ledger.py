"""The ledger keeps what it was told, in UTC, once."""

from __future__ import annotations

import multiprocessing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy.exc

from airlock.core.errors import Conflict, NotFound
from airlock.core.release import Event, Phase, Release
from airlock.core.route import Bundle, Route
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger

BUNDLE = Bundle(path="/b", digest="sha256:" + "0" * 64)
NOW = datetime(2013, 4, 1, 12, tzinfo=UTC)


def release(name: str = "r1", at: datetime = NOW) -> Release:
    return Release(id=name, model="m", version="1", champion=None, bundle=BUNDLE, phase=Phase.OPENED, entered_at=at)


def route(generation: int) -> Route:
    return Route(
        model="m",
        generation=generation,
        champion="1",
        weights={"1": 100},
        versions={"1": BUNDLE},
        salt="s",
        reason="test",
        written_at=NOW,
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


def test_an_empty_ledger_has_no_champion(url: str) -> None:
    ledger = Ledger(url)
    assert (ledger.champion("m"), ledger.route("m"), ledger.releases("m"), ledger.timeline("m")) == (None, None, [], [])
    with pytest.raises(NotFound, match="no release r9"):
        ledger.release("r9")


def test_times_come_back_in_utc(url: str) -> None:
    there = timezone(timedelta(hours=-4))
    Ledger(url).open(release(at=NOW.astimezone(there)), key="k", actor="ann")
    assert Ledger(url).release("r1").entered_at == NOW
    assert Ledger(url).release("r1").entered_at.tzinfo is UTC


def test_a_time_without_a_zone_is_refused(url: str) -> None:
    with pytest.raises(sqlalchemy.exc.StatementError, match="times with a zone"):
        Ledger(url).open(release(at=NOW.replace(tzinfo=None)), key="k", actor="ann")


def test_the_same_key_opens_one_release(url: str) -> None:
    ledger = Ledger(url)
    ledger.open(release("r1"), key="k", actor="ann")
    assert ledger.open(release("r2"), key="k", actor="ann").id == "r1"
    assert len(ledger.releases("m")) == 1
    assert len(ledger.timeline("m")) == 1


def test_a_route_generation_is_written_once_and_takes_its_transition_with_it(url: str) -> None:
    ledger = Ledger(url)
    first = ledger.open(release("r0"), key="j", actor="ann")
    ledger.transition(first, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))
    opened = ledger.open(release(), key="k", actor="ann")
    with pytest.raises(Conflict, match="wrote first"):
        ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))
    assert ledger.release("r1") == opened, "the phase may not move when its route was refused"
    assert [row.generation for row in ledger.routes("m")] == [1]


def test_verdicts_come_back_as_they_were(url: str) -> None:
    ledger = Ledger(url)
    opened = ledger.open(release(), key="k", actor="ann")
    verdict = Verdict(name="errors", status=Status.FAIL, reason="9 of 50", estimate=0.18, n=50, details={"a": [1]})
    ledger.record(opened, [verdict], step="canary_5", now=NOW)
    assert ledger.verdicts("r1") == [("canary_5", verdict)]
    assert ledger.verdicts("r1", generation=opened.generation) == [("canary_5", verdict)]
    assert ledger.verdicts("r1", generation=opened.generation + 1) == []


def test_a_route_whose_champion_was_never_promoted_is_not_taken_for_no_champion(url: str) -> None:
    ledger = Ledger(url)
    opened = ledger.open(release(), key="k", actor="ann")
    ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))
    with pytest.raises(Conflict, match="no promoted release"):
        ledger.champion("m")


def _approve(url: str, barrier: multiprocessing.synchronize.Barrier, results: multiprocessing.Queue[str]) -> None:
    ledger = Ledger(url)
    seen = ledger.release("r1")
    barrier.wait()
    try:
        ledger.transition(seen, Event.APPROVE, actor="bob", reason="yes", now=NOW)
        results.put("won")
    except Conflict:
        results.put("lost")


def test_of_two_processes_at_once_one_wins(url: str) -> None:
    Ledger(url).open(release(), key="k", actor="ann")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_approve, args=(url, barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    outcomes = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert outcomes == ["lost", "lost", "lost", "won"]
    assert [entry.event for entry in Ledger(url).timeline("m")] == ["open", "approve"]
