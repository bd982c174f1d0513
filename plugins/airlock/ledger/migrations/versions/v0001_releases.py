"""Releases, routes, journal and verdicts: the tables of version 0.1.0."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "releases",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("key", sa.String, nullable=False, unique=True),
        sa.Column("model", sa.String, nullable=False, index=True),
        sa.Column("version", sa.String, nullable=False),
        sa.Column("champion", sa.String),
        sa.Column("bundle", sa.String, nullable=False),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("step", sa.String),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("entered_at", _TIME, nullable=False),
        sa.Column("opened_at", _TIME, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.create_table(
        "routes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("document", sa.String, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.UniqueConstraint("model", "generation"),
    )
    op.create_table(
        "journal",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("release", sa.String, sa.ForeignKey("releases.id")),
        sa.Column("version", sa.String),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("phase", sa.String),
        sa.Column("step", sa.String),
        sa.Column("generation", sa.Integer),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("at", _TIME, nullable=False),
    )
    op.create_index("journal_model_at", "journal", ["model", "at"])
    op.create_table(
        "verdicts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("release", sa.String, sa.ForeignKey("releases.id"), nullable=False, index=True),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("document", sa.String, nullable=False),
        sa.Column("at", _TIME, nullable=False),
    )
