"""The ledger's tables. Times are UTC; documents are JSON text."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import DateTime, Dialect, ForeignKey, Index, TypeDecorator, UniqueConstraint
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
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


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

    __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012 - SQLAlchemy reads it from the class


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
    """What happened, or is about to: written before its side effect, in the transaction of its route."""

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


class VerdictRow(Base):
    """A judgement of a release's step, as it was made."""

    __tablename__ = "verdicts"

    id: Mapped[int] = mapped_column(primary_key=True)
    release: Mapped[str] = mapped_column(ForeignKey("releases.id"), index=True)
    step: Mapped[str]
    generation: Mapped[int]
    name: Mapped[str]
    status: Mapped[str]
    document: Mapped[str]
    at: Mapped[datetime] = mapped_column(Utc)
