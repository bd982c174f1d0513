"""The ledger's tables as they are now. Times are UTC; documents are JSON text.

How a database gets there is written in ``migrations/``: a change here needs a new one there.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import DateTime, Dialect, Double, ForeignKey, Index, TypeDecorator, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Utc(TypeDecorator[datetime]):
    """An aware UTC datetime, also where the database keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is not None and value.tzinfo is None:
            raise ValueError(f"the ledger takes times with a zone, got {value!r}")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    pass


class ReleaseRow(Base):
    """One candidate's way. ``key`` makes opening idempotent; ``revision`` is its compare-and-set."""

    __tablename__ = "releases"

    id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(index=True)
    version: Mapped[str]
    champion: Mapped[str | None]
    bundle: Mapped[str]
    phase: Mapped[str]
    step: Mapped[str | None]
    generation: Mapped[int]
    entered_at: Mapped[datetime] = mapped_column(Utc)
    opened_at: Mapped[datetime] = mapped_column(Utc)
    reason: Mapped[str]
    revision: Mapped[int] = mapped_column()
    author: Mapped[str | None]
    run: Mapped[str | None]
    paused: Mapped[bool] = mapped_column(server_default=false())
    promote_now: Mapped[bool] = mapped_column(server_default=false())
    extended_s: Mapped[float] = mapped_column(Double, server_default="0")
    spec: Mapped[str | None]

    __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012 - SQLAlchemy reads it from the class


class SpecRow(Base):
    """A spec that releases were opened with, under its document's digest."""

    __tablename__ = "specs"

    digest: Mapped[str] = mapped_column(primary_key=True)
    document: Mapped[str]
    at: Mapped[datetime] = mapped_column(Utc)


class RouteRow(Base):
    """A route document. The unique generation is what makes two writers one winner."""

    __tablename__ = "routes"
    __table_args__ = (UniqueConstraint("model", "generation"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    generation: Mapped[int]
    document: Mapped[str]
    at: Mapped[datetime] = mapped_column(Utc)


class JournalRow(Base):
    """What happened, or is about to: written before its side effect, in the transaction of its route. Append-only."""

    __tablename__ = "journal"
    __table_args__ = (Index("journal_model_at", "model", "at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    release: Mapped[str | None] = mapped_column(ForeignKey("releases.id"))
    version: Mapped[str | None]
    event: Mapped[str]
    phase: Mapped[str | None]
    step: Mapped[str | None]
    generation: Mapped[int | None]
    actor: Mapped[str]
    reason: Mapped[str]
    at: Mapped[datetime] = mapped_column(Utc)
    evidence: Mapped[str | None]


class VerdictRow(Base):
    """A judgement of a release's step, as it was made. Append-only."""

    __tablename__ = "verdicts"

    id: Mapped[int] = mapped_column(primary_key=True)
    release: Mapped[str] = mapped_column(ForeignKey("releases.id"), index=True)
    step: Mapped[str]
    generation: Mapped[int]
    name: Mapped[str]
    status: Mapped[str]
    document: Mapped[str]
    at: Mapped[datetime] = mapped_column(Utc)


class VoteRow(Base):
    """One person's answer to one piece of evidence. Append-only."""

    __tablename__ = "votes"
    __table_args__ = (UniqueConstraint("release", "evidence", "actor"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    release: Mapped[str] = mapped_column(ForeignKey("releases.id"))
    evidence: Mapped[str]
    actor: Mapped[str]
    yes: Mapped[bool]
    reason: Mapped[str]
    at: Mapped[datetime] = mapped_column(Utc)


class LeaseRow(Base):
    """Who may write about a model. ``token`` only ever grows; without ``expires_at`` nobody holds it."""

    __tablename__ = "leases"

    model: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    token: Mapped[int]
    expires_at: Mapped[datetime | None] = mapped_column(Utc)


class EffectRow(Base):
    """A side effect that was decided on; pending until ``done_at``."""

    __tablename__ = "effects"
    __table_args__ = (UniqueConstraint("model", "release", "step", "generation", "kind"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(index=True)
    release: Mapped[str] = mapped_column(comment="empty for a route that belongs to no release")
    step: Mapped[str] = mapped_column(comment="empty for none: a null would not be unique")
    generation: Mapped[int]
    kind: Mapped[str]
    asked: Mapped[int]
    at: Mapped[datetime] = mapped_column(Utc)
    done_at: Mapped[datetime | None] = mapped_column(Utc)


class ClaimRow(Base):
    """Who answers for what happened around a time."""

    __tablename__ = "claims"
    __table_args__ = (UniqueConstraint("model", "kind", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    kind: Mapped[str]
    key: Mapped[str]
    at: Mapped[datetime] = mapped_column(Utc)


class StateRow(Base):
    """A document that is worked on bit by bit. ``revision`` is its compare-and-set."""

    __tablename__ = "states"

    model: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    revision: Mapped[int]
    document: Mapped[str]
