"""What gates judge, and how they read it: everything that is not sound raises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from airlock.core.sequential import Interval
from airlock.core.spec import Input, Metric, MetricBound, Task
from airlock.core.uncertainty import Floats
from airlock.core.verdict import Status, Verdict

BASELINE = "baseline"
"""``reference_name`` while there is no champion: the reference is a constant prediction."""

MINIMUM_ROWS = 30
"""Evaluation rows under which the intervals, which lean on the central limit theorem, mean nothing."""

MINIMUM_OF_CLASS = 20
"""Rows of the rarer class under which a metric of probabilities is not judged. Below it the few rows that make the
metric's variance are often not among them; from here on bounds miss about as often as they say, by simulation
(tests/benchmarks/RESULTS.md)."""

CONFIDENCE = 0.95
"""Of each bound of an interval, unless the gate names another."""

_MISSING = "(missing)"


@dataclass(frozen=True)
class FeatureValues:
    """Features by name as the gateway reads them online and as the point-in-time join gives them.

    Each array has one entry for each of the same entity rows, in the same order, all asked at the same time.
    ``rows`` names each row for people. ``problem`` says why they could not be had.
    """

    online: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    offline: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    rows: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class GateEvidence:
    """What the gates judge.

    ``labels``, ``candidate``, ``reference`` and each of ``slices`` have one entry for each held-out row, in
    the same order; scores are probabilities of the positive class or values. ``reference`` holds the
    champion's scores, or the constant prediction if ``reference_name`` is :data:`BASELINE`. ``latency_ms`` are
    single-row inferences; ``threshold`` is the probability from which the answer is positive. ``interface`` is
    what one has to know beside the inputs to ask and to read the answer (see ``core.schema``).
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
    interface: Mapping[str, str]
    reference_interface: Mapping[str, str] | None
    features: FeatureValues | None = None
    threshold: float = 0.5


class Missing(Exception):
    """The evidence for a gate is not there."""


def floats(name: str, values: npt.NDArray[Any], rows: int) -> Floats:
    """One column of evidence as finite floats of the right length."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (rows,):
        raise ValueError(f"{name} have shape {numbers.shape}, expected ({rows},): one for each evaluation row")
    if bad := int(np.count_nonzero(~np.isfinite(numbers))):
        raise ValueError(f"{bad} of {rows} {name} are NaN or infinite")
    return numbers


def labels_of(evidence: GateEvidence) -> Floats:
    rows = len(evidence.labels)
    if rows < MINIMUM_ROWS:
        raise Missing(f"{rows} evaluation rows; at least {MINIMUM_ROWS} are needed")
    labels = floats("labels", evidence.labels, rows)
    if evidence.task is Task.CLASSIFICATION and not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError("labels of a classification must be 0 or 1")
    return labels


def require_both_classes(metric: Metric, labels: Floats, task: Task, *, advice: str = "") -> None:
    """Refuse to judge a metric that leans on too few rows of a class. Accuracy counts rows, whatever their class.

    Raises:
        Missing: a class has fewer rows than :data:`MINIMUM_OF_CLASS`; says how many there are and what to do.
    """
    if task is not Task.CLASSIFICATION or metric == "accuracy":
        return
    positive = int(labels.sum())
    negative = labels.size - positive
    if min(positive, negative) < MINIMUM_OF_CLASS:
        raise Missing(
            f"{positive} positive and {negative} negative rows; {metric} needs at least {MINIMUM_OF_CLASS} of each: "
            + (advice or "hold out a longer window (data.evaluation)")
        )


def candidate_scores(evidence: GateEvidence) -> Floats:
    return _scores("candidate's scores", evidence.candidate, evidence)


def reference_scores(evidence: GateEvidence) -> Floats:
    return _scores(f"scores of {evidence.reference_name}", evidence.reference, evidence)


def _scores(name: str, values: npt.NDArray[Any] | None, evidence: GateEvidence) -> Floats:
    if values is None:
        raise Missing(f"there are no {name}")
    scores = floats(name, values, len(evidence.labels))
    if evidence.task is Task.CLASSIFICATION and (scores.min() < 0 or scores.max() > 1):
        raise ValueError(f"{name} must be probabilities, they reach from {scores.min():.3g} to {scores.max():.3g}")
    return scores


def only_classification(evidence: GateEvidence, what: str) -> None:
    """Refuse a gate that a regression cannot be judged by."""
    if evidence.task is not Task.CLASSIFICATION:
        raise ValueError(f"{what} is of probabilities and decisions, which a {evidence.task} does not give; remove it")


def groups_of(column: str, evidence: GateEvidence) -> dict[str, npt.NDArray[np.bool_]]:
    """The evaluation rows of each group of a column; a missing value is a group of its own."""
    if column not in evidence.slices:
        raise Missing(f"the evaluation rows have no column {column!r}")
    values = np.asarray(evidence.slices[column], dtype=object)
    if values.shape != (len(evidence.labels),):
        raise ValueError(f"column {column!r} has shape {values.shape}, expected ({len(evidence.labels)},)")
    names = np.array([_MISSING if is_missing(value) else str(value) for value in values.tolist()], dtype=object)
    return {str(name): names == name for name in sorted(set(names.tolist()))}


def is_missing(value: object) -> bool:
    """Whether it stands for no value."""
    # NaN, NaT and their kin are the values that do not equal themselves; pandas' NA refuses to answer at all.
    try:
        return value is None or bool(value != value)  # noqa: PLR0124
    except TypeError:
        return True


def reaches(gate: MetricBound, value: float) -> bool:
    """Whether a metric keeps the gate's bound; NaN never does."""
    return value >= gate.min if gate.min is not None else value <= (-math.inf if gate.max is None else gate.max)


def bound_of(gate: MetricBound) -> tuple[float, str]:
    """A gate's bound, and how it is said."""
    if gate.max is not None:
        return gate.max, f"at most {gate.max:g}"
    if gate.min is not None:
        return gate.min, f"at least {gate.min:g}"
    raise ValueError("the gate has no bound")


def within(interval: Interval, most: float) -> tuple[Status, str]:
    """How a quantity that may be at most so much is judged by its interval, and what it needs if it is open."""
    if interval.high <= most:
        return Status.PASS, ""
    if interval.low > most:
        return Status.FAIL, ""
    return Status.INCONCLUSIVE, "; the interval reaches beyond that: more evaluation rows would tell"


def span(interval: Interval) -> str:
    return f"{interval.estimate:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def and_more(names: list[str], most: int = 10) -> str:
    """Names in a row, the first ``most`` of them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
