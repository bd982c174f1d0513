"""The specs that releases are opened with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "specs",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("document", sa.String, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )
    # Null: opened before specs were kept. No foreign key: SQLite cannot add one to a table that is there.
    op.add_column("releases", sa.Column("spec", sa.String))
