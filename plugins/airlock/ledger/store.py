"""What every part of the ledger stands on: its transactions, and the check of a lease in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from airlock.core.errors import Fenced, NotFound
from airlock.core.release import Phase, Release
from airlock.core.route import Bundle
from airlock.ledger.engine import readers, take_turn, told, writers
from airlock.ledger.records import Lease
from airlock.ledger.schema import open_engine
from airlock.ledger.tables import LeaseRow, ReleaseRow


class Store:
    """The database at an SQLAlchemy ``url``, its tables up to date.

    Raises:
        Unavailable: it does not answer, or a newer Airlock has upgraded it. So do all methods.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)

    @contextmanager
    def _reading(self, what: str) -> Iterator[Session]:
        """One moment of the ledger."""
        with told(self._engine, what), Session(readers(self._engine)) as session:
            yield session

    @contextmanager
    def _writing(
        self, model: str, what: str, *, lease: Lease | None = None, now: datetime | None = None
    ) -> Iterator[Session]:
        """A transaction that is alone in writing about ``model``, under ``lease`` where one is given.

        Raises:
            Fenced: the lease is not the newest, was given back, or has run out by ``now``.
        """
        with told(self._engine, what), Session(writers(self._engine)) as session, session.begin():
            take_turn(session.connection(), model)
            if lease is not None:
                _require_held(session, model, lease, now, what)
            yield session

    def _model_of(self, release_id: str) -> str:
        """Whose release it is; that never changes.

        Raises:
            NotFound: there is none of that id.
        """
        with self._reading(f"reading release {release_id}") as session:
            return found(session, release_id).model


def _require_held(session: Session, model: str, lease: Lease, now: datetime | None, what: str) -> None:
    row = session.get(LeaseRow, model)
    if lease.model != model or row is None or row.token != lease.token or row.holder != lease.holder:
        newest = "nobody" if row is None else f"{row.holder} (token {row.token})"
        why = f"it is {newest}'s turn, not {lease.holder}'s (token {lease.token} for {lease.model})"
    elif row.expires_at is None:
        why = f"{lease.holder} has given its lease back"
    elif now is not None and now >= row.expires_at:
        why = f"the lease of {lease.holder} ran out at {row.expires_at}, it is {now}"
    else:
        return
    raise Fenced(f"{what}: {why}; nothing was written: take the lease of {model} again and decide again")


def found(session: Session, release_id: str) -> ReleaseRow:
    """The row of a release.

    Raises:
        NotFound: there is none of that id.
    """
    row = session.get(ReleaseRow, release_id)
    if row is None:
        raise NotFound(f"the ledger has no release {release_id}")
    return row


def release_of(row: ReleaseRow) -> Release:
    return Release(
        id=row.id,
        model=row.model,
        version=row.version,
        champion=row.champion,
        bundle=Bundle.model_validate_json(row.bundle),
        phase=Phase(row.phase),
        step=row.step,
        generation=row.generation,
        entered_at=row.entered_at,
        reason=row.reason,
        author=row.author,
        run=row.run,
        paused=row.paused,
        promote_now=row.promote_now,
        extended=timedelta(seconds=row.extended_s),
        spec=row.spec,
    )
