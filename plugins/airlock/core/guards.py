"""Guards: judgements of live traffic that may be made after every request.

The gateway ejects with :func:`breach`, the control plane judges with :func:`judge_guards`; both hold the
same sums against the same bounds by the same anytime-valid tests (core/sequential.py). Alpha, the
chance of ever failing a version whose true rates keep every bound, is split evenly over the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from airlock.core.route import Limits
from airlock.core.sequential import ASYMPTOTIC_MINIMUM, Interval, mean_interval, rate_interval, rate_log_e_value
from airlock.core.spec import ErrorRateGuard, Guard, LatencyGuard, PredictionShiftGuard
from airlock.core.tally import BUCKETS, Tally, bucket, upper_ms
from airlock.core.verdict import Status, Verdict

SLOW_SHARE = 0.01
"""The share of requests that may take longer than a bound on the p99."""


def limits_of(guards: Iterable[Guard]) -> Limits:
    """What the gateway ejects for. Of two guards of a kind the stricter bound and the larger minimum hold."""
    requests: list[int] = []
    pairs: list[int] = []
    bounds: dict[str, float] = {}

    def tighten(name: str, bound: float | None) -> None:
        if bound is not None:
            bounds[name] = min(bound, bounds.get(name, math.inf))

    for guard in guards:
        match guard:
            case ErrorRateGuard():
                tighten("max_error_rate", guard.max)
                requests.append(guard.min_requests)
            case LatencyGuard():
                tighten("max_latency_ms", guard.max_p99_ms)
                requests.append(guard.min_requests)
            case PredictionShiftGuard():
                tighten("max_shift", guard.max_mean)
                tighten("max_disagreement", guard.max_absolute)
                pairs.append(guard.min_requests)
    default = Limits()
    return Limits(
        min_requests=max(requests, default=default.min_requests),
        min_pairs=max(pairs, default=default.min_pairs),
        max_error_rate=bounds.get("max_error_rate"),
        max_latency_ms=bounds.get("max_latency_ms"),
        max_shift=bounds.get("max_shift"),
        max_disagreement=bounds.get("max_disagreement"),
    )


def breach(limits: Limits, tally: Tally) -> str | None:
    """Why the candidate must be ejected now, in words, or ``None``.

    Made to be called after each candidate request: while the plain averages keep their bounds, which
    is nearly always, it costs a few comparisons. A sum that is not finite is a breach.
    """
    if tally.requests >= limits.min_requests:
        bound = limits.max_error_rate
        if (
            bound is not None
            and tally.errors > bound * tally.requests
            and _exceeds(tally.errors, tally.requests, bound, _share(limits))
        ):
            return _errors_reason(tally, bound)
        bound = limits.max_latency_ms
        if bound is not None and _slow(tally, bound) > SLOW_SHARE * tally.requests:
            slow, timed = _slow(tally, bound), sum(tally.latency)
            if _exceeds(slow, timed, SLOW_SHARE, _share(limits)):
                return _latency_reason(tally, bound, None)
    if tally.paired >= limits.min_pairs:
        return _differs(limits, tally)
    return None


def judge_guards(guards: Sequence[Guard], tally: Tally, champion: Tally | None) -> tuple[Verdict, ...]:
    """Judge what was counted of a candidate; one verdict for each bound of each guard.

    ``champion`` is the champion's tally over the same time. It puts the candidate's latency into
    proportion; differences of answers are already paired in the candidate's own tally.

    ``PASS`` needs the guard's minimum sample; a tally that cannot be true is ``ERROR``.
    """
    bounds = sum(
        (guard.max_mean is not None) + (guard.max_absolute is not None)
        if isinstance(guard, PredictionShiftGuard)
        else 1
        for guard in guards
    )
    alpha = Limits().alpha / max(1, bounds)
    verdicts: list[Verdict] = []
    for guard in guards:
        match guard:
            case ErrorRateGuard():
                verdicts.append(_judge_errors(guard, tally, alpha))
            case LatencyGuard():
                verdicts.append(_judge_latency(guard, tally, champion, alpha))
            case PredictionShiftGuard():
                verdicts += _judge_shift(guard, tally, alpha)
    return tuple(verdicts)


def _share(limits: Limits) -> float:
    """Alpha for each of the limits that are set."""
    bounds = (limits.max_error_rate, limits.max_latency_ms, limits.max_shift, limits.max_disagreement)
    return limits.alpha / max(1, sum(bound is not None for bound in bounds))


def _exceeds(hits: int, n: int, bound: float, alpha: float) -> bool:
    return n > 0 and rate_log_e_value(min(hits, n), n, bound) >= -math.log(alpha)


def _slow(tally: Tally, bound_ms: float) -> int:
    """Requests that surely took longer than the bound: those above the bucket that holds it."""
    return sum(tally.latency[bucket(bound_ms) + 1 :])


def _differs(limits: Limits, tally: Tally) -> str | None:
    n = tally.paired
    if not _is_finite(tally):
        return _not_finite(tally)
    if n < ASYMPTOTIC_MINIMUM:
        return None
    bound = limits.max_shift
    if bound is not None and abs(tally.difference) > bound * n:
        interval = _mean(tally, tally.difference, _share(limits), limits.min_pairs)
        if _outside(interval, bound):
            return _shift_reason(tally, interval, bound)
    bound = limits.max_disagreement
    if bound is not None and tally.absolute > bound * n:
        interval = _mean(tally, tally.absolute, _share(limits), limits.min_pairs)
        if _outside(interval, bound):
            return _disagreement_reason(tally, interval, bound)
    return None


def _mean(tally: Tally, total: float, alpha: float, minimum: int) -> Interval:
    return mean_interval(
        tally.paired, total, tally.difference_squared, alpha, sharpest=max(minimum, ASYMPTOTIC_MINIMUM)
    )


def _outside(interval: Interval, bound: float) -> bool:
    return interval.low > bound or interval.high < -bound


def _is_finite(tally: Tally) -> bool:
    return math.isfinite(tally.difference + tally.difference_squared + tally.absolute)


def _not_finite(tally: Tally) -> str:
    return (
        f"the differences between the candidate's and the champion's answers on {tally.paired} requests do not add "
        "up to a finite number: at least one answer was NaN or infinite"
    )


def _errors_reason(tally: Tally, bound: float) -> str:
    timeouts = f", {tally.timeouts} of them by running out of time" if tally.timeouts else ""
    return (
        f"the candidate failed {tally.errors} of {tally.requests} requests ({_percent(tally.errors / tally.requests)})"
        f"{timeouts}; the guard allows {_percent(bound)} and chance does not explain the rest"
    )


def _latency_reason(tally: Tally, bound: float, champion: Tally | None) -> str:
    timed = sum(tally.latency)
    slow = _slow(tally, bound)
    reason = (
        f"{slow} of {timed} requests ({_percent(slow / timed)}) took the candidate longer than {bound:g} ms; the guard "
        f"allows {_percent(SLOW_SHARE)}, a p99 of {bound:g} ms, and chance does not explain the rest"
    )
    p99 = champion.quantile_ms(0.99) if champion else None
    return reason if p99 is None else f"{reason}; the champion's p99 in the same time was {_ms(p99)}"


def _shift_reason(tally: Tally, interval: Interval, bound: float) -> str:
    side = "above" if interval.estimate > 0 else "below"
    return (
        f"on {tally.paired} requests the candidate's answers lie {abs(interval.estimate):.3g} {side} the champion's in "
        f"the mean (surely between {interval.low:.3g} and {interval.high:.3g}); the guard allows {bound:g} either way"
    )


def _disagreement_reason(tally: Tally, interval: Interval, bound: float) -> str:
    return (
        f"on {tally.paired} requests the candidate's answers differ from the champion's by {interval.estimate:.3g} in "
        f"the mean (surely by more than {interval.low:.3g}); the guard allows {bound:g}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _ms(value: float) -> str:
    """A bucket's upper edge as people write it."""
    return f"at most {value:.3g} ms" if math.isfinite(value) else f"over {upper_ms(BUCKETS - 2):.3g} ms"


def _untrue(tally: Tally) -> str | None:
    """Why nothing can be concluded from the sums, if nothing can."""
    if not _is_finite(tally):
        return _not_finite(tally)
    if min(tally.requests, tally.errors, tally.timeouts, tally.paired, *tally.latency) < 0:
        return "the gateway's counts cannot be true: one is negative"
    if tally.errors > tally.requests:
        return f"the gateway's counts cannot be true: {tally.errors} errors in {tally.requests} requests"
    if tally.difference_squared < 0 or tally.absolute < 0:
        return "the gateway's sums cannot be true: squares or absolute differences add up to less than 0"
    return None


def _judge_errors(guard: ErrorRateGuard, tally: Tally, alpha: float) -> Verdict:
    def verdict(status: Status, reason: str, interval: Interval | None = None) -> Verdict:
        return _verdict("error_rate", "error_rate", status, reason, guard.max, tally.requests, interval)

    if problem := _untrue(tally):
        return verdict(Status.ERROR, problem)
    if tally.requests < guard.min_requests:
        return verdict(Status.INCONCLUSIVE, _too_few(tally.requests, guard.min_requests, "requests"))
    interval = rate_interval(tally.errors, tally.requests, alpha)
    if _exceeds(tally.errors, tally.requests, guard.max, alpha):
        return verdict(Status.FAIL, _errors_reason(tally, guard.max), interval)
    return verdict(
        Status.PASS,
        f"{tally.errors} of {tally.requests} requests failed ({_percent(tally.errors / tally.requests)}); "
        f"the guard allows {_percent(guard.max)}",
        interval,
    )


def _judge_latency(guard: LatencyGuard, tally: Tally, champion: Tally | None, alpha: float) -> Verdict:
    timed, bound = sum(tally.latency), guard.max_p99_ms

    def verdict(status: Status, reason: str, interval: Interval | None = None) -> Verdict:
        details = {"p99_ms": _finite(tally.quantile_ms(0.99)), "slow": _slow(tally, bound)}
        if champion is not None:
            details["champion_p99_ms"] = _finite(champion.quantile_ms(0.99))
        return _verdict("latency", "share_slower", status, reason, SLOW_SHARE, timed, interval, details)

    if problem := _untrue(tally):
        return verdict(Status.ERROR, problem)
    if bucket(bound) == BUCKETS - 1:
        return verdict(
            Status.ERROR,
            f"max_p99_ms {bound:g} cannot be judged: latencies above {upper_ms(BUCKETS - 2):.0f} ms are counted "
            "as one; choose a lower bound",
        )
    if timed < guard.min_requests:
        return verdict(Status.INCONCLUSIVE, _too_few(timed, guard.min_requests, "timed requests"))
    slow = _slow(tally, bound)
    interval = rate_interval(slow, timed, alpha)
    if _exceeds(slow, timed, SLOW_SHARE, alpha):
        return verdict(Status.FAIL, _latency_reason(tally, bound, champion), interval)
    return verdict(
        Status.PASS,
        f"{slow} of {timed} requests took longer than {bound:g} ms ({_percent(slow / timed)}); "
        f"a p99 of {bound:g} ms allows {_percent(SLOW_SHARE)}",
        interval,
    )


def _judge_shift(guard: PredictionShiftGuard, tally: Tally, alpha: float) -> list[Verdict]:
    verdicts = []
    if guard.max_mean is not None:
        verdicts.append(
            _judge_mean("prediction_shift", guard.max_mean, guard.min_requests, tally, tally.difference, alpha)
        )
    if guard.max_absolute is not None:
        verdicts.append(
            _judge_mean("prediction_disagreement", guard.max_absolute, guard.min_requests, tally, tally.absolute, alpha)
        )
    return verdicts


def _judge_mean(name: str, bound: float, minimum: int, tally: Tally, total: float, alpha: float) -> Verdict:
    shift = name == "prediction_shift"
    metric = "mean_difference" if shift else "mean_absolute_difference"

    def verdict(status: Status, reason: str, interval: Interval | None = None) -> Verdict:
        return _verdict(name, metric, status, reason, bound, tally.paired, interval)

    if problem := _untrue(tally):
        return verdict(Status.ERROR, problem)
    needed = max(minimum, ASYMPTOTIC_MINIMUM)
    if tally.paired < needed:
        what = "requests answered by candidate and champion alike"
        return verdict(Status.INCONCLUSIVE, _too_few(tally.paired, needed, what))
    interval = _mean(tally, total, alpha, minimum)
    if _outside(interval, bound):
        reason = (_shift_reason if shift else _disagreement_reason)(tally, interval, bound)
        return verdict(Status.FAIL, reason, interval)
    return verdict(
        Status.PASS,
        f"on {tally.paired} requests the {'mean' if shift else 'mean absolute'} difference from the champion's answers "
        f"is {interval.estimate:.3g} ({interval.low:.3g} to {interval.high:.3g}); the guard allows {bound:g}",
        interval,
    )


def _too_few(n: int, needed: int, what: str) -> str:
    return f"{n} of the {needed} {what} that the guard needs"


def _finite(value: float | None) -> float | None:
    """A number that JSON can carry."""
    return value if value is not None and math.isfinite(value) else None


def _verdict(
    name: str,
    metric: str,
    status: Status,
    reason: str,
    threshold: float,
    n: int,
    interval: Interval | None,
    details: dict[str, float | int | None] | None = None,
) -> Verdict:
    return Verdict(
        name=name,
        status=status,
        reason=reason,
        metric=metric,
        estimate=interval.estimate if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        threshold=threshold,
        n=n,
        details=details or {},
    )
