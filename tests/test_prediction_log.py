"""The reader of the prediction log, against files as the gateway writes them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from airlock.core.errors import DataInvalid
from airlock.prediction_log import COLUMNS, count, days, read
from airlock.settings import Settings
from tests.support.gateway_process import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "bentos"))
from gateway.prediction_writer import Entry, Origin, PredictionWriter

ASKED = datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)
EVENT = datetime(2013, 4, 1, 6, tzinfo=UTC)


def us(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def origin(
    keys: list[str | None],
    events: list[datetime | None],
    columns: tuple[tuple[str, str], ...] = (("distance", "float"), ("weekday", "int"), ("carrier", "string")),
    rows: list[list[Any]] | None = None,
    asked: datetime = ASKED,
) -> Origin:
    times = [None if time is None else us(time) for time in events]
    values = rows or [[float(n), n, None] for n in range(len(keys))]
    return Origin(us(asked), f"id-{keys[0]}", 7, "r1", "staff", "ann", keys, times, columns, values)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    unused = "http://127.0.0.1:9"
    return Settings(REPOSITORY, tmp_path, unused, unused, unused, "sqlite://")


def write(settings: Settings, *entries: Entry) -> None:
    writer = PredictionWriter(settings.predictions)
    writer.start()
    for entry in entries:
        writer.add("late", entry)
    writer.close()
    assert writer.lost == {}


def answered(of: Origin, version: str = "1", role: str = "served", **changes: Any) -> Entry:
    count = len(of.rows)
    entry = Entry(of, version, "champion", role, None, None, [1.0] * count, [0.75] * count, 1.5)
    return entry._replace(**changes)


def test_no_log_is_an_empty_frame(settings: Settings) -> None:
    frame = read(settings, "late")
    assert frame.empty
    assert list(frame.columns) == list(COLUMNS)
    assert count(settings, "late") == {}
    assert days(settings, "late") == ()


def test_rows_come_back_as_they_were_asked(settings: Settings) -> None:
    write(settings, answered(origin(["a", "b"], [EVENT, EVENT + timedelta(hours=1)])))
    frame = read(settings, "late")
    assert len(frame) == 2
    row = frame.iloc[1]
    assert (row["key"], row["row"], row["generation"], row["release"], row["role"]) == ("b", 1, 7, "r1", "served")
    assert (row["pin"], row["routing_key"]) == ("staff", "ann")
    assert (row["version"], row["variant"]) == ("1", "champion")
    assert row["fallback"] is None
    assert (row["prediction"], row["probability"], row["latency_ms"]) == (1.0, 0.75, 1.5)
    assert row["event_time"] == EVENT + timedelta(hours=1)
    assert row["at"] == ASKED
    assert (row["x_distance"], row["x_weekday"]) == (1.0, 1)
    assert pd.isna(row["x_carrier"])
    assert str(frame["at"].dtype) == "datetime64[us, UTC]"


def test_the_window_is_in_event_time_or_else_in_the_clock_s(settings: Settings) -> None:
    write(settings, answered(origin(["a", "b", "c"], [EVENT, EVENT + timedelta(hours=1), None])))
    assert list(read(settings, "late", EVENT, EVENT + timedelta(hours=1))["key"]) == ["a"]
    assert list(read(settings, "late", ASKED)["key"]) == ["c"]
    assert list(read(settings, "late", until=ASKED)["key"]) == ["a", "b"]
    with pytest.raises(DataInvalid, match="time zone"):
        read(settings, "late", EVENT.replace(tzinfo=None))


def test_roles_are_chosen_and_counted(settings: Settings) -> None:
    of = origin(["a", "b"], [EVENT, EVENT])
    failed = answered(of, "2", error="no such category", predictions=None, probabilities=None)
    write(settings, answered(of), answered(of, "2", "shadow"), failed)
    assert len(read(settings, "late")) == 4
    assert set(read(settings, "late", roles=("shadow",))["version"]) == {"2"}
    assert read(settings, "late", roles=()).empty
    assert count(settings, "late", roles=("served", "shadow")) == {
        ("1", "served"): 2,
        ("2", "served"): 2,
        ("2", "shadow"): 2,
    }
    lost = read(settings, "late").query("version == '2'")
    assert set(lost["error"]) == {"no such category"}
    assert lost["prediction"].isna().all()


def test_versions_may_differ_in_their_inputs(settings: Settings) -> None:
    write(settings, answered(origin(["a"], [EVENT])))
    write(settings, answered(origin(["b"], [EVENT], (("seats", "int"),), [[180]])))
    frame = read(settings, "late").set_index("key")
    assert pd.isna(frame.loc["a", "x_seats"])
    assert frame.loc["b", "x_seats"] == 180


def test_columns_are_chosen_by_name(settings: Settings) -> None:
    write(settings, answered(origin(["a"], [EVENT])))
    assert list(read(settings, "late", columns=["key", "x_distance"]).columns) == ["key", "x_distance"]
    with pytest.raises(DataInvalid, match="x_nothing"):
        read(settings, "late", columns=["x_nothing"])


def test_a_row_lies_in_the_day_it_was_asked(settings: Settings) -> None:
    write(
        settings,
        answered(origin(["a"], [None])),
        answered(origin(["b"], [None], asked=ASKED + timedelta(seconds=2))),
    )
    assert [str(day) for day in days(settings, "late")] == ["2026-03-01", "2026-03-02"]
    assert list(read(settings, "late")["key"]) == ["a", "b"]


def test_a_half_written_file_is_not_read(settings: Settings) -> None:
    write(settings, answered(origin(["a"], [EVENT])))
    (folder,) = (settings.predictions / "late").iterdir()
    (folder / ".part-1.parquet.tmp").write_bytes(b"PAR1")
    assert len(read(settings, "late")) == 1


def test_a_full_queue_drops_and_counts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.prediction_writer.MAX_WAITING", 2)
    writer = PredictionWriter(settings.predictions)
    for name in "abc":
        writer.add("late", answered(origin([name], [EVENT])))
    assert (writer.queued, writer.lost["late"].rows) == (2, 1)
    writer.start()
    writer.close()
    assert list(read(settings, "late")["key"]) == ["a", "b"]


def test_entries_are_numbered_as_they_were_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """By model; a dropped one leaves a gap; the time grows even where the clock goes back."""
    monkeypatch.setattr("gateway.prediction_writer.MAX_WAITING", 4)
    clock = iter([5_000_000, 5_000_000, 1_000, 9_000_000, 9_000_000, 9_000_000])
    monkeypatch.setattr("gateway.prediction_writer.time.time_ns", lambda: next(clock, 7))
    writer = PredictionWriter(settings.predictions)
    for model, name in (("late", "a"), ("late", "b"), ("other", "c"), ("late", "d"), ("late", "dropped")):
        writer.add(model, answered(origin([name, name], [EVENT, EVENT]), step="canary_5"))
    monkeypatch.setattr("gateway.prediction_writer.MAX_WAITING", 5)
    writer.add("late", answered(origin(["f"], [EVENT])))
    writer.start()
    writer.close()
    frame = read(settings, "late", columns=["key", "sequence", "counted_at", "step"])
    frame = frame.sort_values("sequence")
    assert list(frame["key"]) == ["a", "a", "b", "b", "d", "d", "f"]
    assert list(frame["sequence"]) == [1, 1, 2, 2, 3, 3, 5]
    assert frame.groupby("sequence")["counted_at"].first().is_monotonic_increasing
    assert frame["counted_at"].nunique() == 4
    assert list(frame["step"].fillna("none")) == ["canary_5"] * 6 + ["none"]
    assert list(read(settings, "other", columns=["sequence"])["sequence"]) == [1, 1]


def test_files_of_older_gateways_stay_readable(settings: Settings) -> None:
    write(settings, answered(origin(["a"], [EVENT])))
    (path,) = (settings.predictions / "late").glob("*/*.parquet")
    newer = ["sequence", "counted_at", "step", "timed_out"]
    older = pd.read_parquet(path, columns=[name for name in COLUMNS if name not in newer])
    older.to_parquet(path, index=False)
    frame = read(settings, "late", columns=["key", *newer])
    assert list(frame["key"]) == ["a"]
    assert frame[newer].isna().all(axis=None)
    write(settings, answered(origin(["b"], [EVENT])))
    mixed = read(settings, "late", columns=["key", "sequence"])
    assert dict(zip(mixed["key"], mixed["sequence"].fillna(0), strict=True)) == {"a": 0, "b": 1}


def test_a_full_disk_loses_entries_and_says_so(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    settings.predictions.mkdir(parents=True)
    (settings.predictions / "late").write_text("in the way")
    writer = PredictionWriter(settings.predictions)
    writer.start()
    writer.add("late", answered(origin(["a"], [EVENT])))
    writer.close()
    assert (writer.lost["late"].rows, writer.queued) == (1, 0)
    assert "lost" in caplog.text


def test_a_value_that_cannot_be_written_does_not_end_the_log(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    writer = PredictionWriter(settings.predictions)
    writer.start()
    writer.add("late", answered(origin(["\ud800"], [EVENT])))
    writer.add("other", answered(origin(["a"], [EVENT])))
    writer.close()
    assert (writer.lost.keys(), writer.written, writer.queued) == ({"late"}, 1, 0)
    assert "1 rows of the prediction log are lost" in caplog.text


def test_a_value_that_cannot_be_written_costs_its_row_alone(settings: Settings) -> None:
    writer = PredictionWriter(settings.predictions)
    for number in range(50):
        writer.add("late", answered(origin([f"a{number}", f"b{number}"], [EVENT, EVENT])))
    writer.add("late", answered(origin(["good", "\ud800", "fine"], [EVENT] * 3)))
    writer.start()
    writer.close()
    assert (writer.lost["late"].rows, writer.written, writer.queued) == (1, 102, 0)
    kept = set(read(settings, "late")["key"])
    assert {"a0", "b49", "good", "fine"} < kept


def test_answers_that_fit_no_rows_do_not_end_the_log(settings: Settings) -> None:
    writer = PredictionWriter(settings.predictions)
    writer.start()
    writer.add("late", answered(origin(["a", "b"], [EVENT, EVENT]), predictions=[1.0]))
    writer.add("other", answered(origin(["a"], [EVENT])))
    writer.close()
    assert (writer.lost["late"].rows, writer.written, writer.queued) == (2, 1, 0)


@pytest.mark.parametrize("value", [2**53 + 1, 10**18, -(2**63), 2**64 - 1])
def test_a_whole_number_beyond_a_float_s_is_kept_as_the_model_took_it(settings: Settings, value: int) -> None:
    rows = [[value, 1, None], [None, 1, None], [0.5, 1, None]]
    write(settings, answered(origin(["a", "b", "c"], [EVENT] * 3, rows=rows)))
    frame = read(settings, "late").set_index("key")
    assert frame.loc["a", "x_distance"] == float(value)
    assert pd.isna(frame.loc["b", "x_distance"])
    assert frame.loc["c", "x_distance"] == 0.5
