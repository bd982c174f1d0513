"""Leases, effects, votes, claims and states; what steers a release; history that only grows."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True)
_ONLY_GROWS = ("journal", "verdicts", "votes")


def upgrade() -> None:
    for column in (
        sa.Column("author", sa.String),
        sa.Column("run", sa.String),
        sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("promote_now", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("extended_s", sa.Double, nullable=False, server_default="0"),
    ):
        op.add_column("releases", column)
    op.add_column("journal", sa.Column("evidence", sa.String))
    _new_tables()
    _rewrite_routes()
    for table in _ONLY_GROWS:
        _refuse_changes(table)


def _new_tables() -> None:
    op.create_table(
        "votes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("release", sa.String, sa.ForeignKey("releases.id"), nullable=False),
        sa.Column("evidence", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("yes", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.UniqueConstraint("release", "evidence", "actor"),
    )
    op.create_table(
        "leases",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("holder", sa.String, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("expires_at", _TIME),
    )
    op.create_table(
        "effects",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("model", sa.String, nullable=False, index=True),
        sa.Column("release", sa.String, nullable=False, comment="empty for a route that belongs to no release"),
        sa.Column("step", sa.String, nullable=False, comment="empty for none: a null would not be unique"),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("asked", sa.Integer, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("done_at", _TIME),
        sa.UniqueConstraint("model", "release", "step", "generation", "kind"),
    )
    op.create_table(
        "claims",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.UniqueConstraint("model", "kind", "key"),
    )
    op.create_table(
        "states",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("document", sa.String, nullable=False),
    )


def _rewrite_routes() -> None:
    """Give the route documents of 0.1.0 the fields they have now, and a checksum that covers them."""
    routes = sa.table("routes", sa.column("id"), sa.column("document"))
    connection = op.get_bind()
    for row in connection.execute(sa.select(routes.c.id, routes.c.document)).all():
        document = json.loads(row.document)
        del document["checksum"]
        document |= {"step": None, "pins": [], "limits": _limits(document["limits"])}
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
        document["checksum"] = "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
        connection.execute(sa.update(routes).where(routes.c.id == row.id).values(document=json.dumps(document)))


def _limits(old: dict[str, Any]) -> list[dict[str, Any]]:
    """A release that is on its way keeps its limits, each with the same share of the error budget."""
    kinds = (
        ("error_rate", "errors", old["max_error_rate"], old["min_requests"], None),
        ("latency_p99", "slow", old["max_latency_ms"] and 0.01, old["min_requests"], old["max_latency_ms"]),
        ("prediction_shift", "difference", old["max_shift"], old["min_pairs"], None),
        ("prediction_disagreement", "absolute", old["max_disagreement"], old["min_pairs"], None),
    )
    given = [kind for kind in kinds if kind[2] is not None]
    return [
        {
            "name": name,
            "signal": signal,
            "bound": bound,
            "alpha": old["alpha"] / len(given),
            "steps": 1,
            "minimum": minimum,
            "over_ms": over_ms,
            "reach": None,
        }
        for name, signal, bound, minimum, over_ms in given
    ]


def _refuse_changes(table: str) -> None:
    said = f"the ledger only adds to {table}"
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{said}'); END"
            )
        # REPLACE deletes without asking the trigger above.
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "  # noqa: S608 - names of our own
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id) "
            f"BEGIN SELECT RAISE(ABORT, '{said}'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {table}_only_grows() RETURNS trigger LANGUAGE plpgsql "
        f"AS $$ BEGIN RAISE EXCEPTION '{said}'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_only_grows()"
    )
