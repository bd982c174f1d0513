"""Outcomes arrive by name, late, more than once and corrected."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from airlock.core.errors import DataInvalid
from airlock.settings import Settings
from airlock.steps import labels, outcomes
from tests.support.toy_model import toy_rows, toy_settings, toy_spec

SPEC = toy_spec()
NOON = datetime(2026, 1, 20, 12, tzinfo=UTC)


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return toy_settings(tmp_path)


def table(**changes: Any) -> pd.DataFrame:
    """Revenue of three visits, the last a day later, and the margin of one."""
    columns: dict[str, Any] = {
        "key": ["a", "b", "c", "a"],
        "name": ["revenue", "revenue", "revenue", "margin"],
        "value": [1.5, 0.0, 7.0, 0.25],
        "time": pd.to_datetime([NOON, NOON, NOON + timedelta(days=1), NOON], utc=True),
    }
    return pd.DataFrame(columns | changes)


def files(here: Settings) -> list[Path]:
    return sorted(here.outcomes.rglob("*")) if here.outcomes.exists() else []


def revenue(here: Settings, until: datetime) -> dict[str, float]:
    found = outcomes.read(here, "toy", "revenue", until)
    return dict(zip(found["key"], found["value"], strict=True))


def test_only_what_was_known_by_then_is_read(here: Settings) -> None:
    assert outcomes.read(here, "toy", "revenue", NOON).columns.tolist() == ["key", "value", "time"]
    assert outcomes.deliver(SPEC, here, table()) == 4
    assert revenue(here, NOON) == {}
    assert revenue(here, NOON + timedelta(seconds=1)) == {"a": 1.5, "b": 0.0}
    assert revenue(here, NOON + timedelta(days=2)) == {"a": 1.5, "b": 0.0, "c": 7.0}
    found = outcomes.read(here, "toy", "margin", NOON + timedelta(days=2))
    assert found["value"].tolist() == [0.25]
    assert found["time"].tolist() == [pd.Timestamp(NOON)]


def test_the_same_outcomes_again_change_nothing(here: Settings) -> None:
    outcomes.deliver(SPEC, here, table())
    before = files(here)
    outcomes.deliver(SPEC, here, table().sample(frac=1, random_state=1))
    assert files(here) == before
    assert not [path for path in before if path.name.endswith(".tmp")]


def test_the_later_value_of_a_key_holds(here: Settings) -> None:
    outcomes.deliver(SPEC, here, table())
    later = table(value=[9.0, 9.0, 9.0, 9.0], time=pd.to_datetime([NOON + timedelta(minutes=1)] * 4, utc=True))
    outcomes.deliver(SPEC, here, later)
    assert revenue(here, NOON + timedelta(seconds=1)) == {"a": 1.5, "b": 0.0}
    # The correction of "c" is older than its value.
    assert revenue(here, NOON + timedelta(days=2)) == {"a": 9.0, "b": 9.0, "c": 7.0}


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (table().drop(columns="value"), "value"),
        (table(value=[1.0, None, 1.0, 1.0]), "1 of 4"),
        (table(value=[1.0, float("inf"), 1.0, 1.0]), "1 of 4"),
        (table(value=["1", "2", "3", "much"]), "not a number"),
        (table(time=[NOON.replace(tzinfo=None)] * 4), "time zone"),
        (table(name=["revenue", "revenue", "revenue", "../labels"]), "cannot name"),
        (table(name=["revenue", "revenue", "revenue", "label"]), "as a label"),
    ],
)
def test_spoilt_outcomes_are_refused_whole(here: Settings, spoilt: pd.DataFrame, said: str) -> None:
    with pytest.raises(DataInvalid, match=said):
        outcomes.deliver(SPEC, here, spoilt)
    assert not files(here)


def test_a_time_without_a_zone_is_refused(here: Settings) -> None:
    with pytest.raises(DataInvalid, match="time zone"):
        outcomes.read(here, "toy", "revenue", NOON.replace(tzinfo=None))


def test_the_label_is_an_outcome_too(here: Settings) -> None:
    rows = toy_rows(50)
    labels.deliver(SPEC, here, rows)
    middle = rows["known_at"].sort_values().iloc[25]
    found = outcomes.read(here, "toy", "label", middle.to_pydatetime())
    known = rows[rows["known_at"] < middle].sort_values("visit")
    assert found["key"].tolist() == sorted(known["visit"].astype(str))
    assert found.set_index("key")["value"].to_dict() == dict(
        zip(known["visit"].astype(str), known["bought"].astype(float), strict=True)
    )


def test_labels_without_a_time_are_always_known(here: Settings) -> None:
    rows = toy_rows(50)
    labels.deliver(toy_spec(label={"name": "bought"}), here, rows)
    found = outcomes.read(here, "toy", "label", datetime(2000, 1, 1, tzinfo=UTC))
    assert len(found) == 50
    assert found["time"].isna().all()
