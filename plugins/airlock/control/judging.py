"""Judging a release by its evidence: what came of polling the gateway, the step it stands in, and labels later on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from airlock.control.steering import Steering
from airlock.control.turn import CONTROLLER
from airlock.core.decide import Decision, Evidence, decide, decide_late, holds_back
from airlock.core.errors import Conflict, NotPossible
from airlock.core.polls import Polls, unobserved
from airlock.core.release import LIVE, TERMINAL, Event, PlannedStep, Release
from airlock.core.tally import GatewayStatus, LateEvidence
from airlock.core.verdict import Verdict

LATE = "late"
"""The step under which verdicts on labels and outcomes are kept that came after the promotion."""
_DECISIVE = frozenset({"advance", "hold", "roll_back"})


class _Polled(BaseModel):
    """What the ledger keeps of the polls of one step. ``in_vain_since``: of the last of them, a wait that timed out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str | None
    entered_at: datetime
    polls: Polls = Polls()
    in_vain_since: datetime | None = None


class Judging(Steering):
    """Asks the core about a release, and keeps and does what it decides."""

    def polled(
        self, release_id: str, status: GatewayStatus | None, known: Polls | None = None, *, timed_out: bool = False
    ) -> Polls:
        """Keep what came of polling the gateway, and say what is known of that by now.

        ``known`` is what somebody else found who polled meanwhile. Where nobody did, because there is no triggerer, a
        task is woken up by a wait that ``timed_out``: when two such waits in a row find no answer, the time between
        them was waited in vain.
        """
        release, name = self.ledger.release(release_id), f"polls/{release_id}"
        kept = self.ledger.load_state(self.model, name)
        before = _Polled.model_validate_json(kept[0]) if kept else None
        if before is None or (before.step, before.entered_at) != (release.step, release.entered_at):
            before = _Polled(step=release.step, entered_at=release.entered_at)
        since = before.in_vain_since if timed_out else None
        elapsed = (self.clock() - since).total_seconds() if since is not None else 0.0
        polls = before.polls.together(known or Polls()).polled(release, status, elapsed)
        in_vain = timed_out and unobserved(release, status) is not None
        now = before.model_copy(update={"polls": polls, "in_vain_since": self.clock() if in_vain else None})
        if now != before:
            with suppress(Conflict):  # somebody else has just polled it
                self.ledger.save_state(self.model, name, now.model_dump_json(), revision=kept[1] if kept else None)
        return polls

    def observe(
        self,
        release_id: str,
        status: GatewayStatus | None,
        late: LateEvidence | None = None,
        polls: Polls | None = None,
    ) -> Decision:
        """Judge the step the release stands in, keep the verdicts that decide something, and take it back if they say
        so.

        A release that is to be held is paused: it stays in its step until somebody extends and resumes, promotes or
        aborts it.

        Raises:
            NotPossible: the release stands in no step.
        """
        evidence = Evidence(gateway=status, late=late, polls=polls or Polls())
        decision = self.judged(release_id, evidence)
        if decision.action not in _DECISIVE:
            return decision
        with self.turn() as turn:
            decision = self.judged(release_id, evidence)  # what was read before the turn may be old
            release = self.ledger.release(release_id)
            if release.phase in LIVE and decision.action in _DECISIVE:
                if decision.verdicts:
                    # Verdicts of a step that is held let nothing through, so they are not kept as the step's.
                    held = " held" if decision.action == "hold" else ""
                    turn.record(release, decision.verdicts, step=f"{release.step}{held}")
                if decision.action == "roll_back":
                    self._take_back(turn, release, reason=decision.reason)
                if decision.action == "hold":
                    self._steer(turn, release, Event.PAUSE, {"paused": True}, actor=CONTROLLER, reason=decision.reason)
        return decision

    def judge_late(self, release_id: str, late: LateEvidence | None) -> Decision:
        """Judge what labels and outcomes say of a version by now, and keep the verdicts that decide something.

        It moves nothing: ``roll_back`` is for ``roll_back``, ``advance`` for ``confirm``.
        """
        release = self.ledger.release(release_id)
        compared = release.model_copy(update={"champion": self.opponent_of(release)})
        spec, limits = self.spec_of(release), self.limits_of(release)
        decision = decide_late(spec, compared, late, self.clock(), limits=limits)
        if decision.action in _DECISIVE and release.phase not in TERMINAL:
            with self.turn() as turn:
                turn.record(release, decision.verdicts, step=LATE)
        return decision

    def judged(self, release_id: str, evidence: Evidence) -> Decision:
        """Judge the step the release stands in, and change nothing.

        Raises:
            NotPossible: the release stands in no step.
        """
        release = self.ledger.release(release_id)
        if release.phase in TERMINAL:
            return Decision(action="roll_back", reason=f"release {release.id} is {release.phase}: {release.reason}")
        if release.phase not in LIVE:
            raise NotPossible(f"release {release.id} is {release.phase}: it stands in no step that could be judged")
        evidence = evidence.model_copy(update={"limits": self.limits_of(release)})
        decision = decide(self.spec_of(release), release, evidence, self.clock())
        if decision.action == "wake":
            # This was read from the ledger just now: it is the gateway that follows something else.
            reason = f"{decision.reason.split(',')[0]}, which the ledger does not know; see airlock reconcile"
            return Decision(action="wait", reason=reason)
        return decision

    def is_let_through(self, release: Release) -> bool:
        """Whether the ledger holds what lets a release through the step that it stands in: from there on guards alone
        count, and no deadline."""
        step = self.step_of(release, release.step or "")
        return self._held_back(release, step, self._newest_verdicts(release, step.name)) is None

    def _held_back(self, release: Release, step: PlannedStep, verdicts: Sequence[Verdict]) -> str | None:
        """Why verdicts do not let a release through a step; ``None`` if they do."""
        limits = self.limits_of(release)
        return holds_back(self.spec_of(release), step, verdicts, promote_now=release.promote_now, limits=limits)

    def _newest_verdicts(self, release: Release, step: str) -> tuple[Verdict, ...]:
        """The newest verdict of each policy in a step, which a release goes through but once."""
        newest = {verdict.name: verdict for at, verdict in self.ledger.verdicts(release.id) if at == step}
        return tuple(newest.values())
