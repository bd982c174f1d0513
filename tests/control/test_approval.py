"""Ballots: distinct people, the evidence as it is, and one no is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airlock.control import ReleaseControl
from airlock.control.approval import Ballot
from airlock.core.errors import Conflict, NotAllowed, NotPossible
from airlock.core.release import Phase, Release
from airlock.core.verdict import Status, Verdict
from airlock.settings import Settings
from tests.support.control import bento, held, in_step, on_disk, promoted

MakeControl = Callable[..., ReleaseControl]
GATE = Verdict(name="finite", status=Status.PASS, reason="all of them")


@pytest.fixture
def two(make_control: MakeControl) -> Callable[..., ReleaseControl]:
    """A controller whose spec asks two people."""
    return lambda **more: make_control(approvals={"required": 2, **more})


def waiting(control: ReleaseControl, author: str | None = "eve") -> Release:
    return control.open("1", bento("1"), actor="airflow", key="k", author=author, verdicts=[GATE])


def vote(control: ReleaseControl, release: Release, actor: str, *, yes: bool = True, **more: Any) -> Ballot:
    evidence = more.get("evidence") or control.evidence(release.id)
    return control.vote(release.id, actor=actor, yes=yes, reason=f"says {actor}", evidence=evidence)


def test_two_of_two_people_let_a_release_on(two: MakeControl) -> None:
    control = two()
    release = waiting(control)
    first = vote(control, release, "ann")
    assert (first.yes, first.required, first.approved, first.rejected) == (("ann",), 2, False, False)
    assert control.ledger.release(release.id).phase is Phase.OPENED
    assert vote(control, release, "bob").approved
    approved = control.ledger.release(release.id)
    assert approved.phase is Phase.APPROVED
    assert approved.reason == "approved by ann and bob: says bob"
    assert control.ledger.timeline("m")[-1].evidence == control.evidence(release.id)


def test_nobody_counts_twice(two: MakeControl) -> None:
    control = two()
    release = waiting(control)
    vote(control, release, "ann")
    assert vote(control, release, "ann").yes == ("ann",)
    assert vote(control, release, "ann", yes=False).rejected is False, "the first answer stands"
    assert control.ledger.release(release.id).phase is Phase.OPENED
    vote(control, release, "bob")
    assert vote(control, release, "bob").approved, "also after it was enough"
    assert [entry.event for entry in control.ledger.timeline("m")].count("approve") == 1


def test_one_no_is_enough(two: MakeControl) -> None:
    control = two()
    release = waiting(control)
    vote(control, release, "ann")
    assert vote(control, release, "bob", yes=False).rejected
    rejected = control.ledger.release(release.id)
    assert (rejected.phase, rejected.reason) == (Phase.REJECTED, "says bob")
    assert vote(control, release, "bob", yes=False).rejected
    with pytest.raises(NotPossible, match="nobody is asked"):
        vote(control, release, "cat")


def test_the_author_is_not_asked_where_the_spec_forbids_it(two: MakeControl) -> None:
    control = two(forbid_author=True)
    release = waiting(control)
    for yes in (True, False):
        with pytest.raises(NotAllowed, match="eve started the training"):
            vote(control, release, "eve", yes=yes)
    assert control.ballot(release.id).yes == ()
    with pytest.raises(NotAllowed, match="eve started the training"):
        vote(two(), release, "eve")  # a file that allows it by now is for the next release


def test_without_an_author_nobody_can_be_told_from_the_author(two: MakeControl) -> None:
    control = two(forbid_author=True)
    release = waiting(control, author=None)
    with pytest.raises(NotAllowed, match="who started its training is not known"):
        vote(control, release, "ann")


def test_only_approvers_are_heard(two: MakeControl) -> None:
    control = two(approvers=["ann", "bob"])
    release = waiting(control)
    with pytest.raises(NotAllowed, match="approvers are ann, bob"):
        vote(control, release, "cat")
    with pytest.raises(NotAllowed, match="approvers are ann, bob"):
        control.approve(release.id, actor="cat", reason="please")


def test_answers_to_other_evidence_do_not_count(two: MakeControl) -> None:
    control = two()
    release = waiting(control)
    shown = control.evidence(release.id)
    vote(control, release, "ann")
    worse = GATE.model_copy(update={"reason": "nearly all of them"})
    control.ledger.record(release, [worse], step="gates", now=release.entered_at)
    assert control.evidence(release.id) != shown
    assert control.ballot(release.id).yes == ()
    with pytest.raises(Conflict, match="has changed since bob was asked"):
        vote(control, release, "bob", evidence=shown)
    vote(control, release, "bob")
    assert vote(control, release, "ann").approved, "asked again, the same person may answer again"


def test_a_champion_that_changed_is_other_evidence(make_control: MakeControl) -> None:
    promoted(make_control(), "1")
    control = make_control(approvals={"required": 1})
    release = control.open("2", bento("2"), actor="airflow", key="k", verdicts=[GATE])
    shown = control.evidence(release.id)
    promoted(make_control(), "3")
    assert control.evidence(release.id) != shown
    with pytest.raises(Conflict, match="has changed"):
        vote(control, release, "ann", evidence=shown)
    vote(control, release, "ann")
    assert control.enter(release.id, "warm_up").phase is Phase.WARM, "people were told, and said yes"


def test_approving_is_a_vote_where_people_are_asked(two: MakeControl) -> None:
    control = two()
    release = waiting(control)
    assert control.approve(release.id, actor="ann", reason="yes").phase is Phase.OPENED
    assert control.approve(release.id, actor="ann", reason="yes, yes").phase is Phase.OPENED
    assert control.approve(release.id, actor="bob", reason="yes").phase is Phase.APPROVED


def test_where_nobody_is_asked_the_spec_approves(make_control: MakeControl) -> None:
    control = make_control(approvals={"required": 0})
    release = waiting(control)
    assert control.approve(release.id, actor="spec", reason="asks for none").phase is Phase.APPROVED
    with pytest.raises(NotPossible, match="nobody is asked"):
        vote(control, release, "ann")


def test_a_release_that_has_ended_is_not_approved(control: ReleaseControl) -> None:
    release = waiting(control)
    control.expire(release.id, reason="nobody answered within 24 h")
    with pytest.raises(NotPossible, match="rejected and cannot approve"):
        control.approve(release.id, actor="eve", reason="late")


def before_promotion(make_control: MakeControl) -> tuple[ReleaseControl, Release]:
    control = make_control(approvals={"required": 2, "before": "promotion"})
    first = waiting(control)
    control.approve(first.id, actor="spec", reason="asked later")
    for actor in ("ann", "bob"):
        vote(control, first, actor)
    control.promote(first.id)
    release = in_step(control, "2", "canary_100")
    held(control, release)
    return control, release


def test_an_approval_before_the_promotion_must_be_complete(make_control: MakeControl) -> None:
    control, release = before_promotion(make_control)
    with pytest.raises(NotPossible, match=r"2 people said yes .* so far: nobody"):
        control.promote(release.id)
    vote(control, release, "ann")
    with pytest.raises(NotPossible, match="so far: ann"):
        control.promote(release.id)
    vote(control, release, "bob")
    standing = control.ledger.release(release.id)
    assert (standing.phase, standing.step) == (Phase.CANARY, "canary_100")
    assert control.promote(release.id).phase is Phase.PROMOTED


def test_a_first_version_waits_for_its_approval_before_the_promotion_too(make_control: MakeControl) -> None:
    control = make_control(approvals={"required": 1, "before": "promotion"})
    release = waiting(control)
    control.approve(release.id, actor="spec", reason="asked later")
    with pytest.raises(NotPossible, match="so far: nobody"):
        control.promote(release.id)
    assert vote(control, release, "ann", yes=False).rejected
    assert control.ledger.release(release.id).phase is Phase.REJECTED


def test_a_no_before_the_promotion_takes_the_traffic_back(make_control: MakeControl, settings: Settings) -> None:
    control, release = before_promotion(make_control)
    vote(control, release, "bob", yes=False)
    assert control.ledger.release(release.id).phase is Phase.REJECTED
    assert on_disk(settings).weights == {"1": 100.0}
