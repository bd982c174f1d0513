"""Reading the prediction log that the gateway writes, with DuckDB.

One parquet file a flush, ``predictions/<model>/day=YYYY-MM-DD/part-*.parquet``; one row for each
row that a version was asked, or that something else answered because no version could. Columns:

- ``at`` and ``event_time`` (UTC, microseconds), ``key``, ``request_id``, ``row``, ``generation``, ``release``;
- ``pin``: the name of the pin that chose the version, null where the shares did;
- ``routing_key``: what the shares choose by, null where the request carried none: then its ``request_id`` was;
- ``version`` and ``variant`` (``champion``, ``candidate``, or ``pinned`` for a version that is neither); both null
  where a rule or the default answered;
- ``role``: ``served`` or ``shadow``;
- ``fallback``: null where the version that was chosen answered; otherwise who stood in for it: ``champion``, ``cache``
  (an earlier answer of the champion to the same inputs, as the champion's), ``rule`` or ``default``;
- ``error``, ``prediction``, ``probability``, ``latency_ms``, ``day``, and the inputs as used, ``x_<name>``;
- ``sequence``: the entry's place among those of the model that one gateway process counted, from 1, the same for all
  rows of a request; a gap is an entry that was lost. ``counted_at`` is when it was counted, which for shadow scoring is
  later than the request, and ``step`` the rollout step in whose counters, null where in none's. ``timed_out`` tells
  time-outs from other failures. All four are null in files of gateways that did not write them yet.

A version that failed left its ``error`` and no prediction; who stood in for it is another row of the same
``request_id``. What a version was chosen for and answered itself is ``role = 'served' AND fallback IS NULL``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from airlock.core.errors import DataInvalid
from airlock.settings import Settings

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

COLUMNS = (
    *("at", "event_time", "key", "request_id", "row", "generation", "release", "pin", "routing_key"),
    *("version", "variant", "role", "fallback", "error", "prediction", "probability", "latency_ms"),
    *("sequence", "counted_at", "step", "timed_out"),
)
_NEWER = {
    "sequence": "BIGINT",
    "counted_at": "TIMESTAMP WITH TIME ZONE",
    "step": "VARCHAR",
    "timed_out": "BOOLEAN",
}
"""Columns that files of older gateways lack."""
WHEN = 'coalesce(event_time, "at")'
"""The time that a row counts for, in SQL: the event's own where the request named it."""


def files(settings: Settings, model: str) -> str | None:
    """A glob of a model's files for DuckDB's ``read_parquet``; ``None`` while there are none."""
    folder = settings.predictions / model
    return str(folder / "*" / "*.parquet") if any(folder.glob("day=*/part-*.parquet")) else None


def read(
    settings: Settings,
    model: str,
    since: datetime | None = None,
    until: datetime | None = None,
    columns: Sequence[str] | None = None,
    roles: Sequence[str] = ("served",),
) -> pd.DataFrame:
    """The rows of ``since <= time < until``, in the order of their time; all that were answered and that failed.

    Args:
        since, until: aware datetimes, held against ``event_time``, or against ``at`` where there is none.
        columns: those to return; unset: all.

    Raises:
        DataInvalid: a column that is not there, or a time without a time zone.
    """
    source = files(settings, model)
    if source is None:
        return _empty(columns or COLUMNS)
    wanted = "*" if columns is None else ", ".join(_quoted(column) for column in columns)
    where, values = _where(since, until, roles)
    sql = f'SELECT {wanted} FROM log WHERE {where} ORDER BY {WHEN}, "at", request_id, "row", role'  # noqa: S608
    import duckdb

    with _open(source, newer=not _NEWER.keys().isdisjoint(columns or ())) as connection:
        try:
            frame: pd.DataFrame = connection.execute(sql, values).df()
        except duckdb.BinderException as error:
            raise DataInvalid(f"the prediction log of {model} in {source} cannot be read so: {error}") from error
    return frame


def count(
    settings: Settings,
    model: str,
    since: datetime | None = None,
    until: datetime | None = None,
    roles: Sequence[str] = ("served",),
) -> dict[tuple[str, str], int]:
    """Rows that a version was asked, by (version, role)."""
    source = files(settings, model)
    if source is None:
        return {}
    where, values = _where(since, until, roles)
    sql = f"SELECT version, role, count(*) FROM log WHERE {where} AND version IS NOT NULL GROUP BY ALL"  # noqa: S608
    with _open(source) as connection:
        return {(version, role): rows for version, role, rows in connection.execute(sql, values).fetchall()}


def gaps(settings: Settings, model: str, since: datetime, until: datetime) -> tuple[int, int]:
    """How many entries counted in ``since <= counted_at <= until`` are missing, and how often numbers begin anew."""
    source = files(settings, model)
    if source is None:
        return 0, 0
    sql = """
        WITH numbered AS (
            SELECT sequence, lag(sequence) OVER (ORDER BY counted_at) AS before
            FROM (SELECT DISTINCT sequence, counted_at FROM log WHERE counted_at BETWEEN ? AND ?))
        SELECT coalesce(sum(CASE WHEN sequence > before THEN sequence - before - 1 ELSE sequence - 1 END), 0),
            count(*) FILTER (sequence <= before)
        FROM numbered WHERE before IS NOT NULL
        """
    with _open(source, newer=True) as connection:
        ((lost, again),) = connection.execute(sql, [since, until]).fetchall()
    return int(lost), int(again)


def days(settings: Settings, model: str) -> tuple[date, ...]:
    """The days, by the clock of the gateway, that have a log."""
    names = sorted(path.name for path in Path(settings.predictions / model).glob("day=*"))
    return tuple(date.fromisoformat(name.removeprefix("day=")) for name in names)


def _open(source: str, *, newer: bool = False) -> duckdb.DuckDBPyConnection:
    """A connection with the files as the view ``log``; with ``newer`` columns as nulls where no file has them."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    path = source.replace("'", "''")
    # Versions may differ in their inputs: columns are matched by name, and what a file lacks is NULL.
    files, selected = f"read_parquet('{path}', union_by_name = true, hive_partitioning = true)", ["*"]
    if newer:
        known = {name for name, *_ in connection.execute(f"DESCRIBE FROM {files}").fetchall()}
        selected += [f"CAST(NULL AS {kind}) AS {name}" for name, kind in _NEWER.items() if name not in known]
    connection.execute(f"CREATE VIEW log AS SELECT {', '.join(selected)} FROM {files}")  # noqa: S608
    return connection


def _where(since: datetime | None, until: datetime | None, roles: Sequence[str]) -> tuple[str, list[object]]:
    clauses, values = [f"role IN ({', '.join('?' * len(roles))})" if roles else "false"], list[object](roles)
    for bound, sign in ((since, ">="), (until, "<")):
        if bound is None:
            continue
        if bound.tzinfo is None:
            raise DataInvalid(f"{bound} has no time zone; give an aware time such as 2013-04-01T00:00:00+00:00")
        clauses.append(f"{WHEN} {sign} ?")
        values.append(bound.astimezone(UTC))
    return " AND ".join(clauses), values


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _empty(columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    times = ("at", "event_time")
    return pd.DataFrame({c: pd.Series(dtype="datetime64[us, UTC]" if c in times else "object") for c in columns})
