"""The ledger keeps what it was told, in UTC, once; what moves together moves together or not at all."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy.exc

from airlock.core.errors import Conflict, NotFound, NotPossible
from airlock.core.release import Event, Phase
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger
from tests.support.releases import NOW, PASS, in_canary, release, route

LATER = NOW + timedelta(hours=1)


@pytest.fixture
def ledger(ledger_url: str) -> Ledger:
    return Ledger(ledger_url)


def test_an_empty_ledger_has_no_champion(ledger: Ledger) -> None:
    assert (ledger.champion("m"), ledger.route("m"), ledger.releases("m"), ledger.timeline("m")) == (None, None, [], [])
    assert ledger.models() == []
    with pytest.raises(NotFound, match="no release r9"):
        ledger.release("r9")


def test_times_come_back_in_utc(ledger: Ledger) -> None:
    there = timezone(timedelta(hours=-4))
    ledger.open(release(at=NOW.astimezone(there)), key="k", actor="ann")
    assert ledger.release("r1").entered_at == NOW
    assert ledger.release("r1").entered_at.tzinfo is UTC


def test_a_time_without_a_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(sqlalchemy.exc.StatementError, match="times with a zone"):
        ledger.open(release(at=NOW.replace(tzinfo=None)), key="k", actor="ann")


def test_the_same_key_opens_one_release(ledger: Ledger) -> None:
    ledger.open(release("r1"), key="k", actor="ann", verdicts=[PASS])
    assert ledger.open(release("r2"), key="k", actor="ann", verdicts=[PASS]).id == "r1"
    assert len(ledger.releases("m")) == 1
    assert len(ledger.timeline("m")) == 1
    assert ledger.verdicts("r1") == [("gates", PASS)]


def test_a_release_keeps_who_wrote_it_and_what_carries_it(ledger: Ledger) -> None:
    said = release().model_copy(
        update={"author": "ann", "run": "run-1", "paused": True, "extended": timedelta(hours=2)}
    )
    ledger.open(said, key="k", actor="ann")
    assert ledger.release("r1") == said


def test_models_are_listed_once(ledger: Ledger) -> None:
    for number, model in enumerate(["b", "a", "b"]):
        ledger.open(release(f"r{number}", model=model), key=str(number), actor="ann")
    assert ledger.models() == ["a", "b"]


def test_a_route_generation_is_written_once_and_takes_its_transition_with_it(ledger: Ledger) -> None:
    first = ledger.open(release("r0"), key="j", actor="ann")
    ledger.transition(first, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))
    opened = ledger.open(release(), key="k", actor="ann")
    with pytest.raises(Conflict, match="wrote first"):
        ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1), effects=["route"])
    assert ledger.release("r1") == opened, "the phase may not move when its route was refused"
    assert [row.generation for row in ledger.routes("m")] == [1]
    assert ledger.pending_effects("m") == []


def test_a_decision_on_a_release_that_moved_on_is_refused(ledger: Ledger) -> None:
    opened = ledger.open(release(), key="k", actor="ann")
    ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW)
    with pytest.raises(Conflict, match=r"is approved  by now, it was opened.*decide again"):
        ledger.transition(opened, Event.REJECT, actor="cleo", reason="no", now=NOW)
    with pytest.raises(NotFound, match="no release r9"):
        ledger.transition(release("r9"), Event.APPROVE, actor="bob", reason="yes", now=NOW)


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (Event.PAUSE, {"paused": True}),
        (Event.EXTEND, {"extended": timedelta(hours=3)}),
        (Event.PROMOTE_NOW, {"promote_now": True}),
        (Event.APPROVE, {}),
    ],
)
def test_steering_stays_in_the_step(ledger: Ledger, event: Event, changes: dict[str, Any]) -> None:
    before = in_canary(ledger)
    steered = route(2, release="r1", step="canary_5")
    after = ledger.transition(before, event, actor="bob", reason="so", now=LATER, route=steered, changes=changes)
    assert after == before.model_copy(update={"generation": 2, "reason": "so", **changes})
    assert ledger.release("r1") == after
    resumed = ledger.transition(after, Event.RESUME, actor="bob", reason="on", now=LATER, changes={"paused": False})
    assert (resumed.paused, resumed.extended) == (False, changes.get("extended", timedelta(0)))


def test_a_new_step_is_entered_when_it_is_entered(ledger: Ledger) -> None:
    before = in_canary(ledger)
    after = ledger.transition(before, Event.STEP, actor="airlock", reason="10 %", now=LATER, step="canary_10")
    assert (after.phase, after.step, after.entered_at) == (Phase.CANARY, "canary_10", LATER)


def test_only_what_steers_can_be_changed(ledger: Ledger) -> None:
    before = in_canary(ledger)
    with pytest.raises(ValueError, match=r"cannot change \['champion'\]; it can change \['extended', 'paused'"):
        ledger.transition(before, Event.PAUSE, actor="b", reason="", now=NOW, changes={"champion": "9"})
    assert ledger.release("r1") == before


def test_the_journal_holds_the_digest_of_the_evidence(ledger: Ledger) -> None:
    opened = ledger.open(release(), key="k", actor="ann")
    ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, evidence="sha256:ab")
    ledger.note(opened, "seen", actor="airlock", reason="so", now=NOW, evidence="sha256:cd")
    assert [entry.evidence for entry in ledger.timeline("m")] == [None, "sha256:ab", "sha256:cd"]


def test_verdicts_come_back_as_they_were(ledger: Ledger) -> None:
    opened = ledger.open(release(), key="k", actor="ann")
    verdict = Verdict(name="errors", status=Status.FAIL, reason="9 of 50", estimate=0.18, n=50, details={"a": [1]})
    ledger.record(opened, [verdict], step="canary_5", now=NOW)
    assert ledger.verdicts("r1") == [("canary_5", verdict)]
    assert ledger.verdicts("r1", generation=opened.generation) == [("canary_5", verdict)]
    assert ledger.verdicts("r1", generation=opened.generation + 1) == []


def test_a_route_whose_champion_was_never_promoted_is_not_taken_for_no_champion(ledger: Ledger) -> None:
    opened = ledger.open(release(), key="k", actor="ann")
    ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))
    with pytest.raises(NotPossible, match="no promoted release"):
        ledger.champion("m")


def test_a_provisional_champion_is_a_good_version(ledger: Ledger) -> None:
    before = in_canary(ledger)
    held = ledger.transition(
        before, Event.PROMOTE_PROVISIONALLY, actor="airlock", reason="held", now=LATER, route=route(2)
    )
    champion = ledger.champion("m")
    assert champion is not None
    assert (champion.version, champion.since) == ("1", LATER)
    ledger.transition(held, Event.ROLL_BACK, actor="airlock", reason="late labels", now=LATER)
    assert ledger.good_versions("m") == []


class TestRouteOnly:
    def test_is_a_generation_of_its_own(self, ledger: Ledger) -> None:
        before = in_canary(ledger)
        pinned = route(2, release="r1", step="canary_5")
        ledger.route_only(pinned, actor="bob", reason="pinned", now=LATER, event="pin")
        assert ledger.route("m") == pinned.sealed()
        assert ledger.release("r1") == before.model_copy(update={"generation": 2})
        last = ledger.timeline("m")[-1]
        assert (last.event, last.generation, last.release, last.step) == ("pin", 2, "r1", "canary_5")
        effect = ledger.pending_effects("m")[-1]
        assert (effect.kind, effect.generation, effect.release) == ("route", 2, "r1")

    def test_of_no_release(self, ledger: Ledger) -> None:
        ledger.route_only(route(1), actor="bob", reason="pinned", now=LATER, event="pin")
        last = ledger.timeline("m")[-1]
        assert (last.event, last.release, last.version, last.generation) == ("pin", None, "1", 1)
        assert ledger.pending_effects("m")[0].release is None

    def test_is_written_once(self, ledger: Ledger) -> None:
        before = in_canary(ledger)
        with pytest.raises(Conflict, match="wrote first"):
            ledger.route_only(route(1, release="r1"), actor="bob", reason="pinned", now=LATER, event="pin")
        assert ledger.release("r1") == before
        assert ledger.timeline("m")[-1].event == "step"


class TestEffects:
    def test_are_pending_until_they_are_done(self, ledger: Ledger) -> None:
        opened = ledger.open(release(), key="k", actor="ann")
        ledger.transition(
            opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1), effects=["route", "aliases"]
        )
        first, second = ledger.pending_effects("m")
        assert (first.kind, first.release, first.step, first.generation, first.at) == ("route", "r1", None, 1, NOW)
        ledger.effect_done(first, LATER)
        ledger.effect_done(first, LATER)
        assert ledger.pending_effects("m") == [second]
        assert ledger.pending_effects("other") == []

    def test_asked_for_again_they_are_pending_again(self, ledger: Ledger) -> None:
        before = in_canary(ledger)
        paused = ledger.transition(before, Event.PAUSE, actor="b", reason="", now=NOW, effects=["record"])
        (first,) = ledger.pending_effects("m")
        ledger.transition(paused, Event.RESUME, actor="b", reason="", now=LATER, effects=["record"])
        (second,) = ledger.pending_effects("m")
        assert (second.id, second.asked, second.at) == (first.id, 2, LATER)
        ledger.effect_done(first, LATER)
        assert ledger.pending_effects("m") == [second], "what was done for the first asking is not the second"
        ledger.effect_done(second, LATER)
        assert ledger.pending_effects("m") == []


class TestVotes:
    def test_the_first_answer_of_a_person_stands(self, ledger: Ledger) -> None:
        ledger.open(release(), key="k", actor="ann")
        said = ledger.vote("r1", actor="bob", yes=True, reason="fine", evidence="sha256:1", now=NOW)
        assert ledger.vote("r1", actor="bob", yes=False, reason="no", evidence="sha256:1", now=LATER) == said
        assert ledger.votes("r1") == [said]
        assert [(entry.event, entry.actor, entry.evidence) for entry in ledger.timeline("m")][1:] == [
            ("vote_yes", "bob", "sha256:1")
        ]

    def test_other_evidence_is_another_question(self, ledger: Ledger) -> None:
        ledger.open(release(), key="k", actor="ann")
        ledger.vote("r1", actor="bob", yes=True, reason="fine", evidence="sha256:1", now=NOW)
        again = ledger.vote("r1", actor="bob", yes=False, reason="worse", evidence="sha256:2", now=LATER)
        assert ledger.votes("r1", "sha256:2") == [again]
        assert len(ledger.votes("r1")) == 2

    def test_on_nothing(self, ledger: Ledger) -> None:
        with pytest.raises(NotFound, match="no release r9"):
            ledger.vote("r9", actor="bob", yes=True, reason="", evidence="e", now=NOW)


class TestClaims:
    HOUR = timedelta(hours=1)

    def claim(self, url: str, key: str, after: timedelta, kind: str = "drift", model: str = "m") -> str:
        return Ledger(url).claim(model, kind, key, at=NOW + after, window=self.HOUR)

    def test_a_window_has_one_holder(self, ledger_url: str) -> None:
        hour = self.HOUR
        assert self.claim(ledger_url, "one", 0 * hour) == "one"
        assert self.claim(ledger_url, "two", -hour / 2) == "one"
        assert self.claim(ledger_url, "two", hour) == "two"
        assert self.claim(ledger_url, "one", hour) == "one"

    def test_kinds_and_models_are_apart(self, ledger_url: str) -> None:
        assert self.claim(ledger_url, "one", timedelta(0)) == "one"
        assert self.claim(ledger_url, "two", timedelta(0), kind="other") == "two"
        assert self.claim(ledger_url, "three", timedelta(0), model="n") == "three"


class TestStates:
    def test_are_replaced_by_who_read_the_last_one(self, ledger: Ledger) -> None:
        assert ledger.load_state("m", "late") is None
        assert ledger.save_state("m", "late", "{}", revision=None) == 1
        assert ledger.save_state("m", "late", '{"n": 1}', revision=1) == 2
        assert ledger.load_state("m", "late") == ('{"n": 1}', 2)
        assert ledger.load_state("n", "late") is None

    @pytest.mark.parametrize("revision", [None, 1, 3])
    def test_what_was_replaced_since_is_not_replaced_again(self, ledger: Ledger, revision: int | None) -> None:
        ledger.save_state("m", "late", "1", revision=None)
        ledger.save_state("m", "late", "2", revision=1)
        with pytest.raises(Conflict, match=f"at revision 2 by now, it was at {revision}"):
            ledger.save_state("m", "late", "3", revision=revision)
        assert ledger.load_state("m", "late") == ("2", 2)

    def test_what_is_not_there_has_no_revision(self, ledger: Ledger) -> None:
        with pytest.raises(Conflict, match="at revision None by now, it was at 1"):
            ledger.save_state("m", "late", "1", revision=1)
