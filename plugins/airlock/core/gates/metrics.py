"""Gates on a metric of the evaluation rows: absolute, against the champion, and of calibration."""

from __future__ import annotations

from typing import TypedDict

from airlock.core.bootstrap import RESAMPLES, bootstrap_gain
from airlock.core.calibration import calibration
from airlock.core.gates.evidence import (
    CONFIDENCE,
    GateEvidence,
    bound_of,
    candidate_scores,
    labels_of,
    only_classification,
    reaches,
    reference_scores,
    require_both_classes,
    span,
    within,
)
from airlock.core.sequential import Interval
from airlock.core.spec import (
    CalibrationGate,
    ComparisonGate,
    NonInferiorityGate,
    RelativeGate,
    SuperiorityGate,
    ThresholdGate,
)
from airlock.core.stats import HIGHER_IS_BETTER, metric_gain, metric_interval, relative_gain
from airlock.core.verdict import Status, Verdict


class _Settings(TypedDict):
    confidence: float
    threshold: float


_UNSURE = "; the interval reaches beyond the bound, so the rows do not settle it"


def threshold(gate: ThresholdGate, evidence: GateEvidence) -> Verdict:
    """By the estimate. The reason says so where the interval does not lie on the same side."""
    labels, scores = labels_of(evidence), candidate_scores(evidence)
    require_both_classes(gate.metric, labels, evidence.task)
    interval = metric_interval(gate.metric, labels, scores, confidence=CONFIDENCE, threshold=evidence.threshold)
    bound, words = bound_of(gate)
    kept = reaches(gate, interval.estimate)
    unsure = _UNSURE if interval.low < bound < interval.high else ""
    return Verdict(
        name=gate.kind,
        status=Status.PASS if kept else Status.FAIL,
        reason=f"{gate.metric} is {span(interval)} on {labels.size} rows; it must be {words}{unsure}",
        metric=gate.metric,
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        threshold=bound,
        n=labels.size,
        details={"confidence_of_each_bound": CONFIDENCE},
    )


def relative(gate: RelativeGate, evidence: GateEvidence) -> Verdict:
    """By the estimate, as :func:`threshold`."""
    labels, candidate, reference = labels_of(evidence), candidate_scores(evidence), reference_scores(evidence)
    require_both_classes(gate.metric, labels, evidence.task)
    gain = relative_gain(gate.metric, labels, candidate, reference, confidence=CONFIDENCE, threshold=evidence.threshold)
    asked = (
        f"it may lose at most {gate.max_loss:.3%}"
        if gate.max_loss >= 0
        else f"it must gain at least {-gate.max_loss:.3%}"
    )
    mine, theirs = _both(gate, evidence)
    unsure = _UNSURE if gain.low < -gate.max_loss < gain.high else ""
    return Verdict(
        name=gate.kind,
        status=Status.PASS if gain.estimate >= -gate.max_loss else Status.FAIL,
        reason=(
            f"{gate.metric} {mine:.4g} against {theirs:.4g} of {evidence.reference_name} on the same {labels.size} "
            f"rows: a gain of {gain.estimate:.3%} ({gain.low:.3%} to {gain.high:.3%}); {asked}{unsure}"
        ),
        metric=f"relative_gain_{gate.metric}",
        estimate=gain.estimate,
        low=gain.low,
        high=gain.high,
        threshold=-gate.max_loss,
        n=labels.size,
        details=_compared(mine, theirs, evidence) | {"confidence_of_each_bound": CONFIDENCE},
    )


def comparison(gate: NonInferiorityGate | SuperiorityGate, evidence: GateEvidence) -> Verdict:
    """By the paired interval: not worse by ``margin`` or more, or better by more than it.

    The interval on the right side of the bound is a pass, on the wrong side a fail, across it inconclusive.
    """
    labels, candidate, reference = labels_of(evidence), candidate_scores(evidence), reference_scores(evidence)
    require_both_classes(gate.metric, labels, evidence.task)
    rows = gate.metric, labels, candidate, reference
    settings: _Settings = {"confidence": gate.confidence, "threshold": evidence.threshold}
    gain = metric_gain(*rows, **settings)
    if gate.method == "bootstrap":
        drawn = bootstrap_gain(*rows, **settings)
        if gate.metric == "roc_auc":
            # Resamples of few rows of a class do not know the rows that are not there: BCa alone misses 12 % at 20.
            drawn = Interval(drawn.estimate, min(drawn.low, gain.low), max(drawn.high, gain.high))
        gain = drawn
    not_worse = isinstance(gate, NonInferiorityGate)
    bound = -gate.margin if not_worse else gate.margin
    if gain.low > bound:
        status, conclusion = Status.PASS, "not worse" if not_worse else "better"
    elif gain.high <= bound:
        status, conclusion = Status.FAIL, "worse" if not_worse else "not better"
    else:
        shown = "as good" if not_worse else "better"
        status, conclusion = Status.INCONCLUSIVE, f"not shown to be {shown}: more evaluation rows would tell"
    mine, theirs = _both(gate, evidence)
    return Verdict(
        name=gate.kind,
        status=status,
        reason=(
            f"{gate.metric} {mine:.4g} against {theirs:.4g} of {evidence.reference_name} on the same {labels.size} "
            f"rows: a gain of {span(gain)} where the lower bound must exceed {bound:g}; {conclusion}"
        ),
        metric=f"gain_{gate.metric}",
        estimate=gain.estimate,
        low=gain.low,
        high=gain.high,
        threshold=bound,
        n=labels.size,
        details=_compared(mine, theirs, evidence)
        | {
            "higher_is_better": gate.metric in HIGHER_IS_BETTER,
            "confidence_of_each_bound": gate.confidence,
            "method": _method(gate),
        },
    )


def _method(gate: ComparisonGate) -> str:
    if gate.method == "bootstrap":
        method = f"paired bootstrap of {RESAMPLES} resamples, bias-corrected and accelerated"
        return method + (", or the score bounds where they are wider" if gate.metric == "roc_auc" else "")
    if gate.metric == "roc_auc":
        return "score bounds of both areas with DeLong's correlation"
    return "normal approximation of the rows' paired differences"


def _both(gate: RelativeGate | ComparisonGate, evidence: GateEvidence) -> tuple[float, float]:
    """The metric of candidate and reference."""
    labels = labels_of(evidence)
    mine, theirs = (
        metric_interval(gate.metric, labels, scores, threshold=evidence.threshold).estimate
        for scores in (candidate_scores(evidence), reference_scores(evidence))
    )
    return mine, theirs


def _compared(mine: float, theirs: float, evidence: GateEvidence) -> dict[str, float | str]:
    return {"candidate": mine, "reference": theirs, "reference_name": evidence.reference_name}


def calibrated(gate: CalibrationGate, evidence: GateEvidence) -> Verdict:
    """By the interval of the debiased expected calibration error: a pass needs the upper bound within the limit."""
    only_classification(evidence, "a calibration gate")
    labels, scores = labels_of(evidence), candidate_scores(evidence)
    found = calibration(labels, scores, gate.bins, confidence=CONFIDENCE)
    status, needed = within(found.error, gate.max_error)
    off = found.in_the_large
    return Verdict(
        name=gate.kind,
        status=status,
        reason=(
            f"debiased expected calibration error is {span(found.error)} over {len(found.bins)} bins of {labels.size} "
            f"rows; at most {gate.max_error:g} is allowed{needed}. On the whole {abs(off.estimate):.2%} "
            f"{'more' if off.estimate >= 0 else 'fewer'} rows are positive than predicted"
        ),
        metric="expected_calibration_error",
        estimate=found.error.estimate,
        low=found.error.low,
        high=found.error.high,
        threshold=gate.max_error,
        n=labels.size,
        details={
            "confidence_of_each_bound": CONFIDENCE,
            "method": "bins of equal count, debiased, bounds by the noncentral chi-squared sum of the bins' errors",
            "measured": found.measured,
            "in_the_large": off._asdict(),
            "bins": [each._asdict() for each in found.bins],
        },
    )
