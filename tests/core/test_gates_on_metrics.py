"""Gates on metrics: which way is better, and what the interval allows to be said."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from airlock.core.gates import judge
from airlock.core.spec import (
    CalibrationGate,
    NonInferiorityGate,
    RelativeGate,
    SuperiorityGate,
    ThresholdGate,
)
from airlock.core.stats import roc_auc
from airlock.core.verdict import Status
from tests.support.gate_evidence import (
    ALL,
    FAIR,
    GOOD,
    LABELS,
    REGRESSION,
    ROWS,
    only,
)


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
        for candidate, reference in ((better, worse), (worse, better)):
            thin = only(gate, labels=labels, candidate=candidate, reference=reference)
            assert thin.status is Status.INCONCLUSIVE, thin
            assert "more evaluation rows" in thin.reason
        assert only(gate, candidate=FAIR, reference=GOOD).status is Status.FAIL

    def test_the_numbers_are_in_the_verdict(self) -> None:
        verdict = only(ALL["non_inferiority"])
        assert verdict.estimate == pytest.approx(verdict.details["candidate"] - verdict.details["reference"])
        assert verdict.low is not None
        assert verdict.high is not None
        assert verdict.low < verdict.estimate < verdict.high
        assert verdict.threshold == -0.005
        assert verdict.n == ROWS


class TestComparison:
    @pytest.mark.parametrize("metric", ["roc_auc", "brier"])
    @pytest.mark.parametrize("kind", ["non_inferiority", "superiority"])
    @pytest.mark.parametrize("swap", [False, True])
    def test_the_bootstrap_decides_as_the_formula_does(self, metric: Any, kind: Any, swap: bool) -> None:
        of: Any = NonInferiorityGate if kind == "non_inferiority" else SuperiorityGate
        rows = slice(1000)
        good, fair = (FAIR, GOOD) if swap else (GOOD, FAIR)
        changes = {"labels": LABELS[rows], "candidate": good[rows], "reference": fair[rows]}
        plain, drawn, again = (
            only(of(kind=kind, metric=metric, margin=0.002, method=method), **changes)
            for method in ("analytic", "bootstrap", "bootstrap")
        )
        assert plain.status is drawn.status
        assert plain.estimate == drawn.estimate
        assert drawn.low == pytest.approx(plain.low, abs=0.004)
        assert "bootstrap" in drawn.details["method"]
        assert drawn == again, "the resamples are seeded"

    @pytest.mark.parametrize(
        ("margin", "status"), [(0.001, Status.PASS), (0.058, Status.INCONCLUSIVE), (0.2, Status.FAIL)]
    )
    def test_superior_by_more_than_the_margin(self, margin: float, status: Status) -> None:
        gate = SuperiorityGate(kind="superiority", metric="roc_auc", margin=margin)
        verdict = only(gate)
        assert verdict.low is not None
        assert verdict.high is not None
        assert verdict.status is status, verdict
        assert verdict.threshold == margin
        assert (verdict.low < margin < verdict.high) is (status is Status.INCONCLUSIVE)

    @pytest.mark.parametrize(("max_loss", "status"), [(0.0, Status.PASS), (-0.05, Status.PASS), (-0.5, Status.FAIL)])
    def test_relative_to_the_champion(self, max_loss: float, status: Status) -> None:
        gate = RelativeGate(kind="relative", metric="log_loss", max_loss=max_loss)
        verdict = only(gate)
        assert verdict.status is status, verdict
        assert verdict.estimate == pytest.approx(1 - verdict.details["candidate"] / verdict.details["reference"])
        assert ("must gain at least" in verdict.reason) is (max_loss < 0)
        assert only(gate, candidate=FAIR, reference=GOOD).status is Status.FAIL

    def test_a_bound_inside_the_interval_is_told(self) -> None:
        auc = roc_auc(LABELS.astype(float), GOOD)
        for bound, told in ((auc - 0.001, True), (auc - 0.1, False)):
            verdict = only(ThresholdGate(kind="threshold", metric="roc_auc", min=bound))
            assert verdict.passed
            assert ("do not settle it" in verdict.reason) is told


class TestCalibrationGate:
    def test_what_is_between_is_open(self) -> None:
        gate = CalibrationGate(kind="calibration", max_error=0.05)
        assert only(gate).passed
        tight = only(gate.model_copy(update={"max_error": 0.01}))
        assert tight.status is Status.INCONCLUSIVE
        assert "more evaluation rows would tell" in tight.reason

    def test_the_numbers_are_in_the_verdict(self) -> None:
        verdict = only(ALL["calibration"], candidate=np.clip(GOOD + 0.2, 0, 1))
        assert verdict.status is Status.FAIL
        assert len(verdict.details["bins"]) == 10
        assert verdict.details["in_the_large"]["estimate"] == pytest.approx(-0.2, abs=0.02)
        assert "fewer rows are positive than predicted" in verdict.reason
