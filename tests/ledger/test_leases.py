"""One holder at a time; who was overtaken writes nothing, whatever its clock says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import event

from airlock.core.errors import Conflict, Fenced
from airlock.core.release import Event, Release
from airlock.ledger import Lease, Ledger
from airlock.ledger.engine import engine_of
from tests.support.releases import NOW, PASS, in_canary, release, route

MINUTE = timedelta(minutes=1)
LATER = NOW + timedelta(minutes=2)


@pytest.fixture
def ledger(ledger_url: str) -> Ledger:
    return Ledger(ledger_url)


def test_a_live_lease_keeps_others_out(ledger: Ledger) -> None:
    first = ledger.lease("m", "ann", ttl=MINUTE, now=NOW)
    assert (first.token, first.expires_at) == (1, NOW + MINUTE)
    with pytest.raises(Conflict, match=r"ann is at work on m until 2013-04-01 12:01:00 UTC at the latest"):
        ledger.lease("m", "bob", ttl=MINUTE, now=NOW + MINUTE / 2)
    assert ledger.lease_of("m") == first
    assert ledger.lease("n", "bob", ttl=MINUTE, now=NOW).token == 1


def test_a_lease_is_free_when_it_has_run_out_or_was_given_back(ledger: Ledger) -> None:
    ledger.lease("m", "ann", ttl=MINUTE, now=NOW)
    second = ledger.lease("m", "bob", ttl=MINUTE, now=NOW + MINUTE)
    ledger.release_lease(second)
    assert ledger.lease_of("m") is None
    third = ledger.lease("m", "ann", ttl=MINUTE, now=NOW + MINUTE)
    assert [second.token, third.token] == [2, 3]


def test_the_same_holder_takes_it_again_and_fences_itself_off(ledger: Ledger) -> None:
    opened = ledger.open(release(), key="k", actor="ann")
    old = ledger.lease("m", "ann", ttl=MINUTE, now=NOW)
    new = ledger.lease("m", "ann", ttl=MINUTE, now=NOW)
    with pytest.raises(Fenced):
        ledger.note(opened, "seen", actor="ann", reason="", now=NOW, lease=old)
    ledger.note(opened, "seen", actor="ann", reason="", now=NOW, lease=new)


def test_who_gives_back_a_lease_that_was_taken_over_takes_it_from_nobody(ledger: Ledger) -> None:
    old = ledger.lease("m", "ann", ttl=MINUTE, now=NOW)
    new = ledger.lease("m", "bob", ttl=MINUTE, now=LATER)
    ledger.release_lease(old)
    assert ledger.lease_of("m") == new


def test_a_lease_lasts_a_while(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="lasts a while"):
        ledger.lease("m", "ann", ttl=timedelta(0), now=NOW)


Write = Callable[[Ledger, Release, Lease | None], Any]
WRITES: dict[str, Write] = {
    "open": lambda ledger, _, lease: ledger.open(release("r2", at=LATER), key="k2", actor="ann", lease=lease),
    "transition": lambda ledger, before, lease: ledger.transition(
        before,
        Event.STEP,
        actor="ann",
        reason="",
        now=LATER,
        step="canary_10",
        route=route(2),
        effects=["route"],
        lease=lease,
    ),
    "route_only": lambda ledger, _, lease: ledger.route_only(
        route(2), actor="ann", reason="", now=LATER, event="pin", lease=lease
    ),
    "note": lambda ledger, before, lease: ledger.note(before, "x", actor="ann", reason="", now=LATER, lease=lease),
    "record": lambda ledger, before, lease: ledger.record(before, [PASS], step="canary_5", now=LATER, lease=lease),
    "effect_done": lambda ledger, _, lease: ledger.effect_done(ledger.pending_effects("m")[0], LATER, lease=lease),
}


def _everything(ledger: Ledger) -> list[Any]:
    return [
        ledger.releases("m"),
        ledger.routes("m"),
        ledger.timeline("m"),
        ledger.verdicts("r1"),
        ledger.pending_effects("m"),
    ]


@pytest.mark.parametrize("name", WRITES)
def test_every_write_is_fenced(ledger: Ledger, name: str) -> None:
    before = in_canary(ledger)
    before = ledger.transition(before, Event.PAUSE, actor="ann", reason="", now=NOW, effects=["aliases"])
    ran_out = ledger.lease("m", "ann", ttl=MINUTE, now=NOW)
    other = ledger.lease("n", "ann", ttl=MINUTE, now=LATER)
    was = _everything(ledger)
    with pytest.raises(Fenced, match=r"ann ran out at .* nothing was written: take the lease of m again"):
        WRITES[name](ledger, before, ran_out)
    with pytest.raises(Fenced, match=r"not ann's \(token 1 for n\)"):
        WRITES[name](ledger, before, other)
    newest = ledger.lease("m", "bob", ttl=MINUTE, now=LATER)
    with pytest.raises(Fenced, match=r"it is bob \(token 2\)'s turn, not ann's \(token 1 for m\)"):
        WRITES[name](ledger, before, ran_out)
    assert _everything(ledger) == was
    WRITES[name](ledger, before, newest)
    assert _everything(ledger) != was


def test_a_lease_that_was_given_back_writes_nothing(ledger: Ledger) -> None:
    before = in_canary(ledger)
    lease = ledger.lease("m", "ann", ttl=MINUTE, now=NOW)
    ledger.release_lease(lease)
    with pytest.raises(Fenced, match="ann has given its lease back"):
        ledger.note(before, "x", actor="ann", reason="", now=NOW, lease=lease)


def test_a_lease_is_not_taken_over_in_the_middle_of_a_write(ledger: Ledger, ledger_url: str) -> None:
    """Between the check of the lease and the commit nobody else may be granted it."""
    before = in_canary(ledger)
    lease = ledger.lease("m", "ann", ttl=MINUTE, now=NOW)
    taken: list[Lease] = []
    other = Thread(target=lambda: taken.append(ledger.lease("m", "bob", ttl=MINUTE, now=LATER)))
    in_time: list[bool] = []

    def take_over(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO journal") and not in_time:
            other.start()
            other.join(0.5)
            in_time.append(bool(taken))

    watched = engine_of(ledger_url)
    event.listen(watched, "before_cursor_execute", take_over)
    ledger.note(before, "write", actor="ann", reason="", now=NOW, lease=lease)
    event.remove(watched, "before_cursor_execute", take_over)
    other.join(30)
    assert in_time == [False]
    assert [item.token for item in taken] == [2]
