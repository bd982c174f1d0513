"""Models on one real gateway and on both databases, and a count of what was injected.

With ``AIRLOCK_FAULTS_TABLE`` naming a file the counts are written there as a table, for tests/benchmarks/RESULTS.md.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from airlock.settings import Settings
from tests.support.fault_worker import Worker
from tests.support.fault_world import World
from tests.support.gateway_process import GatewayProcess, running_gateway

_NUMBERS = count(1)
_COUNTED: dict[str, Counter[str]] = {}

Injected = Callable[[str, str], None]

ON_SQLITE_FIRST = pytest.mark.parametrize(
    "ledger_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
"""For faults that are none of the ledger's own, or at points where F1 and F2 kill too: the fast tests have them on one
database."""


@pytest.fixture(scope="session", autouse=True)
def _airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers are forks of a process that has imported Airflow, which makes itself a home where it is told to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
        yield


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One real gateway for all models of a file that nothing is done to the gateway for."""
    with running_gateway(tmp_path_factory.mktemp("faults"), "/healthz") as process:
        yield process


@pytest.fixture
def database(ledger_url: str) -> str:
    return ledger_url.partition(":")[0].partition("+")[0]


@pytest.fixture
def make_world(ledger_url: str, database: str, request: pytest.FixtureRequest) -> Callable[..., World]:
    """Models with a ledger of this test's own, on the gateway of its file unless ``on`` says otherwise."""

    def make(on: GatewayProcess | None = None, **changes: Any) -> World:
        process: GatewayProcess = on or request.getfixturevalue("gateway")
        url = "http://127.0.0.1:9"
        settings = Settings(process.home, process.home, url, process.url, url, ledger_url)
        world = World(settings, f"m{next(_NUMBERS)}", changes)
        world.write_spec()
        return world

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Workers that end with the test at the latest."""
    workers: list[Worker] = []

    def make(*arguments: Any, **keywords: Any) -> Worker:
        workers.append(Worker(tmp_path / "workers", *arguments, **keywords))
        return workers[-1]

    yield make
    for worker in workers:
        worker.end()


@pytest.fixture
def injected(database: str) -> Injected:
    """Count one injected fault: its row and what was done."""

    def injected(row: str, what: str) -> None:
        _COUNTED.setdefault(row, Counter())[f"{what} | {database}"] += 1

    return injected


def pytest_sessionfinish() -> None:
    if (path := os.environ.get("AIRLOCK_FAULTS_TABLE")) and _COUNTED:
        rows = [
            f"| {row} | {what} | {times} |"
            for row, found in sorted(_COUNTED.items(), key=lambda item: int(re.sub(r"\D", "", item[0])))
            for what, times in sorted(found.items())
        ]
        Path(path).write_text("\n".join(rows) + "\n")
