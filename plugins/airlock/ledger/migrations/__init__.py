"""The ledger's tables through the versions, as Alembic revisions. Run by ``airlock.ledger.schema``."""
