"""Approval: m of n distinct people say yes to the same evidence, or one of them says no."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from airlock.control.rollback import Rollbacks
from airlock.control.turn import CONTROLLER, Turn
from airlock.core.decide import evidence_digest
from airlock.core.errors import Conflict, NotAllowed, NotPossible
from airlock.core.release import TERMINAL, Event, Phase, Release
from airlock.ledger.ledger import GATES


class Ballot(BaseModel):
    """The answers to the evidence as it is now. Answers to earlier evidence do not count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    yes: tuple[str, ...]
    required: int
    rejected: bool

    @property
    def approved(self) -> bool:
        return not self.rejected and len(self.yes) >= self.required


class Approvals(Rollbacks):
    """Asks nobody: it counts what people answered in Airflow."""

    def evidence(self, release_id: str) -> str:
        """The digest of what an approver has to be shown now: version, champion and what the gates found.

        The champion is the one of now, not the one of when the release was opened.
        """
        gates = {verdict.name: verdict for step, verdict in self.ledger.verdicts(release_id) if step == GATES}
        champion = self.ledger.champion(self.model)
        shown = {"champion": champion.version if champion else None}
        return evidence_digest(self.ledger.release(release_id).model_copy(update=shown), gates.values())

    def ballot(self, release_id: str) -> Ballot:
        """How the vote on a release stands."""
        release = self.ledger.release(release_id)
        votes = self.ledger.votes(release_id, self.evidence(release_id))
        return Ballot(
            yes=tuple(vote.actor for vote in votes if vote.yes and self._forbidden(release, vote.actor) is None),
            required=self.spec_of(release).approvals.required,
            rejected=any(not vote.yes for vote in votes),
        )

    def vote(self, release_id: str, *, actor: str, yes: bool, reason: str, evidence: str) -> Ballot:
        """Count one person's answer to ``evidence``; with enough of them the release goes on, with one no it ends.

        The first answer of a person stands, a second one changes nothing.

        Raises:
            NotAllowed: the person is the author where the spec forbids that, or not among the approvers.
            Conflict: the evidence is not what was answered to by now.
            NotPossible: nobody is asked about the release any more.
        """
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            before = self.ballot(release_id)
            if not self._asked_now(release):
                if any(vote.actor == actor for vote in self.ledger.votes(release_id)):
                    return before
                raise NotPossible(
                    f"release {release.id} is {release.phase} ({release.reason}): nobody is asked about it"
                )
            if why := self._forbidden(release, actor):
                raise NotAllowed(why)
            if evidence != self.evidence(release_id):
                raise Conflict(
                    f"the evidence for release {release.id} has changed since {actor} was asked: show it and ask again"
                )
            self.ledger.vote(release_id, actor=actor, yes=yes, reason=reason, evidence=evidence, now=turn.now)
            ballot = self.ballot(release_id)
            if ballot.rejected:
                self._end(turn, release, Event.REJECT, actor=actor, reason=reason, evidence=evidence)
            elif ballot.approved and (release.phase is Phase.OPENED or not before.approved):
                self._approved(turn, release, ballot, actor=actor, reason=reason, evidence=evidence)
            return ballot

    def approve(self, release_id: str, *, actor: str, reason: str) -> Release:
        """Let a release on whose approval nobody has to give, or give ``actor``'s yes to the evidence as it is now.

        Raises:
            NotPossible: it was rejected or rolled back meanwhile.
            NotAllowed: as for ``vote``.
        """
        release = self.ledger.release(release_id)
        if release.phase in TERMINAL:
            raise NotPossible(f"release {release.id} is {release.phase} and cannot approve: {release.reason}")
        if self._asked_now(release):
            self.vote(release_id, actor=actor, yes=True, reason=reason, evidence=self.evidence(release_id))
        elif release.phase is Phase.OPENED:
            with self.turn() as turn:
                return turn.move(self.ledger.release(release_id), Event.APPROVE, actor=actor, reason=reason)
        return self.ledger.release(release_id)

    def reject(self, release_id: str, *, actor: str, reason: str) -> Release:
        """End a release that waits for an answer; traffic that it has goes back to the champion."""
        return self._ended(release_id, Event.REJECT, actor=actor, reason=reason)

    def expire(self, release_id: str, *, reason: str) -> Release:
        """End a release that nobody answered for in time; traffic that it has goes back to the champion."""
        return self._ended(release_id, Event.EXPIRE, actor=CONTROLLER, reason=reason)

    def require_approval(self, release: Release) -> None:
        """Refuse to go on without the answers that the spec asks for.

        Raises:
            NotPossible: they are not there.
        """
        asked = self.spec_of(release).approvals
        if not asked.required or asked.before != "promotion":
            return
        ballot = self.ballot(release.id)
        if not ballot.approved:
            given = ", ".join(ballot.yes) or "nobody"
            raise NotPossible(
                f"release {release.id} is promoted only after {ballot.required} people said yes to its evidence as it "
                f"is now; so far: {given}"
            )

    def _approved(
        self, turn: Turn, release: Release, ballot: Ballot, *, actor: str, reason: str, evidence: str
    ) -> None:
        """Let a release on. A first version that is asked about before its promotion has no step to be let out of."""
        if release.phase is not Phase.APPROVED:
            said = f"approved by {' and '.join(ballot.yes)}: {reason}"
            turn.move(release, Event.APPROVE, actor=actor, reason=said, evidence=evidence)

    def _asked_now(self, release: Release) -> bool:
        """Whether people are asked in the phase that the release stands in."""
        asked = self.spec_of(release).approvals
        if not asked.required:
            return False
        if asked.before == "traffic":
            return release.phase is Phase.OPENED
        return release.phase in {Phase.APPROVED, Phase.CANARY}

    def _forbidden(self, release: Release, actor: str) -> str | None:
        """Why somebody may not answer, or ``None``."""
        rules = self.spec_of(release).approvals
        if rules.approvers and actor not in rules.approvers:
            return f"{actor} may not answer for {release.model}; its approvers are {', '.join(rules.approvers)}"
        if rules.forbid_author and release.author is None:
            return (
                f"nobody can be told from the author of {release.model} version {release.version}: who started its "
                "training is not known, and the spec forbids the author's own yes; train it again"
            )
        if rules.forbid_author and actor == release.author:
            return (
                f"{actor} started the training of {release.model} version {release.version}: somebody else must answer"
            )
        return None

    def _ended(self, release_id: str, event: Event, *, actor: str, reason: str) -> Release:
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            if release.phase is Phase.REJECTED:
                return release
            self._require_open(release)
            return self._end(turn, release, event, actor=actor, reason=reason)
