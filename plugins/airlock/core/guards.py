"""Guards: judgements of live traffic that may be made after every request.

The gateway ejects with :func:`breach`, the control plane judges with :func:`judge`, a replay with both: they
hold the same sums against the same limits by the same anytime-valid tests (core/sequential.py).

A limit spends half of its alpha on the sums of the whole release and the other half, split evenly over the steps,
on the fresh sums of each step: a version that goes bad late is found although its good past weighs in the former.
Late limits have no sums by step and spend all of it on the release.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from airlock.core import guard_words as words
from airlock.core.guard_words import Seen
from airlock.core.limits import guarded, limits_of, slow_limits
from airlock.core.route import Limit
from airlock.core.sequential import (
    ASYMPTOTIC_MINIMUM,
    Interval,
    mean_interval,
    mean_log_e_value,
    rate_log_e_value,
    unbounded_mean_interval,
)
from airlock.core.tally import LateEvidence, Sums, Tally
from airlock.core.verdict import Status, Verdict

__all__ = ["breach", "guarded", "judge", "limits_of", "slow_limits"]

_BATCHES_MINIMUM = 5
_ROUNDING = 1e-6


def breach(limits: Iterable[Limit], total: Tally, step: Tally) -> str | None:
    """Why the candidate must go now, in words, or ``None``.

    ``total`` holds its sums of the whole release, ``step`` those of the current step. Made to be called after each
    candidate request: while the plain averages keep their bounds, which is nearly always, it costs a few
    comparisons. Sums that cannot be true are a breach. Late limits are not looked at.
    """
    for limit in limits:
        if limit.signal == "late":
            continue
        for tally in (total, step):
            if _keeps(limit, tally):
                continue
            seen = _seen(limit, tally)
            if problem := _untrue(limit, seen):
                return problem
            alpha = _alpha(limit, of_step=tally is not total)
            if _exceeds(limit, seen, alpha):
                return _broken(limit, tally, seen, alpha, of_step=tally is not total)
    return None


def _keeps(limit: Limit, tally: Tally) -> bool:
    """Whether the plain average keeps a live limit; NaN and what is negative do not."""
    bound, signal = limit.bound, limit.signal
    if signal == "errors":
        return 0 <= tally.errors <= bound * tally.requests
    if signal == "slow":
        return 0 <= tally.slow.get(limit.name, 0) <= bound * tally.requests
    if signal == "fallbacks":
        return 0 <= tally.fallbacks <= bound * tally.requests
    if signal == "difference":
        return abs(tally.difference.total) <= bound * tally.difference.n
    sums = tally.absolute if signal == "absolute" else tally.flips
    return 0 <= sums.total <= bound * sums.n


def judge(
    limits: Iterable[Limit],
    total: Tally,
    step: Tally,
    *,
    champion: Tally | None = None,
    late: LateEvidence | None = None,
) -> tuple[Verdict, ...]:
    """Judge what was observed of a candidate; one verdict for each limit.

    ``champion`` is the champion's tally over the same time. It puts the candidate's latency into proportion;
    differences of answers are already paired in the candidate's own tally. ``late`` is the evidence of late
    limits; without it they are ``INCONCLUSIVE``.

    ``PASS`` needs the limit's minimum sample, and of a late limit mature labels of which not too many are missing;
    ``FAIL`` does not; sums that cannot be true are ``ERROR``.
    """
    return tuple(
        _judge_late(limit, late) if limit.late else _judge_live(limit, total, step, champion) for limit in limits
    )


def _judge_live(limit: Limit, total: Tally, step: Tally, champion: Tally | None) -> Verdict:
    details = _latency_details(limit, total, champion) if limit.signal == "slow" else {}
    seen, fresh = _seen(limit, total), _seen(limit, step)
    if problem := _untrue(limit, seen) or _untrue(limit, fresh):
        return _verdict(limit, Status.ERROR, problem, seen, None, details)
    for tally, look, of_step in ((total, seen, False), (step, fresh, True)):
        alpha = _alpha(limit, of_step=of_step)
        if _exceeds(limit, look, alpha):
            reason = _broken(limit, tally, look, alpha, of_step=of_step) + words.champions(details)
            return _verdict(limit, Status.FAIL, reason, look, _interval(limit, look, alpha), details)
    interval = _interval(limit, seen, _alpha(limit, of_step=False))
    needed = _needed(limit)
    if seen.n < needed:
        return _verdict(limit, Status.INCONCLUSIVE, words.too_few(limit, seen.n, needed), seen, interval, details)
    said = words.found(limit, total, seen, interval)
    reason = f"{said}; the guard allows {words.allowed(limit)}{words.champions(details)}"
    return _verdict(limit, Status.PASS, reason, seen, interval, details)


def _judge_late(limit: Limit, late: LateEvidence | None) -> Verdict:
    if late is None:
        reason = f"nothing is known of {limit.name} yet: no label or outcome has been joined to the answers"
        return _verdict(limit, Status.INCONCLUSIVE, reason, Seen(0, 0.0, 0.0), None, {"label_share": None})
    details = {"answers": late.answers, "due": late.due, "labelled": late.labelled, "label_share": late.share}
    come = words.come(late)
    sums = late.observations.get(limit.name, Sums())
    seen = Seen.of(sums)
    if problem := _untrue(limit, seen) or _untrue_labels(late):
        return _verdict(limit, Status.ERROR, f"{problem}; {come}", seen, None, details)
    interval = _interval(limit, seen, limit.alpha)
    said = f"{words.found(limit, None, seen, interval)}; the guard allows {words.allowed(limit)}"
    if _exceeds(limit, seen, limit.alpha):
        reason = f"{said} and chance does not explain the rest; {come}"
        return _verdict(limit, Status.FAIL, reason, seen, interval, details)
    needed = _needed(limit)
    if seen.n < needed:
        reason = f"{words.too_few(limit, seen.n, needed)}; {come}"
        return _verdict(limit, Status.INCONCLUSIVE, reason, seen, interval, details)
    if unripe := _unripe(limit, late, seen, details):
        return _verdict(limit, Status.INCONCLUSIVE, f"{said}; {come}; {unripe}", seen, interval, details)
    return _verdict(limit, Status.PASS, f"{said}; {come}", seen, interval, details)


def _unripe(limit: Limit, late: LateEvidence, seen: Seen, details: dict[str, Any]) -> str | None:
    """Why labels that keep the limit so far are no pass yet; ``None`` if they are. ``details`` gets the figures.

    Labels that come early need not be like those that come late or never. So enough answers must be mature, and what
    is missing of their labels must not be able to hide a breach: unless the owner takes so many for like the rest,
    the estimate must keep the bound with every missing observation at the worst end of its range. For a metric of
    batches, or of observations without a range, there is no such end.
    """
    if late.due < limit.min_answers:
        return f"{late.due} of the {limit.min_answers} answers needed are old enough for their labels to be due"
    if limit.max_missing is None or late.share is None:
        return None
    missing = 1 - late.share
    ends = _ends(limit) if limit.batch == 1 else None
    worst = late.share * seen.total / seen.n + missing * ends[1] if ends else None
    details |= {"missing_share": missing, "worst_case": worst}
    if late.due - late.labelled <= limit.max_missing * late.due or (worst is not None and worst <= limit.bound):
        return None
    return words.provisional(limit, missing, worst)


_COUNTS = frozenset({"errors", "slow", "fallbacks"})


def _seen(limit: Limit, tally: Tally) -> Seen:
    """What a tally holds of a limit."""
    match limit.signal:
        case "errors":
            hits = tally.errors
        case "slow":
            hits = tally.slow.get(limit.name, 0)
        case "fallbacks":
            hits = tally.fallbacks
        case "difference" | "absolute" | "flips" as name:
            return Seen.of(getattr(tally, name))
        case _:
            raise ValueError(f"limit {limit.name} is judged on late evidence, which no tally holds")
    return Seen(tally.requests, hits, hits)


def _alpha(limit: Limit, *, of_step: bool) -> float:
    """The chance of a false alarm that the release's sums, or each step's, may have."""
    return limit.alpha / 2 / limit.steps if of_step else limit.alpha / 2


def _ends(limit: Limit) -> tuple[float, float] | None:
    """The range of one observation, if it is known."""
    if limit.signal in _COUNTS:
        return 0.0, 1.0
    if limit.reach is None:
        return None
    least = -limit.reach / 2 if limit.signal == "difference" else limit.least
    return least, least + limit.reach


def _asymptotic_minimum(limit: Limit) -> int:
    return max(_BATCHES_MINIMUM, math.ceil(ASYMPTOTIC_MINIMUM / limit.batch))


def _needed(limit: Limit) -> int:
    """Observations that a pass needs."""
    return limit.minimum if _ends(limit) else max(limit.minimum, _asymptotic_minimum(limit))


def _exceeds(limit: Limit, seen: Seen, alpha: float) -> bool:
    """Whether the limit is surely broken; with a chance of at most alpha it ever is while the truth keeps it."""
    n, total, squares, smallest, largest = seen
    sides = (1, -1) if limit.signal == "difference" else (1,)
    if not any(side * total > limit.bound * n for side in sides):
        return False
    if limit.signal in _COUNTS:
        return rate_log_e_value(int(total), n, limit.bound) >= -math.log(alpha)
    ends = _ends(limit)
    if ends is None:
        if n < _asymptotic_minimum(limit):
            return False
        interval = _interval(limit, seen, alpha)
        return any((interval.low if side > 0 else -interval.high) > limit.bound for side in sides)
    least, greatest = ends
    # The range of a two-sided limit is symmetric, so that only the sum and the values seen change their sign.
    lowest = {1: smallest, -1: None if largest is None else -largest}
    return any(
        mean_log_e_value(n, side * total, squares, limit.bound, least=least, greatest=greatest, smallest=lowest[side])
        >= -math.log(alpha / len(sides))
        for side in sides
    )


def _interval(limit: Limit, seen: Seen, alpha: float) -> Interval:
    """The confidence sequence that belongs to the limit's test: its lower bound passes the limit when the test does."""
    ends = _ends(limit)
    if ends is None:
        sharpest = max(limit.minimum, _asymptotic_minimum(limit))
        return unbounded_mean_interval(*seen[:3], alpha, sharpest=sharpest)
    side = alpha / 2 if limit.signal == "difference" else alpha
    least, greatest = ends
    smallest, largest = seen.smallest, seen.largest
    return mean_interval(*seen[:3], side, least=least, greatest=greatest, smallest=smallest, largest=largest)


def _untrue(limit: Limit, seen: Seen) -> str | None:
    """Why nothing can be concluded from the sums, if nothing can."""
    n, total, squares, *_ = seen
    if not math.isfinite(total + squares):
        return (
            f"{limit.name}: {n} observations do not add up to a finite number: at least one answer was NaN or infinite"
        )
    if n < 0 or squares < 0 or (limit.signal in _COUNTS and total < 0):
        return f"{limit.name}: the counts cannot be true, one is negative: {n} observations, sum {total:g}"
    if limit.signal in _COUNTS:
        return f"{limit.name}: the counts cannot be true: {total:g} of {n} requests" if total > n else None
    room = _ROUNDING * (squares + n * (abs(total / n) if n else 0) + n)
    if total * total > n * (squares + room) + room:
        return f"{limit.name}: the sums cannot be true: {n} observations, sum {total:g}, squares {squares:g}"
    return _out_of_range(limit, seen, room)


def _out_of_range(limit: Limit, seen: Seen, room: float) -> str | None:
    """What of the sums no observations in the known range could make, give or take the rounding in ``room``."""
    n, total = seen.n, seen.total
    least, greatest = _ends(limit) or (-math.inf, math.inf)
    low = least if seen.smallest is None else seen.smallest
    high = greatest if seen.largest is None else seen.largest
    if low < least - _ROUNDING or high > greatest + _ROUNDING:
        return f"{limit.name}: observations from {low:g} to {high:g} cannot be true between {least:g} and {greatest:g}"
    if n and not n * low - room <= total <= n * high + room:
        return f"{limit.name}: {n} observations between {low:g} and {high:g} cannot add up to {total:g}"
    return None


def _untrue_labels(late: LateEvidence) -> str | None:
    if 0 <= late.labelled <= late.due:
        return None
    return f"the counts of labels cannot be true: {late.labelled} labelled of {late.due} due"


def _broken(limit: Limit, tally: Tally, seen: Seen, alpha: float, *, of_step: bool) -> str:
    found = words.found(limit, tally, seen, _interval(limit, seen, alpha))
    where = "in this step " if of_step else ""
    return f"{where}{found}; the guard allows {words.allowed(limit)} and chance does not explain the rest"


def _latency_details(limit: Limit, tally: Tally, champion: Tally | None) -> dict[str, Any]:
    """The quantiles themselves, to the bucket; infinity is what JSON cannot carry."""

    def known(counted: Tally) -> float | None:
        value = counted.quantile_ms(1 - limit.bound)
        return value if value is not None and math.isfinite(value) else None

    details: dict[str, Any] = {"over_ms": limit.over_ms, "quantile_ms": known(tally)}
    return details if champion is None else {**details, "champion_quantile_ms": known(champion)}


def _verdict(
    limit: Limit, status: Status, reason: str, seen: Seen, interval: Interval | None, details: dict[str, Any]
) -> Verdict:
    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return Verdict(
        name=limit.name,
        status=status,
        reason=reason,
        metric=limit.signal if not limit.late else limit.name,
        estimate=known(interval.estimate) if interval else None,
        low=known(interval.low) if interval else None,
        high=known(interval.high) if interval else None,
        threshold=limit.bound,
        n=seen.n,
        details=details,
    )
