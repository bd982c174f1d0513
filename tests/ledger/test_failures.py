"""A database that is locked, full, gone or none: a bounded wait, words that say what to do, nothing half-written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import psycopg
import pytest
from sqlalchemy import event, text

from airlock.core.errors import Conflict, Unavailable
from airlock.core.release import Event
from airlock.ledger import Ledger
from airlock.ledger.engine import engine_of, told, writers
from tests.support.postgres import Postgres
from tests.support.releases import NOW, release, route


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    with postgres_server.database() as url:
        yield url


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Another program's write that does not end."""
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


class TestSqlite:
    def test_locked_for_too_long(self, file: Path) -> None:
        ledger = Ledger(f"sqlite:///{file}?timeout=0.2")
        opened = ledger.open(release(), key="k", actor="ann")
        with _lock(file):
            with pytest.raises(
                Unavailable, match=r"approve of release r1: nothing was written.*ledger\.db.* locked.*then retry"
            ):
                ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))
            assert ledger.release("r1") == opened, "who reads does not wait for who writes"
        assert ledger.routes("m") == []
        ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))

    def test_locked_for_a_while(self, file: Path) -> None:
        ledger = Ledger(f"sqlite:///{file}?timeout=60")
        opened = ledger.open(release(), key="k", actor="ann")
        writer = Thread(target=lambda: ledger.note(opened, "late", actor="ann", reason="", now=NOW))
        with _lock(file):
            writer.start()
            writer.join(0.3)
            assert writer.is_alive()
        writer.join(60)
        assert [entry.event for entry in ledger.timeline("m")] == ["open", "late"]

    def test_a_new_one_that_is_locked(self, file: Path) -> None:
        sqlite3.connect(file).execute("CREATE TABLE other (x)").connection.close()
        with _lock(file), pytest.raises(Unavailable, match=r"ledger.*locked"):
            Ledger(f"sqlite:///{file}?timeout=0.2")
        assert Ledger(f"sqlite:///{file}").models() == []

    def test_a_new_one_that_is_locked_for_a_while(self, file: Path) -> None:
        """SQLite itself would not wait for this lock: the change to a write-ahead log is refused at once."""
        sqlite3.connect(file).execute("CREATE TABLE other (x)").connection.close()
        opened: list[Ledger] = []
        opener = Thread(target=lambda: opened.append(Ledger(f"sqlite:///{file}?timeout=60")))
        with _lock(file):
            opener.start()
            opener.join(0.3)
            assert opener.is_alive()
        opener.join(60)
        assert opened[0].models() == []

    def test_full(self, file: Path) -> None:
        url = f"sqlite:///{file}"
        ledger = Ledger(url)
        opened = ledger.open(release(), key="k", actor="ann")
        engine = engine_of(url)
        engine.dispose()
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=1"))
        long = "x" * 100_000
        with pytest.raises(Unavailable, match=r"nothing was written, the disk .*ledger\.db is full.*free some room"):
            ledger.transition(opened, Event.APPROVE, actor="bob", reason=long, now=NOW, route=route(1))
        assert (ledger.release("r1"), ledger.routes("m"), len(ledger.timeline("m"))) == (opened, [], 1)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match=r"unable to open.*check that it runs, that AIRLOCK_LEDGER_URL"):
            Ledger(f"sqlite:///{tmp_path / 'none' / 'ledger.db'}")

    def test_a_file_that_is_something_else(self, file: Path) -> None:
        file.write_text("not a database, but long enough to be read as the header of one" * 100)
        with pytest.raises(Unavailable, match="not a database"):
            Ledger(f"sqlite:///{file}")


class TestPostgresql:
    def test_nobody_there(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="does not answer") as caught:
            Ledger(f"postgresql+psycopg://ann:secret@/airlock?host={tmp_path}")
        assert "secret" not in str(caught.value)

    def test_locked_for_too_long(self, postgres_url: str) -> None:
        Ledger(postgres_url).open(release(), key="k", actor="ann")
        impatient = Ledger(f"{postgres_url}&options=-c%20lock_timeout%3D200ms")
        opened = impatient.release("r1")
        with writers(engine_of(postgres_url)).begin() as other:
            other.execute(text("LOCK TABLE journal IN SHARE MODE"))
            with pytest.raises(Unavailable, match=r"approve of release r1: nothing was written.*locked"):
                impatient.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))
        assert (impatient.release("r1"), impatient.routes("m")) == (opened, [])

    def test_restarted_between_two_uses(self, postgres_url: str) -> None:
        ledger = Ledger(postgres_url)
        opened = ledger.open(release(), key="k", actor="ann")
        _end_connections(postgres_url)
        assert ledger.release("r1") == opened

    def test_gone_in_the_middle_of_a_write(self, postgres_url: str) -> None:
        ledger = Ledger(postgres_url)
        opened = ledger.open(release(), key="k", actor="ann")

        def end(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("INSERT INTO journal"):
                _end_connections(postgres_url)

        engine = engine_of(postgres_url)
        event.listen(engine, "before_cursor_execute", end)
        with pytest.raises(Unavailable, match="written whole or not at all"):
            ledger.transition(opened, Event.APPROVE, actor="bob", reason="yes", now=NOW, route=route(1))
        event.remove(engine, "before_cursor_execute", end)
        assert (ledger.release("r1"), ledger.routes("m")) == (opened, [])

    @pytest.mark.parametrize("state", ["40001", "40P01"])
    def test_a_transaction_that_the_database_gave_up_was_a_lost_race(self, postgres_url: str, state: str) -> None:
        engine = engine_of(postgres_url)
        raised = f"DO $$ BEGIN RAISE EXCEPTION 'sorry' USING ERRCODE = '{state}'; END $$"
        with (
            pytest.raises(Conflict, match="somebody else wrote at the same time"),
            told(engine, "it"),
            engine.begin() as connection,
        ):
            connection.execute(text(raised))

    def test_full(self, postgres_url: str) -> None:
        engine = engine_of(postgres_url)
        raised = "DO $$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = '53100'; END $$"
        with (
            pytest.raises(Unavailable, match=r"the disk .* is full"),
            told(engine, "it"),
            engine.begin() as connection,
        ):
            connection.execute(text(raised))


def _end_connections(url: str) -> None:
    """End everybody else's connections to the database, as a restart of the server does."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as own:
        own.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@pytest.mark.parametrize("url", ["ledger.db", "nosuch://x/y", "sqlite+nosuch:///x"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(Unavailable, match=r"URL cannot be used.*write one such as sqlite:////var"):
        Ledger(url)
