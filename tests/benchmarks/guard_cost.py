"""What one evaluation of all guards of a release costs: over a whole log, and when only the last of it is new.

    python tests/benchmarks/guard_cost.py [--predictions 1000000] [--per-file 5000] [--rounds 5]

The log is in the gateway's own format, by its own writer: half of the predictions are the candidate's and half the
champion's on the same requests; nine in ten have a label by now and those that the candidate or the champion served
have outcomes. Every kind of guard is declared. An evaluation gathers the evidence (log, labels, outcomes), keeps its
state in a ledger (SQLite) and judges every limit. Beside it, in the same rounds, DuckDB counts the rows of the same
files, which reads no column, and adds up one column. Imports are done before; the files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bentos")]

from airlock.core.counters import Counters  # noqa: E402
from airlock.core.guards import judge, limits_of  # noqa: E402
from airlock.core.release import Phase, Release  # noqa: E402
from airlock.core.route import Bundle  # noqa: E402
from airlock.core.spec import ModelSpec  # noqa: E402
from airlock.ledger import Ledger  # noqa: E402
from airlock.settings import Settings  # noqa: E402
from airlock.steps import evidence, labels, outcomes  # noqa: E402
from gateway.prediction_writer import Counted, Entry, Origin, to_table  # noqa: E402
from tests.support.toy_model import toy_spec  # noqa: E402

START = datetime(2026, 2, 1, tzinfo=UTC)
GAP_US = 80_000  # between two requests: 500,000 of them in 11 hours
INPUTS = tuple((f"input_{number}", "float") for number in range(20))
GUARDS = (
    {"kind": "error_rate", "max": 0.02},
    {"kind": "latency", "max_p50_ms": 20, "max_p95_ms": 40, "max_p99_ms": 60},
    {"kind": "fallback_rate", "max": 0.02},
    {"kind": "prediction_shift", "max_mean": 0.05, "max_absolute": 0.1},
    {"kind": "disagreement", "max": 0.2},
    {"kind": "paired_loss", "metric": "brier", "margin": 0.01},
    {"kind": "paired_loss", "metric": "log_loss", "margin": 0.05},
    {"kind": "label_metric", "metric": "roc_auc", "margin": 0.02},
    {"kind": "label_metric", "metric": "accuracy", "min": 0.5},
    {"kind": "business_metric", "name": "revenue", "range": (0, 100), "max_drop": 5},
)
RELEASE = Release(
    id="bench",
    model="toy",
    version="2",
    champion="1",
    bundle=Bundle(path="2", digest="sha256:" + "2" * 64),
    phase=Phase.CANARY,
    step="canary_25",
    generation=7,
    entered_at=START,
)


class Traffic:
    """A model's traffic, written as it goes on."""

    def __init__(self, spec: ModelSpec, settings: Settings, per_file: int) -> None:
        self.spec, self.settings, self.per_file = spec, settings, per_file
        self.random = np.random.default_rng(1)
        self.asked = self.sequence = 0
        self.folder = settings.predictions / spec.model / f"day={START:%Y-%m-%d}"
        self.folder.mkdir(parents=True)

    def go_on(self, predictions: int) -> None:
        """So many more predictions, and the labels and outcomes of nine in ten of the requests."""
        requests = predictions // 2
        first, served = self.asked, self.random.random(requests) < 0.25
        theirs = self.random.beta(2, 5, requests)
        ours = np.clip(theirs + self.random.normal(0, 0.03, requests), 0, 1)
        latency = self.random.lognormal(1.5, 0.4, (requests, 2))
        inputs = self.random.normal(size=(requests, len(INPUTS))).round(3).tolist()
        start_us = int(START.timestamp() * 1e6)
        entries: list[Entry] = []
        for index in range(requests):
            number = first + index
            at = start_us + number * GAP_US
            origin = Origin(
                **dict.fromkeys(Origin._fields)
                | {
                    "at_us": at,
                    "request_id": f"a1b2c3d4e5f6-{number:x}",
                    "generation": 7,
                    "release": "bench",
                    "keys": [f"visit-{number:08d}"],
                    "event_times_us": [at],
                    "columns": INPUTS,
                    "rows": [inputs[index]],
                }
            )
            ours_served = bool(served[index])
            for version, score, mine in (("2", ours[index], True), ("1", theirs[index], False)):
                entries.append(
                    Entry(
                        **dict.fromkeys(Entry._fields)
                        | {
                            "origin": origin,
                            "version": version,
                            "variant": "candidate" if mine else "champion",
                            "role": "served" if mine is ours_served else "shadow",
                            "predictions": [float(score >= 0.5)],
                            "probabilities": [float(score)],
                            "latency_ms": float(latency[index, int(mine)]),
                        }
                    )
                )
            if len(entries) >= self.per_file:
                self._write(entries)
                entries = []
        if entries:
            self._write(entries)
        self.asked += requests
        self._deliver(first, theirs)

    def _write(self, entries: list[Entry]) -> None:
        self.sequence += 1
        nanoseconds = int(START.timestamp() * 1e9) + self.sequence * 900_000_000
        name = f"part-{nanoseconds}-{os.getpid()}-{self.sequence:06d}.parquet"
        counted = [Counted(number, entry.origin.at_us, entry) for number, entry in enumerate(entries, start=1)]
        pq.write_table(to_table(INPUTS, counted), self.folder / name, compression="zstd")

    def _deliver(self, first: int, chance: np.ndarray[Any, Any]) -> None:
        known = self.random.random(chance.size) < 0.9
        numbers = first + np.flatnonzero(known)
        times = pd.to_datetime(int(START.timestamp() * 1e6) + numbers * GAP_US + 60_000_000, unit="us", utc=True)
        keys = [f"visit-{number:08d}" for number in numbers]
        truth = (self.random.random(numbers.size) < chance[known]).astype(float)
        frame = pd.DataFrame({"visit": keys, "bought": truth, "known_at": times})
        revenue = np.clip(self.random.normal(40, 20, numbers.size), 0, 100)
        came = pd.DataFrame({"key": keys, "name": "revenue", "value": revenue, "time": times})
        for hour in sorted(times.floor("h").unique()):
            chosen = times.floor("h") == hour
            labels.deliver(self.spec, self.settings, frame[chosen])
            outcomes.deliver(self.spec, self.settings, came[chosen])

    @property
    def files(self) -> list[str]:
        return sorted(str(path) for path in self.folder.glob("part-*.parquet"))

    @property
    def until(self) -> datetime:
        return START + timedelta(microseconds=self.asked * GAP_US) + timedelta(minutes=5)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the clock, seconds of the processors, and what came of it."""
    clock, processors = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - clock, time.process_time() - processors, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--new", type=int, default=1_000)
    parser.add_argument("--per-file", type=int, default=5_000, help="predictions a file; the gateway's most is 5,000")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    label = {"name": "bought", "time": "known_at", "maturity": "1h"}
    spec = toy_spec(guards=GUARDS, label=label, rollout={"steps": [{"weight": 100, "min_requests": 100}]})
    limits = limits_of(spec)
    with tempfile.TemporaryDirectory(prefix="airlock-bench-") as folder:
        home = Path(folder)
        settings = Settings(home, home, *["http://127.0.0.1:1"] * 3, f"sqlite:///{home / 'ledger.db'}")
        traffic = Traffic(spec, settings, arguments.per_file)
        say(f"writing {arguments.predictions:,} predictions")
        traffic.go_on(arguments.predictions)

        def evaluate(ledger: Ledger) -> Any:
            found = evidence.gather(spec, settings, ledger, RELEASE, "1", until=traffic.until)
            return found, judge(limits, Counters({"served": found.tally}), late=found.late)

        connection = duckdb.connect()

        def scan(what: str) -> Any:
            return connection.execute(f"SELECT {what} FROM read_parquet(?)", [traffic.files]).fetchall()

        evaluate(Ledger(f"sqlite:///{home / 'warm.db'}"))
        seconds: dict[str, list[tuple[float, float]]] = {}

        def take(name: str, work: Callable[[], Any]) -> Any:
            clock, processors, found = timed(work)
            seconds.setdefault(name, []).append((clock, processors))
            return found

        for number in range(arguments.rounds):
            say(f"round {number + 1} of {arguments.rounds}, load average {os.getloadavg()[0]:.1f}")
            ledger = Ledger(f"sqlite:///{home / f'ledger{number}.db'}")
            ledger.load_state("toy", "nothing")  # the database is made
            take("count(*)", lambda: scan("count(*)"))
            take("sum of a column", lambda: scan("sum(latency_ms)"))
            found, verdicts = take("all of the log", lambda: evaluate(ledger))  # noqa: B023 - called in this round
            traffic.go_on(arguments.new)
            newer, _ = take("only the last is new", lambda: evaluate(ledger))  # noqa: B023
            take("nothing is new", lambda: evaluate(ledger))  # noqa: B023
            assert newer.tally.requests - found.tally.requests == arguments.new // 2
        state = ledger.load_state("toy", "evidence/bench")
        assert state is not None
        result = {
            "limits": len(limits),
            "verdicts": {verdict.name: f"{verdict.status} n={verdict.n}" for verdict in verdicts},
            "files": len(traffic.files),
            "state_kb": round(len(state[0]) / 1000),
            "load": os.getloadavg()[0],
            **{name: summary(found, seconds["count(*)"]) for name, found in seconds.items()},
        }
        print(json.dumps(result, indent=2))  # noqa: T201 - its output


def summary(found: list[tuple[float, float]], counts: list[tuple[float, float]]) -> dict[str, Any]:
    clock = [clock for clock, _ in found]
    ratios = [mine / other[0] for mine, other in zip(clock, counts, strict=True)]
    return {
        "ms_median": round(1000 * statistics.median(clock), 1),
        "ms_all": [round(1000 * value, 1) for value in clock],
        "processor_ms_median": round(1000 * statistics.median(processors for _, processors in found), 1),
        "ratio_to_count": round(statistics.median(ratios), 2),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - its progress


if __name__ == "__main__":
    main()
