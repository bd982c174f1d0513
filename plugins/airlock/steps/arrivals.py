"""Answers that wait, and what became of them: labels and outcomes, joined by the hash of their key."""

# ruff: noqa: S608 - what is put into a query is a column's name or a number of ours; values are bound

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from airlock.steps.evidence_state import MOST_EARLY, Floats, Ints, State, Stream
from airlock.steps.log_tables import in_order, one

if TYPE_CHECKING:
    import duckdb

LABEL = "label"
"""The stream of labels; the other streams are outcomes, by name."""

_WAITING = pa.schema(
    {"key": pa.uint64(), "asked_us": pa.int64(), "event_us": pa.int64(), "ours": pa.float64(), "theirs": pa.float64()}
)
_EARLY = pa.schema({"key": pa.uint64(), "value": pa.float64(), "known": pa.int64()})


class Matched(NamedTuple):
    """Answers that were joined to what became of them, in the order in which that became known; each key once.

    ``answered_us`` holds the event times of all answers that wait no longer, of those to one key every one.
    """

    values: Floats
    ours: Floats
    theirs: Floats
    answered_us: Ints


def match(
    connection: duckdb.DuckDBPyConnection, state: State, stream: str, files: Sequence[str], until_us: int
) -> Matched:
    """Join answers that wait to what became of them by ``until_us``, and keep what goes on waiting."""
    kind = state.streams.setdefault(stream, Stream())
    _arrive(connection, state, stream, files, until_us)
    connection.register("waiting", state.table(f"waiting {stream}", _WAITING))
    fresh = (
        "SELECT * FROM answers"
        if stream == LABEL
        else (
            "SELECT key, asked_us, event_us, ours::DOUBLE AS ours, NULL::DOUBLE AS theirs FROM asked "
            "WHERE served AND NOT failed AND NOT stood_in AND NOT pinned"
        )
    )
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE joined AS
        SELECT coalesce(o.key, a.key) AS key, asked_us, event_us, ours, theirs, value, known,
            o.key IS NOT NULL AS answered, a.key IS NOT NULL AS came
        FROM (FROM (FROM waiting UNION ALL {fresh}) WHERE key IS NOT NULL) o
        FULL JOIN (FROM arrived WHERE NOT held) a ON o.key = a.key
        """
    )
    rows = connection.execute("FROM joined WHERE answered AND came").fetchnumpy()
    rest = connection.execute("SELECT key, event_us FROM joined WHERE NOT came").fetchnumpy()
    kind.fit(np.asarray(rest["key"]))
    waits = "true" if kind.share == 1 else f"key < {kind.below}"
    waiting = connection.sql(f"SELECT key, asked_us, event_us, ours, theirs FROM joined WHERE NOT came AND {waits}")
    early = connection.sql(
        f"""
        SELECT key, value, known FROM joined WHERE NOT answered AND {waits}
        UNION ALL SELECT key, value, known FROM arrived WHERE held
        ORDER BY known DESC NULLS LAST, key LIMIT {MOST_EARLY}
        """
    )
    state.put(f"waiting {stream}", waiting.to_arrow_table().cast(_WAITING))
    state.put(f"early {stream}", early.to_arrow_table().cast(_EARLY))
    next_us = one(connection, "SELECT min(known) FROM arrived WHERE held")
    if next_us is not None:
        state.due_at(next_us)
    if stream == LABEL and kind.share < 1:
        # What is not waited for is neither due nor labelled, so that their ratio stays that of a fair sample.
        state.maturing.count(np.asarray(rest["event_us"])[np.asarray(rest["key"]) >= kind.below], -1, 0)
    return _matched(rows)


def _arrive(
    connection: duckdb.DuckDBPyConnection, state: State, stream: str, files: Sequence[str], until_us: int
) -> None:
    """The table ``arrived``: values that were kept because their answer was missing, and those of new files.

    ``held`` are those that become known only later than ``until_us``.
    """
    connection.register("early", state.table(f"early {stream}", _EARLY))
    arrivals = "SELECT key, value, known FROM early"
    if files:
        delivered = connection.read_parquet(list(files), union_by_name=True, hive_partitioning=False)
        value, time = ("label", "label_time") if stream == LABEL else ("value", "time")
        # Labels of a spec that names no time have no such column.
        known = f"epoch_us({time})" if time in delivered.columns else "NULL::BIGINT"
        arrivals += f" UNION ALL SELECT hash(key), {value}::DOUBLE, {known} FROM delivered"
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE arrived AS
        SELECT *, known IS NOT NULL AND known >= {until_us} AS held FROM ({arrivals})
        """
    )


def _matched(rows: Mapping[str, npt.NDArray[np.generic]]) -> Matched:
    """One match a key, of its first answer and its first value, in the order in which the values became known."""
    known = np.ma.filled(rows["known"], 0)
    columns = (rows["value"], rows["ours"], np.ma.filled(rows["theirs"], np.nan), rows["event_us"])
    values, ours, theirs, times = (np.asarray(column) for column in columns)
    keys, at = np.asarray(rows["key"]), np.asarray(rows["asked_us"])
    if not keys.size:
        return Matched(values, ours, theirs, times)
    order = in_order(known, keys)
    together = np.sort(keys)
    if (together[1:] == together[:-1]).any():
        first = np.lexsort((values, known, at, keys))
        first = first[np.r_[True, keys[first][1:] != keys[first][:-1]]]
        order = first[in_order(known[first], keys[first])]
        # A key that was asked several times has one entry for each value that came: count each answer once.
        _, once = np.unique(np.stack([keys.astype(np.uint64), at.astype(np.uint64)]), axis=1, return_index=True)
        times = times[once]
    return Matched(values[order], ours[order], theirs[order], times)
