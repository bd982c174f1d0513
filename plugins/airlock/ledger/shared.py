"""What several processes share beside releases: claims on a window of time, and documents under compare-and-set."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import or_, select

from airlock.core.errors import Conflict
from airlock.ledger.store import Store
from airlock.ledger.tables import ClaimRow, StateRow


class Shared(Store):
    """Claims and states."""

    def claim(self, model: str, kind: str, key: str, *, at: datetime, window: timedelta) -> str:
        """Claim the time around ``at`` for ``key`` and return who holds it.

        The holder is another key if that one claimed a time less than ``window`` away. Times are of the data, not
        of the clock on the wall. Claiming again under the same key changes nothing. ``kind`` keeps claims apart.
        """
        with self._writing(model, f"claiming {kind} of {model} around {at}") as session:
            close = (ClaimRow.at > at - window) & (ClaimRow.at < at + window)
            query = (
                select(ClaimRow.key)
                .where(ClaimRow.model == model, ClaimRow.kind == kind, or_(ClaimRow.key == key, close))
                .order_by(ClaimRow.id)
            )
            holders = list(session.scalars(query))
            if holders:
                return key if key in holders else holders[0]
            session.add(ClaimRow(model=model, kind=kind, key=key, at=at))
            return key

    def save_state(self, model: str, name: str, document: str, *, revision: int | None) -> int:
        """Replace a document that was read at ``revision`` (``None``: there was none) and return its new revision.

        Raises:
            Conflict: somebody else replaced it since.
        """
        with self._writing(model, f"saving {name} of {model}") as session:
            row = session.get(StateRow, (model, name))
            if (row.revision if row else None) != revision:
                raise Conflict(
                    f"{name} of {model} is at revision {row.revision if row else None} by now, it was at {revision} "
                    "when it was read; read it again"
                )
            if row is None:
                row = StateRow(model=model, name=name, revision=0)
                session.add(row)
            row.document, row.revision = document, row.revision + 1
            return row.revision

    def load_state(self, model: str, name: str) -> tuple[str, int] | None:
        """A document with its revision; ``None`` before it was first saved."""
        with self._reading(f"reading {name} of {model}") as session:
            row = session.get(StateRow, (model, name))
            return None if row is None else (row.document, row.revision)
