"""History only grows: the database itself refuses to change it, whoever asks."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DatabaseError

from airlock.ledger import Ledger
from tests.support.releases import NOW, PASS, release


@pytest.fixture
def filled(ledger_url: str) -> str:
    """A ledger with one row in each table of its history."""
    ledger = Ledger(ledger_url)
    ledger.open(release(), key="k", actor="ann", verdicts=[PASS])
    ledger.vote("r1", actor="bob", yes=True, reason="", evidence="e", now=NOW)
    return ledger_url


TABLES = {"journal": "reason", "verdicts": "document", "votes": "reason"}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {table} SET {column} = 'better'",
        "UPDATE {table} SET {column} = 'better' WHERE id = 1",
        "DELETE FROM {table}",
        "DELETE FROM {table} WHERE id = 1",
    ],
)
def test_what_happened_cannot_be_changed(filled: str, table: str, statement: str) -> None:
    _refused(filled, table, statement.format(table=table, column=TABLES[table]))


@pytest.mark.parametrize("table", TABLES)
def test_nor_thrown_away_by_the_way(filled: str, table: str) -> None:
    sqlite = f"REPLACE INTO {table} SELECT * FROM {table}"
    _refused(filled, table, sqlite if filled.startswith("sqlite") else f"TRUNCATE {table} CASCADE")


def _refused(url: str, table: str, statement: str) -> None:
    engine = create_engine(url)
    before = _rows(url, table)
    assert before
    with pytest.raises(DatabaseError, match=f"the ledger only adds to {table}"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert _rows(url, table) == before


def _rows(url: str, table: str) -> list[tuple[object, ...]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))]
    engine.dispose()
    return rows
