"""A model's whole life on SQLite and on PostgreSQL: promoted, killed in the middle, fenced, rolled back, repaired."""

from __future__ import annotations

import dataclasses
import threading
from datetime import timedelta

import pytest

from airlock.control import ReleaseControl, turn
from airlock.control.controller import LEASE, Controller
from airlock.control.reconcile import reconcile
from airlock.core.errors import Conflict, Fenced
from airlock.core.release import Event, Phase
from airlock.ledger import Ledger
from airlock.settings import Settings
from tests.support.control import (
    ERRORS,
    LABELS,
    Clock,
    FakeAliases,
    held,
    in_step,
    labels,
    on_disk,
    promoted,
    seen,
    spec_of,
)


@pytest.fixture
def here(settings: Settings, ledger_url: str) -> Settings:
    return dataclasses.replace(settings, ledger_url=ledger_url)


def controller(
    here: Settings, clock: Clock, aliases: FakeAliases, patience: timedelta = Clock.patience
) -> ReleaseControl:
    spec = spec_of(guards=[ERRORS, LABELS])
    return ReleaseControl(spec, here, Ledger(here.ledger_url), aliases=aliases, clock=clock, patience=patience)


def test_a_life(here: Settings, clock: Clock, aliases: FakeAliases, monkeypatch: pytest.MonkeyPatch) -> None:
    control = controller(here, clock, aliases)
    first = promoted(control, "1")
    assert first.phase is Phase.PROVISIONAL
    control.confirm(first.id, reason=control.judge_late(first.id, labels(0.1)).reason)
    release = in_step(control, "2", "canary_5")
    control.pause(release.id, actor="ann", reason="look")
    control.resume(release.id, actor="ann", reason="fine")
    assert control.observe(release.id, seen(on_disk(here))).action == "advance"
    with monkeypatch.context() as patch:
        patch.setattr(turn, "project_route", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(Controller, "_give_back", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            control.enter(release.id, "canary_100")
    other = controller(here, clock, aliases)
    with pytest.raises(Conflict, match="is at work"):
        other.enter(release.id, "canary_100")
    clock.now += LEASE
    repairs = reconcile(other, status=lambda: seen(on_disk(here)), run_state=lambda _: "running", now=clock())
    assert {repair.kind for repair in repairs if repair.done} == {"lease"}
    other.enter(release.id, "canary_100")
    held(other, release)
    assert other.promote(release.id).phase is Phase.PROVISIONAL
    decision = other.judge_late(release.id, labels(0.9))
    assert decision.action == "roll_back"
    other.roll_back(release.id, reason=decision.reason)
    assert on_disk(here).weights == {"1": 100.0}
    assert aliases.names["champion"] == "1"
    assert not other.pending("route")


def test_whoever_slept_is_fenced_off(here: Settings, clock: Clock, aliases: FakeAliases) -> None:
    sleeper, other = controller(here, clock, aliases), controller(here, clock, aliases)
    promoted(sleeper, "1")
    release = in_step(sleeper, "2")

    def oversleep() -> None:
        with sleeper.turn() as turn:
            clock.now += LEASE
            other.abort(release.id, actor="ann", reason="wrong")
            turn.move(release, Event.PAUSE, actor="late", reason="late")

    with pytest.raises(Fenced):
        oversleep()
    assert on_disk(here).weights == {"1": 100.0}


def test_promoting_at_once_has_one_winner(here: Settings, clock: Clock, aliases: FakeAliases) -> None:
    control = controller(here, clock, aliases)
    promoted(control, "1")
    release = in_step(control, "2", "canary_100")
    held(control, release)
    ended: list[Phase] = []

    def promote() -> None:
        mine = controller(here, clock, aliases, patience=timedelta(seconds=30))
        ended.append(mine.promote(release.id).phase)

    threads = [threading.Thread(target=promote) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [Phase.PROVISIONAL] * 4
    events = [entry.event for entry in control.ledger.timeline("m") if entry.release == release.id]
    assert events.count("promote_provisionally") == 1
