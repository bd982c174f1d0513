"""The spec: what it refuses, and that its defaults are a rollout that one can live with."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from airlock.core import spec as spec_module
from airlock.core.spec import METRICS, Duration, ModelSpec, Policy, Rollout, Task, written

SPEC: dict[str, Any] = {
    "model": "house",
    "task": "regression",
    "data": {"key": "id", "event_time": "sold"},
    "label": {"name": "price"},
    "inputs": {"rooms": "int", "area": {"type": "float", "min": 10}},
    "gates": [{"kind": "threshold", "metric": "rmse", "max": 50}],
}


def parsed(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate({**SPEC, **changes})


def test_the_smallest_spec_is_safe() -> None:
    spec = parsed()
    assert spec.approval.required
    assert spec.rollout.shadow is not None
    assert [step.weight for step in spec.rollout.steps] == [5, 25, 50, 100]
    assert all(step.min_requests >= 50 for step in spec.rollout.steps)
    assert spec.guards[0].min_requests >= 50
    assert spec.recipe_module == "include.house.recipe"
    assert parsed(recipe={"module": "mine.recipe"}).recipe_module == "mine.recipe"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gates": []}, "without a gate"),
        ({"guards": []}, "no alarm configured"),
        ({"guards": [{"kind": "error_rate", "max": 0.1, "min_requests": 0}]}, "greater than or equal to 1"),
        ({"guards": [{"kind": "prediction_shift"}]}, "max_mean, max_absolute or both"),
        ({"guards": [{"kind": "error_rate"}]}, "Field required"),
        ({"guards": [{"kind": "error_rate", "max": 1}]}, "less than 1"),
        ({"inputs": {}}, "at least one input"),
        ({"inputs": {"price": "float"}}, "told the answer"),
        ({"inputs": {"area": {"type": "float", "min": 3, "max": 2}}}, "min 3 is above max 2"),
        ({"gates": [{"kind": "threshold", "metric": "roc_auc", "min": 0.6}]}, "roc_auc does not fit a regression"),
        ({"gates": [{"kind": "threshold", "metric": "rmse"}]}, "exactly one of min and max"),
        ({"gates": [{"kind": "slices", "column": "a", "metric": "rmse"}]}, "exactly one of min and max"),
        ({"gates": [{"kind": "threshold", "metric": "rmse", "max": float("inf")}]}, "finite"),
        ({"gates": [{"kind": "non_inferiority", "metric": "rmse", "margin": -1}]}, "greater than or equal to 0"),
        ({"monitoring": {"drift": {"columns": ["rooms", "beds"]}}}, r"\['beds'\] are not inputs"),
        ({"model": "House!"}, "pattern"),
        ({"surprise": 1}, "Extra inputs"),
        ({"rollout": {"steps": [{"weight": 100}]}}, "min_requests"),
        ({"rollout": {"steps": []}}, "at least one step"),
        ({"rollout": {"deadline": "10m"}}, "bakes for 10m is rolled back at the deadline of 10m"),
        ({"rollout": {"deadline": "11m", "shadow": {"bake": "1h"}}}, "bakes for 1h"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        parsed(**changes)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([5, 50, 25, 100], r"must increase, got \[5.0, 50.0, 25.0, 100.0\]"),
        ([5, 5, 100], r"must increase, got \[5.0, 5.0, 100.0\]"),
        ([5, 25, 50], r"last canary step must be 100, got \[5.0, 25.0, 50.0\]"),
        ([0, 100], "greater than 0"),
        ([50, 101], "less than or equal to 100"),
        ([float("nan"), 100], "finite"),
    ],
)
def test_canary_steps_that_do_not_lead_to_all_the_traffic(weights: list[float], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Rollout(steps=[{"weight": weight, "min_requests": 10} for weight in weights])  # type: ignore[arg-type]


@given(st.lists(st.floats(0.01, 99.9), max_size=6))
def test_steps_are_taken_exactly_when_they_increase_to_100(weights: list[float]) -> None:
    steps: Any = [{"weight": weight, "min_requests": 10} for weight in [*weights, 100]]
    if sorted(set(weights)) == weights:
        assert len(Rollout(steps=steps).steps) == len(weights) + 1
    else:
        with pytest.raises(ValidationError, match="must increase"):
            Rollout(steps=steps)


class _Bake(BaseModel):
    time: Duration


class TestDuration:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("90s", 90), ("15m", 900), ("6h", 21_600), ("14d", 1_209_600), ("0.25s", 0.25), ("1.5h", 5400), ("0s", 0)],
    )
    def test_what_is_read(self, text: str, seconds: float) -> None:
        assert _Bake(time=text).time == timedelta(seconds=seconds)  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", ["", "5", 5, "5 m", "-5m", "5w", "m", "P1D", None, "1e3s", "nans"])
    def test_what_is_not(self, value: Any) -> None:
        with pytest.raises(ValidationError, match="expected a duration such as 90s"):
            _Bake(time=value)

    @given(st.timedeltas(timedelta(0), timedelta(days=4000)))
    def test_it_is_written_as_it_is_read(self, value: timedelta) -> None:
        assert _Bake.model_validate_json(_Bake(time=value).model_dump_json()).time == value

    @pytest.mark.parametrize("text", ["14d", "6h", "90m", "90s", "0.25s", "0s"])
    def test_it_is_written_in_the_largest_unit_that_fits(self, text: str) -> None:
        assert written(_Bake(time=text).time) == text  # type: ignore[arg-type]


def test_every_policy_is_frozen_and_forbids_what_it_does_not_know() -> None:
    policies = [kind for kind in vars(spec_module).values() if isinstance(kind, type) and issubclass(kind, Policy)]
    assert len(policies) > 25
    for policy in policies:
        assert policy.model_config["frozen"], policy
        assert policy.model_config["extra"] == "forbid", policy
        assert policy.model_config["allow_inf_nan"] is False, policy


def test_every_task_has_its_metrics() -> None:
    assert set(METRICS) == set(Task)


def test_it_survives_being_written() -> None:
    spec = parsed(rollout={"shadow": None, "deadline": "90m"}, features=None)
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
