"""Reading and writing the ledger.

Every change of a release is one transaction: its new phase, its journal entry and, where traffic
changes, the new route. Two controllers that do the same thing at once meet at the release's
revision and the route's generation; one commits, the other gets a ``Conflict``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from uuid import uuid4

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from airlock.core.errors import Conflict, NotFound
from airlock.core.release import Event, Phase, Release, next_phase
from airlock.core.route import Bundle, Route, parse_route
from airlock.core.verdict import Verdict
from airlock.ledger.tables import Base, JournalRow, ReleaseRow, RouteRow, VerdictRow

_LOCK_WAIT_S = 30


class VersionRecord(BaseModel):
    """A version that has held production."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    version: str
    bundle: Bundle
    release: str
    since: datetime


class TimelineEntry(BaseModel):
    """One line of a model's history."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: datetime
    release: str | None
    version: str | None
    actor: str
    event: str
    phase: str | None
    step: str | None
    generation: int | None
    reason: str


@lru_cache(maxsize=8)
def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        engine = create_engine(url, pool_pre_ping=True)
    else:
        engine = create_engine(url, connect_args={"timeout": _LOCK_WAIT_S})

        @event.listens_for(engine, "connect")
        def _durable(connection, _record) -> None:  # type: ignore[no-untyped-def]
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")

    Base.metadata.create_all(engine)
    return engine


class Ledger:
    """The ledger at an SQLAlchemy ``url``. Its tables are made when they are missing."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)

    @contextmanager
    def _transaction(self, what: str) -> Iterator[Session]:
        try:
            with Session(self._engine) as session, session.begin():
                yield session
        except (IntegrityError, StaleDataError) as error:
            raise Conflict(f"{what}: somebody else wrote first; read the ledger again and retry") from error

    def open(self, release: Release, *, key: str, actor: str) -> Release:
        """Record a new release, or return the one that was opened with the same ``key``."""
        with self._transaction(f"opening a release of {release.model} {release.version}") as session:
            known = session.scalar(select(ReleaseRow).where(ReleaseRow.key == key))
            if known is not None:
                return _release(known)
            row = ReleaseRow(
                id=release.id,
                key=key,
                model=release.model,
                version=release.version,
                champion=release.champion,
                bundle=release.bundle.model_dump_json(),
                phase=release.phase,
                step=release.step,
                generation=release.generation,
                entered_at=release.entered_at,
                opened_at=release.entered_at,
                reason=release.reason,
            )
            session.add(row)
            session.flush()
            session.add(_entry(release, "open", actor, release.reason, release.entered_at))
            return release

    def transition(
        self,
        release: Release,
        event: Event,
        *,
        actor: str,
        reason: str,
        now: datetime,
        step: str | None = None,
        route: Route | None = None,
    ) -> Release:
        """Move a release on, with the route that goes with it, or not at all.

        ``release`` is what the caller read: when the ledger has moved on since, nothing is written.

        Raises:
            Conflict: the release or the route changed meanwhile, or the machine forbids the event.
        """
        with self._transaction(f"{event} of release {release.id}") as session:
            row = session.get(ReleaseRow, release.id)
            if row is None:
                raise NotFound(f"the ledger has no release {release.id}")
            if _release(row) != release:
                raise Conflict(
                    f"release {release.id} is {row.phase} {row.step or ''} by now, it was {release.phase} "
                    f"{release.step or ''} when {event} was decided; decide again"
                )
            row.phase = next_phase(release.phase, event)
            row.step = step
            row.reason = reason
            row.entered_at = now
            if route is not None:
                row.generation = route.generation
                session.add(_route_row(route, now))
            moved = _release(row)
            session.add(_entry(moved, event, actor, reason, now))
            return moved

    def note(self, release: Release, event: str, *, actor: str, reason: str, now: datetime) -> None:
        """Journal something that changes no phase, such as a projection that has to be repaired."""
        with self._transaction(f"note on release {release.id}") as session:
            session.add(_entry(release, event, actor, reason, now))

    def record(self, release: Release, verdicts: Sequence[Verdict], *, step: str, now: datetime) -> None:
        """Keep the verdicts of a step."""
        with self._transaction(f"verdicts of release {release.id}") as session:
            session.add_all(
                VerdictRow(
                    release=release.id,
                    step=step,
                    generation=release.generation,
                    name=verdict.name,
                    status=verdict.status,
                    document=verdict.model_dump_json(),
                    at=now,
                )
                for verdict in verdicts
            )

    def release(self, release_id: str) -> Release:
        """One release.

        Raises:
            NotFound: there is none of that id.
        """
        with Session(self._engine) as session:
            row = session.get(ReleaseRow, release_id)
            if row is None:
                raise NotFound(f"the ledger has no release {release_id}")
            return _release(row)

    def releases(self, model: str, *, phases: Collection[Phase] | None = None) -> list[Release]:
        """A model's releases, the newest first; only those in ``phases``, if given."""
        query = select(ReleaseRow).where(ReleaseRow.model == model).order_by(ReleaseRow.opened_at.desc())
        if phases is not None:
            query = query.where(ReleaseRow.phase.in_(phases))
        with Session(self._engine) as session:
            return [_release(row) for row in session.scalars(query)]

    def route(self, model: str) -> Route | None:
        """The newest route of a model."""
        query = select(RouteRow).where(RouteRow.model == model).order_by(RouteRow.generation.desc()).limit(1)
        with Session(self._engine) as session:
            row = session.scalar(query)
            return None if row is None else parse_route(row.document)

    def routes(self, model: str) -> list[Route]:
        """Every route a model has had, the oldest first."""
        query = select(RouteRow).where(RouteRow.model == model).order_by(RouteRow.generation)
        with Session(self._engine) as session:
            return [parse_route(row.document) for row in session.scalars(query)]

    def champion(self, model: str) -> VersionRecord | None:
        """The version that holds production; ``None`` before the first was promoted.

        Raises:
            Conflict: the newest route names a version that no promoted release stands for. To take that for
                "no champion" would let the next candidate through without a comparison.
        """
        route = self.route(model)
        if route is None:
            return None
        for good in self.good_versions(model):
            if good.version == route.champion:
                return good
        raise Conflict(
            f"{model}: route generation {route.generation} names version {route.champion} as the champion, but the "
            f"ledger has no promoted release of it; see airlock history {model}"
        )

    def good_versions(self, model: str) -> list[VersionRecord]:
        """Versions that were promoted and not taken back, the newest first."""
        query = (
            select(ReleaseRow)
            .where(ReleaseRow.model == model, ReleaseRow.phase == Phase.PROMOTED)
            .order_by(ReleaseRow.entered_at.desc())
        )
        with Session(self._engine) as session:
            return [
                VersionRecord(
                    model=row.model,
                    version=row.version,
                    bundle=Bundle.model_validate_json(row.bundle),
                    release=row.id,
                    since=row.entered_at,
                )
                for row in session.scalars(query)
            ]

    def verdicts(self, release_id: str, *, generation: int | None = None) -> list[tuple[str, Verdict]]:
        """A release's verdicts with their steps, in the order they were made; ``generation``: of that route only."""
        query = select(VerdictRow).where(VerdictRow.release == release_id).order_by(VerdictRow.id)
        if generation is not None:
            query = query.where(VerdictRow.generation == generation)
        with Session(self._engine) as session:
            return [(row.step, Verdict.model_validate_json(row.document)) for row in session.scalars(query)]

    def timeline(self, model: str) -> list[TimelineEntry]:
        """A model's whole history, the oldest first."""
        query = select(JournalRow).where(JournalRow.model == model).order_by(JournalRow.id)
        with Session(self._engine) as session:
            return [
                TimelineEntry(
                    at=row.at,
                    release=row.release,
                    version=row.version,
                    actor=row.actor,
                    event=row.event,
                    phase=row.phase,
                    step=row.step,
                    generation=row.generation,
                    reason=row.reason,
                )
                for row in session.scalars(query)
            ]


def new_release_id() -> str:
    return uuid4().hex[:12]


def _release(row: ReleaseRow) -> Release:
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
    )


def _route_row(route: Route, now: datetime) -> RouteRow:
    return RouteRow(model=route.model, generation=route.generation, document=route.to_json(), at=now)


def _entry(release: Release, event: str, actor: str, reason: str, at: datetime) -> JournalRow:
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
    )
