"""The release machine: its phases, what may follow what, and the steps of a rollout.

``TRANSITIONS`` is the whole machine. What the evidence of a step says is judged in ``core/decide.py``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airlock.core.errors import NotFound, NotPossible, SpecError
from airlock.core.route import Bundle
from airlock.core.spec import ModelSpec, Step


class Phase(StrEnum):
    """Where a release stands."""

    OPENED = "opened"
    APPROVED = "approved"
    WARM = "warm"
    SHADOW = "shadow"
    CANARY = "canary"
    PROVISIONAL = "provisional"
    PROMOTED = "promoted"
    COMPLETED = "completed"
    REJECTED = "rejected"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled_back"


class Event(StrEnum):
    """What can happen to a release."""

    APPROVE = "approve"
    REJECT = "reject"
    EXPIRE = "expire"
    WARM_UP = "warm_up"
    SHADOW = "shadow"
    STEP = "step"
    PAUSE = "pause"
    RESUME = "resume"
    EXTEND = "extend"
    PROMOTE_NOW = "promote_now"
    PROMOTE_PROVISIONALLY = "promote_provisionally"
    PROMOTE = "promote"
    CONFIRM = "confirm"
    COMPLETE = "complete"
    ABORT = "abort"
    ROLL_BACK = "roll_back"


TERMINAL = frozenset({Phase.REJECTED, Phase.ABORTED, Phase.ROLLED_BACK, Phase.COMPLETED})
LIVE = frozenset({Phase.WARM, Phase.SHADOW, Phase.CANARY})
"""On its way, with a route of its own."""
HELD = frozenset({Phase.PROVISIONAL, Phase.PROMOTED})
"""Holds production, or held it until a later version came."""

WAITING = frozenset({Phase.OPENED, Phase.APPROVED})
"""Open, without any traffic yet."""

STEERING = frozenset({Event.PAUSE, Event.RESUME, Event.EXTEND, Event.PROMOTE_NOW})
"""What people do to a release on its way: it stays in its step, and the step's evidence goes on."""

TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.OPENED, Event.APPROVE): Phase.APPROVED,
    (Phase.OPENED, Event.REJECT): Phase.REJECTED,
    (Phase.OPENED, Event.EXPIRE): Phase.REJECTED,
    (Phase.APPROVED, Event.REJECT): Phase.REJECTED,
    (Phase.APPROVED, Event.EXPIRE): Phase.REJECTED,
    (Phase.APPROVED, Event.WARM_UP): Phase.WARM,
    (Phase.WARM, Event.SHADOW): Phase.SHADOW,
    (Phase.WARM, Event.STEP): Phase.CANARY,
    (Phase.WARM, Event.PROMOTE_PROVISIONALLY): Phase.PROVISIONAL,
    (Phase.WARM, Event.PROMOTE): Phase.PROMOTED,
    (Phase.SHADOW, Event.STEP): Phase.CANARY,
    (Phase.SHADOW, Event.COMPLETE): Phase.COMPLETED,
    (Phase.CANARY, Event.STEP): Phase.CANARY,
    (Phase.CANARY, Event.APPROVE): Phase.CANARY,
    (Phase.CANARY, Event.REJECT): Phase.REJECTED,
    (Phase.CANARY, Event.EXPIRE): Phase.REJECTED,
    (Phase.CANARY, Event.PROMOTE_PROVISIONALLY): Phase.PROVISIONAL,
    (Phase.CANARY, Event.PROMOTE): Phase.PROMOTED,
    (Phase.PROVISIONAL, Event.CONFIRM): Phase.PROMOTED,
    **{(phase, event): phase for phase in sorted(LIVE) for event in sorted(STEERING)},
    **{(phase, Event.ABORT): Phase.ABORTED for phase in sorted(WAITING | LIVE)},
    **{(phase, Event.ROLL_BACK): Phase.ROLLED_BACK for phase in sorted(WAITING | LIVE | HELD)},
}


class Release(BaseModel):
    """One candidate's way to production. ``champion`` is who answered when it was opened.

    ``generation`` is the route's generation that put the current state into effect. ``author`` started the training
    and ``run`` is the DAG run that carries the release. ``extended`` is added to the rollout's deadline;
    ``promote_now`` lets it through its remaining steps without waiting for their evidence, never past a breach.
    ``spec`` is the digest of the spec that it was opened with; ``None``: from before specs were kept with releases.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    model: str
    version: str
    champion: str | None
    bundle: Bundle
    phase: Phase
    step: str | None = None
    generation: int = 0
    entered_at: datetime
    reason: str = ""
    author: str | None = None
    run: str | None = None
    paused: bool = False
    promote_now: bool = False
    extended: timedelta = timedelta(0)
    spec: str | None = None


def next_phase(phase: Phase, event: Event) -> Phase:
    """The phase that follows.

    Raises:
        NotPossible: the event is not possible in this phase.
    """
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        possible = sorted(e for p, e in TRANSITIONS if p is phase)
        raise NotPossible(
            f"a release that is {phase} cannot {event}; possible: {', '.join(possible) or 'nothing, it has ended'}"
        ) from None


class PlannedStep(BaseModel):
    """One step of a rollout: what it does to traffic, and the evidence it waits for.

    ``deadline`` is how long its evidence is waited for; a step ``until_concluded`` takes no evidence for enough by
    itself and goes on only when somebody concludes it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    role: Literal["warm_up", "shadow", "served"]
    weight: float = 0.0
    bake: timedelta = timedelta(0)
    min_requests: int = 0
    deadline: timedelta
    until_concluded: bool = False


def plan(spec: ModelSpec) -> tuple[PlannedStep, ...]:
    """The steps between approval and promotion, in order."""
    rollout = spec.rollout
    deadline = rollout.deadline
    steps = [PlannedStep(name="warm_up", role="warm_up", deadline=deadline)]
    if (shadow := rollout.shadow) is not None:
        steps.append(
            PlannedStep(
                name="shadow",
                role="shadow",
                bake=shadow.bake,
                min_requests=shadow.min_requests,
                deadline=deadline,
            )
        )
    match rollout.plan:
        case "canary":
            steps += [_served(f"canary_{step.weight:g}".replace(".", "_"), step, deadline) for step in rollout.steps]
        case "blue_green":
            steps.append(_served("green", rollout.steps[-1], deadline))
        case "experiment":
            if (experiment := spec.experiment) is None:
                raise SpecError(f"{spec.model} is rolled out by experiment, but has no experiment")
            steps.append(
                PlannedStep(
                    name="experiment",
                    role="served",
                    weight=experiment.weight,
                    deadline=experiment.duration,
                    until_concluded=True,
                )
            )
    return tuple(steps)


def _served(name: str, step: Step, deadline: timedelta) -> PlannedStep:
    return PlannedStep(
        name=name,
        role="served",
        weight=step.weight,
        bake=step.bake,
        min_requests=step.min_requests,
        deadline=deadline,
    )


def planned(spec: ModelSpec, name: str) -> PlannedStep:
    """The step of that name.

    Raises:
        NotFound: the rollout has no such step.
    """
    steps = {step.name: step for step in plan(spec)}
    if name not in steps:
        raise NotFound(f"{spec.model} has no rollout step {name!r}; its steps: {', '.join(steps)}")
    return steps[name]
