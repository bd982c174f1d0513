"""Gates: what lets a candidate through, and that nothing else does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.core import gates as gates_module
from airlock.core.gates import BASELINE, MINIMUM_ROWS, GateEvidence, judge, name_of
from airlock.core.spec import (
    FiniteGate,
    Gate,
    Input,
    LatencyGate,
    NonInferiorityGate,
    ParityGate,
    SchemaGate,
    SizeGate,
    SliceGate,
    Task,
    ThresholdGate,
)
from airlock.core.stats import roc_auc
from airlock.core.verdict import Status, Verdict, fold

ROWS = 4000
_RNG = np.random.default_rng(5)
_TRUTH = _RNG.uniform(0.02, 0.6, ROWS)
LABELS = (_RNG.uniform(size=ROWS) < _TRUTH).astype(int)
GOOD = np.clip(_TRUTH + _RNG.normal(0, 0.02, ROWS), 0, 1)
FAIR = np.clip(_TRUTH + _RNG.normal(0, 0.15, ROWS), 0, 1)
GROUP = np.array(["AA", "UA", None, "EV"], dtype=object)[np.repeat([0, 1, 2, 3], [2000, 1700, 250, 50])]
PARITY = Verdict(name="parity", status=Status.PASS, reason="fine", n=ROWS, details={"max_difference": 2e-6, "flips": 0})
INPUTS = {"distance": Input(type="float", min=0), "carrier": Input(type="string")}

EVIDENCE = GateEvidence(
    task=Task.CLASSIFICATION,
    labels=LABELS,
    candidate=GOOD,
    reference=FAIR,
    reference_name="version 3",
    slices={"carrier": GROUP},
    parity=PARITY,
    latency_ms=np.linspace(1, 3, 500),
    size_bytes=2_500_000,
    inputs=INPUTS,
    reference_inputs=INPUTS,
)
REGRESSION = dataclasses.replace(
    EVIDENCE, task=Task.REGRESSION, labels=_TRUTH * 300, candidate=GOOD * 300, reference=FAIR * 300
)

ALL: dict[str, Gate] = {
    "threshold": ThresholdGate(kind="threshold", metric="roc_auc", min=0.65),
    "non_inferiority": NonInferiorityGate(kind="non_inferiority", metric="roc_auc", margin=0.005),
    "slices": SliceGate(kind="slices", column="carrier", metric="roc_auc", min=0.6),
    "onnx_parity": ParityGate(kind="onnx_parity"),
    "latency": LatencyGate(kind="latency", max_p99_ms=5),
    "size": SizeGate(kind="size", max_mb=5),
    "finite": FiniteGate(kind="finite"),
    "schema": SchemaGate(kind="schema"),
}


def only(gate: Gate, **changes: Any) -> Verdict:
    (verdict,) = judge([gate], dataclasses.replace(EVIDENCE, **changes))
    return verdict


def test_a_good_candidate_passes_every_gate() -> None:
    verdicts = judge(ALL.values(), EVIDENCE)
    assert [verdict.status for verdict in verdicts] == [Status.PASS] * len(ALL), verdicts
    assert [verdict.name for verdict in verdicts] == [
        "threshold_roc_auc",
        "non_inferiority_roc_auc",
        "slices_carrier_roc_auc",
        "onnx_parity",
        "latency",
        "size",
        "finite",
        "schema",
    ]


def test_every_kind_of_gate_has_its_judge_and_is_tried_here() -> None:
    kinds = set(get_args(get_args(Gate)[0]))
    assert kinds == set(gates_module._JUDGES) == {type(gate) for gate in ALL.values()}


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
        ("slices", {"candidate": np.where(GROUP == "UA", 1 - GOOD, GOOD)}, Status.FAIL, "1 fall short: UA"),
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
        ("schema", {"reference_inputs": None}, Status.INCONCLUSIVE, "version 3 are not known"),
        ("schema", {"reference_inputs": None, "reference_name": BASELINE}, Status.PASS, "no champion"),
        ("schema", {"inputs": {"distance": INPUTS["distance"]}}, Status.FAIL, "carrier is gone"),
    ],
)
def test_table(gate: str, changes: dict[str, Any], status: Status, words: str) -> None:
    verdict = only(ALL[gate], **changes)
    assert verdict.status is status, verdict
    assert words in verdict.reason


@pytest.mark.parametrize("field", ["labels", "candidate", "reference", "parity", "latency_ms", "size_bytes"])
def test_evidence_that_is_taken_away_passes_no_gate_that_needs_it(field: str) -> None:
    """Whatever is missing, no verdict gets better and some get worse."""
    empty: Any = np.array([]) if field in {"labels", "candidate"} else None
    verdicts = judge(ALL.values(), dataclasses.replace(EVIDENCE, **{field: empty}))
    assert fold(verdicts) in {Status.INCONCLUSIVE, Status.ERROR}


@pytest.mark.parametrize("metric", ["roc_auc", "pr_auc", "log_loss", "brier", "accuracy"])
@pytest.mark.parametrize("swap", [False, True])
def test_non_inferiority_knows_which_way_is_better(metric: Any, swap: bool) -> None:
    gate = NonInferiorityGate(kind="non_inferiority", metric=metric, margin=1e-4)
    good, fair = (FAIR, GOOD) if swap else (GOOD, FAIR)
    verdict = only(gate, candidate=good, reference=fair, threshold=0.35)
    assert verdict.passed is not swap, verdict


@pytest.mark.parametrize("metric", ["rmse", "mae", "r2"])
@pytest.mark.parametrize("swap", [False, True])
def test_non_inferiority_of_a_regression(metric: Any, swap: bool) -> None:
    gate = NonInferiorityGate(kind="non_inferiority", metric=metric, margin=0.001)
    evidence = REGRESSION if not swap else dataclasses.replace(REGRESSION, candidate=FAIR * 300, reference=GOOD * 300)
    (verdict,) = judge([gate], evidence)
    assert verdict.status is (Status.FAIL if swap else Status.PASS), verdict


class TestNonInferiority:
    def test_the_same_model_passes_any_margin_but_none(self) -> None:
        gate = NonInferiorityGate(kind="non_inferiority", metric="roc_auc", margin=1e-9)
        assert only(gate, reference=GOOD).passed
        assert only(gate.model_copy(update={"margin": 0.0}), reference=GOOD).status is Status.FAIL

    def test_too_little_evidence_is_told_from_a_worse_model(self) -> None:
        labels = LABELS[:60].astype(float)
        few = [GOOD[:60] + noise for noise in np.random.default_rng(3).normal(0, 0.2, (2, 60))]
        better, worse = sorted((np.clip(scores, 0, 1) for scores in few), key=lambda scores: -roc_auc(labels, scores))
        gate = NonInferiorityGate(kind="non_inferiority", metric="roc_auc", margin=0.001)
        thin = only(gate, labels=labels, candidate=better, reference=worse)
        assert thin.status is Status.INCONCLUSIVE, thin
        assert "more evaluation rows" in thin.reason
        assert only(gate, labels=labels, candidate=worse, reference=better).status is Status.FAIL

    def test_the_numbers_are_in_the_verdict(self) -> None:
        verdict = only(ALL["non_inferiority"])
        assert verdict.estimate == pytest.approx(verdict.details["candidate"] - verdict.details["reference"])
        assert verdict.low is not None
        assert verdict.high is not None
        assert verdict.low < verdict.estimate < verdict.high
        assert verdict.threshold == -0.005
        assert verdict.n == ROWS


class TestSlices:
    def test_small_groups_are_left_out_and_missing_values_are_a_group(self) -> None:
        verdict = only(ALL["slices"])
        assert set(verdict.details["groups"]) == {"AA", "UA", "(missing)"}
        assert verdict.details["worst"] in verdict.details["groups"]

    def test_nan_and_none_are_the_same_group(self) -> None:
        mixed = GROUP.copy()
        mixed[np.flatnonzero(GROUP == None)[::2]] = math.nan  # noqa: E711 - elementwise
        assert only(ALL["slices"], slices={"carrier": mixed}) == only(ALL["slices"])

    def test_an_upper_bound_picks_the_largest_as_the_worst(self) -> None:
        gate = SliceGate(kind="slices", column="carrier", metric="brier", max=0.5)
        groups = only(gate).details["groups"]
        assert only(gate).details["worst"] == max(groups, key=lambda name: groups[name]["estimate"])


class TestParity:
    @pytest.mark.parametrize(
        ("status", "difference", "flips", "expected"),
        [
            (Status.PASS, 1e-3, 0, Status.PASS),
            (Status.PASS, 1.1e-3, 0, Status.FAIL),
            (Status.PASS, 0.0, 1, Status.FAIL),
            (Status.FAIL, 0.0, 0, Status.FAIL),
            (Status.INCONCLUSIVE, 0.0, 0, Status.INCONCLUSIVE),
            (Status.INCONCLUSIVE, 1.0, 0, Status.FAIL),
            (Status.ERROR, 0.0, 0, Status.ERROR),
            (Status.PASS, math.nan, 0, Status.ERROR),
            (Status.PASS, 0.0, -1, Status.ERROR),
            (Status.PASS, "small", 0, Status.ERROR),
        ],
    )
    def test_a_pass_is_checked_again_and_nothing_else_becomes_one(
        self, status: Status, difference: Any, flips: int, expected: Status
    ) -> None:
        parity = Verdict(name="p", status=status, reason="so", details={"max_difference": difference, "flips": flips})
        assert only(ALL["onnx_parity"], parity=parity).status is expected


class TestSchema:
    def test_the_order_of_the_inputs_does_not_matter(self) -> None:
        assert only(ALL["schema"], inputs=dict(reversed(INPUTS.items()))).passed

    def test_every_change_is_told(self) -> None:
        inputs = {"distance": Input(type="int", min=1), "dest": Input(type="string")}
        verdict = only(ALL["schema"], inputs=inputs)
        assert verdict.status is Status.FAIL
        assert verdict.details["changes"] == [
            "dest is new",
            "carrier is gone",
            "distance: min 0.0 -> 1.0, type float -> int",
        ]
        allowed = only(SchemaGate(kind="schema", allow_changes=True), inputs=inputs)
        assert allowed.passed
        assert "dest is new" in allowed.reason


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
    assert gates_module._reaches(gate, value) == (not math.isnan(value) and value <= 3)


def test_names_are_fit_for_mlflow() -> None:
    for gate in ALL.values():
        assert name_of(gate).replace("_", "").isalnum()
