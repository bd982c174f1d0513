"""What Alembic runs: the revisions, in the transaction and on the connection that it was given."""

from __future__ import annotations

from alembic import context

from airlock.ledger.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
