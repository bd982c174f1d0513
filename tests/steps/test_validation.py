from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airlock.core.errors import DataInvalid
from airlock.core.refs import SnapshotRef
from airlock.core.verdict import Status, Verdict
from airlock.settings import Settings
from airlock.steps import features, snapshot, validation
from airlock.steps.recipes import load_recipe
from tests.support.tiny_data import tiny_project, tiny_spec, tiny_tables

pytestmark = pytest.mark.integration
UNTIL = datetime(2026, 1, 20, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return tiny_project(tmp_path)


def freeze(settings: Settings, tables: dict[str, pd.DataFrame]) -> SnapshotRef:
    recipe: Any = load_recipe(tiny_spec(), settings)
    recipe.tables = tables
    return snapshot.freeze(tiny_spec(), settings, until=UNTIL)


def test_sound_data_passes_and_the_verdict_stays_with_it(settings: Settings) -> None:
    ref = freeze(settings, tiny_tables())
    assert validation.recorded(tiny_spec(), ref) is None
    verdict = validation.validate(tiny_spec(), settings, ref)
    assert verdict.status is Status.PASS, verdict.reason
    assert verdict.details["checked"] > 15
    assert verdict.n == sum(ref.tables.values())
    assert validation.recorded(tiny_spec(), ref) == verdict
    assert validation.validate(tiny_spec(), settings, ref) == verdict
    validation.require_valid(verdict)


def test_a_verdict_by_other_rules_counts_no_more(settings: Settings) -> None:
    ref = freeze(settings, tiny_tables())
    assert validation.validate(tiny_spec(), settings, ref).passed
    spec = tiny_spec()
    stricter = spec.data.tables["events"].model_copy(update={"min_rows": 10**6})
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"tables": {"events": stricter}})})
    assert validation.recorded(spec, ref) is None
    with pytest.raises(DataInvalid, match="not validated by the rules"):
        features.training_set(spec, settings, ref)
    assert validation.validate(spec, settings, ref).status is Status.FAIL


def _missing_column(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"] = tables["events"].drop(columns="age")


def _wrong_type(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"]["age"] = tables["events"]["age"].astype(str)


def _nulls(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"].loc[tables["events"].index % 10 < 3, "age"] = np.nan


def _doubled_keys(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"].loc[10:12, "visit"] = "v0001"


def _impossible_values(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"].loc[5:9, "age"] = -4.0


def _unknown_values(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"].loc[:1, "shop"] = "west"


def _too_few(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"] = tables["events"].iloc[:60]


def _missing_label(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"] = tables["events"].astype({"bought": "float64"})
    tables["events"].loc[:4, "bought"] = np.nan


def _third_class(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"].loc[:2, "bought"] = 2


def _doubled_feature_rows(tables: dict[str, pd.DataFrame]) -> None:
    tables["sales"] = pd.concat([tables["sales"], tables["sales"].iloc[:4]])


def _no_sales(tables: dict[str, pd.DataFrame]) -> None:
    del tables["sales"]


@pytest.mark.parametrize(
    ("spoil", "rule", "where", "failing", "rows"),
    [
        (_missing_column, "column", "events.age", 400, 400),
        (_wrong_type, "type", "events.age", 400, 400),
        (_nulls, "max_missing", "events.age", 120, 400),
        (_doubled_keys, "unique", "events.visit", 4, 400),
        (_impossible_values, "range", "events.age", 5, 400),
        (_unknown_values, "values", "events.shop", 2, 400),
        (_too_few, "min_rows", "events", 60, 60),
        (_missing_label, "type", "events.bought", 400, 400),
        (_third_class, "range", "events.bought", 3, 400),
        (_doubled_feature_rows, "key", "sales.shop, event_timestamp", 8, None),
        (_no_sales, "table", "sales", 0, 0),
    ],
)
def test_poisoned_data_stops_with_the_rule_the_place_and_the_rows(
    settings: Settings, spoil: Callable[..., None], rule: str, where: str, failing: int, rows: int | None
) -> None:
    tables = tiny_tables()
    spoil(tables)
    ref = freeze(settings, tables)
    verdict = validation.validate(tiny_spec(), settings, ref)
    assert verdict.status is Status.FAIL
    (found,) = [failure for failure in verdict.details["failures"] if failure["where"] == where]
    assert found["rule"] == rule
    assert found["failing"] == failing
    assert rows is None or found["rows"] == rows
    with pytest.raises(DataInvalid) as refused:
        validation.require_valid(verdict)
    assert where in str(refused.value)
    assert rule in str(refused.value)
    assert f"{failing:,}" in str(refused.value) or rule in {"column", "table"}

    # No half-made snapshot: none at all where snapshots are, and one to look at in quarantine.
    assert list((settings.snapshots / "tiny").iterdir()) == []
    kept = settings.quarantine / "tiny" / Path(ref.path).name
    assert Verdict.model_validate_json((kept / snapshot.VERDICT).read_bytes()).status is Status.FAIL
    assert str(kept) in verdict.reason


def test_nothing_is_trained_on_what_was_not_validated(settings: Settings) -> None:
    ref = freeze(settings, tiny_tables())
    with pytest.raises(DataInvalid, match="was not validated"):
        features.training_set(tiny_spec(), settings, ref)


def test_no_value_of_a_row_is_in_a_verdict(settings: Settings) -> None:
    tables = tiny_tables()
    tables["events"].loc[3, "shop"] = "Mrs Secret's"
    tables["events"].loc[:80, "visit"] = "passport 4711"
    verdict = validation.validate(tiny_spec(), settings, freeze(settings, tables))
    kept = next((settings.quarantine / "tiny").iterdir()) / snapshot.VERDICT
    for text in (verdict.model_dump_json(), kept.read_text(), json.dumps(verdict.details)):
        assert "Secret" not in text
        assert "4711" not in text


def test_the_same_bad_data_is_refused_again(settings: Settings) -> None:
    tables = tiny_tables()
    _nulls(tables)
    for _ in range(2):
        assert not validation.validate(tiny_spec(), settings, freeze(settings, tables)).passed
    assert len(list((settings.quarantine / "tiny").iterdir())) == 1
