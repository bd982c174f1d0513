"""What a pass asks of a guard beyond that no breach is proved.

A breach is told only when chance does not explain it, so that a bad version may go on for as long as it is not sure.
A pass is the other way round, and is given only if

- the plain estimates keep the bound, that of the whole release and that of the current step, and
- the upper end of the 80 % interval of the release lies below the limit's ``ceiling``, which is twice the bound. Where
  the bound is 0 or a margin to the champion, twice of it says nothing, and the estimates alone decide.

The interval is two-sided, so that its upper end is passed with a chance of a tenth: Clopper and Pearson's for counts,
which is never too narrow, and Student's for means. It is no confidence sequence: a pass may be looked for often, and
each look is one more chance. It is caution on top of the guards, whose promise does not rest on it.

Sources:
    Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial.
    Student (1908), The probable error of a mean.
"""

from __future__ import annotations

import math

from airlock.core.guard_words import Seen, measured
from airlock.core.route import Limit

UPPER = 0.9
"""The confidence of the upper end alone: that of a two-sided interval of 80 %."""

_COUNTED = frozenset({"errors", "slow", "fallbacks", "flips"})
_ROUNDING = 1e-9


def estimate(limit: Limit, seen: Seen) -> float:
    """What is held against the bound: the mean, of a limit on both sides its distance from 0. Of nothing it is NaN."""
    if not seen.n:
        return math.nan
    return (abs(seen.total) if limit.signal == "difference" else seen.total) / seen.n


def upper_end(limit: Limit, seen: Seen) -> float:
    """The upper end of the 80 % interval of :func:`estimate`; infinity where too little was observed for one."""
    from scipy import special  # only the control plane passes anything: the gateway does without it

    n, total = seen.n, seen.total
    if limit.signal in _COUNTED:
        # A request with several rows counts as the share of them that flipped, whose variance is smaller still.
        return float(special.betaincinv(total + 1, n - total, UPPER)) if n > total else 1.0
    if n < 2:
        return math.inf
    variance = max(0.0, seen.squares - total * total / n) / (n - 1)
    return estimate(limit, seen) + float(special.stdtrit(n - 1, UPPER)) * math.sqrt(variance / n)


def no_pass_yet(limit: Limit, release: Seen, step: Seen | None) -> str | None:
    """Why a limit that is not broken is no pass yet, in words; ``None`` if it is one.

    ``step`` is what was observed in the current step, of counts in the role that it has; ``None``, or empty where the
    step observes nothing of the limit, leaves the decision to the release.
    """
    for where, seen in (("this step", step), ("the whole release", release)):
        if seen is not None and seen.n and _is_over(limit, seen):
            return f"{where} is at {measured(limit, estimate(limit, seen))}: no proof of a breach, and no pass"
    if limit.ceiling is None or (upper := upper_end(limit, release)) < limit.ceiling:
        return None
    return (
        f"it may well be {measured(limit, upper)} (upper end of the 80 % interval), and a pass asks for less than "
        f"{measured(limit, limit.ceiling)}: more requests will tell"
    )


def _is_over(limit: Limit, seen: Seen) -> bool:
    return estimate(limit, seen) > limit.bound + _ROUNDING * abs(limit.bound)
