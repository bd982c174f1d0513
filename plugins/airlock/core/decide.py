"""What the evidence says about a release: wait, go on, hold, or take it back.
A step and what labels say later are decided in one module, because both turn the same verdicts into the same words.

Everything here is pure: the same release, evidence and time always give the same decision, whoever asks and however
often. Whatever is missing, unknown or not a number is waited for until the step's deadline, and is never a pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airlock.core.counters import Counters
from airlock.core.guard_words import come
from airlock.core.guards import judge, limits_of
from airlock.core.polls import Polls, unobserved
from airlock.core.release import Phase, PlannedStep, Release, planned
from airlock.core.route import Limit
from airlock.core.spec import ModelSpec, written
from airlock.core.tally import Ejection, GatewayStatus, LateEvidence, Tally
from airlock.core.verdict import Status, Verdict

EJECTED = "gateway"
"""The name of the verdict that stands for an ejection by the gateway."""

Action = Literal["wait", "advance", "hold", "roll_back", "wake"]


class Evidence(BaseModel):
    """What is known about a step. ``gateway`` is ``None`` while the gateway does not answer; ``ejection`` is what it
    wrote down last about whom it ejected, which outlives it.

    ``polls`` is what came of asking the gateway before. ``limits`` are those of the release's own route, by which the
    gateway counts; ``None``: it has none yet, and they are those of its spec.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gateway: GatewayStatus | None
    late: LateEvidence | None = None
    ejection: Ejection | None = None
    polls: Polls = Polls()
    limits: tuple[Limit, ...] | None = None


class Decision(BaseModel):
    """What to do about a release, and why.

    ``hold``: the deadline has come, and the spec wants a person to look: the shares stay as they are. ``wake``: the
    gateway shows that the ledger has moved on; read it again before anything is decided.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action
    reason: str
    verdicts: tuple[Verdict, ...] = ()


def ejected(release: Release, evidence: Evidence) -> Verdict | None:
    """The verdict that stands for an ejection by the gateway; ``None`` if it has not ejected this release."""
    for ejection in (evidence.gateway.ejection if evidence.gateway is not None else None, evidence.ejection):
        if ejection is not None and (ejection.release, ejection.version) == (release.id, release.version):
            reason = f"the gateway ejected version {release.version}: {ejection.reason}"
            return Verdict(name=EJECTED, status=Status.FAIL, reason=reason, n=ejection.requests)
    return None


def breach(spec: ModelSpec, release: Release, evidence: Evidence) -> Decision | None:
    """What takes a release back wherever it stands and whatever else holds; ``None`` if nothing does.

    An ejection by the gateway, or a guard that failed: not a deadline that has come, and not what is missing.
    """
    return _breach(_verdicts(spec, release, evidence))


def _breach(verdicts: tuple[Verdict, ...]) -> Decision | None:
    failed = [verdict for verdict in verdicts if verdict.status is Status.FAIL and not verdict.dry_run]
    if not failed:
        return None
    # An ejection says what the gateway saw; the same limit, judged a moment later, would say it once more.
    told = [verdict for verdict in failed if verdict.name == EJECTED] or failed
    return Decision(action="roll_back", reason=_reasons(told), verdicts=verdicts)


def decide(spec: ModelSpec, release: Release, evidence: Evidence, now: datetime) -> Decision:
    """Judge the step that a release stands in.

    A breach rolls back whatever else holds: paused, let through by hand, or seen under an older route of the same
    release. The bake and the deadline count the seconds that the gateway observed, the deadline also those of counts
    that it has lost since. While it does not observe the step, the deadline counts what it had observed and the time
    for which it was polled in vain, which is never more than has passed since the step was entered.

    Raises:
        NotFound: the rollout has no step of that name.
    """
    step = planned(spec, release.step or "")
    status = evidence.gateway
    verdicts = _verdicts(spec, release, evidence)
    if (failed := _breach(verdicts)) is not None:
        return failed
    if status is not None and status.generation > release.generation:
        return Decision(
            action="wake",
            reason=f"the gateway follows generation {status.generation} already, this was read at generation "
            f"{release.generation}: the ledger has moved on",
        )
    if step.role == "warm_up":
        verdicts = ()
    if release.paused:
        return Decision(action="wait", reason=f"paused in {step.name}: {release.reason}", verdicts=verdicts)
    unseen = unobserved(release, status)
    missing = unseen
    if unseen is None and step.role != "warm_up":
        missing = _missing(spec, step, release, evidence, verdicts)
    if missing is None:
        return Decision(action="advance", reason=_held(step, release, evidence, verdicts), verdicts=verdicts)
    if status is not None and status.lost is not None:
        missing = f"{missing}; {status.lost}"
    seen = status is not None and unseen is None
    waited = evidence.polls.polled(release, status, 0).observed_s if seen else _waited(release, evidence, now)
    allowed = (step.deadline + release.extended).total_seconds()
    if waited < allowed:
        return Decision(action="wait", reason=missing, verdicts=verdicts)
    reason = f"no decision within {allowed:g} s in {step.name}: {missing}"
    if not seen:
        reason = f"{reason}. {_silence(status, evidence.polls)}"
    return _at_deadline(spec, step, reason, verdicts, seen=seen)


def _silence(status: GatewayStatus | None, polls: Polls) -> str:
    """What a gateway that does not answer, or not about the step, leaves unknown."""
    how = "was silent" if status is None else "reported nothing of the step"
    if polls.observed_s > 0:
        return (
            f"The gateway {how} after it had observed the step for {polls.observed_s:.0f} s, in which no guard was "
            "broken"
        )
    return f"The gateway {how} all the time, so no guard was checked"


def _waited(release: Release, evidence: Evidence, now: datetime) -> float:
    """Seconds that count towards the deadline while the gateway does not observe the step."""
    return min(evidence.polls.waited_s, (now - release.entered_at).total_seconds())


def _at_deadline(
    spec: ModelSpec, step: PlannedStep, reason: str, verdicts: tuple[Verdict, ...], *, seen: bool
) -> Decision:
    """``seen``: the gateway observes the step."""
    if spec.rollout.on_deadline == "rollback":
        if seen:
            cause, first = "No guard was broken; it only never passed. ", ""
        else:
            cause, first = "", "See that the gateway runs and follows its route (airlock status). "
        reason = (
            f"{reason}. {cause}{first}Release it again, with a later rollout.deadline if that was too early, or "
            "with on_deadline: hold, which leaves it to a person to extend, promote or abort it"
        )
        return Decision(action="roll_back", reason=reason, verdicts=verdicts)
    reason = f"{reason}. It stays at {step.weight:g} % until somebody extends and resumes, promotes or aborts it"
    return Decision(action="hold", reason=reason, verdicts=verdicts)


def holds_back(
    spec: ModelSpec,
    step: PlannedStep,
    verdicts: Iterable[Verdict],
    *,
    promote_now: bool = False,
    limits: Sequence[Limit] | None = None,
) -> str | None:
    """Why these verdicts do not let a release through a step; ``None`` if they do.

    Every limit must have one: of ``limits``, those of the release's route, or else of the spec. Of the late ones
    ``inconclusive`` is enough where nothing is answered by the candidate, or where the rollout may be provisional.
    ``promote_now`` asks for no pass, but goes past nothing that failed or could not be judged.
    """
    given = {verdict.name: verdict for verdict in verdicts}
    limits = limits_of(spec) if limits is None else limits
    if lacking := sorted({limit.name for limit in limits} - set(given)):
        return f"no verdict of {', '.join(lacking)}"
    may_be_open = {limit.name for limit in limits if limit.late and (spec.rollout.provisional or step.role == "shadow")}
    back = [
        verdict
        for verdict in given.values()
        if verdict.holds_back
        and not (verdict.status is Status.INCONCLUSIVE and (promote_now or verdict.name in may_be_open))
    ]
    return _reasons(back) if back else None


def late_deadline(spec: ModelSpec) -> timedelta:
    """How long after its promotion a provisional version is waited for.

    By then every answer of the first maturity window has had the time for its label to come, and one deadline more.
    """
    return 2 * spec.maturity + spec.rollout.deadline


def decide_late(
    spec: ModelSpec,
    release: Release,
    late: LateEvidence | None,
    now: datetime,
    *,
    limits: Sequence[Limit] | None = None,
) -> Decision:
    """Judge what labels and outcomes say of a version by now: ``roll_back``, ``wait``, or ``advance`` to confirm it.

    A provisional version is confirmed when every late limit passed, which needs labels that are mature and of which
    not too many are missing (:func:`~airlock.core.guards.judge`). One that is neither confirmed nor failed within
    :func:`late_deadline` goes the way of ``rollout.on_deadline``, unless there was no champion before it to go back to.

    ``limits`` are those of the release's route; by default those of its spec. ``release.champion`` is whom it was
    compared with.
    """
    limits = tuple(limit for limit in (limits_of(spec) if limits is None else limits) if limit.late)
    verdicts = judge(limits, Counters(), late=late)

    def decided(action: Action, reason: str) -> Decision:
        return Decision(action=action, reason=reason, verdicts=verdicts)

    if failed := [verdict for verdict in verdicts if verdict.status is Status.FAIL]:
        return decided("roll_back", _reasons(failed))
    opened = [verdict for verdict in verdicts if not verdict.passed]
    if opened:
        missing: str | None = _reasons(opened)
    elif not limits or late is None:
        missing = "no guard on labels or outcomes gave a verdict"
    elif release.phase is not Phase.PROVISIONAL:
        missing = f"release {release.id} is {release.phase}, which is not provisional; {come(late)}"
    else:
        missing = None
    if missing is None:
        return decided("advance", f"every guard on labels and outcomes passed; {come(late) if late else ''}")
    if release.phase is not Phase.PROVISIONAL or now - release.entered_at < late_deadline(spec):
        return decided("wait", missing)
    over = f"not confirmed within {written(late_deadline(spec))} of its promotion: {missing}"
    if spec.rollout.on_deadline == "rollback" and release.champion is not None:
        return decided("roll_back", over)
    return decided("wait", f"{over}. It stays provisional until labels come or somebody rolls it back")


def evidence_digest(release: Release, verdicts: Iterable[Verdict]) -> str:
    """The digest of what an approver is shown: the version's files, the champion, and what the gates found.

    It does not depend on the order of the verdicts, nor on when or for which release they were shown.
    """
    shown = {
        "model": release.model,
        "version": release.version,
        "bundle": release.bundle.digest,
        "champion": release.champion,
        "verdicts": sorted(verdict.model_dump_json() for verdict in verdicts),
    }
    return "sha256:" + hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def _verdicts(spec: ModelSpec, release: Release, evidence: Evidence) -> tuple[Verdict, ...]:
    status = evidence.gateway
    counters, champion = Counters(), None
    if status is not None and status.release == release.id:
        # What a version was asked in shadow is evidence about the same model: guards judge both roles together, as
        # the gateway does, and what was served on its own. How many answers a step needs is counted by role.
        counters = _counters(release, status)
        champion = status.total.get(status.champion, {}).get("served")
    out = ejected(release, evidence)
    limits = limits_of(spec) if evidence.limits is None else evidence.limits
    judged = judge(limits, counters, champion=champion, late=evidence.late)
    return judged if out is None else (out, *judged)


def _counters(release: Release, status: GatewayStatus) -> Counters:
    """The candidate's, as the gateway has them."""
    total = status.total.get(release.version, {})
    if status.checkpoints is not None and status.candidate == release.version:
        return Counters(total, status.checkpoints, status.units)
    # It reports no checkpoints, or those of another version: what is left is the step's start.
    return Counters.at_step(total, status.step.get(release.version, {}))


def _missing(
    spec: ModelSpec, step: PlannedStep, release: Release, evidence: Evidence, verdicts: Sequence[Verdict]
) -> str | None:
    """What keeps the release in a step that the gateway observes, or ``None``."""
    status = evidence.gateway
    if status is None:
        return "the gateway does not answer"
    if release.promote_now:
        return holds_back(spec, step, verdicts, promote_now=True, limits=evidence.limits)
    if step.until_concluded:
        return "the experiment is not concluded"
    if (baked := status.observed_s) < (bake := step.bake.total_seconds()):
        return f"baking, {baked:.0f} of {bake:g} s"
    requests = status.step.get(release.version, {}).get(step.role, Tally()).requests
    if requests < step.min_requests:
        return f"{requests} of at least {step.min_requests} requests in {step.name}"
    return holds_back(spec, step, verdicts, limits=evidence.limits)


def _held(step: PlannedStep, release: Release, evidence: Evidence, verdicts: Sequence[Verdict]) -> str:
    """Why a release goes on."""
    if step.role == "warm_up":
        return f"version {release.version} is loaded and warm"
    if release.promote_now:
        return f"let through {step.name} by hand: {release.reason}"
    status = evidence.gateway
    asked = status.step.get(release.version, {}) if status is not None else {}
    requests = asked.get(step.role, Tally()).requests
    passed = sum(verdict.passed for verdict in verdicts)
    held = f"{step.name} held: {requests} requests, {passed} of {len(verdicts)} guards passed"
    known = come(evidence.late) if evidence.late is not None else "none was looked at"
    return held if passed == len(verdicts) else f"{held}, the rest waits for labels ({known})"


def _reasons(verdicts: Iterable[Verdict]) -> str:
    """Every reason once: the gateway tells of an ejection what the guard says as well."""
    said: list[str] = []
    for verdict in verdicts:
        if not any(verdict.reason in before for before in said):
            said.append(verdict.reason)
    return "; ".join(said)
