"""Connections to the ledger's database, one transaction at a time, and its failures in words.

One writer at a time: SQLite by ``BEGIN IMMEDIATE``, PostgreSQL by an advisory lock on the model. What a writer
reads in its transaction is therefore still so when it commits, on both, without serialisation failures. A reader
sees one moment of the ledger and waits for nobody.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import (
    TimeoutError as PoolTimeout,
)
from sqlalchemy.orm.exc import StaleDataError

from airlock.core.errors import Conflict, Unavailable

LOCK_WAIT_S = 15
"""How long a writer waits for another one before it gives up. ``?timeout=`` in a SQLite URL says otherwise."""

_CONNECT_WAIT_S = 10
_BEGIN = "airlock_begin"
_LOST_RACE = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected
_LOCKED = frozenset({"55P03", "57014"})  # lock_not_available, query_canceled
_FULL = frozenset({"53100"})  # disk_full

_engines: dict[str, Engine] = {}
_opening = threading.Lock()


def engine_of(url: str) -> Engine:
    """This process's engine for the database; nothing is asked of the database yet.

    Raises:
        Unavailable: it is not a URL that SQLAlchemy can open.
    """
    with _opening:
        if url not in _engines:
            try:
                _engines[url] = _engine(url)
            except (ArgumentError, ModuleNotFoundError) as error:
                raise Unavailable(
                    f"the ledger's URL cannot be used: {error}; write one such as sqlite:////var/lib/airlock/ledger.db "
                    "or postgresql+psycopg://db/airlock (with the extra airflow-provider-airlock[postgres])"
                ) from error
        return _engines[url]


def _forget_engines() -> None:
    """A forked child must not write on its parent's connections."""
    for engine in _engines.values():
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_engines)


def _engine(url: str) -> Engine:
    where = make_url(url)
    if where.get_backend_name() == "sqlite":
        wait = {} if "timeout" in where.query else {"timeout": LOCK_WAIT_S}
        engine = create_engine(where, connect_args=wait)
        event.listen(engine, "connect", _durable)
        event.listen(engine, "begin", _begin)
        return engine
    limits = f"-c lock_timeout={LOCK_WAIT_S}s -c statement_timeout={2 * LOCK_WAIT_S}s"
    arguments: dict[str, Any] = {"connect_timeout": _CONNECT_WAIT_S, "options": limits}
    return create_engine(
        where,
        pool_pre_ping=True,
        connect_args={name: value for name, value in arguments.items() if name not in where.query},
    )


def _durable(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, not at the first write
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. Where two processes do so at once, SQLite refuses one without waiting."""
    (wait_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    deadline = time.monotonic() + wait_ms / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if time.monotonic() > deadline or "locked" not in str(error):
                raise
            time.sleep(0.05)
        else:
            return


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))


def readers(engine: Engine) -> Engine:
    """The same database for reading: every statement of a transaction sees the same moment."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def writers(engine: Engine) -> Engine:
    """The same database for writing; ``take_turn`` comes first in every transaction."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
    return engine.execution_options(isolation_level="READ COMMITTED")


def take_turn(connection: Connection, what: str) -> None:
    """Wait until no other writer about ``what`` is left; held until the transaction ends."""
    if connection.dialect.name == "sqlite":
        return  # BEGIN IMMEDIATE has waited already
    digest = hashlib.sha256(f"airlock ledger {what}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


@contextmanager
def told(engine: Engine, what: str) -> Iterator[None]:
    """Say in words what the database could not do.

    Raises:
        Conflict: somebody else wrote first.
        Unavailable: the database does not answer, is locked for too long, or has no room.
    """
    try:
        yield
    except (IntegrityError, StaleDataError) as error:
        raise Conflict(f"{what}: somebody else wrote first; read the ledger again and retry") from error
    except (ProgrammingError, DataError, NotSupportedError):
        raise
    except PoolTimeout as error:
        raise Unavailable(f"{what}: every connection to the ledger is in use: {error}; retry") from error
    except (DatabaseError, InterfaceError) as error:
        raise _translated(engine, what, error) from error


def _translated(engine: Engine, what: str, error: DatabaseError | InterfaceError) -> Conflict | Unavailable:
    state = getattr(error.orig, "sqlstate", None) or ""
    said = str(error.orig).strip()
    where = engine.url.render_as_string(hide_password=True)
    if state in _LOST_RACE:
        return Conflict(f"{what}: somebody else wrote at the same time; read the ledger again and retry")
    if state in _LOCKED or "locked" in said:
        return Unavailable(
            f"{what}: nothing was written, another process keeps the ledger {where} locked ({said}); "
            "find and end the process that hangs with it open, then retry"
        )
    if state in _FULL or "full" in said:
        return Unavailable(
            f"{what}: nothing was written, the disk of the ledger {where} is full ({said}); free some room, then retry"
        )
    return Unavailable(
        f"{what}: the ledger {where} does not answer ({said}); check that it runs, that AIRLOCK_LEDGER_URL or the "
        "connection airlock_ledger names it and that this user may write to it, then retry: what is written there "
        "is written whole or not at all"
    )
