"""A policy run over traffic that was, or might have been: what it would have decided, when, and how wrong.

A simulated release moves through the spec's plan while frames of evidence come in. The gateway's part
(:func:`~airlock.core.guards.breach`) and the control plane's (:func:`~airlock.core.decide.decide`,
:func:`~airlock.core.decide.decide_late`) are the real ones; only traffic and time are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Literal, NamedTuple

from airlock.core.counters import Counters
from airlock.core.decide import Decision, Evidence, decide, decide_late
from airlock.core.guards import breach, judge, limits_of
from airlock.core.release import Phase, PlannedStep, Release, plan
from airlock.core.replay_report import Decided, Ending, ReplayReport
from airlock.core.route import Bundle, Limit
from airlock.core.spec import ModelSpec
from airlock.core.tally import Ejection, GatewayStatus, LateEvidence, Role, Sums, Tally

CANDIDATE, CHAMPION = "candidate", "champion"
_ID = "replay"


class Frame(NamedTuple):
    """What has come in since the frame before: ``candidate`` is what the candidate was asked, in whichever role.

    ``late`` is all that is known by ``at`` of labels and outcomes, from the beginning on.
    """

    at: datetime
    candidate: Tally
    champion: Tally | None = None
    late: LateEvidence | None = None


class Glance(NamedTuple):
    """What a look saw: for progress and plots."""

    request: int
    at: datetime
    step: str
    total: Tally
    late: LateEvidence | None


class _Replay:
    """The state of one run."""

    def __init__(self, spec: ModelSpec, start: datetime) -> None:
        self.spec, self.limits, self.steps = spec, limits_of(spec), plan(spec)[1:]
        self.decisions: list[Decided] = []
        self.ending: Ending | None = None
        self.counters, self.champion = Counters(), Tally()
        self.total: dict[str, Tally] = {"served": Tally(), "shadow": Tally()}
        self.place, self.since = 0, start
        self.asked, self.served = 0, 0.0
        self.release = Release(
            id=_ID,
            model=spec.model,
            version=CANDIDATE,
            champion=CHAMPION,
            bundle=Bundle(path=_ID, digest="sha256:" + "0" * 64),
            phase=Phase.SHADOW if self.steps[0].role == "shadow" else Phase.CANARY,
            step=self.steps[0].name,
            generation=1,
            entered_at=start,
        )

    @property
    def step(self) -> PlannedStep:
        return self.steps[self.place]

    @property
    def requests(self) -> int:
        """What the candidate was asked in all."""
        return self.counters.all.sums.requests

    def take(self, frame: Frame) -> None:
        # The frames do not say who answered: what comes in a step that serves is taken for served.
        role: Role = "served" if self.step.role == "served" else "shadow"
        self.counters.include(role, frame.candidate)
        self.total[role] += frame.candidate
        if frame.champion is not None:
            self.champion += frame.champion
        if self.release.phase is not Phase.PROVISIONAL and self.ending is None:
            self.asked += frame.candidate.requests
            self.served += frame.candidate.requests * self.step.weight / 100

    def look(self, frame: Frame) -> None:
        """Decide, where anything but waiting can come of it."""
        if self.release.phase is Phase.PROVISIONAL:
            if _may_settle(self.limits, frame.late):
                self._settle(frame, decide_late(self.spec, self.release, frame.late, frame.at))
            return
        reason = breach(self.limits, self.counters)
        self.counters.restart_if_due()
        observed = (frame.at - self.since).total_seconds()
        asked = int(self.served) if self.step.role == "served" else self.asked
        ready = observed >= self.step.bake.total_seconds() and asked >= self.step.min_requests
        late = observed >= self.step.deadline.total_seconds()
        if reason is None and not ready and not late and not _late_is_over(self.limits, frame.late):
            return
        status = self._status(frame, observed, asked, reason)
        decision = decide(self.spec, self.release, Evidence(gateway=status, late=frame.late), frame.at)
        if decision.action == "wait":
            return
        if reason is not None:
            decision = decision.model_copy(update={"reason": f"the gateway ejected it: {reason}"})
        self._record(frame, decision, by="gateway" if reason is not None else "control")
        if decision.action == "roll_back":
            self.ending = "rolled_back"
        elif decision.action == "hold":
            self.ending = "held"
        elif decision.action == "advance":
            self._go_on(frame.at)

    def _go_on(self, now: datetime) -> None:
        if self.place + 1 < len(self.steps):
            self.place += 1
            self.counters.begin_step()
            self.asked, self.served, self.since = 0, 0.0, now
            self.release = self.release.model_copy(
                update={
                    "phase": Phase.CANARY,
                    "step": self.step.name,
                    "generation": self.release.generation + 1,
                    "entered_at": now,
                }
            )
        elif self.spec.rollout.plan == "shadow_only":
            self.ending = "completed"
        elif any(limit.late for limit in self.limits):
            self.release = self.release.model_copy(update={"phase": Phase.PROVISIONAL})
        else:
            self.ending = "promoted"

    def _settle(self, frame: Frame, decision: Decision) -> None:
        if decision.action in ("roll_back", "advance"):
            self._record(frame, decision, by="control")
            self.ending = "rolled_back" if decision.action == "roll_back" else "confirmed"

    def _record(self, frame: Frame, decision: Decision, *, by: Literal["gateway", "control"]) -> None:
        self.decisions.append(
            Decided(
                request=self.requests,
                at=frame.at,
                step="provisional" if self.release.phase is Phase.PROVISIONAL else self.step.name,
                action=decision.action,
                by=by,
                reason=decision.reason,
                verdicts=decision.verdicts,
            )
        )

    def _status(self, frame: Frame, observed: float, asked: int, reason: str | None) -> GatewayStatus:
        ejection = reason and Ejection(
            model=self.spec.model,
            version=CANDIDATE,
            release=_ID,
            generation=self.release.generation,
            at=frame.at,
            reason=reason,
            requests=self.requests,
            seconds=observed,
        )
        return GatewayStatus(
            model=self.spec.model,
            generation=self.release.generation,
            checksum="",
            release=_ID,
            rollout_step=self.release.step,
            champion=CHAMPION,
            candidate=CANDIDATE,
            share=self.step.weight,
            loaded=(CANDIDATE, CHAMPION),
            since=self.since,
            observed_s=observed,
            ejection=ejection or None,
            step={CANDIDATE: {self.step.role: Tally(requests=asked)}},
            total={CANDIDATE: dict(self.total), CHAMPION: {"served": self.champion}},
            checkpoints=self.counters.checkpoints,
        )


def _late_is_over(limits: Iterable[Limit], late: LateEvidence | None) -> bool:
    """Whether a late limit's estimate lies beyond its bound, without which it cannot fail; or is no number."""
    if late is None:
        return False
    for limit in limits:
        seen = late.observations.get(limit.name, Sums()) if limit.late else Sums()
        if not seen.total <= limit.bound * seen.n:
            return True
    return False


def _may_settle(limits: Iterable[Limit], late: LateEvidence | None) -> bool:
    """Whether labels can decide anything: one limit's estimate is over its bound, or each has its minimum."""
    if late is None:
        return False
    enough = all(late.observations.get(limit.name, Sums()).n >= limit.minimum for limit in limits if limit.late)
    return enough or _late_is_over(limits, late)


def replay(spec: ModelSpec, frames: Iterable[Frame], watch: Callable[[Glance], None] | None = None) -> ReplayReport:
    """Run the spec's policy over the frames, which come in the order of their times. Each frame is one look.

    The first step begins with the first frame; bake and deadline count the frames' time, as if the gateway had
    watched all of it. A step's least number of requests is counted by the plan's shares, as if the candidate had
    answered its share of what it was asked.
    """
    state: _Replay | None = None
    looks, frame = 0, None
    for frame in frames:
        state = state or _Replay(spec, frame.at)
        state.take(frame)
        looks += 1
        if state.ending is None:
            state.look(frame)
        if watch is not None:
            step = "provisional" if state.release.phase is Phase.PROVISIONAL else state.step.name
            watch(Glance(state.requests, frame.at, state.ending or step, state.counters.all.sums, frame.late))
    if state is None or frame is None:
        return ReplayReport(
            ending="unfinished", reason="there was no traffic", decisions=(), requests=0, looks=0, hindsight=()
        )
    ending, reason = _end(state)
    return ReplayReport(
        ending=ending,
        reason=reason,
        decisions=tuple(state.decisions),
        requests=state.requests,
        looks=looks,
        hindsight=judge(state.limits, Counters(state.total), champion=state.champion, late=frame.late),
    )


def _end(state: _Replay) -> tuple[Ending, str]:
    if state.ending is not None:
        return state.ending, state.decisions[-1].reason
    if state.release.phase is Phase.PROVISIONAL:
        return "promoted", "promoted provisionally; its labels had not settled it when the traffic ended"
    return "unfinished", f"the traffic ended in {state.step.name}"
