"""From a spec's guards to limits: the bounds that a candidate must keep, and what each may spend of the budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from airlock.core.route import Limit
from airlock.core.spec import (
    BusinessMetricGuard,
    DisagreementGuard,
    ErrorRateGuard,
    FallbackRateGuard,
    Guard,
    LabelMetricGuard,
    LatencyGuard,
    LiveGuard,
    ModelSpec,
    PairedLossGuard,
    PredictionShiftGuard,
    Task,
)

LABEL_BATCH = 200
"""Labelled answers that make up one observation of a metric that is not a mean over answers, such as ROC AUC."""

_WITHIN_ONE = {"brier", "zero_one", "accuracy"}
_MINIMUMS = ("minimum", "min_answers")


def limits_of(spec: ModelSpec) -> tuple[Limit, ...]:
    """Every guard of the spec as limits; of two guards that bound the same the stricter one holds.

    The spec's ``false_rollback_budget`` is split evenly over them, because each may err on its own.
    """
    return tuple(limit for _, limit in guarded(spec))


def guarded(spec: ModelSpec) -> tuple[tuple[Guard, Limit], ...]:
    """Each limit with the guard that it comes from."""
    kept: dict[tuple[str, str], tuple[Guard, dict[str, Any]]] = {}
    for guard in spec.guards:
        for metric, side, fields in _bounds(guard, spec.task is Task.CLASSIFICATION):
            wanted = {"minimum": math.ceil(guard.min_requests / fields.get("batch", 1)), **fields}
            wanted["ceiling"] = _ceiling(guard, fields["bound"])
            by = guard.by if isinstance(guard, LiveGuard) else "request"
            # Evidence of another unit is other evidence: a guard by key does not stand for one by request.
            name, wanted["by"] = metric if by == "request" else f"{metric}_by_{by}", by
            if fields["signal"] == "late":
                wanted["min_answers"] = guard.min_requests
                wanted["max_missing"] = None if isinstance(guard, BusinessMetricGuard) else spec.label.max_missing
            first, known = kept.get((name, side), (guard, wanted))
            strictest = (guard, wanted) if _limiting(wanted) < _limiting(known) else (first, known)
            for least in _MINIMUMS:
                strictest[1][least] = max(wanted.get(least, 0), known.get(least, 0))
            kept[name, side] = strictest
    alpha = spec.false_rollback_budget / max(1, len(kept))
    steps = _steps(spec)
    taken: set[str] = set()
    limits = []
    for (name, side), (guard, fields) in kept.items():
        # Two bounds of one metric that cannot be compared, such as a minimum and a margin, are two limits.
        unique = f"{name}_{side}" if name in taken else name
        taken.add(unique)
        limits.append((guard, Limit(name=unique, alpha=alpha, steps=steps, **fields)))
    return tuple(limits)


def slow_limits(limits: Iterable[Limit]) -> dict[str, float]:
    """What counts as a slow request, in ms, by the name of the limit: for ``Tally.answered``."""
    return {limit.name: limit.over_ms for limit in limits if limit.over_ms is not None and limit.by == "request"}


def answers_apart(limits: Iterable[Limit]) -> float:
    """How far apart two answers can be, by the limits on their difference; infinity where none knows it.

    Whoever sums differences up counts none of them as larger: see :func:`airlock.core.tally.within`.
    """
    widths = {"difference": 0.5, "absolute": 1.0}
    apart = (widths[limit.signal] * limit.reach for limit in limits if limit.signal in widths and limit.reach)
    return min(apart, default=math.inf)


def _limiting(fields: dict[str, Any]) -> float:
    return float(fields.get("over_ms", fields["bound"]))


def _ceiling(guard: Guard, bound: float) -> float | None:
    """What the upper end of a pass's interval must lie below: twice the bound, where twice of it means anything."""
    match guard:
        case PairedLossGuard():
            return None
        case LabelMetricGuard():
            if guard.margin is not None:
                return None
            twice = 4 * bound if guard.metric == "rmse" else 2 * bound  # of an RMSE the bound is squared
        case BusinessMetricGuard():
            if guard.max is None or guard.range[0] < 0:
                return None
            twice = 2 * bound
        case _:
            twice = 2 * bound
    return twice if bound > 0 and math.isfinite(twice) else None


def _steps(spec: ModelSpec) -> int:
    """Steps with traffic, the shadow included."""
    canary = {"canary": len(spec.rollout.steps), "blue_green": 1, "experiment": 1, "shadow_only": 0}
    return canary[spec.rollout.plan] + (spec.rollout.shadow is not None)


def _bounds(guard: Guard, classification: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, side and fields of each limit that a guard sets."""
    match guard:
        case ErrorRateGuard():
            yield "error_rate", "max", {"signal": "errors", "bound": guard.max}
        case FallbackRateGuard():
            yield "fallback_rate", "max", {"signal": "fallbacks", "bound": guard.max}
        case DisagreementGuard():
            yield "disagreement", "max", {"signal": "flips", "bound": guard.max, "reach": 1.0}
        case LatencyGuard():
            for quantile, ms in guard.bounds.items():
                fields = {"signal": "slow", "bound": round(1 - quantile, 9), "over_ms": ms}
                yield f"latency_p{round(100 * quantile)}", "max", fields
        case PredictionShiftGuard():
            yield from _shift(guard, classification)
        case PairedLossGuard():
            observed = f"the candidate's {_words(guard.metric)} minus the champion's"
            fields = {"signal": "late", "bound": guard.margin, "observed": observed, **_difference(guard.metric)}
            yield f"paired_loss_{guard.metric}", "margin", fields
        case LabelMetricGuard():
            side, shape = _label_metric(guard)
            yield f"label_{guard.metric}", side, {"signal": "late", **shape}
        case BusinessMetricGuard():
            side, shape = _business(guard)
            yield f"business_{guard.name}", side, {"signal": "late", **shape}


def _shift(guard: PredictionShiftGuard, classification: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    least, greatest = (0.0, 1.0) if classification else guard.range or (-math.inf, math.inf)
    width, known = greatest - least, math.isfinite(greatest - least)
    if guard.max_mean is not None:
        reach = {"reach": 2 * width, "least": -width} if known else {}
        yield "prediction_shift", "max", {"signal": "difference", "bound": guard.max_mean, **reach}
    if guard.max_absolute is not None:
        reach = {"reach": width} if known else {}
        yield "prediction_disagreement", "max", {"signal": "absolute", "bound": guard.max_absolute, **reach}


def _words(metric: str) -> str:
    named = {"roc_auc": "ROC AUC", "brier": "Brier score", "rmse": "RMSE", "mae": "absolute error"}
    return named.get(metric, metric.replace("_", " "))


def _difference(metric: str) -> dict[str, Any]:
    """The range of the difference of two losses."""
    return {"reach": 2.0, "least": -1.0} if metric in _WITHIN_ONE else {}


def _label_metric(guard: LabelMetricGuard) -> tuple[str, dict[str, Any]]:
    """Which side is bounded, and how: the observations' mean must be at most the bound.

    One observation is a loss, a miss, a squared error for RMSE; against the champion it is the candidate's loss
    minus the champion's. ROC AUC, and RMSE against the champion, are no means over answers: there one
    observation is the metric of a batch of :data:`LABEL_BATCH` labelled answers, which is nearly normal.
    """
    metric, words = guard.metric, _words(guard.metric)
    gain = metric in {"roc_auc", "accuracy"}
    if guard.margin is not None:
        more, less = ("champion", "candidate") if gain else ("candidate", "champion")
        worse = f"the {more}'s {words} minus the {less}'s"
        if metric in {"roc_auc", "rmse"}:
            return "margin", {"bound": guard.margin, "batch": LABEL_BATCH, "observed": worse}
        return "margin", {"bound": guard.margin, "observed": worse, **_difference(metric)}
    if guard.min is not None:
        observed = "the share answered wrongly" if metric == "accuracy" else f"1 - {words}"
        shape: dict[str, Any] = {"reach": 1.0} if metric == "accuracy" else {"batch": LABEL_BATCH}
        return "min", {"bound": 1 - guard.min, "observed": observed, **shape}
    bound = guard.max if guard.max is not None else math.inf
    if metric == "rmse":
        return "max", {"bound": bound * bound, "observed": "the candidate's squared error"}
    within = {"reach": 1.0} if metric in _WITHIN_ONE else {}
    return "max", {"bound": bound, "observed": f"the candidate's {words}", **within}


def _business(guard: BusinessMetricGuard) -> tuple[str, dict[str, Any]]:
    lowest, highest = guard.range
    width = highest - lowest
    if guard.max_drop is not None:
        observed = f"the champion's {guard.name} minus the candidate's"
        return "drop", {"bound": guard.max_drop, "reach": 2 * width, "least": -width, "observed": observed}
    if guard.min is not None:
        return "min", {"bound": -guard.min, "reach": width, "least": -highest, "observed": f"minus the {guard.name}"}
    return "max", {"bound": guard.max, "reach": width, "least": lowest, "observed": f"the {guard.name}"}
