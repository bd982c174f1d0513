"""The release machine: which phase may follow which, and what the evidence of a step says.

``TRANSITIONS`` is the whole machine. ``judge_step`` is pure: the same step, evidence and time
always give the same decision, whoever asks and however often.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airlock.core.errors import Conflict, NotFound
from airlock.core.guards import judge_guards
from airlock.core.route import Bundle
from airlock.core.spec import ModelSpec
from airlock.core.tally import GatewayStatus, Tally
from airlock.core.verdict import Status, Verdict, fold


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

_BEFORE_TRAFFIC = (Phase.OPENED, Phase.APPROVED)
_STEERING = (Event.PAUSE, Event.RESUME, Event.EXTEND, Event.PROMOTE_NOW)

TRANSITIONS: dict[tuple[Phase, Event], Phase] = {
    (Phase.OPENED, Event.APPROVE): Phase.APPROVED,
    (Phase.OPENED, Event.REJECT): Phase.REJECTED,
    (Phase.OPENED, Event.EXPIRE): Phase.REJECTED,
    (Phase.APPROVED, Event.WARM_UP): Phase.WARM,
    (Phase.WARM, Event.SHADOW): Phase.SHADOW,
    (Phase.WARM, Event.STEP): Phase.CANARY,
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
    **{(phase, event): phase for phase in sorted(LIVE) for event in _STEERING},
    **{(phase, Event.ABORT): Phase.ABORTED for phase in (*_BEFORE_TRAFFIC, *sorted(LIVE))},
    **{(phase, Event.ROLL_BACK): Phase.ROLLED_BACK for phase in (*_BEFORE_TRAFFIC, *sorted(LIVE | HELD))},
}


class Release(BaseModel):
    """One candidate's way to production. ``champion`` is who answered when it was opened.

    ``generation`` is the route's generation that put the current state into effect. ``author`` started the training
    and ``run`` is the DAG run that carries the release. ``extended`` is added to the rollout's deadline;
    ``promote_now`` lets it through its remaining steps without waiting for their evidence, never past a breach.
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


def next_phase(phase: Phase, event: Event) -> Phase:
    """The phase that follows.

    Raises:
        Conflict: the event is not possible in this phase.
    """
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        possible = sorted(e for p, e in TRANSITIONS if p is phase)
        raise Conflict(
            f"a release that is {phase} cannot {event}; possible: {', '.join(possible) or 'nothing, it has ended'}"
        ) from None


class PlannedStep(BaseModel):
    """One step of a rollout: what it does to traffic, and the evidence it waits for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    role: Literal["warm_up", "shadow", "served"]
    weight: float
    bake: timedelta
    min_requests: int


WARM_UP = PlannedStep(name="warm_up", role="warm_up", weight=0, bake=timedelta(0), min_requests=0)


def plan(spec: ModelSpec) -> tuple[PlannedStep, ...]:
    """The steps between approval and promotion, in order."""
    rollout = spec.rollout
    steps = [WARM_UP]
    if rollout.shadow is not None:
        shadow = rollout.shadow
        steps.append(
            PlannedStep(name="shadow", role="shadow", weight=0, bake=shadow.bake, min_requests=shadow.min_requests)
        )
    steps.extend(
        PlannedStep(
            name=f"canary_{step.weight:g}".replace(".", "_"),
            role="served",
            weight=step.weight,
            bake=step.bake,
            min_requests=step.min_requests,
        )
        for step in rollout.steps
    )
    return tuple(steps)


def planned(spec: ModelSpec, name: str) -> PlannedStep:
    """The step of that name.

    Raises:
        NotFound: the rollout has no such step.
    """
    steps = {step.name: step for step in plan(spec)}
    if name not in steps:
        raise NotFound(f"{spec.model} has no rollout step {name!r}; its steps: {', '.join(steps)}")
    return steps[name]


class Decision(BaseModel):
    """What to do about a step, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["wait", "advance", "roll_back"]
    reason: str
    verdicts: tuple[Verdict, ...] = ()


def judge_step(spec: ModelSpec, release: Release, status: GatewayStatus | None, now: datetime) -> Decision:
    """Judge the step a release stands in by what the gateway has seen.

    ``status`` is ``None`` when the gateway did not answer. Only a gateway that observes this
    release's generation gives evidence; whatever is missing is waited for until the rollout's
    deadline and then rolled back.
    """
    step = planned(spec, release.step or "")
    decision = _by_evidence(spec, step, release, status, now - release.entered_at)
    deadline = spec.rollout.deadline
    if decision.action == "wait" and now - release.entered_at >= deadline:
        reason = f"no decision within {deadline.total_seconds():g} s in {step.name}: {decision.reason}"
        return Decision(action="roll_back", reason=reason, verdicts=decision.verdicts)
    return decision


def _by_evidence(
    spec: ModelSpec, step: PlannedStep, release: Release, status: GatewayStatus | None, waited: timedelta
) -> Decision:
    if status is None:
        return Decision(action="wait", reason="the gateway does not answer")
    ejection = status.ejection
    if ejection is not None and (ejection.release, ejection.version) == (release.id, release.version):
        reason = f"the gateway ejected version {release.version}: {ejection.reason}"
        verdict = Verdict(name="gateway", status=Status.FAIL, reason=ejection.reason, n=ejection.requests)
        return Decision(action="roll_back", reason=reason, verdicts=(verdict,))
    if status.release != release.id or status.generation != release.generation:
        seen = status.error or f"the gateway observes generation {status.generation} of release {status.release}"
        return Decision(action="wait", reason=f"{seen}; waiting for generation {release.generation} of {release.id}")
    if release.version not in status.loaded:
        return Decision(action="wait", reason=f"version {release.version} is not loaded yet")
    if step.role == "warm_up":
        return Decision(action="advance", reason=f"version {release.version} is loaded and warm")
    return _by_traffic(spec, step, release, status, waited)


def _by_traffic(
    spec: ModelSpec, step: PlannedStep, release: Release, status: GatewayStatus, waited: timedelta
) -> Decision:
    of_step = status.step.get(release.version, {}).get(step.role, Tally())
    # Guards judge all that the version was asked in this release, as the gateway does: what it was asked in
    # shadow is evidence about the same model. How many answers a step itself needs is counted by role.
    of_release = sum(status.total.get(release.version, {}).values(), Tally())
    champion = status.total.get(status.champion, {}).get("served")
    verdicts = judge_guards(spec.guards, of_release, champion)
    status_of_all = fold(verdicts)
    if status_of_all is Status.FAIL:
        failed = "; ".join(verdict.reason for verdict in verdicts if verdict.status is Status.FAIL)
        return Decision(action="roll_back", reason=failed, verdicts=verdicts)
    if waited < step.bake:
        reason = f"baking, {waited.total_seconds():.0f} of {step.bake.total_seconds():g} s"
    elif of_step.requests < step.min_requests:
        reason = f"{of_step.requests} of at least {step.min_requests} requests in {step.name}"
    elif status_of_all is not Status.PASS:
        reason = "; ".join(verdict.reason for verdict in verdicts if not verdict.passed) or "no guard gave a verdict"
    else:
        reason = f"{step.name} held: {of_step.requests} requests, {len(verdicts)} guards passed"
        return Decision(action="advance", reason=reason, verdicts=verdicts)
    return Decision(action="wait", reason=reason, verdicts=verdicts)
