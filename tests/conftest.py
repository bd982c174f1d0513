"""What tests of several parts share."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from airlock import settings
from airlock.ledger import Ledger
from tests.support import postgres

# Machines are shared: how long an example took says nothing about the code. Continuous integration tries the same
# examples each time, so that only a change can turn it red; everywhere else new ones are tried.
hypothesis.settings.register_profile(
    "airlock",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    print_blob=True,
)
hypothesis.settings.load_profile("airlock")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """With ``--dist loadfile``: files, and what starts a real Airflow as one piece."""
    from tests.support.side_by_side import SideBySide

    return SideBySide(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with what takes long."""
    if hasattr(config, "workerinput"):
        from tests.support.side_by_side import by_length

        by_length(items)


@pytest.fixture(scope="session")
def prepared_flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder with the year of flights, parsed once for all tests and all workers."""
    from include.flight_delay import data

    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "flights"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setenv("AIRLOCK_HOME", str(home))
        data.prepared()
    return home / "cache"


@pytest.fixture
def flights_home(prepared_flights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
    """Settings of this repository's project with an empty home of its own that has the flights' cache."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "cache").symlink_to(prepared_flights)
    monkeypatch.setenv("AIRLOCK_HOME", str(home))
    monkeypatch.setenv("AIRLOCK_PROJECT", str(Path(__file__).parents[1]))
    return settings.load()


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with its tables and nothing in them: to make those takes longer than most tests."""
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    Ledger(f"sqlite:///{path}").models()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    """A real PostgreSQL, started when the first test asks for it."""
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty ledger; the test runs once on each kind of database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    with server.database() as url:
        yield url
