"""What a spec's guards promise less of than it seems: for whoever checks a spec."""

from __future__ import annotations

from airlock.core.limits import guarded
from airlock.core.sequential import ASYMPTOTIC_MINIMUM
from airlock.core.spec import LiveGuard, ModelSpec, PredictionShiftGuard, Task


def warnings(spec: ModelSpec) -> tuple[str, ...]:
    """Everything to warn of, in words, each with what to do."""
    return (*_unbounded(spec), *_blind(spec), *_waiting_for_every_label(spec))


def _blind(spec: ModelSpec) -> list[str]:
    """Guards by key that no guard by request stands beside."""
    kinds = {guard.kind for guard in spec.guards if isinstance(guard, LiveGuard) and guard.by == "request"}
    return [
        f"guards.{index}: {guard.kind} by key observes the first request of each routing key alone, so that it is "
        "blind to what goes bad for customers who were all seen before: put a guard of this kind by request beside "
        "it, with a wider bound if need be"
        for index, guard in enumerate(spec.guards)
        if isinstance(guard, LiveGuard) and guard.by == "key" and guard.kind not in kinds
    ]


def _waiting_for_every_label(spec: ModelSpec) -> list[str]:
    """Limits on labels of which one that is missing could hide anything."""
    return [
        f"{limit.name}: nothing bounds what a missing label would do to it, and label.max_missing is 0, so that one "
        "label that never comes keeps the version provisional: say in label.max_missing what share of the labels may "
        "be missing and is taken for like the rest"
        + ("" if spec.task is Task.REGRESSION else ", or guard a metric that is bounded: brier, zero_one or accuracy")
        for _, limit in guarded(spec)
        if limit.late and limit.max_missing == 0 and (limit.batch > 1 or limit.reach is None)
    ]


def _unbounded(spec: ModelSpec) -> list[str]:
    """Limits on single observations that nothing bounds."""
    found = []
    for guard, limit in guarded(spec):
        if limit.signal in ("errors", "slow", "fallbacks") or limit.reach is not None or limit.batch > 1:
            continue
        remedy = (
            "give it a range, within which every answer lies"
            if isinstance(guard, PredictionShiftGuard)
            else "brier and zero_one are bounded"
            if spec.task is Task.CLASSIFICATION
            else "keep an eye on its far outliers"
        )
        found.append(
            f"{limit.name}: nothing bounds one observation, so that it is judged asymptotically and from "
            f"{max(limit.minimum, ASYMPTOTIC_MINIMUM):,} on; rare values far on the good side may then take back good "
            f"versions more often than false_rollback_budget says: {remedy}"
        )
    return found
