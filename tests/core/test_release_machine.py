"""The release machine as a table, and the steps of each kind of rollout."""

from __future__ import annotations

from datetime import timedelta

import pytest

from airlock.core.errors import NotFound, NotPossible
from airlock.core.release import (
    HELD,
    LIVE,
    STEERING,
    TERMINAL,
    TRANSITIONS,
    WAITING,
    Event,
    Phase,
    next_phase,
    plan,
    planned,
)
from airlock.core.spec import ModelSpec

ON_THE_WAY = {
    Event.PAUSE: "same",
    Event.RESUME: "same",
    Event.EXTEND: "same",
    Event.PROMOTE_NOW: "same",
    Event.ABORT: Phase.ABORTED,
    Event.ROLL_BACK: Phase.ROLLED_BACK,
}
ALLOWED: dict[Phase, dict[Event, Phase | str]] = {
    Phase.OPENED: {
        Event.APPROVE: Phase.APPROVED,
        Event.REJECT: Phase.REJECTED,
        Event.EXPIRE: Phase.REJECTED,
        Event.ABORT: Phase.ABORTED,
        Event.ROLL_BACK: Phase.ROLLED_BACK,
    },
    Phase.APPROVED: {
        Event.REJECT: Phase.REJECTED,
        Event.EXPIRE: Phase.REJECTED,
        Event.WARM_UP: Phase.WARM,
        Event.ABORT: Phase.ABORTED,
        Event.ROLL_BACK: Phase.ROLLED_BACK,
    },
    Phase.WARM: {
        **ON_THE_WAY,
        Event.SHADOW: Phase.SHADOW,
        Event.STEP: Phase.CANARY,
        Event.PROMOTE: Phase.PROMOTED,
        Event.PROMOTE_PROVISIONALLY: Phase.PROVISIONAL,
    },
    Phase.SHADOW: {**ON_THE_WAY, Event.STEP: Phase.CANARY, Event.COMPLETE: Phase.COMPLETED},
    Phase.CANARY: {
        **ON_THE_WAY,
        Event.STEP: Phase.CANARY,
        Event.APPROVE: Phase.CANARY,
        Event.REJECT: Phase.REJECTED,
        Event.EXPIRE: Phase.REJECTED,
        Event.PROMOTE: Phase.PROMOTED,
        Event.PROMOTE_PROVISIONALLY: Phase.PROVISIONAL,
    },
    Phase.PROVISIONAL: {Event.CONFIRM: Phase.PROMOTED, Event.ROLL_BACK: Phase.ROLLED_BACK},
    Phase.PROMOTED: {Event.ROLL_BACK: Phase.ROLLED_BACK},
    Phase.COMPLETED: {},
    Phase.REJECTED: {},
    Phase.ABORTED: {},
    Phase.ROLLED_BACK: {},
}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_every_phase_takes_exactly_its_events(phase: Phase, event: Event) -> None:
    if event in ALLOWED[phase]:
        wanted = ALLOWED[phase][event]
        assert next_phase(phase, event) is (phase if wanted == "same" else wanted)
    else:
        with pytest.raises(NotPossible, match=f"{phase} cannot {event}"):
            next_phase(phase, event)


def test_every_phase_is_of_one_kind_and_only_an_open_end_is_terminal() -> None:
    kinds = (WAITING, LIVE, HELD, TERMINAL)
    assert all(sum(phase in kind for kind in kinds) == 1 for phase in Phase)
    assert {phase for phase in Phase if not ALLOWED[phase]} == TERMINAL


def test_from_every_phase_that_has_not_ended_there_is_a_way_back() -> None:
    assert {phase for phase, event in TRANSITIONS if event is Event.ROLL_BACK} == set(Phase) - TERMINAL


def test_steering_leaves_a_release_where_it_is() -> None:
    assert {after for (_, event), after in TRANSITIONS.items() if event in STEERING} == LIVE
    assert all(before is after for (before, event), after in TRANSITIONS.items() if event in STEERING)


def spec(rollout: dict[str, object], **more: object) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "model": "m",
            "task": "classification",
            "data": {"key": "id", "event_time": "t"},
            "label": {"name": "y"},
            "inputs": {"x": "float"},
            "gates": [{"kind": "finite"}],
            "rollout": rollout,
            **more,
        }
    )


STEPS = [
    {"weight": 0.5, "bake": "5s", "min_requests": 10},
    {"weight": 25, "bake": "6s", "min_requests": 20},
    {"weight": 100, "bake": "7s", "min_requests": 30},
]


def test_a_canary_goes_through_its_steps() -> None:
    steps = plan(spec({"steps": STEPS, "shadow": {"bake": "9s", "min_requests": 40}, "deadline": "60s"}))
    assert [(step.name, step.role, step.weight, step.min_requests) for step in steps] == [
        ("warm_up", "warm_up", 0, 0),
        ("shadow", "shadow", 0, 40),
        ("canary_0_5", "served", 0.5, 10),
        ("canary_25", "served", 25, 20),
        ("canary_100", "served", 100, 30),
    ]
    assert {step.deadline for step in steps} == {timedelta(seconds=60)}


def test_blue_green_goes_to_everything_at_once_and_bakes_as_the_last_step() -> None:
    steps = plan(spec({"plan": "blue_green", "steps": STEPS, "shadow": None}))
    assert [step.name for step in steps] == ["warm_up", "green"]
    assert (steps[-1].weight, steps[-1].bake, steps[-1].min_requests) == (100, timedelta(seconds=7), 30)


def test_shadow_only_ends_with_the_shadow() -> None:
    steps = plan(spec({"plan": "shadow_only"}))
    assert [step.name for step in steps] == ["warm_up", "shadow"]


def test_an_experiment_splits_the_traffic_until_it_is_concluded() -> None:
    experiment = {"primary": {"name": "revenue"}, "minimum_effect": 0.1, "weight": 40, "duration": "3d"}
    steps = plan(spec({"plan": "experiment"}, experiment=experiment))
    assert [step.name for step in steps] == ["warm_up", "shadow", "experiment"]
    last = steps[-1]
    assert (last.weight, last.until_concluded, last.deadline) == (40, True, timedelta(days=3))
    assert not any(step.until_concluded for step in steps[:-1])


def test_an_unknown_step_is_refused_with_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"canary_7.*canary_5"):
        planned(spec({}), "canary_7")
