"""The outbox: what has to follow outside the ledger, written in the transaction that decided it.

An effect is done from what the ledger says now and can be done twice. Asked for again under the same key
(release, step, generation, kind) it is pending again, and whoever did it for the earlier asking cannot mark it done.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from airlock.ledger.records import Effect, EffectKind, Lease
from airlock.ledger.store import Store
from airlock.ledger.tables import EffectRow


class Effects(Store):
    """What is left to do outside the ledger."""

    def pending_effects(self, model: str) -> list[Effect]:
        """In the order they were first asked for."""
        query = select(EffectRow).where(EffectRow.model == model, EffectRow.done_at.is_(None)).order_by(EffectRow.id)
        with self._reading(f"reading the pending effects of {model}") as session:
            return [_effect(row) for row in session.scalars(query)]

    def effect_done(self, effect: Effect, now: datetime, *, lease: Lease | None = None) -> None:
        """Mark an effect as done, unless it was asked for again meanwhile.

        Raises:
            Fenced: the lease is not the newest or has run out.
        """
        what = f"marking {effect.kind} of {effect.model} as done"
        with self._writing(effect.model, what, lease=lease, now=now) as session:
            row = session.get(EffectRow, effect.id)
            if row is not None and row.asked == effect.asked and row.done_at is None:
                row.done_at = now


def ask(
    session: Session,
    kinds: Iterable[str],
    *,
    model: str,
    release: str | None,
    step: str | None,
    generation: int,
    now: datetime,
) -> None:
    """Write the effects of a transition. A kind that was asked for under the same key before is pending again."""
    for kind in dict.fromkeys(kinds):
        key = {"model": model, "release": release or "", "step": step or "", "generation": generation, "kind": kind}
        row = session.scalar(select(EffectRow).filter_by(**key))
        if row is None:
            session.add(EffectRow(**key, asked=1, at=now))
        else:
            row.asked, row.at, row.done_at = row.asked + 1, now, None


def _effect(row: EffectRow) -> Effect:
    return Effect(
        id=row.id,
        model=row.model,
        release=row.release or None,
        step=row.step or None,
        generation=row.generation,
        kind=cast("EffectKind", row.kind),
        at=row.at,
        asked=row.asked,
    )
