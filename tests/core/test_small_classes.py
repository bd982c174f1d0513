"""Areas under the ROC curve with few rows of a class: bounds that keep their word, and gates that say what is missing.

The larger tables are made by tests/benchmarks/small_samples.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from airlock.core.gates import MINIMUM_OF_CLASS, judge
from airlock.core.spec import NonInferiorityGate, RelativeGate, SliceGate, SuperiorityGate, ThresholdGate
from airlock.core.stats import metric_gain, metric_interval, shortfall_p_value
from airlock.core.verdict import Status, Verdict
from tests.support.gate_evidence import EVIDENCE

SAMPLES = 400


def scores_of(
    rng: np.random.Generator, positives: int, negatives: int, areas: tuple[float, float], alike: float = 0.9
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and the scores of two models with these true areas, binormal, their noise correlated by ``alike``."""
    labels = np.repeat([1.0, 0.0], [positives, negatives])
    noise = rng.normal(size=(2, labels.size))
    noise[1] = alike * noise[0] + np.sqrt(1 - alike**2) * noise[1]
    shifts = np.sqrt(2) * norm.ppf(areas)[:, None]
    first, second = norm.cdf(noise + labels * shifts)
    return labels, first, second


@pytest.mark.parametrize("positives", [5, 20, 100])
@pytest.mark.parametrize(("area", "margin"), [(0.95, 0.02), (0.8, 0.05)])
def test_a_model_worse_by_the_margin_seldom_passes(positives: int, area: float, margin: float) -> None:
    """400 samples with 1,000 negatives, seed 5: at most 8.5 % pass, 3.2 standard errors above the 5 % asked for."""
    rng = np.random.default_rng(5)
    passed = sum(
        metric_gain("roc_auc", *scores_of(rng, positives, 1000, (area - margin, area))).low > -margin
        for _ in range(SAMPLES)
    )
    assert passed <= 0.085 * SAMPLES


@pytest.mark.parametrize("positives", [5, 20])
def test_a_model_on_the_bound_is_seldom_called_short(positives: int) -> None:
    """400 samples whose area is the bound, 0.95, seed 6: as often as said, 5 %, and 8.5 % at most."""
    rng = np.random.default_rng(6)
    short = 0
    for _ in range(SAMPLES):
        labels, scores, _ = scores_of(rng, positives, 1000, (0.95, 0.95))
        short += shortfall_p_value("roc_auc", labels, scores, 0.95, at_least=True) <= 0.05
    assert short <= 0.085 * SAMPLES


def test_perfect_scores_of_few_rows_are_not_certain() -> None:
    """Both models rank 20 positives first: that shows little of the next 20, and no difference of exactly 0."""
    labels = np.repeat([1.0, 0.0], [20, 200])
    first = np.concatenate([np.linspace(0.8, 0.9, 20), np.linspace(0.1, 0.5, 200)])
    second = np.concatenate([np.linspace(0.9, 0.8, 20), np.linspace(0.1, 0.5, 200)])
    area = metric_interval("roc_auc", labels, first)
    assert (area.estimate, area.high) == (1, 1)
    assert 0.85 < area.low < 0.99
    gain = metric_gain("roc_auc", labels, first, second)
    assert gain.estimate == 0
    assert gain.low < -0.005
    assert metric_gain("roc_auc", labels, first, first) == (0, 0, 0), "the same order of all rows is the same area"


def judged(gate: Any, positives: int, negatives: int = 2000, **changes: Any) -> Verdict:
    labels, first, second = scores_of(np.random.default_rng(7), positives, negatives, (0.95, 0.95))
    evidence = dataclasses.replace(EVIDENCE, labels=labels, candidate=first, reference=second, **changes)
    (verdict,) = judge([gate], evidence)
    return verdict


@pytest.mark.parametrize(
    "gate",
    [
        ThresholdGate(kind="threshold", metric="roc_auc", min=0.6),
        ThresholdGate(kind="threshold", metric="log_loss", max=5),
        RelativeGate(kind="relative", metric="pr_auc", max_loss=0.9),
        NonInferiorityGate(kind="non_inferiority", metric="roc_auc", margin=0.3),
        NonInferiorityGate(kind="non_inferiority", metric="roc_auc", margin=0.3, method="bootstrap"),
        SuperiorityGate(kind="superiority", metric="brier", margin=0.0),
    ],
    ids=lambda gate: f"{gate.kind} {gate.metric} {getattr(gate, 'method', '')}",
)
@pytest.mark.parametrize("swap", [False, True])
def test_too_few_of_a_class_is_inconclusive_in_words(gate: Any, swap: bool) -> None:
    few = MINIMUM_OF_CLASS - 1
    verdict = judged(gate, 2000, few) if swap else judged(gate, few, 2000)
    assert verdict.status is Status.INCONCLUSIVE
    assert f"{'2000 positive and 19 negative' if swap else '19 positive and 2000 negative'} rows" in verdict.reason
    assert f"{gate.metric} needs at least {MINIMUM_OF_CLASS} of each" in verdict.reason
    assert "data.evaluation" in verdict.reason
    assert judged(gate, MINIMUM_OF_CLASS).status is not Status.ERROR
    assert "needs at least" not in judged(gate, MINIMUM_OF_CLASS).reason


def test_accuracy_counts_rows_whatever_their_class() -> None:
    assert judged(ThresholdGate(kind="threshold", metric="accuracy", min=0.001), 5).status is not Status.INCONCLUSIVE


def test_a_slice_with_few_positives_leaves_the_gate_open_and_says_what_to_do() -> None:
    gate = SliceGate(kind="slices", column="carrier", metric="roc_auc", min=0.6)
    groups = np.where(np.arange(2200) % 2 == 0, "east", "west")
    groups[196:] = "east"  # west has a hundred of the positives, and none of the negatives
    verdict = judged(gate, 200, 2000, slices={"carrier": groups})
    assert verdict.passed, "a group of fewer rows than min_rows decides nothing"
    groups = np.array(["east"] * 2200)
    groups[[*range(4), *range(300, 500)]] = "west"
    verdict = judged(gate, 200, 2000, slices={"carrier": groups})
    assert verdict.status is Status.INCONCLUSIVE
    assert "west has 4 positive and 200 negative rows; roc_auc needs at least 20 of each" in verdict.reason
    assert "raise min_rows" in verdict.reason
    assert verdict.details["groups"]["west"]["status"] == "inconclusive"


def test_good_slices_are_seldom_failed() -> None:
    """300 candidates with an area of 0.93 in one group of 1,000 rows, 2 % positives, bound 0.93; seed 8."""
    gate, rng, failed = (
        SliceGate(kind="slices", column="carrier", metric="roc_auc", min=0.93),
        np.random.default_rng(8),
        0,
    )
    for _ in range(300):
        labels, scores, _ = scores_of(rng, 20, 980, (0.93, 0.93))
        evidence = dataclasses.replace(
            EVIDENCE, labels=labels, candidate=scores, reference=scores, slices={"carrier": np.full(1000, "all")}
        )
        failed += judge([gate], evidence)[0].status is Status.FAIL
    assert failed <= 0.085 * 300
