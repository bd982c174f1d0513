"""How a rollout is judged: the shipped guard, as a twin that judges many rollouts at once, and three references.

A rule looks at the running sums of many rollouts, one row each, and says after how many requests it would have
rolled back; infinity is never. The guard's twin computes what ``airlock.core.guards`` does, in numpy; that both
agree is a test (tests/benchmarks/test_decision_quality.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from airlock.core import guards, sequential
from airlock.core.route import Limit
from tests.benchmarks.quality.worlds import Blocks, Floats, Stream

COUNTS = frozenset({"errors", "slow", "fallbacks"})
BAKE_MINUTES = 10
"""How long each step but the last lasts."""
BAD_WINDOWS = 5
Z_ALPHA = 0.05


@dataclass(frozen=True)
class Rollouts:
    """Running sums of many rollouts (rows) after ``n`` observations each (columns), and the extremes until then."""

    n: Floats
    total: Floats
    squares: Floats
    smallest: Floats
    largest: Floats
    per: int
    rate: int

    @classmethod
    def of(cls, n: Floats, blocks: Blocks, per: int, rate: int) -> Rollouts:
        return cls(
            n,
            blocks.total.cumsum(axis=1),
            blocks.squares.cumsum(axis=1),
            np.minimum.accumulate(blocks.smallest, axis=1),
            np.maximum.accumulate(blocks.largest, axis=1),
            per,
            rate,
        )

    def looks(self) -> Rollouts:
        """The same at every hundredth request only, or at every observation that takes more."""
        at = np.flatnonzero(self.n * self.per % 100 == 0)
        columns = (part[:, at] for part in (self.total, self.squares, self.smallest, self.largest))
        return Rollouts(self.n[at], *columns, self.per, self.rate)

    def first(self, alarms: np.ndarray) -> Floats:
        """Requests until the first alarm of each rollout."""
        found = alarms.any(axis=1)
        return np.where(found, self.n[alarms.argmax(axis=1)] * self.per, np.inf)


def log_e_values(n: Floats, total: Floats, squares: Floats, smallest: Floats, limit: Limit) -> Floats:
    """``mean_log_e_value`` of many sums, all above the limit's bound."""
    least, greatest = guards._ends(limit) or (-math.inf, math.inf)
    scale = limit.bound - least
    start = np.maximum(least, np.minimum(smallest, total / n))
    summed = np.maximum(0.0, total - n * start)
    squared = np.maximum(squares - 2 * start * total + n * start * start, summed * summed / n)
    some = (summed > 0) & (squared > 0)
    high = np.divide(summed * summed, squared, out=np.zeros_like(n), where=some)
    size = np.divide(squared, summed * scale, out=np.zeros_like(n), where=some)
    low, lowest = np.maximum(0.0, n - high), (start - least) / scale
    logs = np.stack(
        [
            high * np.log1p(bet * (lowest + size - 1)) + low * np.log1p(bet * (lowest - 1)) + weight
            for bet, weight in sequential._bets(scale / (greatest - least))
        ]
    )
    top = logs.max(axis=0)
    return top + np.log(np.exp(logs - top).sum(axis=0))


def exceeds(
    n: Floats, total: Floats, squares: Floats, smallest: Floats, largest: Floats, limit: Limit, alpha: float
) -> np.ndarray:
    """Whether the guard would eject for these sums; ``guards._exceeds`` of many."""
    parts = np.broadcast_arrays(n, total, squares, smallest, largest)
    n, total, squares, smallest, largest = (np.asarray(part, dtype=float) for part in parts)
    found = np.zeros(total.shape, dtype=bool)
    two_sided = limit.signal == "difference"
    for side in (1, -1) if two_sided else (1,):
        over = side * total > limit.bound * n
        if guards._ends(limit) is None:
            found[over] |= _surely_above(n[over], side * total[over], squares[over], limit, alpha)
        else:
            wanted = -math.log(alpha / 2 if two_sided else alpha)
            lowest = smallest if side > 0 else -largest
            found[over] |= log_e_values(n[over], side * total[over], squares[over], lowest[over], limit) >= wanted
    return found


def _surely_above(n: Floats, total: Floats, squares: Floats, limit: Limit, alpha: float) -> np.ndarray:
    """Whether ``unbounded_mean_interval`` lies above the bound."""
    minimum = guards._asymptotic_minimum(limit)
    mean = total / n
    scatter = np.maximum(0.0, squares - mean * total)
    doubt = -2 * math.log(alpha)
    prior = max(limit.minimum, minimum) / (doubt + math.log(doubt + 1))
    most = -np.expm1((2 * math.log(alpha) - np.log1p(n / prior)) / n)
    room = n - (n + prior) * most
    half = np.sqrt((n + prior) * scatter * most / (n * np.where(room > 0, room, np.nan)))
    return (n >= minimum) & (mean - half > limit.bound)


def airlock(rollouts: Rollouts, limit: Limit) -> Floats:
    """The guard: over the whole release, and over each step."""
    n, total, squares = rollouts.n, rollouts.total, rollouts.squares
    extremes = rollouts.smallest, rollouts.largest
    if limit.late:
        return rollouts.first(_exceeds_at(n, total, squares, *extremes, limit, limit.alpha))
    alpha = guards._alpha(limit, of_step=False)
    of_release = rollouts.first(_exceeds_at(n, total, squares, *extremes, limit, alpha))
    step = np.minimum((n - 1) * rollouts.per // (rollouts.rate * BAKE_MINUTES), limit.steps - 1).astype(int)
    # Where each look's step began: the last look of the step before. The extremes of the release hold in it too.
    began = np.searchsorted(step, step) - 1
    before = [np.where(began >= 0, part[..., np.maximum(began, 0)], 0.0) for part in (n, total, squares)]
    fresh = [part - earlier for part, earlier in zip((n, total, squares), before, strict=True)]
    alpha = guards._alpha(limit, of_step=True)
    of_step = _exceeds_at(*fresh, *extremes, limit, alpha)
    return np.minimum(of_release, rollouts.first(of_step))


def _exceeds_at(
    n: Floats, total: Floats, squares: Floats, smallest: Floats, largest: Floats, limit: Limit, alpha: float
) -> np.ndarray:
    if limit.signal in COUNTS:
        return total >= critical_hits(limit, n, alpha)
    return exceeds(n, total, squares, smallest, largest, limit, alpha)


def critical_hits(limit: Limit, n: Floats, alpha: float) -> Floats:
    """The fewest hits for which the guard ejects after ``n`` events; infinity where it never does."""
    low, high = np.zeros(n.shape), n.copy()
    never = ~exceeds(n, high, high, 0.0, 1.0, limit, alpha)
    while (high - low > 1).any():
        middle = np.floor((low + high) / 2)
        found = exceeds(n, middle, middle, 0.0, 1.0, limit, alpha)
        low, high = np.where(found, low, middle), np.where(found, middle, high)
    return np.where(never, np.inf, high)


def repeated_z_test(rollouts: Rollouts, limit: Limit) -> Floats:
    """A one-sided z-test at 5 % at every look, as if it were the only one."""
    return rollouts.first(_scores(rollouts, limit) > stats.norm.isf(Z_ALPHA))


def fixed_horizon(rollouts: Rollouts, limit: Limit, horizon: int, alpha: float) -> Floats:
    """One test, after ``horizon`` observations: exact binomial for a rate, a t-test for a mean."""
    at = int(np.searchsorted(rollouts.n, horizon))
    if limit.signal in COUNTS:
        rejected = stats.binom.sf(rollouts.total[:, at] - 1, rollouts.n[at], limit.bound) <= alpha
    else:
        rejected = _scores(rollouts, limit)[:, at] > stats.t.isf(alpha, horizon - 1)
    return np.where(rejected, rollouts.n[at] * rollouts.per, np.inf)


def planned_horizon(limit: Limit, found: Stream, alpha: float, power: float = 0.8) -> int:
    """Observations after which one test finds ``found`` with this power, in whole looks of 100."""
    bound = limit.bound
    null = math.sqrt(bound * (1 - bound)) if limit.signal in COUNTS else found.deviation
    doubt = stats.norm.isf(alpha) * null + stats.norm.isf(1 - power) * found.deviation
    needed = (doubt / (found.mean - bound)) ** 2
    return math.ceil(needed / 100) * 100 if found.per == 1 else math.ceil(needed)


def threshold(rollouts: Rollouts, limit: Limit, slack: float = 1.0) -> Floats:
    """Flagger's way: the mean of each one-minute window against ``slack`` times the bound, and the fifth bad one.

    As in Flagger, bad windows are counted and never forgotten. Where a minute brings less than one observation, a
    window is one observation.
    """
    wanted = max(1, rollouts.rate // rollouts.per)
    at = np.flatnonzero(rollouts.n % wanted == 0)
    total = np.diff(rollouts.total[:, at], axis=1, prepend=0.0)
    mean = np.abs(total / wanted) if limit.signal == "difference" else total / wanted
    fifth = (mean > slack * limit.bound).cumsum(axis=1) >= BAD_WINDOWS
    return np.where(fifth.any(axis=1), rollouts.n[at][fifth.argmax(axis=1)] * rollouts.per, np.inf)


def _scores(rollouts: Rollouts, limit: Limit) -> Floats:
    n, total = rollouts.n, rollouts.total
    over = (np.abs(total) if limit.signal == "difference" else total) - limit.bound * n
    if limit.signal in COUNTS:
        return over / np.sqrt(n * limit.bound * (1 - limit.bound))
    variance = np.maximum((rollouts.squares - total * total / n) / np.maximum(n - 1, 1), 1e-12)
    return over / np.sqrt(n * variance)
