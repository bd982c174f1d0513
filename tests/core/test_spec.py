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


CLASSIFICATION: dict[str, Any] = {
    "task": "classification",
    "label": {"name": "sold_soon", "delay": "6h"},
    "gates": [{"kind": "threshold", "metric": "roc_auc", "min": 0.6}],
}
BUSINESS: dict[str, Any] = {"kind": "business_metric", "name": "revenue", "range": [0, 100]}


def parsed(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate({**SPEC, **changes})


def test_the_smallest_spec_is_safe() -> None:
    spec = parsed()
    assert spec.approvals.required == 1
    assert spec.approvals.before == "traffic"
    assert spec.approvals.expires == timedelta(hours=24)
    assert spec.false_rollback_budget == 0.01
    assert spec.rollout.plan == "canary"
    assert spec.rollout.on_deadline == "rollback"
    assert all(gate.mode == "enforce" for gate in spec.gates)
    assert spec.maturity == timedelta(0)
    assert spec.late_guards == ()
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
        ({"inputs": {}}, "at least one input"),
        ({"inputs": {"price": "float"}}, "told the answer"),
        ({"inputs": {"area": {"type": "float", "min": 3, "max": 2}}}, "min 3 is above max 2"),
        ({"gates": [{"kind": "threshold", "metric": "roc_auc", "min": 0.6}]}, "roc_auc does not fit a regression"),
        ({"gates": [{"kind": "threshold", "metric": "rmse"}]}, "exactly one of min and max"),
        ({"gates": [{"kind": "slices", "column": "a", "metric": "rmse"}]}, "exactly one of min and max"),
        ({"gates": [{"kind": "threshold", "metric": "rmse", "max": float("inf")}]}, "finite"),
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


GATES: list[tuple[dict[str, Any], str | None]] = [
    ({"kind": "threshold", "metric": "rmse", "max": 50, "mode": "dry_run"}, None),
    ({"kind": "threshold", "metric": "rmse", "max": 50, "mode": "warn"}, "'enforce' or 'dry_run'"),
    ({"kind": "relative", "metric": "rmse", "max_loss": -0.02}, None),
    ({"kind": "relative", "metric": "rmse", "max_loss": 1}, "less than 1"),
    ({"kind": "relative", "metric": "roc_auc", "max_loss": 0.1}, "does not fit a regression"),
    ({"kind": "relative", "metric": "rmse"}, "Field required"),
    ({"kind": "non_inferiority", "metric": "mae", "margin": 0.1, "method": "bootstrap"}, None),
    ({"kind": "non_inferiority", "metric": "mae", "margin": 0.1, "method": "jackknife"}, "'analytic' or 'bootstrap'"),
    ({"kind": "non_inferiority", "metric": "rmse", "margin": -1}, "greater than or equal to 0"),
    ({"kind": "non_inferiority", "metric": "rmse", "margin": 1, "confidence": 0.5}, "greater than 0.5"),
    ({"kind": "superiority", "metric": "r2"}, None),
    ({"kind": "superiority", "metric": "brier"}, "does not fit a regression"),
    ({"kind": "slices", "column": "town", "metric": "mae", "max": 9, "false_discovery_rate": 0.1}, None),
    ({"kind": "slices", "column": "town", "metric": "mae", "max": 9, "false_discovery_rate": 0}, "greater than 0"),
    ({"kind": "slices", "column": "town", "metric": "mae", "max": 9, "min_rows": 0}, "greater than or equal to 1"),
    ({"kind": "fairness", "criterion": "equalised_odds", "column": "town", "max_difference": 0.1}, "remove it"),
    ({"kind": "calibration", "max_error": 0.1}, "which a regression does not give"),
    ({"kind": "feature_parity"}, "a model without features"),
    ({"kind": "schema", "allow_changes": True}, None),
    ({"kind": "onnx_parity", "mode": "enforce", "max_difference": 2}, None),
    ({"kind": "onnx_parity", "mode": "dry_run"}, "onnx_parity is always enforced.*widen max_difference or max_flips"),
    ({"kind": "onnx_parity", "mode": "off"}, "'enforce'"),
    ({"kind": "accuracy", "min": 0.9}, "does not match any of the expected tags"),
]


@pytest.mark.parametrize(("gate", "words"), GATES)
def test_gates_of_a_regression(gate: dict[str, Any], words: str | None) -> None:
    gates = {"gates": [{"kind": "finite"}, gate]}
    if words is None:
        assert parsed(**gates).gates[1].kind == gate["kind"]
    else:
        with pytest.raises(ValidationError, match=words):
            parsed(**gates)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"kind": "fairness", "criterion": "equalised_odds", "column": "town", "max_difference": 0.1}, None),
        ({"kind": "fairness", "criterion": "equal_pay", "column": "town", "max_difference": 0.1}, "equalised_odds"),
        ({"kind": "fairness", "criterion": "equalised_odds", "column": "town", "max_difference": 0}, "greater than 0"),
        ({"kind": "calibration", "max_error": 0.1, "bins": 5}, None),
        ({"kind": "calibration", "max_error": 0.1, "bins": 1}, "greater than or equal to 2"),
        ({"kind": "feature_parity", "tolerance": 0}, "greater than 0"),
        ({"kind": "feature_parity", "max_mismatch": 0.01, "rows": 50}, None),
        ({"kind": "feature_parity", "mode": "dry_run"}, None),
        ({"kind": "onnx_parity", "max_difference": 1}, "a max_difference of 1 refuses nothing"),
    ],
)
def test_gates_of_a_classification_with_features(gate: dict[str, Any], words: str | None) -> None:
    features = {"service": "house", "entities": ["town"], "request": {"rooms": "int"}}
    changes = {**CLASSIFICATION, "features": features, "gates": [{"kind": "finite"}, gate]}
    if words is None:
        assert parsed(**changes).gates[1].kind == gate["kind"]
    else:
        with pytest.raises(ValidationError, match=words):
            parsed(**changes)


def test_gates_in_dry_run_alone_let_nothing_through() -> None:
    tried = {"kind": "threshold", "metric": "rmse", "max": 50, "mode": "dry_run"}
    with pytest.raises(ValidationError, match="without a gate that is enforced"):
        parsed(gates=[tried, {**tried, "max": 60}])


@pytest.mark.parametrize(
    ("guard", "words"),
    [
        ({"kind": "error_rate"}, "Field required"),
        ({"kind": "error_rate", "max": 1}, "less than 1"),
        ({"kind": "latency"}, "max_p50_ms, max_p95_ms, max_p99_ms or several"),
        ({"kind": "latency", "max_p50_ms": 0}, "greater than 0"),
        ({"kind": "latency", "max_p50_ms": 5, "max_p95_ms": 20}, None),
        ({"kind": "fallback_rate", "max": 0}, "greater than 0"),
        ({"kind": "fallback_rate", "max": 0.1}, None),
        ({"kind": "prediction_shift"}, "max_mean, max_absolute or both"),
        ({"kind": "prediction_shift", "max_mean": 3}, None),
        ({"kind": "disagreement", "max": 0.1}, "use prediction_shift"),
        ({"kind": "paired_loss", "metric": "squared_error", "margin": 0}, None),
        ({"kind": "paired_loss", "metric": "brier", "margin": 0.1}, "brier does not fit a regression"),
        ({"kind": "paired_loss", "metric": "squared_error", "margin": -1}, "greater than or equal to 0"),
        ({"kind": "label_metric", "metric": "rmse", "max": 9}, None),
        ({"kind": "label_metric", "metric": "rmse", "max": 9, "margin": 1}, "exactly one of min, max and margin"),
        ({"kind": "label_metric", "metric": "rmse"}, "exactly one of min, max and margin"),
        ({"kind": "label_metric", "metric": "accuracy", "min": 0.9}, "accuracy does not fit a regression"),
        ({**BUSINESS, "max_drop": 2}, None),
        ({**BUSINESS}, "exactly one of min, max and max_drop"),
        ({**BUSINESS, "min": 1, "max": 2}, "exactly one of min, max and max_drop"),
        ({**BUSINESS, "min": 1, "range": [5, 5]}, "range must be ordered"),
    ],
)
def test_guards(guard: dict[str, Any], words: str | None) -> None:
    if words is None:
        spec = parsed(guards=[guard])
        assert spec.guards[0].kind == guard["kind"]
        late = {"paired_loss", "label_metric", "business_metric"}
        assert (spec.late_guards == spec.guards) is (guard["kind"] in late)
    else:
        with pytest.raises(ValidationError, match=words):
            parsed(guards=[guard])


@pytest.mark.parametrize(
    ("guard", "fits"),
    [
        ({"kind": "disagreement", "max": 0.1}, True),
        ({"kind": "paired_loss", "metric": "zero_one", "margin": 0.02}, True),
        ({"kind": "paired_loss", "metric": "absolute_error", "margin": 0.02}, False),
        ({"kind": "label_metric", "metric": "roc_auc", "min": 0.7}, True),
        ({"kind": "label_metric", "metric": "mae", "max": 0.7}, False),
    ],
)
def test_guards_of_a_classification(guard: dict[str, Any], fits: bool) -> None:
    changes = {**CLASSIFICATION, "guards": [guard]}
    if fits:
        assert parsed(**changes).guards[0].kind == guard["kind"]
    else:
        with pytest.raises(ValidationError, match="does not fit a classification"):
            parsed(**changes)


@pytest.mark.parametrize(
    ("approvals", "words"),
    [
        ({"required": 2, "forbid_author": True, "expires": "24h", "approvers": ["ada", "ben"]}, None),
        ({"required": 0}, None),
        ({"required": 2}, None),
        ({"required": -1}, "greater than or equal to 0"),
        ({"required": 6}, "less than or equal to 5"),
        ({"required": 2, "approvers": ["ada", "ada"]}, "2 people must approve, but only 1 are named"),
        ({"expires": "soon"}, "expected a duration"),
        ({"before": "lunch"}, "'traffic' or 'promotion'"),
    ],
)
def test_approvals(approvals: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert parsed(approvals=approvals).approvals.required == approvals["required"]
    else:
        with pytest.raises(ValidationError, match=words):
            parsed(approvals=approvals)


@pytest.mark.parametrize("budget", [0, -0.01, 0.21, 1, float("nan")])
def test_a_budget_that_is_none_is_refused(budget: float) -> None:
    with pytest.raises(ValidationError, match="false_rollback_budget"):
        parsed(false_rollback_budget=budget)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rollout": {"plan": "blue_green"}}, None),
        ({"rollout": {"plan": "shadow_only"}}, None),
        ({"rollout": {"plan": "shadow_only", "shadow": None}}, "needs a shadow"),
        ({"rollout": {"plan": "experiment"}}, "needs an experiment"),
        (
            {"rollout": {"plan": "experiment"}, "experiment": {"primary": {"name": "price"}, "minimum_effect": 2}},
            None,
        ),
        ({"experiment": {"primary": {"name": "price"}, "minimum_effect": 0}}, "greater than 0"),
        ({"experiment": {"primary": {"name": "price"}, "minimum_effect": 2, "weight": 100}}, "less than 100"),
        ({"rollout": {"plan": "big_bang"}}, "'canary', 'blue_green', 'shadow_only' or 'experiment'"),
        ({"rollout": {"on_deadline": "promote"}}, "'rollback' or 'hold'"),
    ],
)
def test_plans_of_a_rollout(changes: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert parsed(**changes).rollout.plan == changes["rollout"]["plan"]
    else:
        with pytest.raises(ValidationError, match=words):
            parsed(**changes)


def test_a_label_is_waited_for_until_it_matures() -> None:
    assert parsed(**CLASSIFICATION).maturity == timedelta(hours=6)
    label = {"name": "sold_soon", "delay": "6h", "maturity": "2d"}
    assert parsed(**{**CLASSIFICATION, "label": label}).maturity == timedelta(days=2)


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
        [
            ("90s", 90),
            ("15m", 900),
            ("6h", 21_600),
            ("14d", 1_209_600),
            ("0.25s", 0.25),
            ("250ms", 0.25),
            ("1.5h", 5400),
            ("0s", 0),
        ],
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


@pytest.mark.parametrize(
    "fallback", [{"default": 1.5}, {"rules": [{"when": [{"attribute": "a", "values": [1]}], "answer": -1}]}]
)
def test_a_classification_falls_back_to_probabilities_only(fallback: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="answers with probabilities"):
        parsed(**CLASSIFICATION, serving={"fallback": fallback})
    assert parsed(serving={"fallback": fallback}).serving.fallback.answers
