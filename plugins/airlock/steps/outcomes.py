"""Outcomes: what came of an answer, measured later and delivered by name, such as revenue.

An outcome's key is that of the row that was answered (``data.key``) or, for what belongs to a whole unit of an
experiment, the request's routing key.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from airlock.core.errors import DataInvalid
from airlock.core.spec import ModelSpec
from airlock.settings import Settings
from airlock.steps.deliveries import FILES, write_part

LABEL = "label"
"""The outcome of that name is the label, which is delivered as a label."""
COLUMNS = ("key", "name", "value", "time")

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")


def deliver(spec: ModelSpec, settings: Settings, frame: pd.DataFrame) -> int:
    """Store outcomes by name and by the day they became known, each day's file named by its content.

    Delivering the same rows again changes nothing. A key that is delivered with another value later has the
    later one.

    Args:
        frame: ``key``, ``name``, ``value`` (a finite number) and ``time`` (aware: when the value became known).

    Returns:
        How many outcomes were in ``frame``.

    Raises:
        DataInvalid: a column or a value is missing, a name or a number cannot be used, or a time has no time zone.
    """
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise DataInvalid(f"outcomes of {spec.model} lack the columns {missing}; expected {list(COLUMNS)}")
    rows = frame[list(COLUMNS)]
    if gaps := int(rows.isna().any(axis=1).sum()):
        raise DataInvalid(f"{gaps} of {len(rows)} outcomes of {spec.model} have no key, name, value or time")
    if not isinstance(rows["time"].dtype, pd.DatetimeTZDtype):
        raise DataInvalid(f"time of the outcomes of {spec.model} has no time zone; give UTC times")
    for name in rows["name"].unique():
        _check_name(name)
    try:
        values = rows["value"].astype(float)
    except (TypeError, ValueError) as error:
        raise DataInvalid(f"value of an outcome of {spec.model} is not a number: {error}") from error
    if endless := int((~np.isfinite(values)).sum()):
        raise DataInvalid(f"{endless} of {len(rows)} outcomes of {spec.model} are infinite")
    found = pd.DataFrame(
        {
            "key": rows["key"].astype(str),
            "value": values,
            "time": rows["time"].dt.tz_convert("UTC").dt.as_unit("us"),
        }
    )
    days = found["time"].dt.strftime("%Y-%m-%d")
    for (name, day), part in found.sort_values(["key", "time", "value"]).groupby([rows["name"], days]):
        write_part(settings.outcomes / spec.model / str(name) / f"day={day}", part.reset_index(drop=True))
    return len(found)


def read(settings: Settings, model: str, name: str, until: datetime) -> pd.DataFrame:
    """The newest value of each key among those known before ``until``; ``label`` reads the delivered labels.

    Labels without a time count as known always. Of two values with one time the larger holds.

    Returns:
        ``key`` (text), ``value`` (float) and ``time`` (UTC; none for labels without a time), by key.

    Raises:
        DataInvalid: ``name`` cannot be one, or ``until`` has no time zone.
    """
    if name != LABEL:
        _check_name(name)
    if until.tzinfo is None:
        raise DataInvalid(f"{until} has no time zone; give an aware time such as 2013-04-01T00:00:00+00:00")
    folder = settings.labels / model if name == LABEL else settings.outcomes / model / name
    if not any(folder.glob(FILES)):
        return pd.DataFrame(
            {
                "key": pd.Series(dtype="object"),
                "value": pd.Series(dtype="float64"),
                "time": pd.Series(dtype="datetime64[us, UTC]"),
            }
        )
    return _newest(folder, name, until)


def _newest(folder: Path, name: str, until: datetime) -> pd.DataFrame:
    import duckdb

    value, time = ("label", "label_time") if name == LABEL else ("value", "time")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        delivered = connection.read_parquet(str(folder / FILES), union_by_name=True, hive_partitioning=False)
        # Labels of a spec that names no time have no such column.
        known = time if time in delivered.columns else "NULL::TIMESTAMPTZ"
        query = f"""
            SELECT key, {value} AS value, {known} AS time FROM delivered WHERE {known} IS NULL OR {known} < ?
            QUALIFY row_number() OVER (PARTITION BY key ORDER BY {known} DESC NULLS LAST, {value} DESC) = 1
            ORDER BY key"""  # noqa: S608 - the columns are constants; values are bound
        frame: pd.DataFrame = connection.execute(query, [until.astimezone(UTC)]).df()
    return frame


def _check_name(name: object) -> None:
    if name == LABEL:
        raise DataInvalid(f"an outcome cannot be called {LABEL!r}, that is the label itself: deliver it as a label")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataInvalid(f"{name!r} cannot name an outcome; expected lower case, digits and _, such as revenue_eur")
