"""Bringing a database to the tables of this version of Airlock, with Alembic.

Opening a ledger that is up to date costs one query and does not import Alembic.
"""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from airlock.core.errors import Unavailable
from airlock.ledger.engine import engine_of, take_turn, told, writers

HEAD = "0003"
"""The newest revision in ``migrations/versions/``."""

_FIRST = "0001"
_migrating = threading.Lock()


def current(engine: Engine) -> str | None:
    """The revision the database is at; ``None`` when no Airlock that keeps revisions has opened it.

    Raises:
        Unavailable: it does not answer.
    """
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
        return None  # to connect would make it
    with told(engine, "reading the ledger's revision"):
        try:
            with engine.connect() as connection:
                return _revision(connection)
        except (OperationalError, ProgrammingError):
            with engine.connect() as connection:
                return _revision(connection) if inspect(connection).has_table("alembic_version") else None


def _revision(connection: Connection) -> str | None:
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def require_current(engine: Engine) -> None:
    """Upgrade the database if it is behind.

    Raises:
        Unavailable: it does not answer, or is ahead of this version of Airlock.
    """
    if current(engine) != HEAD:
        upgrade(engine)


def upgrade(engine: Engine) -> None:
    """Bring the database to ``HEAD``, whole or not at all, however many processes try it at once.

    Tables of version 0.1.0, which kept no revision, are taken over with their rows.

    Raises:
        Unavailable: it does not answer, or is ahead of this version of Airlock.
    """
    # Alembic's context is one for the process.
    with _migrating, told(engine, "upgrading the ledger"), writers(engine).begin() as connection:
        take_turn(connection, "schema")
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))  # a large table takes its time
        _upgrade(connection)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        found = _revision(connection)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if found is not None and found not in known:
            raise Unavailable(
                f"the ledger {connection.engine.url.render_as_string(hide_password=True)} is at revision {found}, "
                f"this Airlock knows revisions up to {HEAD}: a newer Airlock has upgraded it; install that version here"
            )
    elif "releases" in tables:
        command.stamp(config, _FIRST)
    command.upgrade(config, HEAD)


def open_engine(url: str) -> Engine:
    """The engine for a database, its tables up to date.

    Raises:
        Unavailable: it does not answer, or is ahead of this version of Airlock.
    """
    engine = engine_of(url)
    require_current(engine)
    return engine
