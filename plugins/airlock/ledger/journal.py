"""A line of the journal."""

from __future__ import annotations

from datetime import datetime

from airlock.core.release import Release
from airlock.ledger.tables import JournalRow


def entry(
    release: Release, event: str, actor: str, reason: str, at: datetime, *, evidence: str | None = None
) -> JournalRow:
    """What happened to a release, as it stands after it. ``evidence``: digest of what it was decided on."""
    return JournalRow(
        model=release.model,
        release=release.id,
        version=release.version,
        event=event,
        phase=release.phase,
        step=release.step,
        generation=release.generation or None,
        actor=actor,
        reason=reason,
        at=at,
        evidence=evidence,
    )
