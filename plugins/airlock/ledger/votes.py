"""Votes: who said yes or no to which evidence. The first answer of a person to a piece of evidence stands."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select

from airlock.ledger.journal import entry
from airlock.ledger.records import Vote
from airlock.ledger.store import Store, found, release_of
from airlock.ledger.tables import VoteRow


class Votes(Store):
    """Answers to the question whether a release may go on."""

    def vote(self, release_id: str, *, actor: str, yes: bool, reason: str, evidence: str, now: datetime) -> Vote:
        """Keep a person's answer and journal it, or return the one they gave to the same evidence before.

        Raises:
            NotFound: there is no such release.
        """
        model = self._model_of(release_id)
        with self._writing(model, f"vote of {actor} on release {release_id}") as session:
            query = select(VoteRow).filter_by(release=release_id, evidence=evidence, actor=actor)
            row = session.scalar(query)
            if row is None:
                row = VoteRow(release=release_id, evidence=evidence, actor=actor, yes=yes, reason=reason, at=now)
                event = "vote_yes" if yes else "vote_no"
                release = release_of(found(session, release_id))
                session.add_all([row, entry(release, event, actor, reason, now, evidence=evidence)])
                session.flush()
            return _vote(row)

    def votes(self, release_id: str, evidence: str | None = None) -> list[Vote]:
        """The answers to a release in the order they came; with ``evidence`` only those to it."""
        query = select(VoteRow).where(VoteRow.release == release_id).order_by(VoteRow.id)
        if evidence is not None:
            query = query.where(VoteRow.evidence == evidence)
        with self._reading(f"reading the votes on release {release_id}") as session:
            return [_vote(row) for row in session.scalars(query)]


def _vote(row: VoteRow) -> Vote:
    return Vote(release=row.release, evidence=row.evidence, actor=row.actor, yes=row.yes, reason=row.reason, at=row.at)
