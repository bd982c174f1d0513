"""Gates: what lets a candidate through, and that nothing else does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.core.gates import BASELINE, MINIMUM_ROWS, FeatureValues, evidence, judge, judging, lacking, name_of
from airlock.core.spec import (
    Gate,
    NonInferiorityGate,
    Task,
    ThresholdGate,
)
from airlock.core.verdict import Status, fold
from tests.support.gate_evidence import ALL, EVIDENCE, FAIR, GOOD, GROUP, INPUTS, INTERFACE, LABELS, PARITY, ROWS, only


def test_a_good_candidate_passes_every_gate() -> None:
    verdicts = judge(ALL.values(), EVIDENCE)
    assert [verdict.status for verdict in verdicts] == [Status.PASS] * len(ALL), verdicts
    assert [verdict.name for verdict in verdicts] == [
        "threshold_roc_auc",
        "relative_brier",
        "non_inferiority_roc_auc",
        "superiority_log_loss",
        "slices_carrier_roc_auc",
        "fairness_demographic_parity_carrier",
        "calibration",
        "onnx_parity",
        "feature_parity",
        "latency",
        "size",
        "finite",
        "schema",
    ]


def test_every_kind_of_gate_has_its_judge_and_is_tried_here() -> None:
    kinds = set(get_args(get_args(Gate)[0]))
    assert kinds == set(judging._JUDGES) == {type(gate) for gate in ALL.values()}


def test_no_gate_is_no_pass() -> None:
    assert fold(judge([], EVIDENCE)) is Status.INCONCLUSIVE


@pytest.mark.parametrize(
    ("gate", "changes", "status", "words"),
    [
        ("threshold", {"candidate": 1 - GOOD}, Status.FAIL, "must be at least 0.65"),
        ("threshold", {"labels": LABELS[:20], "candidate": GOOD[:20]}, Status.INCONCLUSIVE, "20 evaluation rows"),
        ("threshold", {"labels": np.zeros(ROWS)}, Status.INCONCLUSIVE, "0 positive and 4000 negative"),
        ("threshold", {"labels": LABELS * 2}, Status.ERROR, "must be 0 or 1"),
        ("threshold", {"labels": np.where(LABELS == 1, np.nan, 0)}, Status.ERROR, "labels are NaN"),
        ("threshold", {"candidate": GOOD[:-1]}, Status.ERROR, "expected (4000,)"),
        (
            "threshold",
            {"candidate": np.append(GOOD[:-1], np.nan)},
            Status.ERROR,
            "1 of 4000 candidate's scores are NaN",
        ),
        ("threshold", {"candidate": GOOD * 3}, Status.ERROR, "must be probabilities"),
        ("threshold", {"candidate": np.array(["late"] * ROWS)}, Status.ERROR, "could not convert"),
        ("non_inferiority", {"candidate": FAIR, "reference": GOOD}, Status.FAIL, "worse"),
        ("non_inferiority", {"reference": None}, Status.INCONCLUSIVE, "no scores of version 3"),
        ("non_inferiority", {"reference": np.full(ROWS, np.inf)}, Status.ERROR, "scores of version 3 are NaN"),
        ("non_inferiority", {"reference": np.full(ROWS, 0.25), "reference_name": BASELINE}, Status.PASS, "baseline"),
        ("slices", {"candidate": np.where(GROUP == "UA", 1 - GOOD, GOOD)}, Status.FAIL, "discovery rate of 0.05: UA ("),
        ("slices", {"slices": {}}, Status.INCONCLUSIVE, "no column 'carrier'"),
        ("slices", {"slices": {"carrier": GROUP[:-1]}}, Status.ERROR, "has shape (3999,)"),
        ("slices", {"slices": {"carrier": np.arange(ROWS)}}, Status.INCONCLUSIVE, "no group of carrier has 200 rows"),
        ("slices", {"labels": np.where(GROUP == "UA", 0, LABELS)}, Status.INCONCLUSIVE, "cannot be judged"),
        ("onnx_parity", {"parity": None}, Status.INCONCLUSIVE, "not compared"),
        (
            "onnx_parity",
            {"parity": PARITY.model_copy(update={"details": {}})},
            Status.ERROR,
            "max_difference and flips",
        ),
        ("latency", {"latency_ms": None}, Status.INCONCLUSIVE, "no latency"),
        ("latency", {"latency_ms": np.ones(99)}, Status.INCONCLUSIVE, "needs at least 100"),
        ("latency", {"latency_ms": np.linspace(1, 9, 500)}, Status.FAIL, "at most 5 ms"),
        ("latency", {"latency_ms": np.full(500, np.nan)}, Status.ERROR, "NaN"),
        ("latency", {"latency_ms": np.full(500, -1.0)}, Status.ERROR, "below 0"),
        ("size", {"size_bytes": None}, Status.INCONCLUSIVE, "not known"),
        ("size", {"size_bytes": 0}, Status.ERROR, "0 bytes"),
        ("size", {"size_bytes": 5_000_001}, Status.FAIL, "5 MB are allowed"),
        ("finite", {"candidate": np.where(np.arange(ROWS) == 7, np.inf, GOOD)}, Status.FAIL, "the first is row 7"),
        ("finite", {"candidate": np.array([])}, Status.INCONCLUSIVE, "not scored"),
        ("schema", {"inputs": {}}, Status.INCONCLUSIVE, "not known"),
        ("schema", {"interface": {}}, Status.INCONCLUSIVE, "not known"),
        ("schema", {"reference_interface": None}, Status.INCONCLUSIVE, "version 3 are not known"),
        ("schema", {"interface": INTERFACE | {"output": "value"}}, Status.FAIL, "output: probability -> value"),
        ("schema", {"interface": INTERFACE | {"positive class": "early"}}, Status.FAIL, "class: late -> early"),
        ("relative", {"candidate": FAIR, "reference": GOOD}, Status.FAIL, "may lose at most 1.000%"),
        ("relative", {"reference": None}, Status.INCONCLUSIVE, "no scores of version 3"),
        ("relative", {"reference": LABELS.astype(float)}, Status.INCONCLUSIVE, "a share of 0"),
        ("superiority", {"reference": GOOD}, Status.FAIL, "not better"),
        ("superiority", {"reference": np.append(GOOD[1:], 2)}, Status.ERROR, "must be probabilities"),
        ("fairness", {"candidate": np.where(GROUP == "UA", 0.9, GOOD)}, Status.FAIL, "between UA (1) and AA ("),
        ("fairness", {"slices": {}}, Status.INCONCLUSIVE, "no column 'carrier'"),
        ("fairness", {"slices": {"carrier": np.full(ROWS, "AA")}}, Status.INCONCLUSIVE, "two are needed"),
        ("fairness", {"task": Task.REGRESSION}, Status.ERROR, "remove it"),
        ("calibration", {"candidate": GOOD**2}, Status.FAIL, "more rows are positive than predicted"),
        ("calibration", {"labels": LABELS[:100], "candidate": GOOD[:100]}, Status.INCONCLUSIVE, "at least 200"),
        ("calibration", {"task": Task.REGRESSION}, Status.ERROR, "remove it"),
        ("feature_parity", {"features": None}, Status.INCONCLUSIVE, "were not compared"),
        ("feature_parity", {"features": FeatureValues()}, Status.INCONCLUSIVE, "no feature was compared"),
        ("feature_parity", {"features": FeatureValues(problem="no features: remove it")}, Status.ERROR, "remove it"),
        ("schema", {"reference_inputs": None}, Status.INCONCLUSIVE, "version 3 are not known"),
        ("schema", {"reference_inputs": None, "reference_name": BASELINE}, Status.PASS, "no champion"),
        ("schema", {"inputs": {"distance": INPUTS["distance"]}}, Status.FAIL, "carrier is gone"),
    ],
)
def test_table(gate: str, changes: dict[str, Any], status: Status, words: str) -> None:
    verdict = only(ALL[gate], **changes)
    assert verdict.status is status, verdict
    assert words in verdict.reason


@pytest.mark.parametrize(
    "field", ["labels", "candidate", "reference", "parity", "latency_ms", "size_bytes", "features", "interface"]
)
def test_evidence_that_is_taken_away_passes_no_gate_that_needs_it(field: str) -> None:
    """Whatever is missing, no verdict gets better and some get worse."""
    empty: Any = np.array([]) if field in {"labels", "candidate"} else {} if field == "interface" else None
    verdicts = judge(ALL.values(), dataclasses.replace(EVIDENCE, **{field: empty}))
    assert fold(verdicts) in {Status.INCONCLUSIVE, Status.ERROR}


class TestDryRun:
    def test_it_says_what_it_would_and_decides_nothing(self) -> None:
        poor = {"candidate": 1 - GOOD}
        for gate in (gate for gate in ALL.values() if gate.kind != "onnx_parity"):
            tried = only(gate.model_copy(update={"mode": "dry_run"}), **poor)
            honest = only(gate, **poor)
            assert tried.status is honest.status
            assert tried.dry_run
            assert tried.reason == f"dry run, does not count: {honest.reason}"
            assert not tried.holds_back
            assert honest.holds_back is not honest.passed

    def test_the_others_decide(self) -> None:
        tried = ThresholdGate(kind="threshold", metric="roc_auc", min=0.99, mode="dry_run")
        assert fold(judge([ALL["finite"], tried], EVIDENCE)) is Status.PASS
        assert fold(judge([tried.model_copy(update={"mode": "enforce"}), ALL["finite"]], EVIDENCE)) is Status.FAIL
        assert fold(judge([ALL["size"], tried], dataclasses.replace(EVIDENCE, size_bytes=None))) is Status.INCONCLUSIVE

    def test_parity_counts_whatever_the_mode_says(self) -> None:
        """No spec can say so; a gate that was made otherwise does not get round it either."""
        tried = ALL["onnx_parity"].model_copy(update={"mode": "dry_run"})
        poor = PARITY.model_copy(update={"details": {**PARITY.details, "flips": 3}})
        verdicts = judge([ALL["finite"], tried], dataclasses.replace(EVIDENCE, parity=poor))
        assert fold(verdicts) is Status.FAIL
        assert [verdict.name for verdict in verdicts if verdict.holds_back] == ["onnx_parity"]
        missing = judge([ALL["finite"], tried], dataclasses.replace(EVIDENCE, parity=None))
        assert fold(missing) is Status.INCONCLUSIVE
        dry = [verdict.model_copy(update={"dry_run": True}) for verdict in verdicts]
        assert "onnx_parity" in lacking([tried], dry)

    def test_alone_it_is_no_evidence(self) -> None:
        tried = ThresholdGate(kind="threshold", metric="roc_auc", min=0.1, mode="dry_run")
        assert judge([tried], EVIDENCE)[0].passed
        assert fold(judge([tried], EVIDENCE)) is Status.INCONCLUSIVE

    def test_what_cannot_be_judged_does_not_count_either(self) -> None:
        tried = ALL["threshold"].model_copy(update={"mode": "dry_run"})
        broken = dataclasses.replace(EVIDENCE, labels=np.full(ROWS, np.nan))
        assert [verdict.status for verdict in judge([tried], broken)] == [Status.ERROR]
        assert fold(judge([tried, ALL["size"]], broken)) is Status.PASS


def test_two_gates_of_a_kind_have_names_of_their_own() -> None:
    gate = ALL["threshold"]
    names = [verdict.name for verdict in judge([gate, gate.model_copy(update={"min": 0.99}), gate], EVIDENCE)]
    assert names == ["threshold_roc_auc", "threshold_roc_auc_2", "threshold_roc_auc_3"]


values = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, math.nan, 2]), values, values), max_size=60),
    st.sampled_from(["roc_auc", "log_loss", "brier", "accuracy"]),
)
def test_whatever_the_evidence_the_gates_answer_and_pass_only_what_is_finite(
    rows: list[tuple[float, float, float]], metric: Any
) -> None:
    labels, candidate, reference = (np.array([row[index] for row in rows]) for index in range(3))
    verdicts = judge(
        [
            ThresholdGate(kind="threshold", metric=metric, min=-9e9),
            NonInferiorityGate(kind="non_inferiority", metric=metric, margin=9e9),
        ],
        dataclasses.replace(EVIDENCE, labels=labels, candidate=candidate, reference=reference),
    )
    if any(verdict.passed for verdict in verdicts):
        assert len(rows) >= MINIMUM_ROWS
        assert np.isfinite(candidate).all()
        assert set(labels) <= {0, 1}


@given(values)
def test_a_bound_is_kept_by_numbers_only(value: float) -> None:
    gate = ThresholdGate(kind="threshold", metric="rmse", max=3)
    assert evidence.reaches(gate, value) == (not math.isnan(value) and value <= 3)


def test_names_are_fit_for_mlflow() -> None:
    for gate in ALL.values():
        assert name_of(gate).replace("_", "").isalnum()
