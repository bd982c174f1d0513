"""Guards: judgements of live traffic that may be made after every request.
What breaks a limit and what passes it are in one module, because both ask the same test of the same counters.

The gateway ejects with :func:`breach`, the control plane judges with :func:`judge`, a replay with both: they
hold the same counters against the same limits by the same anytime-valid tests (core/sequential.py), mixed over the
same windows (core/windows.py): the whole release, each step, and restarts in between, of both roles together and of
served requests alone. Late limits have no such windows and spend all of their alpha on the release.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from airlock.core import guard_words as words
from airlock.core.counters import Counters
from airlock.core.guard_words import Seen
from airlock.core.limits import guarded, limits_of, slow_limits
from airlock.core.pass_rule import no_pass_yet
from airlock.core.quiet import quiet_of
from airlock.core.route import Limit
from airlock.core.sequential import (
    ASYMPTOTIC_MINIMUM,
    Interval,
    mean_interval,
    mean_log_e_value,
    one_sided,
    rate_log_e_value,
    sharpest_prior,
    unbounded_mean_interval,
    unbounded_mean_log_e_value,
)
from airlock.core.tally import LateEvidence, Sums, Tally
from airlock.core.verdict import Status, Verdict
from airlock.core.windows import COUNTS, Window, windows
from airlock.core.windows import seen as observed

__all__ = ["breach", "guarded", "judge", "limits_of", "may_pass", "slow_limits"]

_BATCHES_MINIMUM = 5
_ROUNDING = 1e-6


def breach(limits: Sequence[Limit], counters: Counters) -> str | None:
    """Why the candidate must go now, in words, or ``None``.

    Made to be called after each candidate request: while the plain averages keep their bounds, which is nearly
    always, it costs a few comparisons. Sums that cannot be true are a breach. Late limits are not looked at.
    """
    quiet = quiet_of(limits, counters)
    loud = quiet.loud()
    for limit in loud:
        found = list(windows(limit, counters))
        if problem := _any_untrue(limit, found):
            return problem
        if broken := _broken(limit, found):
            return _reason(limit, counters, broken)
    # What it remembers leans on bets: a test without them, or one that waits for its minimum, is made again.
    if tested := [limit for limit in loud if _ends(limit)]:
        quiet.tested(tested)
    return None


def judge(
    limits: Iterable[Limit],
    counters: Counters,
    *,
    champion: Tally | None = None,
    late: LateEvidence | None = None,
) -> tuple[Verdict, ...]:
    """Judge what was observed of a candidate; one verdict for each limit.

    ``champion`` is the champion's tally over the same time. It puts the candidate's latency into proportion;
    differences of answers are already paired in the candidate's own counters. ``late`` is the evidence of late
    limits; without it they are ``INCONCLUSIVE``.

    ``PASS`` needs the limit's minimum sample, estimates that keep the bound (core/pass_rule.py), and of a late limit
    mature labels of which not too many are missing. ``FAIL`` needs a sample only where nothing bounds one
    observation; sums that cannot be true are ``ERROR``.
    """
    return tuple(_judge_late(limit, late) if limit.late else _judge_live(limit, counters, champion) for limit in limits)


def may_pass(limits: Iterable[Limit], counters: Counters) -> bool:
    """Whether every live limit that is not broken passes: if not, :func:`judge` lets nothing through, which costs a
    hundred times as much to find out."""
    for limit in limits:
        if limit.late:
            continue
        seen = observed(limit, counters.all.sums)
        if (
            seen.n < _needed(limit)
            or _unobserved(limit, counters)
            or no_pass_yet(limit, seen, _of_step(limit, counters))
        ):
            return False
    return True


def _judge_live(limit: Limit, counters: Counters, champion: Tally | None) -> Verdict:
    total = counters.all.sums
    details = _latency_details(limit, total, champion) if limit.signal == "slow" else {}
    found = list(windows(limit, counters))
    seen = found[0].seen
    if problem := _any_untrue(limit, found):
        return _verdict(limit, Status.ERROR, problem, seen, None, details)
    if limit.signal == "slow" and limit.by == "request" and total.requests and limit.name not in total.slow:
        return _verdict(limit, Status.INCONCLUSIVE, words.unwatched(limit, total), seen, None, details)
    if broken := _broken(limit, found):
        reason = _reason(limit, counters, broken) + words.champions(details)
        window = broken.window
        return _verdict(limit, Status.FAIL, reason, window.seen, _interval(limit, window.seen, broken.alpha), details)
    interval = _interval(limit, seen, limit.alpha * found[0].weight)
    needed = _needed(limit)
    if seen.n < needed:
        return _verdict(limit, Status.INCONCLUSIVE, words.too_few(limit, seen.n, needed), seen, interval, details)
    said = words.found(limit, total, seen, interval)
    reason = f"{said}; the guard allows {words.allowed(limit)}{words.champions(details)}"
    if open_ := _unobserved(limit, counters) or no_pass_yet(limit, seen, _of_step(limit, counters)):
        return _verdict(limit, Status.INCONCLUSIVE, f"{reason}; {open_}", seen, interval, details)
    return _verdict(limit, Status.PASS, reason, seen, interval, details)


def _of_step(limit: Limit, counters: Counters) -> Seen:
    """What the current step observed of a live limit: of counts in the role that the step has.

    That is the served requests wherever there are any, however well the shadow beside them does.
    """
    if limit.signal in COUNTS and (served := observed(limit, counters.served.step)).n:
        return served
    return observed(limit, counters.all.step)


def _unobserved(limit: Limit, counters: Counters) -> str | None:
    """Why a limit by minute or key says nothing of the step's requests, in words; ``None`` if it does or has none.

    Of counts they are those in the role that the step has, as in :func:`_of_step`. Of differences they are those that
    were compared, and a key may have been compared in an earlier step: it does not matter who got the answer.
    """
    if limit.by == "request":
        return None
    served = counters.served.step
    step = served if limit.signal in COUNTS and served.requests else counters.all.step
    if observed(limit, step).n or not observed(limit.model_copy(update={"by": "request"}), step).n:
        return None
    if limit.by == "minute":
        return words.NO_MINUTE
    return words.NO_KEY if limit.signal in COUNTS else None


def _judge_late(limit: Limit, late: LateEvidence | None) -> Verdict:
    if late is None:
        reason = f"nothing is known of {limit.name} yet: no label or outcome has been joined to the answers"
        return _verdict(limit, Status.INCONCLUSIVE, reason, Seen(0, 0.0, 0.0), None, {"label_share": None})
    due, labelled = late.coverage(limit.name)
    share = labelled / due if due else None
    details = {"answers": late.answers, "due": due, "labelled": labelled, "label_share": share}
    come = words.come(late, limit.name)
    sums = late.observations.get(limit.name, Sums())
    seen = Seen.of(sums)
    if problem := _untrue(limit, seen) or _untrue_labels(due, labelled):
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
    if unripe := no_pass_yet(limit, seen, None) or _unripe(limit, late, seen, details):
        return _verdict(limit, Status.INCONCLUSIVE, f"{said}; {come}; {unripe}", seen, interval, details)
    return _verdict(limit, Status.PASS, f"{said}; {come}", seen, interval, details)


def _unripe(limit: Limit, late: LateEvidence, seen: Seen, details: dict[str, Any]) -> str | None:
    """Why labels that keep the limit so far are no pass yet; ``None`` if they are. ``details`` gets the figures.

    Labels that come early need not be like those that come late or never. So enough answers must be mature, and what
    is missing of their labels must not be able to hide a breach: unless the owner takes so many for like the rest,
    the estimate must keep the bound with every missing observation at the worst end of its range. For a metric of
    batches, or of observations without a range, there is no such end. Where the limit compares with the champion an
    answer that has its label and not the champion's answer beside it is missing as well, if the champion failed: that
    may say something about the row. One that was dropped from a full queue says nothing, and is in no pair; if that
    are most of them, who is left depends on the load too much to say anything.
    """
    due, labelled = late.coverage(limit.name)
    if limit.name in late.of_pairs:
        asked, met = late.partners
        details["without_champion"] = asked - met
        if 2 * met < asked:
            return words.few_pairs(late)
    if due < limit.min_answers:
        return f"{due} of the {limit.min_answers} answers needed are old enough for their labels to be due"
    if limit.max_missing is None or not due:
        return None
    share, missing = labelled / due, (due - labelled) / due
    ends = _ends(limit) if limit.batch == 1 else None
    worst = share * seen.total / seen.n + missing * ends[1] if ends else None
    details |= {"missing_share": missing, "worst_case": worst}
    if due - labelled <= limit.max_missing * due or (worst is not None and worst <= limit.bound):
        return None
    return words.provisional(limit, late, missing, worst)


class _Broken(NamedTuple):
    """The window that speaks most against a limit that is surely broken.

    ``alpha`` is that of its own test which it just passes when the rest of the evidence stays what it is.
    """

    window: Window
    alpha: float


def _broken(limit: Limit, found: Iterable[Window]) -> _Broken | None:
    """Whether the windows together break a limit; with a chance of at most alpha they do while the truth keeps it."""
    logs = [
        (math.log(window.weight) + _log_e(limit, window.seen), window)
        for window in found
        if window.weight and _is_over(limit, window.seen)
    ]
    most, window = max(logs, key=itemgetter(0), default=(-math.inf, None))
    if window is None or most == -math.inf:
        return None
    rest = math.log(sum(math.exp(value - most) for value, _ in logs)) if most < math.inf else 0.0
    if most + rest < -math.log(limit.alpha):
        return None
    return _Broken(window, min(0.5, window.weight * limit.alpha * math.exp(rest)))


def _reason(limit: Limit, counters: Counters, broken: _Broken) -> str:
    scope, since, _, seen = broken.window
    stream = counters.stream(scope)
    part: words.Part = "release" if since is None else "step" if since is stream.step_began else "recent"
    interval = _interval(limit, seen, broken.alpha)
    found = words.found(limit, stream.since(since), seen, interval, scope=scope, part=part)
    return f"{found}; the guard allows {words.allowed(limit)} and chance does not explain the rest"


def _ends(limit: Limit) -> tuple[float, float] | None:
    """The range of one observation, if it is known."""
    if limit.signal in COUNTS:
        return 0.0, 1.0
    if limit.reach is None:
        return None
    least = -limit.reach / 2 if limit.signal == "difference" else limit.least
    return least, least + limit.reach


def _asymptotic_minimum(limit: Limit) -> int:
    return max(_BATCHES_MINIMUM, math.ceil(ASYMPTOTIC_MINIMUM / limit.batch))


def _needed(limit: Limit) -> int:
    """Observations that a pass needs, and a breach too where nothing is known of their range."""
    return limit.minimum if _ends(limit) else max(limit.minimum, _asymptotic_minimum(limit))


def _prior(limit: Limit) -> float:
    """Of a limit on unbounded observations: its test is at its best when a pass becomes possible."""
    return sharpest_prior(_needed(limit), limit.alpha)


def _is_over(limit: Limit, seen: Seen) -> bool:
    """Whether the plain average does not keep the limit: no other can be surely broken."""
    total = abs(seen.total) if limit.signal == "difference" else seen.total
    return total > limit.bound * seen.n


def _exceeds(limit: Limit, seen: Seen, alpha: float) -> bool:
    """Whether the limit is surely broken; with a chance of at most alpha it ever is while the truth keeps it."""
    return _is_over(limit, seen) and _log_e(limit, seen) >= -math.log(alpha)


def _log_e(limit: Limit, seen: Seen) -> float:
    """Log of the e-value of the side on which sums lie beyond a limit. Of two sides each is worth half."""
    n, total, squares, smallest, largest = seen
    if limit.signal in COUNTS and limit.by != "minute":
        return rate_log_e_value(int(total), n, limit.bound)
    ends = _ends(limit)
    side = -1 if limit.signal == "difference" and total < 0 else 1
    if ends is None:
        if n < _needed(limit):
            return -math.inf
        two_sided = limit.signal == "difference"
        prior = _prior(limit)
        return unbounded_mean_log_e_value(n, side * total, squares, limit.bound, prior=prior, two_sided=two_sided)
    # The range of a two-sided limit is symmetric, so that only the sum and the values seen change their sign.
    least, greatest = ends
    lowest = smallest if side > 0 else None if largest is None else -largest
    both = math.log(2) if limit.signal == "difference" else 0.0
    return (
        mean_log_e_value(n, side * total, squares, limit.bound, least=least, greatest=greatest, smallest=lowest) - both
    )


def _interval(limit: Limit, seen: Seen, alpha: float) -> Interval:
    """The confidence sequence that belongs to the limit's test: its lower bound passes the limit when the test does."""
    ends = _ends(limit)
    if ends is None:
        both = alpha if limit.signal == "difference" else one_sided(alpha)
        return unbounded_mean_interval(*seen[:3], both, sharpest=_needed(limit), prior=_prior(limit))
    side = alpha / 2 if limit.signal == "difference" else alpha
    least, greatest = ends
    smallest, largest = seen.smallest, seen.largest
    return mean_interval(*seen[:3], side, least=least, greatest=greatest, smallest=smallest, largest=largest)


def _any_untrue(limit: Limit, found: Iterable[Window]) -> str | None:
    return next((problem for window in found if (problem := _untrue(limit, window.seen))), None)


def _untrue(limit: Limit, seen: Seen) -> str | None:
    """Why nothing can be concluded from the sums, if nothing can."""
    n, total, squares, *_ = seen
    if not math.isfinite(total + squares):
        return (
            f"{limit.name}: {n} observations do not add up to a finite number: at least one answer was NaN or infinite"
        )
    if n < 0 or squares < 0 or (limit.signal in COUNTS and total < 0):
        return f"{limit.name}: the counts cannot be true, one is negative: {n} observations, sum {total:g}"
    if limit.signal in COUNTS:
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


def _untrue_labels(due: int, labelled: int) -> str | None:
    if 0 <= labelled <= due:
        return None
    return f"the counts of labels cannot be true: {labelled} labelled of {due} due"


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
