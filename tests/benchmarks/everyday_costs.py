"""What everyday calls cost beside the least that they could: tests hold their calls and order, this their time.

    python tests/benchmarks/everyday_costs.py --rounds 5

- an online read of ``flight_delay`` through Feast, beside its statements on a bare SQLite connection;
- an hour of features pushed through Feast, beside the same rows written to one bare SQLite table;
- ``airlock --help``, beside an empty Python process;
- a Bento that is packaged, beside one that is found packaged.

Processor time, interleaved, medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "plugins"), str(REPOSITORY / "bentos")]

START = datetime(2013, 1, 18, 15, tzinfo=UTC)
ENTITY = {
    "carrier": "UA",
    "origin": "EWR",
    "dest": "IAH",
    "route": "EWR-IAH",
    "tailnum": "N14228",
    "minute": 600,
    "weekday": 4,
    "distance": 1400.0,
    "scheduled_minutes": 240.0,
}
READS = 50
Measured = tuple[str, list[tuple[float, float]]]


def spent(work: Callable[[], object]) -> float:
    """Processor milliseconds of this process and of the children that it waited for."""
    before = used()
    work()
    return 1e3 * (used() - before)


def used() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def pushes(rounds: int) -> Measured:
    """An hour's features, and the same values written to one table."""
    from airlock import settings, specs
    from airlock.steps import features
    from airlock.steps.recipes import load_recipe

    here = settings.load()
    spec = specs.find(here, "flight_delay")
    recipe: Any = load_recipe(spec, here)
    hours = [recipe.online_frames(START + timedelta(hours=n), START + timedelta(hours=n + 1)) for n in range(rounds)]

    def push(frames: Any) -> None:
        for view, rows in frames.items():
            features.push(spec, here, view, rows)

    push(recipe.online_frames(None, START))
    with closing(sqlite3.connect(here.home / "bare.db")) as bare:
        bare.execute("CREATE TABLE rows (view TEXT, key TEXT, name TEXT, value)")

        def push_bare(frames: Any) -> None:
            with bare:
                for view, rows in frames.items():
                    for key, row in enumerate(rows.to_dict("records")):
                        values = [(view, key, name, str(value)) for name, value in row.items()]
                        bare.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", values)

        pairs = [(spent(lambda f=f: push(f)), spent(lambda f=f: push_bare(f))) for f in hours]  # type: ignore[misc]
    return "an hour of features pushed", pairs


def reads(rounds: int) -> Measured:
    """One entity through Feast, and the statements that this comes to."""
    from feast import FeatureStore
    from feast.infra.online_stores.sqlite import SqliteOnlineStore

    from airlock import settings

    here, statements = settings.load(), list[str]()
    store = FeatureStore(repo_path=str(here.feature_repo))
    service = store.get_feature_service("flight_delay", allow_cache=True)

    def read() -> None:
        store.get_online_features(service, [ENTITY]).to_dict()

    connected = SqliteOnlineStore._get_conn
    SqliteOnlineStore._get_conn = lambda *of: _traced(connected(*of), statements.append)  # type: ignore[method-assign]
    read()
    SqliteOnlineStore._get_conn = lambda *of: _traced(connected(*of), None)  # type: ignore[method-assign]
    read()
    with closing(sqlite3.connect(here.feast_home / "online.db")) as bare:

        def read_bare() -> None:
            for statement in statements:
                bare.execute(statement).fetchall()

        pairs = [
            (
                spent(lambda: [read() for _ in range(READS)]) / READS,
                spent(lambda: [read_bare() for _ in range(READS)]) / READS,
            )
            for _ in range(rounds)
        ]
    return f"online read of one entity, {len(statements)} views", pairs


def _traced(connection: Any, trace: Callable[[str], object] | None) -> Any:
    connection.set_trace_callback(trace)
    return connection


def commands(rounds: int) -> Measured:
    code = "import sys; sys.argv = ['airlock', '--help']; from airlock.cli import main; main()"

    def run(code: str) -> float:
        return spent(lambda: subprocess.run([sys.executable, "-c", code], capture_output=True, check=False))

    pairs = [(run(code), run("pass")) for _ in range(rounds)]
    return "`airlock --help`", pairs


def packages(home: Path, rounds: int) -> Measured:
    from airlock.steps import packaging
    from tests.steps.test_packaging import SPEC, registered, settings_at

    here, pairs = settings_at(home), []
    for number in range(rounds):
        version = registered(home / f"registered-{number}", bias=number / 10)
        first, again = (spent(lambda v=version: packaging.package(SPEC, here, v)) for _ in range(2))  # type: ignore[misc]
        pairs.append((first, again))
    return "a Bento packaged, and found packaged", pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    home, load = Path(tempfile.mkdtemp(prefix="airlock-bench-")), os.getloadavg()[0]
    os.environ |= {"AIRLOCK_HOME": str(home), "AIRLOCK_PROJECT": str(REPOSITORY)}
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [pushes(rounds), reads(rounds), commands(rounds), packages(home / ".packaged", rounds)]
    lines = ["| what | ms | beside it, ms | ratio |", "| --- | --- | --- | --- |"]
    for what, pairs in found:
        one, two = (statistics.median(pair[place] for pair in pairs) for place in (0, 1))
        lines.append(f"| {what} | {one:.2f} | {two:.2f} | {one / two:.1f} |")
    lines.append(f"\n{rounds} rounds, {time.monotonic() - began:.0f} s, load average at the start {load:.1f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
