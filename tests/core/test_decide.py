"""What the evidence of a step says: every way to wait, to go on, to hold and to be taken back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airlock.core.counters import Counters
from airlock.core.decide import Decision, Evidence, decide, decide_late, evidence_digest, holds_back, late_deadline
from airlock.core.guards import limits_of, may_pass
from airlock.core.polls import Polls
from airlock.core.release import Phase, Release, planned
from airlock.core.route import Bundle, Limit
from airlock.core.spec import ErrorRateGuard, LabelMetricGuard, LatencyGuard, ModelSpec, Rollout
from airlock.core.tally import Ejection, GatewayStatus, LateEvidence, Role, Sums, Tally
from airlock.core.units import Units
from airlock.core.verdict import Status, Verdict

NOW = datetime(2013, 4, 1, tzinfo=UTC)
BUNDLE = Bundle(path="/b", digest="sha256:" + "0" * 64)
LABELS = {"kind": "label_metric", "metric": "brier", "max": 0.25, "min_requests": 50}


EXPERIMENT = {"primary": {"name": "revenue"}, "minimum_effect": 1.0, "duration": "1d"}


def make_spec(*guards: dict[str, Any], **rollout: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "model": "m",
            "task": "classification",
            "data": {"key": "id", "event_time": "t"},
            "label": {"name": "y", "delay": "6h"},
            "inputs": {"x": "float"},
            "gates": [{"kind": "finite"}],
            "experiment": EXPERIMENT,
            "guards": [
                {"kind": "error_rate", "max": 0.05, "min_requests": 20},
                {"kind": "prediction_shift", "max_mean": 0.05, "min_requests": 20},
                *guards,
            ],
            "rollout": {
                "shadow": {"bake": "5s", "min_requests": 30},
                "steps": [
                    {"weight": 5, "bake": "5s", "min_requests": 30},
                    {"weight": 100, "bake": "5s", "min_requests": 30},
                ],
                "deadline": "60s",
                **rollout,
            },
        }
    )


@pytest.fixture
def spec() -> ModelSpec:
    return make_spec()


def release(step: str = "canary_5", phase: Phase = Phase.CANARY, **changes: Any) -> Release:
    values: dict[str, Any] = {
        "id": "r1",
        "model": "m",
        "version": "2",
        "champion": "1",
        "bundle": BUNDLE,
        "phase": phase,
        "step": step,
        "generation": 4,
        "entered_at": NOW,
    }
    return Release.model_validate({**values, **changes})


def good_tally(n: int = 200) -> Tally:
    tally = Tally()
    for index in range(n):
        tally.answered(1.0)
        tally.compared([(-1) ** index * 0.01], 0)
    return tally


def bad_tally() -> Tally:
    tally = good_tally(100)
    for _ in range(60):
        tally.failed(1.0)
    return tally


def status(at: str | None = "canary_5", /, **changes: Any) -> GatewayStatus:
    tally = good_tally()
    values: dict[str, Any] = {
        "model": "m",
        "generation": 4,
        "checksum": "sha256:x",
        "release": "r1",
        "rollout_step": at,
        "champion": "1",
        "candidate": "2",
        "share": 5.0,
        "loaded": ("1", "2"),
        "since": NOW,
        "observed_s": 6.0,
        "step": {"2": {"served": tally}},
        "total": {"2": {"served": tally}, "1": {"served": tally}},
    }
    return GatewayStatus.model_validate({**values, **changes})


def labels(*values: float, due: int | None = None, labelled: int | None = None) -> LateEvidence:
    sums = Sums()
    for value in values:
        sums.add(value)
    due = len(values) if due is None else due
    return LateEvidence(
        until=NOW,
        answers=len(values),
        due=due,
        labelled=due if labelled is None else labelled,
        observations={"label_brier": sums},
    )


def judged(
    spec: ModelSpec,
    gateway: GatewayStatus | None,
    *,
    after: float = 6,
    late: LateEvidence | None = None,
    of: Release | None = None,
    **known: Any,
) -> Decision:
    evidence = Evidence(gateway=gateway, late=late, **known)
    return decide(spec, of or release(), evidence, NOW + timedelta(seconds=after))


def test_a_step_that_held_advances_and_says_on_what(spec: ModelSpec) -> None:
    decision = judged(spec, status())
    assert decision.action == "advance"
    assert decision.reason == "canary_5 held: 200 requests, 2 of 2 guards passed"
    assert {verdict.name for verdict in decision.verdicts} == {limit.name for limit in limits_of(spec)}


def test_the_bake_counts_what_the_gateway_observed_whatever_the_clock_says(spec: ModelSpec) -> None:
    decision = judged(spec, status(observed_s=4.0), after=3600)
    assert decision.action == "wait"
    assert decision.reason == "baking, 4 of 5 s"
    assert judged(spec, status(observed_s=6.0), after=-3600).action == "advance"


NO_EVIDENCE: dict[str, dict[str, Any] | None] = {
    "gateway silent": None,
    "older generation": {"generation": 3},
    "another release": {"release": "r2"},
    "another step": {"rollout_step": "shadow"},
    "not loaded": {"loaded": ("1",)},
    "no time": {"observed_s": float("nan")},
    "endless time": {"observed_s": float("inf")},
}


@pytest.mark.parametrize("name", NO_EVIDENCE)
def test_what_the_gateway_does_not_observe_is_waited_for_while_somebody_polls_it(spec: ModelSpec, name: str) -> None:
    changes = NO_EVIDENCE[name]
    seen = None if changes is None else status(**{"observed_s": 1e6, **changes})
    assert judged(spec, seen, after=3600, polls=Polls(unanswered_s=59)).action == "wait"
    late = judged(spec, seen, after=3600, polls=Polls(unanswered_s=60))
    assert late.action == "roll_back"
    assert "no decision within 60 s in canary_5" in late.reason
    assert judged(spec, seen, after=59, polls=Polls(unanswered_s=60)).action == "wait", "nobody polls before it began"


@pytest.mark.parametrize("name", NO_EVIDENCE)
def test_one_poll_in_vain_after_hours_of_downtime_is_not_hours_of_silence(spec: ModelSpec, name: str) -> None:
    changes, hours = NO_EVIDENCE[name], 5 * 3600
    seen = None if changes is None else status(**changes)
    before = Polls().polled(release(), status(observed_s=20.0), 20.0)
    assert before == Polls(observed_s=20.0, since=NOW)
    after = before.polled(release(), seen, 1.0)
    assert (after.observed_s, after.unanswered_s) == (20.0, 1.0)
    assert judged(spec, seen, after=hours, polls=after).action == "wait"
    for _ in range(39):
        assert judged(spec, seen, after=hours, polls=after).action == "wait"
        after = after.polled(release(), seen, 1.0)
    assert judged(spec, seen, after=hours, polls=after).action == "roll_back", "20 s observed, 40 s polled in vain"
    back = after.polled(release(), status(observed_s=21.0), 1.0)
    assert judged(spec, status(observed_s=21.0), after=hours, polls=back).action == "advance"


def test_two_that_polled_the_same_step_know_what_either_knows() -> None:
    known = Polls(observed_s=3.0, unanswered_s=1.0).together(Polls(observed_s=2.0, unanswered_s=9.0))
    assert known == Polls(observed_s=3.0, unanswered_s=9.0)
    assert known.polled(release(), None, -5.0) == known, "a clock that goes back takes nothing back"


def test_a_gateway_that_loses_its_counts_does_not_begin_the_deadline_anew() -> None:
    spec, standing = make_spec(deadline="2h"), release()
    anew = NOW + timedelta(days=5)
    before = Polls().polled(standing, status(observed_s=7100.0), 1.0)
    lost = status(observed_s=99.0, since=anew, lost="it cannot be read", step={}, total={})
    after = before.polled(standing, lost, 1.0)
    assert (after.observed_s, after.earlier_s) == (7199.0, 7100.0)
    assert judged(spec, lost, after=5 * 86400, polls=after).action == "wait"
    lost = lost.model_copy(update={"observed_s": 100.0})
    for polls in (before, after, after.polled(standing, lost, 1.0)):
        assert judged(spec, lost, after=5 * 86400, polls=polls).action == "roll_back"
    killed = after.polled(standing, lost.model_copy(update={"observed_s": 97.0}), 1.0)
    assert killed.observed_s == 7199.0, "what it goes on from is not observed twice"
    assert after.polled(standing, None, 1.0).waited_s == 7200.0


def test_what_two_know_of_counts_before_and_after_a_loss_is_all_known() -> None:
    standing, anew = release(), NOW + timedelta(hours=1)
    old = Polls().polled(standing, status(observed_s=50.0), 1.0)
    new = Polls().polled(standing, status(observed_s=40.0), 1.0).polled(standing, status(observed_s=3.0, since=anew), 1)
    for known in (old.together(new), new.together(old)):
        assert known == Polls(observed_s=50.0, earlier_s=50.0, since=anew)
    assert old.together(Polls()) == Polls().together(old) == old


def test_a_counter_that_is_not_there_is_never_a_pass(spec: ModelSpec) -> None:
    """The gateway was never given this limit: it has not counted what is slow, which is not that nothing was."""
    slow = LatencyGuard(kind="latency", max_p99_ms=20, min_requests=50)
    stricter = spec.model_copy(update={"guards": (*spec.guards, slow)})
    decision = judged(stricter, status())
    assert decision.action == "wait"
    assert "has not counted which of the 200 requests took longer than 20 ms" in decision.reason
    assert judged(stricter, status(), limits=limits_of(spec)).action == "advance", "its own route does not have it"
    watched = good_tally()
    watched.slow["latency_p99"] = 0
    counted = {"2": {"served": watched}}
    assert judged(stricter, status(step=counted, total=counted)).action == "advance"
    partly = {"2": {"served": watched, "shadow": good_tally()}}
    assert judged(stricter, status(step=counted, total=partly)).action == "wait", "the shadow was not watched"


def test_late_limits_are_those_of_the_route_too(spec: ModelSpec) -> None:
    late = limits_of(
        spec.model_copy(update={"guards": (LabelMetricGuard(kind="label_metric", metric="brier", max=1),)})
    )
    standing = release(phase=Phase.PROVISIONAL, step=None)
    decision = decide_late(spec, standing, None, NOW, limits=late)
    assert [verdict.name for verdict in decision.verdicts] == ["label_brier"]


def nan_differences() -> Tally:
    tally = good_tally()
    tally.difference.total = float("nan")
    return tally


POOR_EVIDENCE: dict[str, Callable[[], dict[str, Any]]] = {
    "no tallies": lambda: {"step": {}, "total": {}},
    "too few requests in the step": lambda: {"step": {"2": {"served": good_tally(29)}}},
    "requests of another role": lambda: {"step": {"2": {"shadow": good_tally()}}},
    "requests of another version": lambda: {"step": {"3": {"served": good_tally()}}},
    "too few for a guard": lambda: {"total": {"2": {"served": good_tally(19)}}},
    "not a number": lambda: {"total": {"2": {"served": nan_differences()}}},
}


@pytest.mark.parametrize("name", POOR_EVIDENCE)
def test_missing_and_untrue_metrics_are_never_a_pass_and_end_at_the_deadline(spec: ModelSpec, name: str) -> None:
    poor = POOR_EVIDENCE[name]()
    assert judged(spec, status(observed_s=59.0, **poor), after=1e6).action == "wait"
    assert judged(spec, status(observed_s=60.0, **poor), after=0).action == "roll_back"


def test_the_deadline_may_hold_instead_and_says_what_to_do() -> None:
    decision = judged(make_spec(on_deadline="hold"), status(observed_s=60, step={}, total={}))
    assert decision.action == "hold"
    assert "stays at 5 % until somebody extends and resumes, promotes or aborts it" in decision.reason


@pytest.mark.parametrize(
    ("seen", "polls", "told"),
    [
        (None, Polls(unanswered_s=60), "The gateway was silent all the time, so no guard was checked"),
        (
            None,
            Polls(observed_s=20, unanswered_s=40),
            "The gateway was silent after it had observed the step for 20 s, in which no guard was broken",
        ),
        (status(loaded=("1",)), Polls(unanswered_s=60), "The gateway reported nothing of the step all the time, so"),
        (status(observed_s=60, step={}, total={}), Polls(), "No guard was broken; it only never passed"),
    ],
)
@pytest.mark.parametrize("policy", ["rollback", "hold"])
def test_the_deadline_tells_of_a_silent_gateway_what_is_not_known(
    seen: GatewayStatus | None, polls: Polls, told: str, policy: str
) -> None:
    reason = judged(make_spec(on_deadline=policy), seen, after=3600, polls=polls).reason
    silent = "The gateway" in told
    assert (told in reason) is (silent or policy == "rollback")
    assert ("it only never passed" in reason) is (policy == "rollback" and not silent)


def test_an_extended_deadline_is_waited_for(spec: ModelSpec) -> None:
    extended = release(extended=timedelta(seconds=30))
    assert judged(spec, status(observed_s=89, step={}, total={}), of=extended).action == "wait"
    assert judged(spec, status(observed_s=90, step={}, total={}), of=extended).action == "roll_back"


def test_evidence_that_is_complete_is_taken_also_after_the_deadline(spec: ModelSpec) -> None:
    assert judged(spec, status(observed_s=1e6), after=1e6).action == "advance"


@pytest.mark.parametrize(
    "changes", [{}, {"paused": True}, {"promote_now": True}, {"paused": True, "promote_now": True}]
)
def test_a_failed_guard_rolls_back_whatever_was_asked_for(spec: ModelSpec, changes: dict[str, Any]) -> None:
    decision = judged(spec, status(total={"2": {"served": bad_tally()}}, observed_s=1), of=release(**changes))
    assert decision.action == "roll_back"
    assert "60 of 160 requests" in decision.reason
    assert any(verdict.status is Status.FAIL for verdict in decision.verdicts)


def test_what_a_version_did_in_shadow_counts_against_it(spec: ModelSpec) -> None:
    seen = status(total={"2": {"served": good_tally(), "shadow": bad_tally()}})
    assert judged(spec, seen).action == "roll_back"


def test_a_step_that_went_bad_is_found_although_the_release_was_good(spec: ModelSpec) -> None:
    total = good_tally(5000)
    step = Tally()
    for index in range(60):
        (step.failed if index % 4 == 0 else step.answered)(1.0)
    assert judged(spec, status(total={"2": {"served": total}}, step={"2": {"served": step}})).action == "roll_back"


def test_breaches_seen_under_an_older_or_a_later_route_of_the_release_count(spec: ModelSpec) -> None:
    for generation in (3, 5):
        seen = status(generation=generation, total={"2": {"served": bad_tally()}})
        assert judged(spec, seen).action == "roll_back"


def test_figures_of_another_release_do_not_count(spec: ModelSpec) -> None:
    seen = status(release="r0", generation=3, total={"2": {"served": bad_tally()}})
    assert judged(spec, seen).action == "wait"


def ejected(release_id: str = "r1", version: str = "2") -> Ejection:
    return Ejection(
        model="m",
        version=version,
        release=release_id,
        generation=4,
        at=NOW,
        reason="9 of 50 failed",
        requests=50,
        seconds=2.5,
    )


@pytest.mark.parametrize("generation", [3, 4, 5])
@pytest.mark.parametrize("paused", [True, False])
def test_an_ejection_rolls_back_whatever_the_generation(spec: ModelSpec, generation: int, paused: bool) -> None:
    decision = judged(spec, status(ejection=ejected(), generation=generation), of=release(paused=paused))
    assert decision.action == "roll_back"
    assert "the gateway ejected version 2: 9 of 50 failed" in decision.reason


def test_what_gateway_and_guard_say_alike_is_said_once(spec: ModelSpec) -> None:
    bad = {"2": {"served": bad_tally()}}
    why = judged(spec, status(total=bad, step=bad)).reason
    found = judged(spec, status(total=bad, step=bad, ejection=ejected().model_copy(update={"reason": why})))
    assert found.reason == f"the gateway ejected version 2: {why}"


@pytest.mark.parametrize("other", [ejected("r0"), ejected(version="3")])
def test_an_ejection_of_something_else_does_not_count(spec: ModelSpec, other: Ejection) -> None:
    assert judged(spec, status(ejection=other)).action == "advance"


@pytest.mark.parametrize("changes", [{}, {"release": None}, {"rollout_step": "canary_100"}])
def test_a_later_generation_wakes_up(spec: ModelSpec, changes: dict[str, Any]) -> None:
    decision = judged(spec, status(generation=5, **changes))
    assert decision.action == "wake"
    assert "generation 5" in decision.reason


def test_a_paused_release_waits_for_ever(spec: ModelSpec) -> None:
    paused = release(paused=True, reason="ann wants to look")
    for seen in (status(observed_s=1e6), status(step={}, observed_s=1e6), None):
        decision = judged(spec, seen, after=1e6, of=paused)
        assert decision.action == "wait"
        assert "paused in canary_5: ann wants to look" in decision.reason


def test_warm_up_waits_for_loading_only(spec: ModelSpec) -> None:
    warming = release("warm_up", Phase.WARM)
    assert judged(spec, status("warm_up", step={}, total={}, observed_s=0), of=warming).action == "advance"
    assert judged(spec, status("warm_up", loaded=("1",)), of=warming).action == "wait"
    assert judged(spec, status("warm_up"), of=release("warm_up", Phase.WARM, paused=True)).action == "wait"


def test_promote_now_needs_no_evidence_of_the_step(spec: ModelSpec) -> None:
    now = release(promote_now=True, reason="ann is in a hurry")
    decision = judged(spec, status(step={}, total={}, observed_s=0), of=now)
    assert decision.action == "advance"
    assert "by hand: ann is in a hurry" in decision.reason


def test_promote_now_goes_past_nothing_that_cannot_be_judged(spec: ModelSpec) -> None:
    now = release(promote_now=True)
    assert judged(spec, status(total={"2": {"served": nan_differences()}}), of=now).action == "wait"
    assert judged(spec, status(loaded=("1",)), of=now).action == "wait"
    assert judged(spec, None, of=now).action == "wait"


def test_an_experiment_goes_on_until_it_is_concluded_or_its_time_is_over() -> None:
    spec = make_spec(plan="experiment")
    here = release("experiment")
    assert judged(spec, status("experiment", observed_s=86_399), of=here).reason == "the experiment is not concluded"
    assert judged(spec, status("experiment", observed_s=86_400), of=here).action == "roll_back"
    concluded = release("experiment", promote_now=True)
    assert judged(spec, status("experiment", observed_s=10), of=concluded).action == "advance"


def test_a_canary_may_go_on_before_its_labels_only_where_that_is_provisional() -> None:
    for late in (None, labels(0.1, 0.2)):
        assert judged(make_spec(LABELS), status(), late=late).action == "advance"
        assert judged(make_spec(LABELS, provisional=False), status(), late=late).action == "wait"
    assert judged(make_spec(LABELS, provisional=False), status(), late=labels(*[0.1] * 100)).action == "advance"


def test_a_shadow_answers_nobody_and_does_not_wait_for_labels() -> None:
    spec, here = make_spec(LABELS, provisional=False), release("shadow", Phase.SHADOW)
    seen = status("shadow", step={"2": {"shadow": good_tally()}})
    assert judged(spec, seen, of=here).action == "advance"


def test_labels_that_are_bad_roll_back_on_the_way_also_without_a_gateway() -> None:
    for seen in (status(), None, status(release=None, generation=3)):
        decision = judged(make_spec(LABELS), seen, late=labels(*[0.9] * 300))
        assert decision.action == "roll_back"


def test_labels_that_cannot_be_true_wait() -> None:
    untrue = labels(*[0.1] * 100, labelled=101)
    assert judged(make_spec(LABELS), status(), late=untrue).action == "wait"


def test_deciding_is_pure(spec: ModelSpec) -> None:
    given, seen = release(), status(total={"2": {"served": bad_tally()}})
    before = (given.model_dump_json(), seen.model_dump_json())
    assert judged(spec, seen, of=given) == judged(spec, seen, of=given)
    assert (given.model_dump_json(), seen.model_dump_json()) == before


def verdict(name: str, status: Status = Status.PASS, **more: Any) -> Verdict:
    return Verdict(name=name, status=status, reason=f"{name} is {status}", **more)


@pytest.mark.parametrize(("by", "said"), [("minute", "no whole minute of this step"), ("key", "no new key")])
def test_a_step_of_which_no_unit_is_observed_does_not_advance(by: str, said: str) -> None:
    guard = {"kind": "error_rate", "max": 0.05, "by": by}
    spec = make_spec().model_copy(update={"guards": make_spec(guard).guards[2:]})
    counters = Counters()
    units = Units(limits_of(spec), counters)

    def ask(role: Role, key: str, at: float, *, failed: bool = False) -> None:
        for tally in counters.tallies(role):
            (tally.failed if failed else tally.answered)(5.0)
        units.answered(role, key, 5.0, failed=failed, at=at)

    for minute in range(60):
        for number in range(5):
            ask("shadow", f"k{minute}-{number}", 60.0 * minute + number)
    if by == "key":
        ask("served", "known", 3590.0)
    units.end_minute()
    counters.begin_step()
    for number in range(100):
        ask("served", "known", 3600.0 + number / 10, failed=True)

    def decided() -> Decision:
        total = {"2": {"served": counters.served.sums, "shadow": Tally(requests=300)}}
        seen = status(step={"2": {"served": Tally(requests=100, errors=100)}}, total=total)
        known = {"checkpoints": counters.checkpoints, "units": counters.units}
        return judged(spec, seen.model_copy(update=known))

    assert decided().action == "wait"
    assert said in decided().reason
    assert not may_pass(limits_of(spec), counters)
    ask("served", "new", 3661.0)
    units.until(3720.0)
    assert said not in decided().reason


@pytest.mark.parametrize("worst", [Status.INCONCLUSIVE, Status.ERROR, Status.FAIL])
def test_every_limit_needs_a_pass(spec: ModelSpec, worst: Status) -> None:
    step = planned(spec, "canary_100")
    good = [verdict(limit.name) for limit in limits_of(spec)]
    assert holds_back(spec, step, good) is None
    assert "error_rate is" in str(holds_back(spec, step, [*good[1:], verdict("error_rate", worst)]))
    assert holds_back(spec, step, [*good, verdict("trial", worst, dry_run=True)]) is None
    assert "no verdict of error_rate" in str(holds_back(spec, step, good[1:]))
    assert "no verdict of" in str(holds_back(spec, step, []))
    by_hand = holds_back(spec, step, [*good[1:], verdict("error_rate", worst)], promote_now=True)
    assert (by_hand is None) is (worst is Status.INCONCLUSIVE)


def provisional(phase: Phase = Phase.PROVISIONAL) -> Release:
    return release(phase=phase).model_copy(update={"step": None})


def test_a_provisional_version_is_confirmed_by_mature_labels() -> None:
    decision = decide_late(make_spec(LABELS), provisional(), labels(*[0.1] * 100), NOW)
    assert decision.action == "advance"
    assert "100 of the 100 answers" in decision.reason


@pytest.mark.parametrize(
    ("late", "said"),
    [
        (None, "nothing is known of label_brier"),
        (labels(*[0.1] * 20), "20 of the 50 labelled answers"),
        (labels(*[0.1] * 100, due=10), "10 of the 50 answers needed are old enough"),
        (labels(*[0.1] * 100, due=100, labelled=80), "provisional: 20% of the labels that are due are missing"),
        (labels(*[0.1] * 100, due=100, labelled=101), "cannot be true"),
    ],
)
def test_early_labels_confirm_nothing(late: LateEvidence | None, said: str) -> None:
    decision = decide_late(make_spec(LABELS), provisional(), late, NOW)
    assert decision.action == "wait"
    assert said in decision.reason


def test_a_limit_of_a_route_that_states_no_minimum_of_answers_confirms_nothing_before_labels_are_due() -> None:
    spec = make_spec(LABELS)
    (stated,) = (limit for limit in limits_of(spec) if limit.late)
    limit = Limit.model_validate_json(stated.model_dump_json(exclude={"min_answers", "max_missing"}))
    assert (limit.min_answers, limit.max_missing) == (50, 0.1)
    none_due = labels(*[0.1] * 100, due=0).model_copy(update={"answers": 5000})
    assert decide_late(spec, provisional(), none_due, NOW, limits=(limit,)).action == "wait"
    assert decide_late(spec, provisional(), labels(*[0.1] * 100), NOW, limits=(limit,)).action == "advance"
    shape = {"name": "business_revenue", "signal": "late", "bound": 0, "alpha": 0.01}
    assert Limit.model_validate(shape).max_missing is None


AUC = {"kind": "label_metric", "metric": "roc_auc", "margin": 0.02, "min_requests": 2000}


def batches(n: int, *, due: int, labelled: int | None = None) -> LateEvidence:
    """Batches of 200 labelled answers without a loss."""
    sums = Sums(n=n, total=0.0, squares=n * 1e-4)
    came = due if labelled is None else labelled
    return LateEvidence(until=NOW, answers=5000, due=due, labelled=came, observations={"label_roc_auc": sums})


@pytest.mark.parametrize(("due", "action"), [(10, "wait"), (1999, "wait"), (2000, "advance")])
def test_a_minimum_of_answers_is_not_confirmed_by_as_many_as_there_are_batches(due: int, action: str) -> None:
    decision = decide_late(make_spec(AUC), provisional(), batches(25, due=due), NOW)
    assert decision.action == action
    assert action == "advance" or f"{due} of the 2000 answers" in decision.reason


def test_batches_of_fewer_answers_than_asked_for_do_not_pass() -> None:
    decision = decide_late(make_spec(AUC), provisional(), batches(9, due=5000), NOW)
    assert "9 of the 10 batches" in decision.reason


def with_label(*guards: dict[str, Any], **label: Any) -> ModelSpec:
    spec = make_spec(*guards)
    return ModelSpec.model_validate({**spec.model_dump(), "label": {"name": "y", "delay": "6h", **label}})


LOG_LOSS = {"kind": "label_metric", "metric": "log_loss", "max": 0.8, "min_requests": 50}
PAIRED = {"kind": "paired_loss", "metric": "brier", "margin": 0.1, "min_requests": 50}


def known(name: str, mean: float, *, due: int, labelled: int) -> LateEvidence:
    n = labelled
    sums = Sums(n=n, total=n * mean, squares=n * (mean * mean + 1e-3))
    return LateEvidence(until=NOW, answers=due, due=due, labelled=labelled, observations={name: sums})


@pytest.mark.parametrize(
    ("guard", "mean", "labelled", "label", "action"),
    [
        # 0.9 * 0.1 + 0.1 * 1 = 0.19 of at most 0.25: were every missing answer as wrong as can be, it would still hold.
        (LABELS, 0.1, 900, {}, "advance"),
        (LABELS, 0.2, 900, {}, "wait"),
        (LABELS, 0.2, 900, {"max_missing": 0.1}, "advance"),
        (LABELS, 0.2, 899, {"max_missing": 0.1}, "wait"),
        # A tenth that never comes hides a loss of up to 0.1 * 1: more than this margin leaves room for.
        (PAIRED, 0.01, 900, {}, "wait"),
        (PAIRED, 0.01, 920, {}, "advance"),
        (LOG_LOSS, 0.1, 999, {}, "wait"),  # one answer can lose without bound
        (LOG_LOSS, 0.1, 1000, {}, "advance"),
        (LOG_LOSS, 0.1, 990, {"max_missing": 0.01}, "advance"),
        (LOG_LOSS, 0.1, 989, {"max_missing": 0.01}, "wait"),
    ],
)
def test_labels_that_are_missing_count_as_the_worst_unless_their_owner_takes_them_for_like_the_rest(
    guard: dict[str, Any], mean: float, labelled: int, label: dict[str, Any], action: str
) -> None:
    spec = with_label(guard, **label)
    name = next(limit.name for limit in limits_of(spec) if limit.late)
    # Twice of all: what nothing bounds is not judged below a thousand.
    evidence = known(name, mean, due=2000, labelled=2 * labelled)
    decision = decide_late(spec, provisional(), evidence, NOW)
    assert decision.action == action
    if action == "wait":
        (verdict,) = (verdict for verdict in decision.verdicts if verdict.name == name)
        assert verdict.status is Status.INCONCLUSIVE
        assert verdict.details["missing_share"] == pytest.approx(1 - labelled / 1000)
        assert "provisional" in decision.reason
        assert "label.max_missing" in decision.reason
        overdue = decide_late(spec, provisional(), evidence, NOW + late_deadline(spec))
        assert overdue.action == "roll_back"  # on_deadline


def test_the_worst_that_the_missing_labels_could_do_is_told() -> None:
    decision = decide_late(
        make_spec(PAIRED), provisional(), known("paired_loss_brier", 0.01, due=1000, labelled=900), NOW
    )
    (verdict,) = (verdict for verdict in decision.verdicts if verdict.name == "paired_loss_brier")
    assert verdict.details["worst_case"] == pytest.approx(0.9 * 0.01 + 0.1 * 1)
    assert "0.109" in verdict.reason


def test_a_canary_that_waits_for_its_labels_waits_for_the_missing_too() -> None:
    spec = make_spec(PAIRED, provisional=False)
    for labelled, action in ((900, "wait"), (1000, "advance")):
        late = known("paired_loss_brier", 0.01, due=1000, labelled=labelled)
        assert judged(spec, status(), late=late).action == action


@pytest.mark.parametrize("phase", [Phase.PROVISIONAL, Phase.CANARY, Phase.PROMOTED])
def test_bad_labels_roll_back_late(phase: Phase) -> None:
    decision = decide_late(make_spec(LABELS), provisional(phase), labels(*[0.9] * 300), NOW)
    assert decision.action == "roll_back"
    assert "labels have come for 300 of the 300 answers" in decision.reason


@pytest.mark.parametrize("phase", [Phase.CANARY, Phase.PROMOTED])
def test_only_a_provisional_version_is_confirmed(phase: Phase) -> None:
    assert decide_late(make_spec(LABELS), provisional(phase), labels(*[0.1] * 100), NOW).action == "wait"


def test_without_a_guard_on_labels_nothing_is_confirmed(spec: ModelSpec) -> None:
    assert decide_late(spec, provisional(), labels(*[0.1] * 100), NOW).action == "wait"


def test_outcomes_alone_do_not_wait_for_labels() -> None:
    business = {"kind": "business_metric", "name": "revenue", "range": [0, 10], "min": 1, "min_requests": 50}
    sums = Sums()
    for _ in range(400):
        sums.add(-5.0)
    late = LateEvidence(until=NOW, answers=400, due=400, labelled=0, observations={"business_revenue": sums})
    assert decide_late(make_spec(business), provisional(), late, NOW).action == "advance"


@pytest.mark.parametrize(
    ("policy", "champion", "action"),
    [("rollback", "1", "roll_back"), ("hold", "1", "wait"), ("rollback", None, "wait")],
)
def test_labels_that_never_come_are_not_waited_for_for_ever(policy: str, champion: str | None, action: str) -> None:
    spec = make_spec(LABELS)
    spec = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"on_deadline": policy})})
    standing = provisional().model_copy(update={"champion": champion})
    none_came = labels(due=1000, labelled=0)
    before = decide_late(spec, standing, none_came, NOW + late_deadline(spec) - timedelta(seconds=1))
    assert before.action == "wait"
    decision = decide_late(spec, standing, none_came, NOW + late_deadline(spec))
    assert decision.action == action
    assert "not confirmed within" in decision.reason


def test_the_digest_names_what_was_shown_and_nothing_else() -> None:
    shown = [verdict("a", n=10), verdict("b", estimate=0.5)]
    digest = evidence_digest(release(), shown)
    assert digest.startswith("sha256:")
    again = release(id="r9", reason="later", generation=9, entered_at=NOW + timedelta(days=1))
    assert evidence_digest(again, shown[::-1]) == digest
    changed = [
        (release(champion="3"), shown),
        (release(bundle=Bundle(path="/b", digest="sha256:" + "1" * 64)), shown),
        (release(version="4"), shown),
        (release(), shown[:1]),
        (release(), [shown[0], verdict("b", estimate=0.6)]),
    ]
    assert digest not in [evidence_digest(of, found) for of, found in changed]


def test_failures_of_what_is_served_are_not_hidden_by_a_clean_shadow(spec: ModelSpec) -> None:
    """21 of 21 served requests failed after 699 good ones in shadow: 2.92 % of all, within a bound of 5 %."""
    served, shadow = Tally(requests=21, errors=21), Tally(requests=399)
    gateway = status(
        step={"2": {"served": served, "shadow": shadow}},
        total={"2": {"served": served, "shadow": Tally(requests=699)}},
    )
    guard, rollout = ErrorRateGuard(kind="error_rate", max=0.05), Rollout(deadline=timedelta(hours=1))
    wanted = spec.model_copy(update={"guards": (guard,), "rollout": rollout})
    decision = judged(wanted, gateway)
    assert decision.action == "roll_back"
    assert "failed 21 of 21 requests that were for it to answer (100%)" in decision.reason
