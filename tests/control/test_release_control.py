"""A release's way up to production, and the evidence it needs at each place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airlock.control import ReleaseControl
from airlock.core.errors import NotFound, NotPossible, NotYet
from airlock.core.release import Phase, Release
from airlock.core.verdict import Status, Verdict
from airlock.settings import Settings
from tests.support.control import (
    CANARY,
    ERRORS,
    FINITE,
    LABELS,
    FakeAliases,
    bento,
    ejection,
    held,
    in_step,
    labels,
    on_disk,
    opened,
    promoted,
    seen,
)

MakeControl = Callable[..., ReleaseControl]


def test_the_first_version_is_promoted_without_a_comparison(control: ReleaseControl, settings: Settings) -> None:
    release = promoted(control, "1")
    assert release.phase is Phase.PROMOTED
    assert on_disk(settings).weights == {"1": 100.0}


def test_shares_follow_the_steps_and_always_add_up(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = opened(control, "2")
    shown = []
    for step in CANARY:
        control.enter(release.id, step)
        route = on_disk(settings)
        shown.append((route.step, route.weights["2"], route.shadow))
        assert sum(route.weights.values()) == 100
        assert (route.champion, route.release) == ("1", release.id)
    assert shown == [
        ("warm_up", 0, ()),
        ("shadow", 0, ("2",)),
        ("canary_5", 5, ()),
        ("canary_100", 100, ()),
    ]
    held(control, release)
    control.promote(release.id)
    assert on_disk(settings).champion == "2"
    assert on_disk(settings).step is None
    assert set(on_disk(settings).versions) == {"1", "2"}, "the former champion stays loaded for the way back"


def test_blue_green_goes_to_everything_in_one_step(make_control: MakeControl, settings: Settings) -> None:
    control = make_control(rollout={"plan": "blue_green"})
    promoted(control, "1")
    release = in_step(control, "2", "green")
    assert on_disk(settings).weights == {"1": 0.0, "2": 100.0}
    held(control, release)
    assert control.promote(release.id).phase is Phase.PROMOTED


def test_a_shadow_only_rollout_completes_and_promotes_nothing(make_control: MakeControl, settings: Settings) -> None:
    promoted(make_control(), "1")
    control = make_control(rollout={"plan": "shadow_only"})
    release = in_step(control, "2", "shadow")
    with pytest.raises(NotPossible, match="shadow_only: that promotes nothing"):
        control.promote(release.id)
    with pytest.raises(NotPossible, match="not let through shadow"):
        control.complete(release.id)
    held(control, release)
    assert control.complete(release.id).phase is Phase.COMPLETED
    assert control.complete(release.id).phase is Phase.COMPLETED
    assert on_disk(settings).weights == {"1": 100.0}
    assert [effect.release for effect in control.pending("record")] == [
        control.ledger.releases("m")[1].id,
        release.id,
    ]


REPEATED: dict[str, Callable[[ReleaseControl, Release], object]] = {
    "open": lambda control, release: control.open("2", bento("2"), actor="ann", key="release-2"),
    "approve": lambda control, release: control.approve(release.id, actor="bob", reason="again"),
    "enter": lambda control, release: control.enter(release.id, "shadow"),
    "enter an earlier step": lambda control, release: control.enter(release.id, "warm_up"),
    "resume": lambda control, release: control.resume(release.id, actor="ann", reason="again"),
}


@pytest.mark.parametrize("action", REPEATED)
def test_doing_it_twice_changes_nothing(control: ReleaseControl, settings: Settings, action: str) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "shadow")
    before = (control.ledger.release(release.id), len(control.ledger.timeline("m")), on_disk(settings))
    REPEATED[action](control, release)
    assert (control.ledger.release(release.id), len(control.ledger.timeline("m")), on_disk(settings)) == before


def test_no_step_is_left_out_but_the_shadow(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "warm_up")
    with pytest.raises(NotPossible, match="canary_5 comes before canary_100"):
        control.enter(release.id, "canary_100")
    control.enter(release.id, "canary_5")
    assert control.enter(release.id, "shadow").step == "canary_5"
    assert on_disk(settings).share == 5
    with pytest.raises(NotFound, match="no rollout step 'canary_7'"):
        control.enter(release.id, "canary_7")


def test_a_paused_release_enters_nothing(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "canary_5")
    control.pause(release.id, actor="ann", reason="look")
    assert control.enter(release.id, "canary_100").step == "canary_5"
    assert on_disk(settings).share == 5
    control.resume(release.id, actor="ann", reason="fine")
    assert control.enter(release.id, "canary_100").step == "canary_100"


def test_promotion_before_the_last_step_is_refused(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "canary_5")
    held(control, release)
    with pytest.raises(NotPossible, match="after canary_100 only"):
        control.promote(release.id)


@pytest.mark.parametrize("found", [None, Status.INCONCLUSIVE, Status.ERROR, Status.FAIL])
def test_a_last_step_that_was_only_entered_promotes_nothing(
    control: ReleaseControl, settings: Settings, found: Status | None
) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "canary_100")
    if found is not None:
        held(control, release, found)
    with pytest.raises(NotPossible, match="not let through canary_100"):
        control.promote(release.id)
    assert on_disk(settings).champion == "1"


def test_every_limit_must_have_been_judged(make_control: MakeControl) -> None:
    promoted(make_control(), "1")
    stricter = make_control(guards=[ERRORS, {"kind": "latency", "max_p99_ms": 20}])
    release = in_step(stricter, "2", "canary_100")
    standing = stricter.ledger.release(release.id)
    errors = Verdict(name="error_rate", status=Status.PASS, reason="0 of 100")
    stricter.ledger.record(standing, [errors], step="canary_100", now=standing.entered_at)
    with pytest.raises(NotPossible, match="no verdict of latency_p99"):
        stricter.promote(release.id)


def test_a_later_verdict_stands_for_an_earlier_one(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "canary_100")
    held(control, release, Status.INCONCLUSIVE)
    held(control, release)
    assert control.promote(release.id).phase is Phase.PROMOTED


def test_promotion_by_hand_goes_past_nothing_that_failed(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "canary_100")
    control.promote_now(release.id, actor="ann", reason="hurry")
    for status in (Status.ERROR, Status.FAIL):
        held(control, release, status)
        with pytest.raises(NotPossible, match="not let through"):
            control.promote(release.id)
    held(control, release, Status.INCONCLUSIVE)
    assert control.promote(release.id).phase is Phase.PROMOTED


def test_a_paused_release_is_not_promoted(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = in_step(control, "2", "canary_100")
    held(control, release)
    control.pause(release.id, actor="ann", reason="look first")
    with pytest.raises(NotYet, match="paused in canary_100"):
        control.promote(release.id)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_gate_that_was_opened_without_a_pass_keeps_a_version_back_unless_it_is_a_trial(
    control: ReleaseControl, dry_run: bool
) -> None:
    failed = Verdict(name="calibration", status=Status.FAIL, reason="0.2 off", dry_run=dry_run)
    release = opened(control, "1", verdicts=[FINITE, failed])
    if dry_run:
        assert control.promote(release.id).phase is Phase.PROMOTED
    else:
        with pytest.raises(NotPossible, match=r"calibration: 0\.2 off"):
            control.promote(release.id)


@pytest.mark.parametrize("verdicts", [[], [FINITE.model_copy(update={"dry_run": True})]])
def test_a_gate_of_the_spec_that_gave_no_verdict_keeps_a_version_back(
    control: ReleaseControl, verdicts: list[Verdict]
) -> None:
    first = opened(control, "1", verdicts=verdicts)
    with pytest.raises(NotPossible, match="has no verdict of finite"):
        control.promote(first.id)
    promoted(control, "2")
    later = opened(control, "3", verdicts=verdicts)
    with pytest.raises(NotPossible, match="has no verdict of finite"):
        control.enter(later.id, "warm_up")


def test_parity_that_was_judged_in_dry_run_keeps_a_version_back(make_control: MakeControl) -> None:
    control = make_control(gates=[{"kind": "finite"}, {"kind": "onnx_parity"}])
    dry = Verdict(name="onnx_parity", status=Status.FAIL, reason="dry run, does not count: 9 flips", dry_run=True)
    release = opened(control, "1", verdicts=[FINITE, dry])
    with pytest.raises(NotPossible, match="has no verdict of onnx_parity"):
        control.promote(release.id)


def test_a_version_that_was_judged_against_another_champion_gets_no_traffic(control: ReleaseControl) -> None:
    promoted(control, "1")
    stale = opened(control, "2")
    promoted(control, "3")
    with pytest.raises(NotPossible, match="when version 1 was the champion, by now it is version 3"):
        control.enter(stale.id, "warm_up")


def test_a_step_of_a_promoted_release_says_that_it_was_promoted(control: ReleaseControl) -> None:
    release = promoted(control, "1")
    with pytest.raises(NotPossible, match="promoted cannot step"):
        control.enter(release.id, "canary_5")
    with pytest.raises(NotPossible, match="stands in no step"):
        control.observe(release.id, None)


def test_a_rejected_release_gets_no_traffic(control: ReleaseControl) -> None:
    promoted(control, "1")
    release = control.open("2", bento("2"), actor="ann", key="k")
    control.reject(release.id, actor="bob", reason="no")
    with pytest.raises(NotPossible, match="is rejected: no"):
        control.enter(release.id, "warm_up")


def test_two_releases_at_once_are_refused(control: ReleaseControl) -> None:
    promoted(control, "1")
    first, second = opened(control, "2"), opened(control, "3")
    control.enter(first.id, "warm_up")
    with pytest.raises(NotYet, match="on its way"):
        control.enter(second.id, "warm_up")
    current = control.current("m")
    assert current is not None
    assert current.id == first.id, "the one that has traffic, not the newest"


def test_who_trained_it_and_which_run_carries_it_are_kept(control: ReleaseControl) -> None:
    gate = Verdict(name="finite", status=Status.PASS, reason="all of them")
    release = control.open("1", bento("1"), actor="ann", key="k", author="eve", run="run-7", verdicts=[gate])
    assert (release.author, release.run) == ("eve", "run-7")
    assert control.ledger.verdicts(release.id) == [("gates", gate)]


def test_the_timeline_tells_the_release_in_order(control: ReleaseControl) -> None:
    promoted(control, "1")
    events = [(entry.event, entry.actor) for entry in control.ledger.timeline("m")]
    assert events == [
        ("open", "ann"),
        ("vote_yes", "bob"),
        ("approve", "bob"),
        ("warm_up", "airlock"),
        ("promote", "airlock"),
    ]


def test_what_was_decisive_is_kept(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    assert control.observe(release.id, seen(on_disk(settings), good=3)).action == "wait"
    assert [step for step, _ in control.ledger.verdicts(release.id)] == ["gates"]
    assert control.observe(release.id, seen(on_disk(settings))).action == "advance"
    assert [(step, verdict.name) for step, verdict in control.ledger.verdicts(release.id)] == [
        ("gates", "finite"),
        ("canary_5", "error_rate"),
    ]


def test_a_release_that_has_ended_is_observed_as_such(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    control.abort(release.id, actor="ann", reason="no more")
    decision = control.observe(release.id, seen(on_disk(settings)))
    assert decision.action == "roll_back"
    assert "aborted: no more" in decision.reason


def test_a_gateway_that_follows_what_the_ledger_does_not_know_is_waited_for(
    control: ReleaseControl, settings: Settings
) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    decision = control.observe(release.id, seen(on_disk(settings), generation=99))
    assert decision.action == "wait"
    assert "airlock reconcile" in decision.reason


def test_the_deadline_holds_and_pauses_where_the_spec_says_so(make_control: MakeControl, settings: Settings) -> None:
    control = make_control(rollout={"on_deadline": "hold"})
    promoted(control, "1")
    release = in_step(control, "2")
    decision = control.observe(release.id, seen(on_disk(settings), good=3, observed_s=60))
    assert decision.action == "hold"
    standing = control.ledger.release(release.id)
    assert (standing.phase, standing.step, standing.paused) == (Phase.CANARY, "canary_5", True)
    assert on_disk(settings).share == 5
    assert control.observe(release.id, seen(on_disk(settings), good=3, observed_s=61)).action == "wait"
    failed = seen(on_disk(settings), good=3, failed=60, observed_s=61)
    assert control.observe(release.id, failed).action == "roll_back"


def test_a_version_is_promoted_before_its_labels_and_confirmed_by_them(
    make_control: MakeControl, settings: Settings, aliases: FakeAliases
) -> None:
    control = make_control(guards=[ERRORS, LABELS])
    promoted(control, "1")
    release = promoted(control, "2")
    assert release.phase is Phase.PROVISIONAL
    assert on_disk(settings).champion == aliases.names["champion"] == "2"
    assert control.promote(release.id) == release
    assert control.judge_late(release.id, labels(0.1, 20)).action == "wait"
    with pytest.raises(NotYet, match="stays provisional"):
        control.confirm(release.id, reason="impatience")
    decision = control.judge_late(release.id, labels(0.1))
    assert decision.action == "advance"
    generation = on_disk(settings).generation
    assert control.confirm(release.id, reason=decision.reason).phase is Phase.PROMOTED
    assert control.confirm(release.id, reason=decision.reason).phase is Phase.PROMOTED
    assert on_disk(settings).generation == generation, "nobody's traffic moves"
    assert control.judge_late(release.id, labels(0.1)).action == "wait"


def test_labels_that_turn_out_bad_take_a_version_back_late(make_control: MakeControl, settings: Settings) -> None:
    control = make_control(guards=[ERRORS, LABELS])
    first = promoted(control, "1")
    control.judge_late(first.id, labels(0.1))
    control.confirm(first.id, reason="labels")
    second = promoted(control, "2")
    decision = control.judge_late(second.id, labels(0.9))
    assert decision.action == "roll_back"
    assert control.ledger.release(second.id).phase is Phase.PROVISIONAL, "judging moves nothing"
    rolled_back = control.roll_back(second.id, reason=decision.reason)
    assert rolled_back.phase is Phase.ROLLED_BACK
    assert "labels have come for 300 of the 300" in rolled_back.reason
    assert on_disk(settings).champion == "1"
    assert "late" in {step for step, _ in control.ledger.verdicts(second.id)}


def test_labels_that_are_bad_on_the_way_roll_back_at_once(make_control: MakeControl, settings: Settings) -> None:
    promoted(make_control(), "1")
    control = make_control(guards=[ERRORS, LABELS])
    release = in_step(control, "2")
    assert control.observe(release.id, seen(on_disk(settings)), labels(0.9)).action == "roll_back"


def test_without_provisional_promotion_labels_are_waited_for(make_control: MakeControl, settings: Settings) -> None:
    promoted(make_control(), "1")
    control = make_control(guards=[ERRORS, LABELS], rollout={"provisional": False})
    release = in_step(control, "2", "canary_100")
    assert control.observe(release.id, seen(on_disk(settings))).action == "wait"
    with pytest.raises(NotPossible, match="not let through"):
        control.promote(release.id)
    assert control.observe(release.id, seen(on_disk(settings)), labels(0.1)).action == "advance"
    assert control.promote(release.id).phase is Phase.PROMOTED


def test_an_ejection_is_seen_by_whoever_looks(control: ReleaseControl, settings: Settings) -> None:
    promoted(control, "1")
    release = in_step(control, "2")
    decision = control.observe(release.id, seen(on_disk(settings), ejection=ejection(release)))
    assert decision.action == "roll_back"
    ended = control.ledger.release(release.id)
    assert (ended.phase, "9 of 50" in ended.reason) == (Phase.ROLLED_BACK, True)
    assert on_disk(settings).weights == {"1": 100.0}
