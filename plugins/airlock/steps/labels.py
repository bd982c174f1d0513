"""Labels that arrive after the answer, and the predictions that they belong to."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import pandas as pd

from airlock import prediction_log
from airlock.core.errors import DataInvalid
from airlock.core.spec import ModelSpec
from airlock.settings import Settings
from airlock.steps.deliveries import write_part

_UNDATED = "undated"


def deliver(spec: ModelSpec, settings: Settings, frame: pd.DataFrame) -> int:
    """Store labels by the day they became known, each day's file named by its content.

    Delivering the same rows again changes nothing. A key that is delivered with another label later has
    the later one.

    Args:
        frame: the spec's key, label and, where the spec names one, label time (aware).

    Returns:
        How many labels were in ``frame``.

    Raises:
        DataInvalid: a column is missing, a value is missing, or a time has no time zone.
    """
    columns = [spec.data.key, spec.label.name, *([spec.label.time] if spec.label.time else [])]
    if missing := [name for name in columns if name not in frame.columns]:
        raise DataInvalid(f"labels of {spec.model} lack the columns {missing}; expected {columns}")
    rows = frame[columns]
    if gaps := int(rows.isna().any(axis=1).sum()):
        raise DataInvalid(f"{gaps} of {len(rows)} labels of {spec.model} have no key, label or time")
    found = pd.DataFrame({"key": rows[spec.data.key].astype(str), "label": rows[spec.label.name].astype(float)})
    if spec.label.time is None:
        days = pd.Series(_UNDATED, index=rows.index)
    else:
        times = rows[spec.label.time]
        if not isinstance(times.dtype, pd.DatetimeTZDtype):
            raise DataInvalid(f"label time {spec.label.time!r} of {spec.model} has no time zone; give UTC times")
        found["label_time"] = times.dt.tz_convert("UTC").dt.as_unit("us")
        days = found["label_time"].dt.strftime("%Y-%m-%d")
    for day, part in found.sort_values("key").groupby(days):
        write_part(settings.labels / spec.model / f"day={day}", part.reset_index(drop=True))
    return len(found)


class Coverage(NamedTuple):
    """How many of a version's answers are old enough for their label to be due, and have it."""

    version: str
    answers: int
    due: int
    labelled: int

    @property
    def share(self) -> float | None:
        """The share of the due answers whose label has come; ``None`` while none is due."""
        return self.labelled / self.due if self.due else None


def coverage(spec: ModelSpec, settings: Settings, since: datetime, until: datetime) -> tuple[Coverage, ...]:
    """What share of the labels has come, for the answers of ``since <= event time < until``, by version.

    An answer is due when its event is the spec's maturity older than ``until``; its label has come when it was known
    before ``until``.
    """
    import duckdb

    log = prediction_log.read(settings, spec.model, since, until, ["key", "event_time", "at", "version", "prediction"])
    log = log[log["version"].notna() & log["prediction"].notna()]
    if log.empty:
        return ()
    due = log["event_time"].fillna(log["at"]) <= until - spec.maturity
    files = settings.labels / spec.model / "day=*" / "part-*.parquet"
    found = any(files.parents[1].glob("day=*/part-*.parquet"))
    timed = spec.label.time is not None
    with duckdb.connect() as connection:
        connection.register("log", pd.DataFrame({"key": log["key"], "version": log["version"], "due": due}))
        labels = "SELECT NULL::VARCHAR AS key"
        if found:
            labels = f"SELECT DISTINCT key FROM read_parquet($files) {'WHERE label_time < $until' if timed else ''}"  # noqa: S608
        values = ({"files": files.as_posix()} | ({"until": until} if timed else {})) if found else {}
        query = f"""
            SELECT version, count(*), count(*) FILTER (due), count(labels.key) FILTER (due)
            FROM log LEFT JOIN ({labels}) AS labels ON log.key = labels.key GROUP BY version ORDER BY version"""  # noqa: S608
        return tuple(Coverage(*row) for row in connection.execute(query, values).fetchall())


def joined(spec: ModelSpec, settings: Settings, since: datetime, until: datetime) -> pd.DataFrame:
    """Answers of ``since <= event time < until`` whose label was known before ``until``.

    Returns:
        ``key``, ``event_time``, ``version``, ``variant``, ``prediction``, ``probability``, ``label`` and, where labels
        have one, ``label_time``; one row an answer, in the order of the log.
    """
    import duckdb

    columns = ["key", "event_time", "version", "variant", "prediction", "probability"]
    log = prediction_log.read(settings, spec.model, since, until, columns)
    folder = settings.labels / spec.model
    timed = ["label_time"] if spec.label.time else []
    if not any(folder.glob("day=*/part-*.parquet")) or log.empty:
        return pd.DataFrame(columns=[*columns, "label", *timed])
    files = (folder / "day=*" / "part-*.parquet").as_posix()
    newest = "QUALIFY row_number() OVER (PARTITION BY key ORDER BY label_time DESC) = 1" if timed else ""
    known = "WHERE label_time < ?" if timed else ""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("log", log.assign(place=range(len(log))))
        # The file name is a path of ours and the rest are constants; values are bound.
        query = f"""
            SELECT {", ".join(f"log.{name}" for name in columns)}, label{", label_time" if timed else ""}
            FROM log JOIN (SELECT * FROM read_parquet(?) {known} {newest}) AS labels USING (key)
            WHERE prediction IS NOT NULL ORDER BY place"""  # noqa: S608
        values: list[object] = [files, until] if timed else [files]
        frame: pd.DataFrame = connection.execute(query, values).df()
    return frame
