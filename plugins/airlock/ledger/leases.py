"""Leases: one holder at a time may write about a model, and one that slept through its turn is fenced off.

Every grant raises the model's token, also a grant to the same holder. A write under a lease compares the token in
its own transaction, so whoever wakes after its lease was taken over writes nothing, whatever its clock says.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airlock.core.errors import Conflict
from airlock.ledger.records import Lease
from airlock.ledger.store import Store
from airlock.ledger.tables import LeaseRow


class Leases(Store):
    """Who may write about a model."""

    def lease(self, model: str, holder: str, *, ttl: timedelta, now: datetime) -> Lease:
        """Take the model's lease until ``now + ttl``; the same holder may take its own again.

        Raises:
            Conflict: another holder's is live; the message says whose and until when.
        """
        if ttl <= timedelta(0):
            raise ValueError(f"a lease lasts a while, got {ttl}")
        with self._writing(model, f"taking the lease of {model}") as session:
            row = session.get(LeaseRow, model)
            if row is None:
                row = LeaseRow(model=model, holder=holder, token=0)
                session.add(row)
            elif row.holder != holder and row.expires_at is not None and now < row.expires_at:
                raise Conflict(
                    f"{row.holder} is at work on {model} until {row.expires_at:%Y-%m-%d %H:%M:%S} UTC at the latest; "
                    "try again then"
                )
            row.holder, row.token, row.expires_at = holder, row.token + 1, now + ttl
            return Lease(model=model, holder=holder, token=row.token, expires_at=now + ttl)

    def release_lease(self, lease: Lease) -> None:
        """Give a lease back before it runs out. One that was taken over is left with its new holder."""
        with self._writing(lease.model, f"giving back the lease of {lease.model}") as session:
            row = session.get(LeaseRow, lease.model)
            if row is not None and row.token == lease.token:
                row.expires_at = None

    def lease_of(self, model: str) -> Lease | None:
        """The newest lease that was not given back, also when it has run out."""
        with self._reading(f"reading the lease of {model}") as session:
            row = session.get(LeaseRow, model)
            if row is None or row.expires_at is None:
                return None
            return Lease(model=model, holder=row.holder, token=row.token, expires_at=row.expires_at)
