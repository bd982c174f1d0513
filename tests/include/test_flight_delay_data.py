from __future__ import annotations

import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from airlock.settings import Settings
from include.flight_delay import data

pytestmark = pytest.mark.usefixtures("flights_home")
UNTIL = datetime(2013, 2, 10, 3, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    """The published file, read by pandas alone."""
    with zipfile.ZipFile(data._source() / "flights.csv.zip") as archive, archive.open("flights.csv") as stream:
        flights = pd.read_csv(stream, na_values=["NA"])
    flights["sched_dep"] = pd.to_datetime(flights["time_hour"]) + pd.to_timedelta(flights["minute"], unit="min")
    return flights


@pytest.fixture(scope="module")
def year(published: pd.DataFrame) -> pd.DataFrame:
    """The published flights with their instants, worked out one zone at a time with zoneinfo."""
    airports = pd.read_csv(data._source() / "airports.csv").set_index("faa")["tzone"]
    zones = published["dest"].map(airports).fillna("America/Puerto_Rico")
    flights = published.copy()
    for zone, group in published.groupby(zones):
        local = group["sched_dep"].dt.tz_convert(ZoneInfo(str(zone)))
        due = group["sched_arr_time"] // 100 * 60 + group["sched_arr_time"] % 100
        flights.loc[group.index, "block"] = (due - local.dt.hour * 60 - local.dt.minute) % 1440
    flights["departed"] = flights["sched_dep"] + pd.to_timedelta(flights["dep_delay"], unit="min")
    flights["arrival"] = flights["sched_dep"] + pd.to_timedelta(flights["block"] + flights["arr_delay"], unit="min")
    flights["left_known"] = flights[["departed", "sched_dep"]].max(axis=1).where(flights["departed"].notna())
    return flights


def test_every_flight_that_arrived_is_there_and_the_others_are_counted(published: pd.DataFrame) -> None:
    events = data.load(None)["events"]
    arrived = published["arr_delay"].notna()
    assert len(events) == arrived.sum() == 327_346
    assert events["flight_id"].is_unique
    cancelled = int(published["dep_time"].isna().sum())
    assert events.attrs["dropped"] == {"cancelled": cancelled, "diverted": int((~arrived).sum()) - cancelled}
    assert events["late"].sum() == (published["arr_delay"] >= 15).sum()


def test_times_are_utc_and_agree_with_the_durations(year: pd.DataFrame) -> None:
    events = data.load(None)["events"].set_index("flight_id")
    rows = year[year["arr_delay"].notna()].sample(2000, random_state=3)
    keys = rows["carrier"] + rows["flight"].astype(str) + "-" + rows["origin"] + "-" + rows["dest"]
    chosen = events.loc[keys + rows["sched_dep"].dt.strftime("-%Y%m%dT%H%MZ")]
    assert (chosen["sched_dep"].to_numpy() == rows["sched_dep"].to_numpy()).all()
    assert (chosen["arrival"].to_numpy() == rows["arrival"].to_numpy()).all()
    assert str(chosen["arrival"].dt.tz) == "UTC"
    # Every flight was on the ground for a while beside its time in the air: a wrong zone would show.
    taxi = (year["arrival"] - year["departed"]).dt.total_seconds() / 60 - year["air_time"]
    assert taxi.min() >= 5
    assert taxi.max() < 240
    local = chosen["sched_dep"].dt.tz_convert("America/New_York").dt
    assert (chosen["minute"] == local.hour * 60 + local.minute).all()
    assert (chosen["weekday"] == local.weekday).all()


def test_nothing_newer_than_until_and_no_flight_that_could_still_be_late() -> None:
    tables = data.load(UNTIL)
    assert tables["events"]["arrival"].max() <= UNTIL
    assert tables["events"]["sched_dep"].max() <= UNTIL - data.SETTLED
    for name in set(tables) - {"events"}:
        assert tables[name]["event_timestamp"].max() <= UNTIL, name


def test_a_past_load_is_a_part_of_a_later_one() -> None:
    early, late = data.load(UNTIL), data.load(UNTIL + timedelta(days=20))
    for name in set(early) - {"events"}:
        pd.testing.assert_frame_equal(early[name], late[name].iloc[: len(early[name])], check_exact=True)


@pytest.mark.parametrize("seed", range(4))
def test_statistics_hold_only_what_was_known(year: pd.DataFrame, seed: int) -> None:
    """Each number again from the published flights, over those that had left or landed before the hour."""
    tables = data.load(None)
    random = np.random.default_rng(seed)

    def newest(name: str) -> pd.Series:
        rows = tables[name]
        rows = rows[rows["event_timestamp"] > pd.Timestamp("2013-01-20", tz="UTC")]
        return rows.iloc[int(random.integers(len(rows)))]

    for name, keys in (("origin_delays", ["origin"]), ("carrier_delays", ["carrier"]), ("dest_delays", ["dest"])):
        row = newest(name)
        at = row["event_timestamp"]
        mine = year[(year[keys] == row[keys].to_numpy()).all(axis=1)]

        def left(hours: int, mine: pd.DataFrame = mine, at: pd.Timestamp = at) -> pd.DataFrame:
            return mine[(mine["left_known"] < at) & (mine["left_known"] >= at - pd.Timedelta(hours=hours))]

        def landed(hours: int, mine: pd.DataFrame = mine, at: pd.Timestamp = at) -> pd.DataFrame:
            return mine[(mine["arrival"] < at) & (mine["arrival"] >= at - pd.Timedelta(hours=hours))]

        def rate(rows: pd.DataFrame) -> float:
            return float((rows["arr_delay"] >= 15).mean())

        expected = {
            "origin_dep_delay_2h": left(2)["dep_delay"].mean(),
            "origin_departures_2h": len(left(2)),
            "origin_late_24h": rate(landed(24)),
            "carrier_dep_delay_3h": left(3)["dep_delay"].mean(),
            "carrier_late_24h": rate(landed(24)),
            "carrier_late_7d": rate(landed(168)),
            "dest_late_6h": rate(landed(6)),
            "dest_late_24h": rate(landed(24)),
            "dest_late_7d": rate(landed(168)),
        }
        for column in set(expected) & set(row.index):
            np.testing.assert_allclose(row[column], expected[column], rtol=1e-5, err_msg=f"{name}.{column} at {at}")
        if name == "origin_delays":
            due = mine[(mine["sched_dep"] < at) & (mine["sched_dep"] >= at - pd.Timedelta(hours=2))]
            waiting = due["departed"].isna() | (due["left_known"] >= at)
            np.testing.assert_allclose(row["origin_waiting"], waiting.mean(), rtol=1e-5)


def test_a_flight_is_in_no_statistic_of_its_own_question(year: pd.DataFrame) -> None:
    """One that leaves before a full hour at which it is due must not show in that hour's row."""
    early = year[(year["minute"] == 0) & (year["dep_delay"] < 0)].iloc[500]
    rows = data.load(None)["origin_delays"].set_index(["origin", "event_timestamp"])
    at = early["sched_dep"]
    left = year[(year["origin"] == early["origin"]) & (year["left_known"] < at)]
    left = left[left["left_known"] >= at - pd.Timedelta(hours=2)]
    assert early.name not in left.index
    assert rows.loc[(early["origin"], at), "origin_departures_2h"] == len(left)


def test_a_landing_is_forgotten_after_a_day() -> None:
    rows = data.load(None)["plane_delays"]
    assert not rows.duplicated(["tailnum", "event_timestamp"]).any()
    for _, plane in list(rows.groupby("tailnum"))[:50]:
        gaps = plane["event_timestamp"].diff().shift(-1)
        told = plane["plane_arr_delay"].notna()
        assert (gaps[told].dropna() <= pd.Timedelta(days=1)).all()
        assert pd.isna(plane["plane_arr_delay"].iloc[-1])


def test_metric_weather_is_the_same_weather() -> None:
    imperial, metric = (data.load(UNTIL, weather_units=units)["weather"] for units in ("imperial", "metric"))
    row = imperial["temp"].notna().idxmax()
    assert metric["temp"][row] == pytest.approx((imperial["temp"][row] - 32) / 1.8 + 273.15, abs=1e-3)
    assert metric["wind_speed"][row] == pytest.approx(imperial["wind_speed"][row] * 0.44704, rel=1e-5)
    assert metric["humid"].equals(imperial["humid"])
    assert (metric.dtypes == imperial.dtypes).all()
    with pytest.raises(ValueError, match="kelvin"):
        data.load(UNTIL, weather_units="kelvin")


def test_excluded_carriers_are_gone_from_events_and_their_own_statistics() -> None:
    everyone, some = data.load(UNTIL), data.load(UNTIL, exclude_carriers=["EV", "9E"])
    share = 1 - len(some["events"]) / len(everyone["events"])
    assert 0.15 < share < 0.3
    assert not set(some["events"]["carrier"]) & {"EV", "9E"}
    assert not set(some["hub_delays"]["carrier"]) & {"EV", "9E"}
    assert some["origin_delays"].equals(everyone["origin_delays"])


def test_online_frames_are_the_newest_rows_and_add_up() -> None:
    """What was pushed hour by hour is what one push at the end holds."""
    start = datetime(2013, 4, 5, 10, tzinfo=UTC)
    held: dict[str, pd.DataFrame] = {}
    since = None
    for hour in range(5):
        until = start + timedelta(hours=hour)
        for name, frame in data.online_frames(since, until).items():
            keys = [key for key in ("carrier", "origin", "dest", "route", "tailnum") if key in frame]
            assert not frame.duplicated(keys).any()
            assert frame["event_timestamp"].max() <= until or frame.empty
            both = pd.concat([held[name], frame]) if name in held else frame
            held[name] = both.drop_duplicates(keys, keep="last")
        since = until
    for name, frame in data.online_frames(None, since).items():
        keys = [key for key in ("carrier", "origin", "dest", "route", "tailnum") if key in frame]
        merged = frame.merge(held[name], on=[*keys, "event_timestamp"], how="left", indicator=True)
        assert (merged["_merge"] == "both").all(), name


def test_the_cache_is_made_once_and_whole(flights_home: Settings, prepared_flights: Path) -> None:
    folder = data.prepared()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(before) == {f"{name}.parquet" for name in data.TABLES}
    assert data.prepared() == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in (flights_home.home / "cache" / "flight_delay").iterdir()] == [folder.name]
