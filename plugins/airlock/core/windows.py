"""The windows over which a limit is tested, and what each may spend of its alpha.

A limit is tested on everything since the release began and on what came since each checkpoint (core/counters.py); of
errors, slowness and fallbacks on both roles together and on served requests alone. Each of these tests is an e-process:
it is 1 until its window begins and its expectation never rises above that while the truth keeps the bound, because
windows begin at times that the past decides. So is their mean by weights that add up to at most 1, also when windows
are left out on the way, and it is that mean which is held against 1 / alpha: by Ville's inequality it ever gets there
with a chance of at most alpha. To mix is never worse than to split alpha by the same weights: a window that alone
passes its part takes the mean with it (Shin, Ramdas, Rinaldo 2024, E-detectors, for the mixture over restarts).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from airlock.core.counters import Counters
from airlock.core.guard_words import Seen
from airlock.core.route import Limit
from airlock.core.tally import SCOPES, Checkpoint, Scope, Sums, Tally

COUNTS = frozenset({"errors", "slow", "fallbacks"})
"""Signals of which each request either is one or is not."""

RELEASE, STEPS, RESTARTS = 0.5, 0.25, 0.25
"""What the whole release, the starts of all steps and all restarts weigh."""
SCOPE_WEIGHT: dict[Scope, float] = {"all": 0.6, "served": 0.4}
"""What each scope weighs where both are tested."""
_DECAY = 0.25
_NOTHING = Sums()
_LOST = 1e-9


class Window(NamedTuple):
    """What came of a limit since a checkpoint; ``None``: since the release began."""

    scope: Scope
    since: Checkpoint | None
    weight: float
    seen: Seen


def scopes(limit: Limit) -> tuple[Scope, ...]:
    """Where a live limit is tested. Answers are compared whoever got them, so that it does not matter who did."""
    return SCOPES if limit.signal in COUNTS else SCOPES[:1]


def weight(limit: Limit, scope: Scope, since: Checkpoint | None) -> float:
    """What a window weighs; over all windows that can ever be it adds up to at most 1.

    The steps have even parts; the first one's goes to the release, with which it begins. Restart number k has
    k^-d - (k + 1)^-d of all that restarts have, which adds up to the whole and falls slowly.
    """
    share = SCOPE_WEIGHT[scope] if limit.signal in COUNTS else 1.0
    if since is None:
        return share * (RELEASE + STEPS / limit.steps)
    if since.kind == "step":
        return share * STEPS / limit.steps if 2 <= since.number <= limit.steps else 0.0
    return share * RESTARTS * (since.number**-_DECAY - (since.number + 1) ** -_DECAY) if since.number > 0 else 0.0


def seen(limit: Limit, counted: Tally | Checkpoint) -> Seen:
    """What a tally or a checkpoint holds of a limit."""
    if limit.by != "request":
        return Seen.of(counted.units.get(limit.name, _NOTHING))
    match limit.signal:
        case "errors":
            hits = counted.errors
        case "slow":
            hits = counted.slow.get(limit.name, 0)
        case "fallbacks":
            hits = counted.fallbacks
        case "difference" | "absolute" | "flips" as name:
            return Seen.of(getattr(counted, name))
        case "late":
            raise ValueError(f"limit {limit.name} is judged on late evidence, which no tally holds")
    return Seen(counted.requests, hits, hits)


def windows(limit: Limit, counters: Counters) -> Iterator[Window]:
    """Every window of a live limit, each scope's whole release first."""
    for scope in scopes(limit):
        stream = counters.stream(scope)
        now = seen(limit, stream.sums)
        yield Window(scope, None, weight(limit, scope, None), now)
        for since in stream.checkpoints:
            yield Window(scope, since, weight(limit, scope, since), _less(limit, now, seen(limit, since)))


def _less(limit: Limit, now: Seen, before: Seen) -> Seen:
    """What came since ``before``; nothing where it is too little beside the whole to be known after rounding."""
    n, total = now.n - before.n, now.total - before.total
    if limit.signal in COUNTS and limit.by == "request":
        # As in the counters: of fallbacks, the first ones may belong to requests before.
        total = min(total, max(0, n)) if limit.signal == "fallbacks" else total
        return Seen(n, total, total)
    squares = now.squares - before.squares
    # Each of the n observations was rounded beside the whole.
    if n == 0 or abs(squares) < n * _LOST * now.squares:
        return Seen(0, 0.0, 0.0)
    return Seen(n, total, squares, now.smallest, now.largest)
