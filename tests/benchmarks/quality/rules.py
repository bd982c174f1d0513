"""How a rollout is judged: the shipped guard, as a twin that judges many rollouts at once, and three references.

A rule looks at the running sums of many rollouts, one row each, and says after how many requests it would have
rolled back; infinity is never. The guard's twin computes what ``airlock.core.guards`` does, in numpy, at those looks
at which a few comparisons do not already say that nothing can be ejected; that both agree, and that nothing is missed
by it, are tests (tests/benchmarks/test_decision_quality.py).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from airlock.core import counters, guards, sequential, windows
from airlock.core.counters import SPACING
from airlock.core.route import Limit
from airlock.core.tally import Checkpoint, Scope
from tests.benchmarks.quality.worlds import Blocks, Floats, Stream

COUNTS = frozenset({"errors", "slow", "fallbacks"})
BAKE_MINUTES = 10
"""How long each step but the last lasts."""
LOOK = 100
"""Requests from one look to the next."""
BAD_WINDOWS = 5
Z_ALPHA = 0.05
_ROOM = 1e-6

Bets = tuple[tuple[float, float], ...]
"""Shares of the wealth that are staked, each with the log of its weight."""


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


class _Points(NamedTuple):
    """What a lower bound of the wealth knows of sums: ``high`` observations of ``up`` above the bound among ``low``
    ones of ``down`` below it, in units of the bound's place in the range."""

    high: Floats
    up: Floats
    low: Floats
    down: Floats

    def logs(self, bet: float | Floats) -> Floats:
        found: Floats = self.high * np.log1p(bet * self.up) + self.low * np.log1p(-bet * self.down)
        return found


def _points(n: Floats, total: Floats, squares: Floats, smallest: Floats, limit: Limit) -> _Points:
    least, _ = ends(limit)
    scale = limit.bound - least
    start = np.maximum(least, np.minimum(smallest, total / n))
    summed = np.maximum(0.0, total - n * start)
    squared = np.maximum(squares - 2 * start * total + n * start * start, summed * summed / n)
    some = (summed > 0) & (squared > 0)
    high = np.divide(summed * summed, squared, out=np.zeros_like(n), where=some)
    size = np.divide(squared, summed * scale, out=np.zeros_like(n), where=some)
    lowest = (start - least) / scale
    return _Points(high, lowest + size - 1, np.maximum(0.0, n - high), 1 - lowest)


def ends(limit: Limit) -> tuple[float, float]:
    """The range of one observation."""
    return guards._ends(limit) or (-math.inf, math.inf)


def bets(limit: Limit) -> Bets:
    """The bets that the guard mixes."""
    least, greatest = ends(limit)
    return sequential._bets((limit.bound - least) / (greatest - least))


def log_e_values(
    n: Floats, total: Floats, squares: Floats, smallest: Floats, limit: Limit, mixed: Bets | None = None
) -> Floats:
    """``mean_log_e_value`` of many sums, all above the limit's bound, also of other bets than the guard's."""
    points = _points(n, total, squares, smallest, limit)
    logs = np.stack([points.logs(bet) + weight for bet, weight in mixed or bets(limit)])
    top = logs.max(axis=0)
    found: Floats = top + np.log(np.exp(logs - top).sum(axis=0))
    return found


def best_logs(n: Floats, total: Floats, squares: Floats, smallest: Floats, limit: Limit) -> Floats:
    """What :func:`log_e_values` surely does not exceed, at a tenth of its cost: the log of the best bet in their range,
    which is found in closed form because the log is concave in the bet."""
    points = _points(n, total, squares, smallest, limit)
    high, up, low, down = points
    able = [bet for bet, _ in bets(limit)]
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.where(down > 0, (high * up - low * down) / (up * down * n), np.inf)
    return points.logs(np.clip(np.where(up > 0, best, 0.0), min(able), max(able)))


def exceeds(
    n: Floats, total: Floats, squares: Floats, smallest: Floats, largest: Floats, limit: Limit, alpha: float | Floats
) -> np.ndarray:
    """Whether the guard would eject for these sums; ``guards._exceeds`` of many."""
    parts = np.broadcast_arrays(n, total, squares, smallest, largest, alpha)
    n, total, squares, smallest, largest, alpha = (np.asarray(part, dtype=float) for part in parts)
    found = np.zeros(total.shape, dtype=bool)
    two_sided = limit.signal == "difference"
    for side in (1, -1) if two_sided else (1,):
        over = side * total > limit.bound * n
        if guards._ends(limit) is None:
            found[over] |= _surely_above(n[over], side * total[over], squares[over], limit, alpha[over])
        else:
            wanted = -np.log(alpha[over] / 2 if two_sided else alpha[over])
            lowest = smallest if side > 0 else -largest
            found[over] |= log_e_values(n[over], side * total[over], squares[over], lowest[over], limit) >= wanted
    return found


def _surely_above(n: Floats, total: Floats, squares: Floats, limit: Limit, alpha: Floats) -> np.ndarray:
    """Whether ``unbounded_mean_log_e_value`` passes 1 / alpha; on one side by 2 E - 1."""
    prior = guards._prior(limit)
    excess = total - n * limit.bound
    around = squares - 2 * limit.bound * total + n * limit.bound**2
    explained = np.minimum(1.0, excess * excess / ((n + prior) * around))
    with np.errstate(divide="ignore"):
        found = -np.log1p(n / prior) / 2 - n / 2 * np.log1p(-explained)
    both = alpha if limit.signal == "difference" else 2 * alpha / (1 + alpha)  # sequential.one_sided
    return (n >= guards._needed(limit)) & (found >= -np.log(both))


def airlock(rollouts: Rollouts, limit: Limit, look: int = LOOK) -> Floats:
    """The guard with a look every 100 requests: over the whole release, each step and all restarts.

    What comes in the first step is asked in shadow, the rest is served.
    """
    if limit.late:
        looks = rollouts.looks()
        extremes = looks.smallest, looks.largest
        return looks.first(exceeds(looks.n, looks.total, looks.squares, *extremes, limit, limit.alpha))
    # One row for each block, so that all rollouts' sums before a window lie side by side; the first one is of nothing.
    kept, sides = limit.bound * rollouts.n[:, None], (1, -1) if limit.signal == "difference" else (1,)
    excesses = [np.vstack([np.zeros((1, len(rollouts.total))), side * rollouts.total.T - kept]) for side in sides]
    found = np.full(len(rollouts.total), np.inf)
    block = int(rollouts.n[0])
    for column, begun, least in _looks(limit, rollouts.rate, block, len(rollouts.n), look):
        may = np.isinf(found)
        if not may.any():
            break
        may &= np.any([(past[begun] + least).min(axis=0) <= past[column + 1] for past in excesses], axis=0)
        rows = np.flatnonzero(may)
        log_e = log_mixtures(rollouts, limit, rows, column, rollouts.n[column])
        found[rows[log_e >= -math.log(limit.alpha)]] = rollouts.n[column]
    return found


def log_mixtures(rollouts: Rollouts, limit: Limit, rows: np.ndarray, column: int, n: float) -> Floats:
    """Log of what ``guards._broken`` holds against 1 / alpha, of some rollouts after ``n`` observations.

    ``column`` holds the sums by then, those before it the checkpoints' sums.
    """
    begun, weights = _begins(limit, rollouts.rate, int(rollouts.n[0]), column, int(n))
    now, before = (rows[:, None], column), (rows[:, None], begun - 1)
    # Windows that begin with the first request have no column before them.
    fresh = [part[now] - np.where(begun, part[before], 0.0) for part in (rollouts.total, rollouts.squares)]
    of_n = n - begun * rollouts.n[0]
    return _mixture(of_n, *fresh, rollouts.smallest[now], rollouts.largest[now], limit, weights)


@functools.lru_cache(maxsize=16)
def _looks(limit: Limit, rate: int, block: int, columns: int, look: int) -> list[tuple[int, np.ndarray, Floats]]:
    """Of each look its column, after how many blocks the windows begin, and the least excess of each that matters.

    Where the excess of every window, its sum less the bound times its observations, lies below its least one, the
    mixture over them surely lies below 1 / alpha: each holds less than a part of that, and the parts add up to it.
    """
    at = np.flatnonzero(np.arange(block, (columns + 1) * block, block) % look == 0)
    begins = [_begins(limit, rate, block, int(column), (int(column) + 1) * block) for column in at]
    # Parts by the roots of the weights let the fewest rollouts pass: a window passes about as seldom as its part is
    # large beside its weight.
    parts = [np.sqrt(weights) / np.sqrt(weights).sum() for _, weights in begins]
    n = np.concatenate(
        [float((column + 1) * block) - begun * block for column, (begun, _) in zip(at, begins, strict=True)]
    )
    alphas = limit.alpha * np.concatenate([weights / part for (_, weights), part in zip(begins, parts, strict=True)])
    ends = np.cumsum([len(part) for part in parts])[:-1]
    least = np.split(_least_excess(limit, n, alphas), ends)
    return [(int(c), begun, some[:, None]) for c, (begun, _), some in zip(at, begins, least, strict=True)]


def _least_excess(limit: Limit, n: Floats, alphas: Floats) -> Floats:
    """Under which excess sums of ``n`` observations surely do not reject at ``alphas``, with room for rounding."""
    if limit.signal in COUNTS:
        return critical_hits(limit, n, alphas) - limit.bound * n - _ROOM
    return slack(limit, alphas)


def slack(limit: Limit, alpha: float | Floats) -> Floats:
    """Under which excess no sums at all reject at ``alpha``: the log of a bet's wealth is at most the bet times the
    excess, in units of the bound's place in the range."""
    least, _ = ends(limit)
    two_sided = math.log(2) if limit.signal == "difference" else 0.0
    largest = max(bet for bet, _ in bets(limit))
    return (two_sided - np.log(alpha)) * (limit.bound - least) / largest - _ROOM


@functools.lru_cache(maxsize=20_000)
def _begins(limit: Limit, rate: int, block: int, column: int, n: int) -> tuple[np.ndarray, Floats]:
    """After how many blocks each window begins that there is after ``n`` observations, and what it weighs."""
    step_requests = rate * BAKE_MINUTES
    steps = [-(-step_requests * step // block) for step in range(1, limit.steps)]
    found: list[tuple[int, float]] = []
    for scope in windows.scopes(limit):
        first = 0 if scope == "all" else steps[0]
        if column < first:
            continue
        found.append((first, windows.weight(limit, scope, None)))
        later = [begun for begun in steps if first < begun <= column]
        found += [(begun, _weight(limit, scope, "step", number)) for number, begun in enumerate(later, start=2)]
        found += [
            (first + number * SPACING // block, _weight(limit, scope, "restart", number))
            for number in _restarts((n - first * block - 1) // SPACING)
        ]
    return np.array([begun for begun, _ in found]), np.array([weight for _, weight in found])


@functools.cache
def _restarts(newest: int) -> tuple[int, ...]:
    """The numbers of the restarts that are kept."""
    return tuple(number for number in range(1, newest + 1) if counters.stays(number, newest))


@functools.lru_cache(maxsize=100_000)
def _weight(limit: Limit, scope: Scope, kind: Literal["step", "restart"], number: int) -> float:
    return windows.weight(limit, scope, Checkpoint(kind=kind, number=number))


def _mixture(
    n: Floats, total: Floats, squares: Floats, smallest: Floats, largest: Floats, limit: Limit, weights: Floats
) -> Floats:
    """Log of the mixture over the windows (columns) of each rollout (row); where all keep the bound, of nothing."""
    parts = np.broadcast_arrays(n, total, squares, smallest, largest, np.log(np.where(weights > 0, weights, 1e-300)))
    over = (np.abs(parts[1]) if limit.signal == "difference" else parts[1]) > limit.bound * parts[0]
    if limit.signal not in COUNTS:
        over &= np.abs(parts[2]) >= parts[0] * windows._LOST * parts[2][:, :1]
    logs = np.full(over.shape, -np.inf)
    logs[over] = _log_e(*(part[over] for part in parts[:5]), limit) + parts[5][over]
    top = logs.max(axis=1, initial=-np.inf)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return safe + np.log(np.exp(logs - safe[:, None]).sum(axis=1))


def _log_e(n: Floats, total: Floats, squares: Floats, smallest: Floats, largest: Floats, limit: Limit) -> Floats:
    """``guards._log_e`` of many."""
    if limit.signal != "difference":
        return log_e_values(n, total, squares, smallest, limit)
    lowest = np.where(total > 0, smallest, -largest)
    return log_e_values(n, np.abs(total), squares, lowest, limit) - math.log(2)


def critical_hits(limit: Limit, n: Floats, alpha: float | Floats) -> Floats:
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
