"""The log as tables of DuckDB: what of it concerns a release, and which answers are to the same question.

Rows are joined by the gateway's time of the question, the hash of its id and the row: an id alone is the client's,
who may use it again.
"""

# ruff: noqa: S608 - what is put into a query is a column's name or a number of ours; values are bound

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from airlock.core.release import Release
from airlock.core.spec import ModelSpec, Task
from airlock.core.tally import BUCKETS, Sums, Tally
from airlock.steps.evidence_state import HALF_LIFE, MOST_HALVES, Ints, State
from airlock.steps.observations import extended

if TYPE_CHECKING:
    import duckdb

_HALVES = pa.schema(
    {
        "asked_us": pa.int64(),
        "request": pa.uint64(),
        "row": pa.int32(),
        "ours": pa.bool_(),
        "score": pa.float64(),
        "served": pa.bool_(),
        "stood_in": pa.bool_(),
        "key": pa.uint64(),
        "event_us": pa.int64(),
    }
)


def version() -> str:
    """DuckDB's, whose hashes stand for keys and request ids."""
    import duckdb

    return str(duckdb.__version__)


@contextmanager
def opened() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database of its own in memory, which ends with the look."""
    import duckdb

    with duckdb.connect() as connection:
        yield connection


def take_log(
    connection: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    release: Release,
    champion: str | None,
    state: State,
    files: Sequence[str],
    *,
    slow: Mapping[str, float],
    until_us: int,
) -> None:
    """Count what is new in the log, and leave the tables ``answers`` and ``served`` for :func:`match`."""
    _ask(connection, spec, release, champion, state, files)
    _count(connection, state, slow)
    _pair(connection, state, until_us)
    _compare(connection, spec, state)
    # What has its pair, what will not get one any more, and what never had one to wait for.
    connection.execute(
        """
        CREATE TEMP TABLE answers AS
        SELECT key, asked_us, event_us, score AS ours, CASE WHEN NOT stood_in THEN other END AS theirs
        FROM met WHERE own AND score IS NOT NULL AND (paired OR asked_us < $cut)
        UNION ALL SELECT key, asked_us, event_us, score, NULL FROM asked WHERE ours AND NOT failed AND NOT pairable
        """,
        {"cut": state.cut_us},
    )


def _ask(
    connection: duckdb.DuckDBPyConnection,
    spec: ModelSpec,
    release: Release,
    champion: str | None,
    state: State,
    files: Sequence[str],
) -> None:
    """The table ``asked``: the rows of the log that concern the release."""
    if not files:
        connection.execute(
            """
            CREATE TEMP TABLE asked (asked_us BIGINT, event_us BIGINT, key UBIGINT, request UBIGINT, "row" INTEGER,
                ours BOOLEAN, here BOOLEAN, pairable BOOLEAN, served BOOLEAN, stood_in BOOLEAN, pinned BOOLEAN,
                failed BOOLEAN, score DOUBLE, latency DOUBLE)
            """
        )
        return
    # Columns are matched by name: files of an older gateway lack some, and versions differ in their inputs.
    log = connection.read_parquet(list(files), union_by_name=True, hive_partitioning=False)
    pin = "pin" if "pin" in log.columns else "NULL"
    score = "probability" if spec.task is Task.CLASSIFICATION else "prediction"
    connection.execute(
        f"""
        CREATE TEMP TABLE asked AS
        SELECT epoch_us("at") AS asked_us, epoch_us(coalesce(event_time, "at")) AS event_us,
            CASE WHEN key IS NOT NULL THEN hash(key) END AS key, hash(request_id) AS request, "row",
            version IS NOT DISTINCT FROM $version AS ours, release IS NOT DISTINCT FROM $release AS here,
            ours AND here AND variant = 'candidate' AND $champion IS NOT NULL AS pairable, role = 'served' AS served,
            coalesce(CAST(fallback AS VARCHAR), 'false') <> 'false' AS stood_in, {pin} IS NOT NULL AS pinned,
            error IS NOT NULL OR {score} IS NULL AS failed, CASE WHEN NOT failed THEN {score} END AS score,
            latency_ms AS latency
        FROM log WHERE (release = $release AND (version IS NULL OR version IN ($version, $champion)))
            OR (version = $version AND generation >= $generation)
        """,
        {
            "version": release.version,
            "champion": champion,
            "release": release.id,
            "generation": state.first_generation,
        },
    )
    newest = one(connection, "SELECT max(asked_us) FROM asked")
    state.newest_us = max(state.newest_us, newest or 0)


def _count(connection: duckdb.DuckDBPyConnection, state: State, slow: Mapping[str, float]) -> None:
    """Add to the candidate's tally, and to the answers that a label is due for. A request counts by its first row."""
    own = 'FROM asked WHERE ours AND here AND NOT stood_in AND "row" = 0'
    ((requests, errors),) = connection.execute(f"SELECT count(*), count(*) FILTER (failed) {own}").fetchall()
    latency = [0] * BUCKETS
    octaves = "ceil(4 * log2(latency / 0.05))"
    query = f"SELECT least({BUCKETS - 1}, CASE WHEN latency <= 0.05 THEN 0 ELSE {octaves} END)::INT, count(*) {own}"
    for index, number in connection.execute(f"{query} GROUP BY 1").fetchall():
        latency[index] = number
    over = {name: one(connection, f"SELECT count(*) {own} AND latency > ?", [ms]) for name, ms in slow.items()}
    # In shadow nobody has to stand in for a version that fails; but somebody would have had to.
    in_vain = one(connection, f"SELECT count(*) {own} AND failed AND NOT served")
    state.total += Tally(
        fallbacks=in_vain or 0,
        requests=requests,
        errors=errors,
        latency=latency,
        slow={k: n for k, n in over.items() if n},
    )
    times = connection.execute("SELECT event_us FROM asked WHERE ours AND NOT failed").fetchnumpy()["event_us"]
    state.answers += times.size
    state.maturing.count(np.asarray(times), 1, 0)


def _pair(connection: duckdb.DuckDBPyConnection, state: State, until_us: int) -> None:
    """The table ``met``: the candidate's rows beside the other answer to the same question; keep what has none yet."""
    kept = state.table("halves", _HALVES)
    connection.register("kept", kept)
    columns = ", ".join(f'"{name}"' for name in _HALVES.names)
    connection.execute(
        f"""
        CREATE TEMP VIEW halves AS
        SELECT {columns} FROM asked WHERE pairable OR (here AND NOT ours AND NOT (failed AND served))
        UNION ALL SELECT {columns} FROM kept
        """
    )
    connection.execute(
        """
        CREATE TEMP TABLE met AS
        SELECT coalesce(o.asked_us, t.asked_us) AS asked_us, coalesce(o.request, t.request) AS request,
            coalesce(o."row", t."row") AS "row",
            o.asked_us IS NOT NULL AS own, o.asked_us IS NOT NULL AND t.asked_us IS NOT NULL AS paired,
            o.score, t.score AS other, coalesce(o.served, t.served) AS served,
            coalesce(t.stood_in, false) AS stood_in,
            coalesce(o.key, t.key) AS key, coalesce(o.event_us, t.event_us) AS event_us
        FROM (FROM halves WHERE ours) o FULL JOIN (FROM halves WHERE NOT ours) t
            ON o.asked_us = t.asked_us AND o.request = t.request AND o."row" = t."row"
        """
    )
    patience = HALF_LIFE // timedelta(microseconds=1)
    oldest = max(state.newest_us, until_us) - patience
    beyond = one(
        connection,
        "SELECT asked_us FROM met WHERE NOT paired ORDER BY asked_us DESC LIMIT 1 OFFSET ?",
        [MOST_HALVES - 1],
    )
    state.cut_us = max(oldest, beyond or 0)
    query = """
        SELECT asked_us, request, "row", own AS ours, CASE WHEN own THEN score ELSE other END AS score, served,
            stood_in, key, event_us
        FROM met WHERE NOT paired AND asked_us >= ?
        """
    left = connection.sql(query, params=[state.cut_us]).to_arrow_table().cast(_HALVES)
    state.put("halves", left)
    if left.num_rows:
        state.due_at(pa.compute.min(left["asked_us"]).as_py() + patience)


def _compare(connection: duckdb.DuckDBPyConnection, spec: ModelSpec, state: State) -> None:
    """Add the requests that both versions answered, each once, in the order in which they were asked."""
    stood_in = 'SELECT count(*) FROM met WHERE paired AND stood_in AND served AND score IS NULL AND "row" = 0'
    state.total.fallbacks += one(connection, stood_in) or 0
    pairs = connection.execute(
        "SELECT asked_us, request, score, other FROM met WHERE score IS NOT NULL AND other IS NOT NULL AND NOT stood_in"
    ).fetchnumpy()
    at, request = np.asarray(pairs["asked_us"]), np.asarray(pairs["request"])
    ours, theirs = np.asarray(pairs["score"], np.float64), np.asarray(pairs["other"], np.float64)
    if not at.size:
        return
    order = in_order(at, request)
    at, request, difference = at[order], request[order], (ours - theirs)[order]
    starts = np.flatnonzero(np.r_[True, (at[1:] != at[:-1]) | (request[1:] != request[:-1])])
    rows = np.diff(np.r_[starts, at.size])
    bound = spec.label.threshold
    flipped = ((ours >= bound) != (theirs >= bound))[order].astype(np.float64)
    if spec.task is not Task.CLASSIFICATION:
        flipped = np.zeros_like(difference)
    tally = state.total
    for name, values in (("difference", difference), ("absolute", np.abs(difference)), ("flips", flipped)):
        sums: Sums = getattr(tally, name)
        setattr(tally, name, extended(sums, np.add.reduceat(values, starts) / rows))


def in_order(times: Ints, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """The order of the times, and of the hashes where times are equal: packed into one number, which sorts fastest."""
    since = times - times.min()
    spare = 63 - int(since.max()).bit_length()
    return np.argsort((since << spare) | (hashes >> np.uint64(64 - spare)).astype(np.int64))


def one(connection: duckdb.DuckDBPyConnection, query: str, values: object = None) -> int | None:
    rows = connection.execute(query, values).fetchall()
    return rows[0][0] if rows else None
