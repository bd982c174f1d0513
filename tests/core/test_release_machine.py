"""The release machine as a table, and the judgement of a step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airlock.core.errors import Conflict, NotFound
from airlock.core.release import TERMINAL, TRANSITIONS, Event, Phase, Release, judge_step, next_phase, plan, planned
from airlock.core.route import Bundle
from airlock.core.spec import ModelSpec
from airlock.core.tally import Ejection, GatewayStatus, Tally

NOW = datetime(2013, 4, 1, tzinfo=UTC)
BUNDLE = Bundle(path="/b", digest="sha256:" + "0" * 64)

ALLOWED = {
    Phase.OPENED: {Event.APPROVE, Event.REJECT, Event.ROLL_BACK},
    Phase.APPROVED: {Event.WARM_UP, Event.ROLL_BACK},
    Phase.WARM: {Event.SHADOW, Event.STEP, Event.PROMOTE, Event.ROLL_BACK},
    Phase.SHADOW: {Event.STEP, Event.ROLL_BACK},
    Phase.CANARY: {Event.STEP, Event.PROMOTE, Event.ROLL_BACK},
    Phase.PROMOTED: {Event.ROLL_BACK},
    Phase.REJECTED: set(),
    Phase.ROLLED_BACK: set(),
}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_every_phase_takes_exactly_its_events(phase: Phase, event: Event) -> None:
    if event in ALLOWED[phase]:
        assert next_phase(phase, event) is TRANSITIONS[phase, event]
    else:
        with pytest.raises(Conflict, match=f"{phase} cannot {event}"):
            next_phase(phase, event)


def test_only_an_open_end_is_terminal() -> None:
    assert {phase for phase in Phase if not ALLOWED[phase]} == TERMINAL


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "model": "m",
            "task": "classification",
            "data": {"key": "id", "event_time": "t"},
            "label": {"name": "y"},
            "inputs": {"x": "float"},
            "gates": [{"kind": "finite"}],
            "guards": [
                {"kind": "error_rate", "max": 0.05, "min_requests": 20},
                {"kind": "prediction_shift", "max_mean": 0.05, "min_requests": 20},
            ],
            "rollout": {
                "shadow": {"bake": "5s", "min_requests": 30},
                "steps": [
                    {"weight": 5, "bake": "5s", "min_requests": 30},
                    {"weight": 100, "bake": "5s", "min_requests": 30},
                ],
                "deadline": "60s",
            },
        }
    )


def release(step: str = "canary_5", phase: Phase = Phase.CANARY) -> Release:
    return Release(
        id="r1",
        model="m",
        version="2",
        champion="1",
        bundle=BUNDLE,
        phase=phase,
        step=step,
        generation=4,
        entered_at=NOW,
    )


def good_tally(n: int = 200) -> Tally:
    tally = Tally()
    for index in range(n):
        tally.answered(1.0)
        tally.compared(0.3 + (-1) ** index * 0.01, 0.3)
    return tally


def status(**changes: object) -> GatewayStatus:
    tally = good_tally()
    values: dict[str, object] = {
        "model": "m",
        "generation": 4,
        "checksum": "sha256:x",
        "release": "r1",
        "champion": "1",
        "candidate": "2",
        "share": 5.0,
        "loaded": ("1", "2"),
        "since": NOW,
        "step": {"2": {"served": tally}},
        "total": {"2": {"served": tally}, "1": {"served": tally}},
    }
    return GatewayStatus.model_validate({**values, **changes})


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_a_step_that_held_advances(spec: ModelSpec) -> None:
    assert judge_step(spec, release(), status(), later(6)).action == "advance"


def test_a_step_bakes_its_time_even_with_good_evidence(spec: ModelSpec) -> None:
    decision = judge_step(spec, release(), status(), later(4))
    assert decision.action == "wait"
    assert "baking" in decision.reason


NO_EVIDENCE = {
    "gateway silent": None,
    "older generation": {"generation": 3},
    "newer generation": {"generation": 5},
    "another release": {"release": "r2"},
    "not loaded": {"loaded": ("1",)},
    "no tallies": {"step": {}, "total": {}},
    "too few requests": {"step": {"2": {"served": good_tally(29)}}},
    "only shadow requests": {"step": {"2": {"shadow": good_tally()}}, "total": {"2": {"shadow": good_tally()}}},
    "not a number": {"total": {"2": {"served": good_tally().model_copy(update={"difference": float("nan")})}}},
}


@pytest.mark.parametrize("name", NO_EVIDENCE)
def test_missing_evidence_waits_and_is_rolled_back_at_the_deadline(spec: ModelSpec, name: str) -> None:
    changes = NO_EVIDENCE[name]
    seen = None if changes is None else status(**changes)
    assert judge_step(spec, release(), seen, later(30)).action == "wait"
    late = judge_step(spec, release(), seen, later(60))
    assert late.action == "roll_back"
    assert "no decision within 60 s" in late.reason


def test_a_failed_guard_rolls_back_at_once(spec: ModelSpec) -> None:
    bad = good_tally(100)
    for _ in range(60):
        bad.failed(1.0)
    decision = judge_step(spec, release(), status(total={"2": {"served": bad}}), later(1))
    assert decision.action == "roll_back"
    assert any(verdict.status == "fail" for verdict in decision.verdicts)


def test_an_ejection_rolls_back_whatever_the_generation(spec: ModelSpec) -> None:
    ejection = Ejection(
        model="m", version="2", release="r1", generation=4, at=NOW, reason="9 of 50 failed", requests=50, seconds=2.5
    )
    decision = judge_step(spec, release(), status(ejection=ejection, generation=3), later(1))
    assert decision.action == "roll_back"
    assert "9 of 50 failed" in decision.reason


def test_an_ejection_of_an_earlier_release_does_not_count(spec: ModelSpec) -> None:
    old = Ejection(model="m", version="2", release="r0", generation=2, at=NOW, reason="old", requests=50, seconds=1)
    assert judge_step(spec, release(), status(ejection=old), later(6)).action == "advance"


def test_warm_up_waits_for_loading_only(spec: ModelSpec) -> None:
    warming = release("warm_up", Phase.WARM)
    assert judge_step(spec, warming, status(step={}, total={}), later(0)).action == "advance"
    assert judge_step(spec, warming, status(loaded=("1",)), later(0)).action == "wait"


def test_the_plan_names_its_steps(spec: ModelSpec) -> None:
    assert [step.name for step in plan(spec)] == ["warm_up", "shadow", "canary_5", "canary_100"]
    with pytest.raises(NotFound, match="canary_5"):
        planned(spec, "canary_7")
