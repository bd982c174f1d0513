"""What the gateway would read is held against the point-in-time join, through Feast's own stores."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airlock import specs
from airlock.core.gates import FeatureValues
from airlock.core.refs import TrainingSetRef
from airlock.core.spec import FeatureParityGate, ModelSpec
from airlock.core.verdict import Status, Verdict
from airlock.settings import Settings
from airlock.steps import feature_parity as gathering
from airlock.steps import features, snapshot, validation
from airlock.steps.feature_parity import feature_values
from airlock.steps.recipes import load_recipe
from tests.support.gate_evidence import only
from tests.support.tiny_data import tiny_project, tiny_spec, tiny_tables

pytestmark = pytest.mark.integration
UNTIL = datetime(2026, 1, 20, tzinfo=UTC)
GATE = FeatureParityGate(kind="feature_parity", rows=50)
SPEC = tiny_spec(gates=[GATE.model_dump()])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return tiny_project(tmp_path)


def training_set(settings: Settings, tables: dict[str, pd.DataFrame], spec: ModelSpec = SPEC) -> TrainingSetRef:
    recipe: Any = load_recipe(spec, settings)
    recipe.tables = tables
    frozen = snapshot.freeze(spec, settings, until=UNTIL)
    validation.require_valid(validation.validate(spec, settings, frozen))
    return features.training_set(spec, settings, frozen)


def gathered(settings: Settings, tables: dict[str, pd.DataFrame], spec: ModelSpec = SPEC) -> FeatureValues:
    found = feature_values(spec, settings, training_set(settings, tables, spec))
    assert found is not None
    return found


def verdict_on(found: FeatureValues | None, gate: FeatureParityGate = GATE) -> Verdict:
    return only(gate, features=found)


def quiet_tables(hours: int) -> dict[str, pd.DataFrame]:
    """The north shop's sales stop some hours before the last visit; the south shop's go on."""
    tables = tiny_tables()
    last = tables["events"]["at"].max()
    sales = tables["sales"]
    gone = (sales["shop"] == "north") & (sales["event_timestamp"] > last - timedelta(hours=hours))
    # What is known later than the last visit may not be read at its time.
    tables["sales"] = sales[~gone]
    return tables


def test_both_sides_give_the_newest_row(settings: Settings) -> None:
    tables = tiny_tables()
    found = gathered(settings, tables)
    at = tables["events"]["at"].max()
    known = tables["sales"][tables["sales"]["event_timestamp"] <= at].groupby("shop")["sold"].last()
    assert len(found.rows) == 2, "one row a combination of entities"
    for place, row in enumerate(found.rows):
        shop = "north" if "north" in row else "south"
        assert found.online["sold"][place] == found.offline["sold"][place] == known[shop]
    assert set(found.online) == {"sold"}, "the age comes with the question on both sides"
    assert verdict_on(found).passed


@pytest.mark.parametrize(("hours", "expired"), [(5, False), (9, True)])
def test_a_row_past_its_ttl_is_missing_on_both_sides(settings: Settings, hours: int, expired: bool) -> None:
    found = gathered(settings, quiet_tables(hours))
    assert np.isnan(found.online["sold"]).sum() == expired
    assert verdict_on(found).passed


def test_an_online_read_that_forgets_the_ttl_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_forget_expired", lambda repo, at: None)
    verdict = verdict_on(gathered(settings, quiet_tables(9)))
    assert verdict.status is Status.FAIL
    assert "sold in 1 rows; such as sold of shop north at" in verdict.reason
    assert "nan offline" in verdict.reason


def test_a_store_that_holds_other_values_is_caught(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    read_online = gathering._read_online

    def skewed(*args: Any) -> dict[str, list[Any]]:
        return {
            name: [value * 1.8 + 32 for value in values]
            for name, values in read_online(*args).items()
            if name == "sold"
        }

    monkeypatch.setattr(gathering, "_read_online", skewed)
    verdict = verdict_on(gathered(settings, tiny_tables()))
    assert verdict.status is Status.FAIL
    assert verdict.estimate == 1


def test_missing_join_keys_match_nothing_on_either_side(settings: Settings) -> None:
    tables = tiny_tables()
    events = tables["events"]
    tables["events"] = events.assign(shop=events["shop"].where(np.arange(len(events)) % 7 != 0))
    spec = tiny_spec(
        gates=[GATE.model_dump()], data={"key": "visit", "event_time": "at", "tables": {"sales": {"key": []}}}
    )
    found = gathered(settings, tables, spec)
    assert len(found.rows) == 3
    assert np.isnan(found.online["sold"]).sum() == np.isnan(found.offline["sold"]).sum() == 1
    assert verdict_on(found).passed


def test_it_is_gathered_with_the_training_set_and_kept(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = training_set(settings, tiny_tables())

    def forbidden(*_: Any) -> None:
        raise AssertionError("Feast is asked again")

    monkeypatch.setattr(gathering, "_both", forbidden)
    found = feature_values(SPEC, settings, ref)
    assert found is not None
    assert verdict_on(found).passed
    assert len(list(Path(ref.path).parent.glob("*-features-50.parquet"))) == 1


def test_without_the_gate_nothing_is_gathered(settings: Settings) -> None:
    spec = tiny_spec()
    ref = training_set(settings, tiny_tables(), spec)
    assert feature_values(spec, settings, ref) is None
    assert not list(Path(ref.path).parent.glob("*-features-*"))


def test_a_snapshot_that_is_gone_is_an_error_and_is_tried_again(settings: Settings) -> None:
    ref = training_set(settings, tiny_tables())
    (kept,) = Path(ref.path).parent.glob("*-features-50.parquet")
    kept.unlink()
    folder = settings.snapshots / "tiny"
    aside = folder.rename(folder.with_name("aside"))
    verdict = verdict_on(feature_values(SPEC, settings, ref))
    assert verdict.status is Status.ERROR
    assert "freeze the data again" in verdict.reason
    aside.rename(folder)
    assert verdict_on(feature_values(SPEC, settings, ref)).passed


def test_whatever_feast_raises_is_an_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(gathering, "_read_online", broken)
    verdict = verdict_on(gathered(settings, tiny_tables()))
    assert verdict.status is Status.ERROR
    assert "RuntimeError: disk full" in verdict.reason


def test_real_flights_are_served_what_they_were_learned_with(flights_home: Settings) -> None:
    """28 features of 9 views and one on-demand view, for the newest 200 combinations of entities."""
    spec = specs.find(flights_home, "flight_delay")
    spec = spec.model_copy(update={"gates": (FeatureParityGate(kind="feature_parity"),)})
    ref = snapshot.freeze(spec, flights_home, until=datetime(2013, 1, 22, 5, tzinfo=UTC))
    validation.require_valid(validation.validate(spec, flights_home, ref))
    verdict = verdict_on(feature_values(spec, flights_home, features.training_set(spec, flights_home, ref)))
    assert verdict.passed, verdict
    assert verdict.n == 200
    assert len(verdict.details["differing"]) == 28
