"""What a spec is warned of, and what two guards of a spec cannot share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from airlock.core.guard_warnings import warnings
from airlock.core.spec import ModelSpec
from airlock.specs import load_spec, spec_files
from tests.support.toy_model import toy_spec

ERRORS = {"kind": "error_rate", "max": 0.05}
SHIFT = {"kind": "prediction_shift", "max_mean": 5, "max_absolute": 9}
PAIRED = {"kind": "paired_loss", "metric": "brier", "margin": 0.02}
REVENUE = {"kind": "business_metric", "name": "revenue", "range": [0, 100], "min": 3}
PROJECT = Path(__file__).resolve().parents[2]


def spec_of(*guards: dict[str, Any], task: str = "regression", max_missing: float = 0.1) -> ModelSpec:
    label = {"name": "bought", "max_missing": max_missing}
    return toy_spec(task=task, guards=guards, label=label, gates=[{"kind": "finite"}])


def about(spec: ModelSpec) -> list[str]:
    return [warning.split(":")[0] for warning in warnings(spec)]


def test_what_nothing_bounds_is_warned_of() -> None:
    loss = {"kind": "paired_loss", "metric": "squared_error", "margin": 1}
    rmse = {"kind": "label_metric", "metric": "rmse", "margin": 1}
    spec = spec_of(ERRORS, SHIFT, loss, rmse)
    assert about(spec) == ["prediction_shift", "prediction_disagreement", "paired_loss_squared_error"]
    assert "give it a range" in warnings(spec)[0]
    auc = {"kind": "label_metric", "metric": "roc_auc", "min": 0.7}
    assert warnings(spec_of(ERRORS, PAIRED, auc, REVENUE, task="classification")) == ()
    assert warnings(spec_of({**SHIFT, "range": [0, 400]})) == ()


@pytest.mark.parametrize(
    ("beside", "blind"), [(None, True), ("minute", True), ("request", False)], ids=["alone", "minute", "request"]
)
def test_a_guard_by_key_needs_one_by_request_beside_it(beside: str | None, blind: bool) -> None:
    by_key = {**ERRORS, "max": 0.01, "by": "key"}
    more = [] if beside is None else [{**ERRORS, "by": beside}]
    fallbacks = {"kind": "fallback_rate", "max": 0.1}
    found = warnings(spec_of(fallbacks, by_key, *more))
    assert len(found) == blind
    assert all(told.startswith("guards.1: error_rate by key") and "by request beside it" in told for told in found)


@pytest.mark.parametrize(
    ("guard", "task"),
    [
        ({"kind": "label_metric", "metric": "roc_auc", "min": 0.7}, "classification"),
        ({"kind": "label_metric", "metric": "log_loss", "margin": 0.1}, "classification"),
        ({"kind": "paired_loss", "metric": "log_loss", "margin": 0.1}, "classification"),
        ({"kind": "label_metric", "metric": "mae", "max": 3}, "regression"),
        ({"kind": "label_metric", "metric": "rmse", "max": 3}, "regression"),
        ({"kind": "label_metric", "metric": "rmse", "margin": 3}, "regression"),
    ],
)
def test_a_metric_without_bounds_that_needs_every_label_is_warned_of(guard: dict[str, Any], task: str) -> None:
    def told(max_missing: float) -> list[str]:
        return [
            one for one in warnings(spec_of(guard, task=task, max_missing=max_missing)) if "max_missing is 0" in one
        ]

    (found,) = told(0.0)
    assert "say in label.max_missing" in found
    assert ("brier" in found) == (task == "classification")
    assert told(0.01) == []


def test_bounded_losses_and_outcomes_need_no_such_share() -> None:
    assert warnings(spec_of(PAIRED, REVENUE, task="classification", max_missing=0.0)) == ()


def test_no_spec_of_the_project_is_warned_of() -> None:
    found = {path.name: warnings(load_spec(path)) for path in spec_files(PROJECT / "dags" / "models")}
    assert found
    assert not any(found.values()), found


@pytest.mark.parametrize("other", [[0, 200], None])
def test_shift_guards_of_one_spec_share_one_range(other: list[float] | None) -> None:
    wide = {**SHIFT, "range": [0, 400]}
    narrow = {**SHIFT, "range": other, "by": "minute"}
    with pytest.raises(ValidationError, match=r"guards\.1 has range \[0.*guards\.2 has (no )?range") as refused:
        spec_of(ERRORS, wide, narrow)
    assert "give both the wider one" in str(refused.value)
    assert spec_of(ERRORS, wide, {**narrow, "range": [0, 400]}).guards
