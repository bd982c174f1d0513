"""The features of every model, for Feast.

A view's source is ``<folder>/<view>.parquet``. The folder is ``AIRLOCK_FEATURE_TABLES``, so that a
training set reads its own snapshot, and the tables that feed the online store otherwise. A lifetime
is whole days or less than one: the duckdb store cannot add 25 hours to a timestamp.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float32, Float64, Int64, String

TABLES = Path(os.environ.get("AIRLOCK_FEATURE_TABLES") or Path(os.environ["AIRLOCK_HOME"]) / "feast" / "offline")

carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
dest = Entity(name="dest", join_keys=["dest"], value_type=ValueType.STRING)
route = Entity(name="route", join_keys=["route"], value_type=ValueType.STRING)
tailnum = Entity(name="tailnum", join_keys=["tailnum"], value_type=ValueType.STRING)


def _view(name: str, entities: list[Entity], columns: list[str], ttl: timedelta) -> FeatureView:
    return FeatureView(
        name=name,
        entities=entities,
        ttl=ttl,
        schema=[
            *(Field(name=entity.name, dtype=String) for entity in entities),
            *(Field(name=column, dtype=Float32) for column in columns),
        ],
        source=FileSource(name=name, path=str(TABLES / f"{name}.parquet"), timestamp_field="event_timestamp"),
        online=True,
    )


origin_delays = _view(
    "origin_delays",
    [origin],
    ["origin_dep_delay_2h", "origin_waiting", "origin_departures_2h", "origin_late_24h"],
    timedelta(hours=2),
)
carrier_delays = _view(
    "carrier_delays",
    [carrier],
    ["carrier_dep_delay_3h", "carrier_late_24h", "carrier_late_7d"],
    timedelta(hours=2),
)
hub_delays = _view("hub_delays", [carrier, origin], ["hub_dep_delay_3h", "hub_waiting"], timedelta(hours=2))
dest_delays = _view("dest_delays", [dest], ["dest_late_6h", "dest_late_24h", "dest_late_7d"], timedelta(hours=2))
route_delays = _view("route_delays", [route], ["route_late_7d", "route_arr_delay_28d"], timedelta(days=2))
plane_delays = _view("plane_delays", [tailnum], ["plane_arr_delay"], timedelta(0))
planes = _view("planes", [tailnum], ["plane_age", "plane_seats"], timedelta(0))
weather = _view(
    "weather",
    [origin],
    ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"],
    timedelta(days=1),
)

schedule = RequestSource(
    name="schedule",
    schema=[
        Field(name="minute", dtype=Int64),
        Field(name="weekday", dtype=Int64),
        Field(name="distance", dtype=Float32),
        Field(name="scheduled_minutes", dtype=Float32),
    ],
)


@on_demand_feature_view(
    sources=[weather, origin_delays, schedule],
    schema=[
        Field(name="block_speed", dtype=Float64),
        Field(name="dew_spread", dtype=Float64),
        Field(name="poor_visibility", dtype=Float64),
        Field(name="queue_pressure", dtype=Float64),
    ],
    mode="python",
)
def conditions(inputs: dict[str, Any]) -> dict[str, Any]:
    """Scheduled speed, nearness of fog, lost visibility, and how long the queue is times how slow it moves.

    Feast keeps this source text and runs it alone, offline and online, so it needs nothing around it.
    """

    def each(function: Any, *names: str) -> list[float | None]:
        rows = zip(*(inputs[name] for name in names), strict=True)
        # A missing value arrives as None online and may be NaN offline: NaN is what differs from itself.
        return [None if any(v is None or v != v for v in row) else float(function(*row)) for row in rows]  # noqa: PLR0124

    return {
        "block_speed": each(lambda miles, minutes: 60.0 * miles / minutes, "distance", "scheduled_minutes"),
        "dew_spread": each(lambda temp, dewp: temp - dewp, "temp", "dewp"),
        "poor_visibility": each(lambda visib: max(0.0, 10.0 - visib), "visib"),
        "queue_pressure": each(lambda share, delay: share * delay, "origin_waiting", "origin_dep_delay_2h"),
    }


flight_delay = FeatureService(
    name="flight_delay",
    features=[
        origin_delays,
        carrier_delays,
        hub_delays,
        dest_delays,
        route_delays,
        plane_delays,
        planes,
        weather,
        conditions,
    ],
)
