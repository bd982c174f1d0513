"""Gates: policies judged once, before a candidate sees traffic.

Every gate gets the whole evidence and answers with one verdict. Evidence that is missing or too thin is
``INCONCLUSIVE``, evidence that cannot be judged (NaN, unequal lengths, impossible labels) is ``ERROR``;
neither lets a candidate through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airlock.core.sequential import Interval
from airlock.core.spec import (
    FiniteGate,
    Gate,
    Input,
    LatencyGate,
    MetricBound,
    NonInferiorityGate,
    ParityGate,
    Policy,
    SchemaGate,
    SizeGate,
    SliceGate,
    Task,
    ThresholdGate,
)
from airlock.core.stats import HIGHER_IS_BETTER, Floats, TooFew, metric_gain, metric_interval, quantile_interval
from airlock.core.verdict import Status, Verdict, fold

BASELINE = "baseline"
"""``reference_name`` while there is no champion: the reference is a constant prediction."""

MINIMUM_ROWS = 30
"""Evaluation rows under which the intervals, which lean on the central limit theorem, mean nothing."""

_CONFIDENCE = 0.95
_MISSING = "(missing)"


@dataclass(frozen=True)
class GateEvidence:
    """What the gates judge.

    ``labels``, ``candidate``, ``reference`` and each of ``slices`` have one entry for each held-out row, in
    the same order; scores are probabilities of the positive class or values. ``reference`` holds the
    champion's scores, or the constant prediction if ``reference_name`` is :data:`BASELINE`. ``latency_ms`` are
    single-row inferences; ``threshold`` is the probability from which the answer is positive.
    """

    task: Task
    labels: npt.NDArray[Any]
    candidate: npt.NDArray[Any]
    reference: npt.NDArray[Any] | None
    reference_name: str
    slices: Mapping[str, npt.NDArray[Any]]
    parity: Verdict | None
    latency_ms: npt.NDArray[Any] | None
    size_bytes: int | None
    inputs: Mapping[str, Input]
    reference_inputs: Mapping[str, Input] | None
    threshold: float = 0.5


class _Missing(Exception):
    """The evidence for a gate is not there."""


def judge(gates: Iterable[Gate], evidence: GateEvidence) -> tuple[Verdict, ...]:
    """One verdict for each gate, in order. Never raises for evidence: what cannot be judged is ``ERROR``."""
    return tuple(_judge(gate, evidence) for gate in gates)


def name_of(gate: Gate) -> str:
    """What a gate's verdict is called, such as ``threshold_roc_auc`` or ``slices_carrier_roc_auc``."""
    parts = [gate.kind, getattr(gate, "column", None), getattr(gate, "metric", None)]
    return "_".join(part for part in parts if part)


def _judge(gate: Gate, evidence: GateEvidence) -> Verdict:
    try:
        with np.errstate(all="ignore"):
            return _JUDGES[type(gate)](gate, evidence)
    except (_Missing, TooFew) as missing:
        return Verdict(name=name_of(gate), status=Status.INCONCLUSIVE, reason=f"cannot be judged: {missing}")
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the candidate is not let through
        kind = type(error).__name__
        reason = f"could not be judged: {error}" if str(error) else f"could not be judged: {kind}"
        return Verdict(name=name_of(gate), status=Status.ERROR, reason=reason, details={"error": kind})


def _floats(name: str, values: npt.NDArray[Any], rows: int) -> Floats:
    """One column of evidence as finite floats of the right length."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (rows,):
        raise ValueError(f"{name} have shape {numbers.shape}, expected ({rows},): one for each evaluation row")
    if bad := int(np.count_nonzero(~np.isfinite(numbers))):
        raise ValueError(f"{bad} of {rows} {name} are NaN or infinite")
    return numbers


def _labels(evidence: GateEvidence) -> Floats:
    rows = len(evidence.labels)
    if rows < MINIMUM_ROWS:
        raise _Missing(f"{rows} evaluation rows; at least {MINIMUM_ROWS} are needed")
    labels = _floats("labels", evidence.labels, rows)
    if evidence.task is Task.CLASSIFICATION and not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError("labels of a classification must be 0 or 1")
    return labels


def _scores(name: str, values: npt.NDArray[Any] | None, evidence: GateEvidence) -> Floats:
    if values is None:
        raise _Missing(f"there are no {name}")
    scores = _floats(name, values, len(evidence.labels))
    if evidence.task is Task.CLASSIFICATION and (scores.min() < 0 or scores.max() > 1):
        raise ValueError(f"{name} must be probabilities, they reach from {scores.min():.3g} to {scores.max():.3g}")
    return scores


def _reaches(gate: MetricBound, value: float) -> bool:
    """Whether a metric keeps the gate's bound; NaN never does."""
    return value >= gate.min if gate.min is not None else value <= (-math.inf if gate.max is None else gate.max)


def _bound(gate: MetricBound) -> tuple[float | None, str]:
    return (gate.max, f"at most {gate.max:g}") if gate.max is not None else (gate.min, f"at least {gate.min:g}")


def _span(interval: Interval) -> str:
    return f"{interval.estimate:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def _threshold(gate: ThresholdGate, evidence: GateEvidence) -> Verdict:
    labels = _labels(evidence)
    scores = _scores("candidate's scores", evidence.candidate, evidence)
    interval = metric_interval(gate.metric, labels, scores, confidence=_CONFIDENCE, threshold=evidence.threshold)
    bound, words = _bound(gate)
    return Verdict(
        name=name_of(gate),
        status=Status.PASS if _reaches(gate, interval.estimate) else Status.FAIL,
        reason=f"{gate.metric} is {_span(interval)} on {labels.size} rows; it must be {words}",
        metric=gate.metric,
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        threshold=bound,
        n=labels.size,
        details={"confidence_of_each_bound": _CONFIDENCE},
    )


def _non_inferiority(gate: NonInferiorityGate, evidence: GateEvidence) -> Verdict:
    labels = _labels(evidence)
    candidate = _scores("candidate's scores", evidence.candidate, evidence)
    reference = _scores(f"scores of {evidence.reference_name}", evidence.reference, evidence)
    gain = metric_gain(
        gate.metric, labels, candidate, reference, confidence=gate.confidence, threshold=evidence.threshold
    )
    if gain.low > -gate.margin:
        status, conclusion = Status.PASS, "not worse"
    elif gain.estimate <= -gate.margin:
        status, conclusion = Status.FAIL, "worse"
    else:
        status, conclusion = Status.INCONCLUSIVE, "not shown to be as good: more evaluation rows would tell"
    mine, theirs = (
        metric_interval(gate.metric, labels, scores, confidence=gate.confidence, threshold=evidence.threshold).estimate
        for scores in (candidate, reference)
    )
    return Verdict(
        name=name_of(gate),
        status=status,
        reason=(
            f"{gate.metric} {mine:.4g} against {theirs:.4g} of {evidence.reference_name} on the same {labels.size} "
            f"rows: a gain of {_span(gain)} where the lower bound must exceed {-gate.margin:g}; {conclusion}"
        ),
        metric=f"gain_{gate.metric}",
        estimate=gain.estimate,
        low=gain.low,
        high=gain.high,
        threshold=-gate.margin,
        n=labels.size,
        details={
            "candidate": mine,
            "reference": theirs,
            "reference_name": evidence.reference_name,
            "higher_is_better": gate.metric in HIGHER_IS_BETTER,
            "confidence_of_each_bound": gate.confidence,
        },
    )


def _groups(values: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.bool_]]:
    """Rows of each group; a missing value is a group of its own."""
    names = np.array([_MISSING if _is_missing(value) else str(value) for value in values.tolist()], dtype=object)
    return {str(name): names == name for name in sorted(set(names.tolist()))}


def _is_missing(value: object) -> bool:
    # NaN, NaT and their kin are the values that do not equal themselves; pandas' NA refuses to answer at all.
    try:
        return value is None or bool(value != value)  # noqa: PLR0124
    except TypeError:
        return True


def _slices(gate: SliceGate, evidence: GateEvidence) -> Verdict:
    labels = _labels(evidence)
    scores = _scores("candidate's scores", evidence.candidate, evidence)
    if gate.column not in evidence.slices:
        raise _Missing(f"the evaluation rows have no column {gate.column!r}")
    column = np.asarray(evidence.slices[gate.column], dtype=object)
    if column.shape != labels.shape:
        raise ValueError(f"column {gate.column!r} has shape {column.shape}, expected {labels.shape}")
    judged: dict[str, tuple[Status, Interval | None, int]] = {}
    for name, rows in _groups(column).items():
        if (n := int(rows.sum())) >= gate.min_rows:
            judged[name] = (*_group(gate, labels[rows], scores[rows], evidence.threshold), n)
    if not judged:
        raise _Missing(f"no group of {gate.column} has {gate.min_rows} rows")
    return _slices_verdict(gate, judged, labels.size)


def _group(gate: SliceGate, labels: Floats, scores: Floats, threshold: float) -> tuple[Status, Interval | None]:
    try:
        interval = metric_interval(gate.metric, labels, scores, confidence=_CONFIDENCE, threshold=threshold)
    except TooFew:
        return Status.INCONCLUSIVE, None
    return Status.PASS if _reaches(gate, interval.estimate) else Status.FAIL, interval


def _slices_verdict(gate: SliceGate, judged: Mapping[str, tuple[Status, Interval | None, int]], rows: int) -> Verdict:
    bound, words = _bound(gate)
    by_status = {status: [name for name, (found, *_) in judged.items() if found is status] for status in Status}
    known = {name: interval for name, (_, interval, _) in judged.items() if interval is not None}
    pick = min if gate.min is not None else max
    worst = pick(known, key=lambda name: known[name].estimate) if known else None
    parts = [f"{gate.metric} must be {words} in each of the {len(judged)} groups of {gate.column}"]
    if worst is not None:
        parts.append(f"the worst is {worst} with {_span(known[worst])} on {judged[worst][2]} rows")
    if failed := by_status[Status.FAIL]:
        parts.append(f"{len(failed)} fall short: {', '.join(failed[:10])}")
    if open_ := by_status[Status.INCONCLUSIVE]:
        parts.append(f"{len(open_)} cannot be judged, with too few rows of a class: {', '.join(open_[:10])}")
    interval = known[worst] if worst is not None else None
    return Verdict(
        name=name_of(gate),
        status=fold(Verdict(name=name, status=status, reason="") for name, (status, *_) in judged.items()),
        reason="; ".join(parts),
        metric=gate.metric,
        estimate=interval.estimate if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        threshold=bound,
        n=rows,
        details={
            "column": gate.column,
            "worst": worst,
            "groups": {
                name: {"status": status.value, "rows": n, **(interval._asdict() if interval else {})}
                for name, (status, interval, n) in judged.items()
            },
        },
    )


def _parity(gate: ParityGate, evidence: GateEvidence) -> Verdict:
    found = evidence.parity
    if found is None:
        raise _Missing("ONNX was not compared with scikit-learn")
    if found.status is Status.ERROR:
        return found.model_copy(update={"name": name_of(gate)})
    if missing := [name for name in ("max_difference", "flips") if found.details.get(name) is None]:
        raise ValueError(f"the comparison of ONNX with scikit-learn does not tell {' and '.join(missing)}")
    difference, flips = found.details["max_difference"], found.details["flips"]
    if not (math.isfinite(difference) and difference >= 0 and math.isfinite(flips) and flips >= 0):
        raise ValueError(f"the comparison tells a largest difference of {difference} and {flips} flips")
    kept = difference <= gate.max_difference and flips <= gate.max_flips
    reason = (
        f"ONNX differs from scikit-learn by at most {difference:.3g} (allowed {gate.max_difference:g}) and flips "
        f"{flips} decisions (allowed {gate.max_flips})"
    )
    return Verdict(
        name=name_of(gate),
        status=found.status if kept else Status.FAIL,
        reason=f"{reason}; but {found.reason}" if kept and not found.passed else reason,
        metric="max_difference",
        estimate=difference,
        threshold=gate.max_difference,
        n=found.n,
        details=found.details,
    )


def _latency(gate: LatencyGate, evidence: GateEvidence) -> Verdict:
    if evidence.latency_ms is None:
        raise _Missing("no latency was measured")
    measured = _floats("latencies", evidence.latency_ms, len(evidence.latency_ms))
    if measured.size and measured.min() < 0:
        raise ValueError("a latency is below 0 ms")
    p99 = quantile_interval(measured, 0.99, confidence=_CONFIDENCE)
    return Verdict(
        name=name_of(gate),
        status=Status.PASS if p99.estimate <= gate.max_p99_ms else Status.FAIL,
        reason=f"p99 of {measured.size} single rows is {_span(p99)} ms; at most {gate.max_p99_ms:g} ms are allowed",
        metric="p99_ms",
        estimate=p99.estimate,
        low=p99.low,
        high=p99.high,
        threshold=gate.max_p99_ms,
        n=measured.size,
        details={"p50_ms": float(np.median(measured)), "confidence_of_each_bound": _CONFIDENCE},
    )


def _size(gate: SizeGate, evidence: GateEvidence) -> Verdict:
    if evidence.size_bytes is None:
        raise _Missing("the size of the ONNX file is not known")
    if evidence.size_bytes <= 0:
        raise ValueError(f"the ONNX file has {evidence.size_bytes} bytes")
    size = evidence.size_bytes / 1e6
    return Verdict(
        name=name_of(gate),
        status=Status.PASS if size <= gate.max_mb else Status.FAIL,
        reason=f"the ONNX file has {size:.3g} MB; at most {gate.max_mb:g} MB are allowed",
        metric="size_mb",
        estimate=size,
        threshold=gate.max_mb,
    )


def _finite(gate: FiniteGate, evidence: GateEvidence) -> Verdict:
    scores = np.asarray(evidence.candidate, dtype=np.float64)
    if scores.size == 0:
        raise _Missing("the candidate has not scored a row")
    bad = int(np.count_nonzero(~np.isfinite(scores)))
    first = f"; the first is row {int(np.argmin(np.isfinite(scores)))}" if bad else ""
    return Verdict(
        name=name_of(gate),
        status=Status.FAIL if bad else Status.PASS,
        reason=f"{bad} of {scores.size} answers are NaN or infinite{first}",
        metric="not_finite",
        estimate=bad,
        threshold=0,
        n=scores.size,
    )


def _schema(gate: SchemaGate, evidence: GateEvidence) -> Verdict:
    theirs = evidence.reference_inputs
    if not evidence.inputs:
        raise _Missing("the candidate's inputs are not known")
    if theirs is None and evidence.reference_name != BASELINE:
        raise _Missing(f"the inputs of {evidence.reference_name} are not known")
    if theirs is None:
        reason = f"{len(evidence.inputs)} inputs; there is no champion whose inputs they would have to match"
        return Verdict(name=name_of(gate), status=Status.PASS, reason=reason)
    changes = _changes(evidence.inputs, theirs)
    status, reason = Status.PASS, f"the {len(theirs)} inputs are those of {evidence.reference_name}"
    if changes:
        reason = f"the inputs differ from those of {evidence.reference_name}: {'; '.join(changes)}"
        if not gate.allow_changes:
            status = Status.FAIL
            reason += "; set allow_changes if whoever asks already sends what the candidate needs"
    return Verdict(name=name_of(gate), status=status, reason=reason, details={"changes": changes})


def _changes(mine: Mapping[str, Input], theirs: Mapping[str, Input]) -> list[str]:
    """What is different, one sentence an input."""
    changes = [f"{name} is new" for name in mine if name not in theirs]
    changes += [f"{name} is gone" for name in theirs if name not in mine]
    for name in mine:
        if name in theirs and mine[name] != theirs[name]:
            now, before = mine[name].model_dump(), theirs[name].model_dump()
            fields = [f"{field} {before[field]} -> {now[field]}" for field in now if now[field] != before[field]]
            changes.append(f"{name}: {', '.join(fields)}")
    return changes


_JUDGES: dict[type[Policy], Callable[[Any, GateEvidence], Verdict]] = {
    ThresholdGate: _threshold,
    NonInferiorityGate: _non_inferiority,
    SliceGate: _slices,
    ParityGate: _parity,
    LatencyGate: _latency,
    SizeGate: _size,
    FiniteGate: _finite,
    SchemaGate: _schema,
}
