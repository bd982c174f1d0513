"""The prediction log: what was asked, the inputs as used, who answered what, and how long it took.

``predictions/<model>/day=YYYY-MM-DD/part-*.parquet``, written by one thread. The event loop only
appends to a list. A file appears whole, under its name, or not at all. Entries are numbered as they are counted, so
that a replay can count them again in the same order and sees which are missing.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gateway import clock

logger = logging.getLogger("airlock.gateway")

FLUSH_SECONDS = 0.9
FLUSH_ROWS = 5_000
MAX_WAITING = 200_000
"""Requests that may wait for the disk; beyond it the newest are dropped and counted."""

_COLUMNS: dict[str, pa.DataType] = {
    "at": pa.timestamp("us", tz="UTC"),
    "event_time": pa.timestamp("us", tz="UTC"),
    "key": pa.string(),
    "request_id": pa.string(),
    "row": pa.int32(),
    "generation": pa.int64(),
    "release": pa.string(),
    "pin": pa.string(),
    "routing_key": pa.string(),
    "version": pa.string(),
    "variant": pa.string(),
    "role": pa.string(),
    "fallback": pa.string(),
    "error": pa.string(),
    "prediction": pa.float64(),
    "probability": pa.float64(),
    "latency_ms": pa.float64(),
    "sequence": pa.int64(),
    "counted_at": pa.timestamp("us", tz="UTC"),
    "step": pa.string(),
    "timed_out": pa.bool_(),
}
_INPUT_TYPES = {"float": pa.float64(), "int": pa.int64(), "string": pa.string()}
_MAX_REASON = 300

Columns = tuple[tuple[str, str], ...]
"""Inputs' names and types."""
_Row = tuple[tuple[Any, ...], Sequence[Any]]
"""The facts in the order of ``_COLUMNS``, and the inputs' values."""


class Origin(NamedTuple):
    """What all rows of one request share, whoever answers.

    ``pin`` is the name of the pin that chose the version, ``routing_key`` what the shares choose by if the request
    carried one; ``columns`` are the inputs' names and types.
    """

    at_us: int
    request_id: str
    generation: int
    release: str | None
    pin: str | None
    routing_key: str | None
    keys: Sequence[str | None]
    event_times_us: Sequence[int | None]
    columns: Columns
    rows: Sequence[Sequence[Any]]


class Entry(NamedTuple):
    """One answer to one request: a version's, or what stood in for it (``airlock.prediction_log`` names the columns).

    Without ``predictions`` the version failed for ``error``. ``latency_ms`` is how long the version took, if one was
    asked. ``step`` is the rollout step in whose counters it was counted, if in any, and
    ``timed_out`` tells one kind of failure from the others.
    """

    origin: Origin
    version: str | None
    variant: str | None
    role: str
    fallback: str | None
    error: str | None
    predictions: Sequence[float] | None
    probabilities: Sequence[float] | None
    latency_ms: float | None
    step: str | None = None
    timed_out: bool = False


class Counted(NamedTuple):
    """An entry with its place among the model's entries of this process, and when it was counted.

    ``sequence`` starts at 1; ``counted_us`` grows from one to the next, also where the clock does not.
    """

    sequence: int
    counted_us: int
    entry: Entry


class Loss(NamedTuple):
    """How many rows of a model the log has lost, and why the last of them."""

    rows: int
    reason: str


_NONE_YET = (0, 0)


class PredictionWriter:
    """Takes entries from the event loop and writes them from a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[tuple[str, Columns], list[Counted]] = defaultdict(list)
        self._last: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="airlock-prediction-log", daemon=True)
        self._sequence = 0
        self.queued = 0
        self.written = 0
        self.lost: dict[str, Loss] = {}

    def start(self) -> None:
        self._thread.start()

    def add(self, model: str, entry: Entry, at_us: int | None = None) -> None:
        """Called when the entry was counted, at ``at_us`` by ``clock``.

        One that is dropped leaves a gap in the sequence.
        """
        sequence, counted_us = self._last.get(model, _NONE_YET)
        sequence, counted_us = last = sequence + 1, max(counted_us + 1, clock.now_us() if at_us is None else at_us)
        self._last[model] = last
        if self.queued >= MAX_WAITING:
            self._lose(model, len(entry.origin.rows), f"{MAX_WAITING} answers wait for the disk already")
            return
        with self._lock:
            self._waiting[model, entry.origin.columns].append(Counted(sequence, counted_us, entry))
            self.queued += 1
        if self.queued == FLUSH_ROWS:
            self._wake.set()

    def close(self, timeout: float = 30.0) -> None:
        """Write what is left and end. ``timeout`` in seconds."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout)

    def _work(self) -> None:
        while not self._stopping:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, defaultdict(list)
        for (model, columns), entries in waiting.items():
            try:
                days = _by_day(entries)
            except Exception as error:  # nor may what was never a row end the thread
                logger.exception("%s: %d entries of the prediction log are lost", model, len(entries))
                self._lose(model, sum(len(counted.entry.origin.rows) for counted in entries), str(error)[:_MAX_REASON])
                days = {}
            for day, rows in days.items():
                self._keep(model, columns, day, rows)
            with self._lock:
                self.queued -= len(entries)

    def _keep(self, model: str, columns: Columns, day: str, rows: Sequence[_Row]) -> None:
        """Write rows. Of those with a value that cannot be written only these are lost, and of a full disk all."""
        try:
            self._write(model, columns, day, rows)
        except Exception as error:  # whatever it is, the thread that writes for all goes on
            if len(rows) > 1 and not isinstance(error, OSError):
                half = len(rows) // 2
                for part in (rows[:half], rows[half:]):
                    self._keep(model, columns, day, part)
                return
            logger.exception("%s: %d rows of the prediction log are lost", model, len(rows))
            self._lose(model, len(rows), f"{type(error).__name__}: {error}"[:_MAX_REASON])

    def _lose(self, model: str, rows: int, reason: str) -> None:
        with self._lock:
            before = self.lost[model].rows if model in self.lost else 0
            self.lost[model] = Loss(before + rows, reason)

    def _write(self, model: str, columns: Columns, day: str, rows: Sequence[_Row]) -> None:
        table = _table(columns, rows)
        folder = self._folder / model / f"day={day}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sequence += 1
        name = f"part-{time.time_ns()}-{os.getpid()}-{self._sequence:06d}.parquet"
        temporary = folder / f".{name}.tmp"
        pq.write_table(table, temporary, compression="zstd")
        temporary.rename(folder / name)
        self.written += table.num_rows


def to_table(columns: Columns, entries: Sequence[Counted]) -> pa.Table:
    """One row for each row that was asked, inputs as ``x_<name>``."""
    return _table(columns, [row for counted in entries for row in _rows(counted)])


def _by_day(entries: Sequence[Counted]) -> dict[str, list[_Row]]:
    by_day: dict[str, list[_Row]] = defaultdict(list)
    for counted in entries:
        at_s = counted.entry.origin.at_us // 1_000_000
        by_day[datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")].extend(_rows(counted))
    return by_day


def _rows(counted: Counted) -> Iterator[_Row]:
    sequence, counted_us, entry = counted
    origin, predictions, probabilities = entry.origin, entry.predictions, entry.probabilities
    for row, (key, event_time_us) in enumerate(zip(origin.keys, origin.event_times_us, strict=True)):
        facts = (
            origin.at_us,
            event_time_us,
            key,
            origin.request_id,
            row,
            origin.generation,
            origin.release,
            origin.pin,
            origin.routing_key,
            entry.version,
            entry.variant,
            entry.role,
            entry.fallback,
            entry.error,
            predictions[row] if predictions else None,
            probabilities[row] if probabilities else None,
            entry.latency_ms,
            sequence,
            counted_us,
            entry.step,
            entry.timed_out,
        )
        yield facts, origin.rows[row]


def _table(columns: Columns, rows: Sequence[_Row]) -> pa.Table:
    facts, values = zip(*rows, strict=True)
    arrays = [pa.array(column, kind) for column, kind in zip(zip(*facts, strict=True), _COLUMNS.values(), strict=True)]
    arrays += [_input(kind, column) for (_, kind), column in zip(columns, zip(*values, strict=True), strict=True)]
    return pa.table(dict(zip([*_COLUMNS, *(f"x_{name}" for name, _ in columns)], arrays, strict=True)))


def _input(kind: str, column: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(column, _INPUT_TYPES[kind])
    except pa.ArrowInvalid:
        if kind != "float":
            raise
        # A whole number beyond 2**53: some encoders write 1e18 without its exponent. The model took it as a float.
        return pa.array([None if value is None else float(value) for value in column], pa.float64())
