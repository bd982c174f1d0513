"""What the guard pays for being ready for anything, and what its lower bound of the wealth leaves on the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from airlock.core.route import Limit
from tests.benchmarks.quality import rules, worlds
from tests.benchmarks.quality.report import quantiles
from tests.benchmarks.quality.rules import Bets
from tests.benchmarks.quality.simulate import walds_expectation
from tests.benchmarks.quality.worlds import Case, Floats, Stream, Values, Watch

RATE = 500
"""Requests a minute of the first table: a step begins every 5,000."""
_BLOCKS = (50, 25, 10, 5, 2, 1)
_AT_ONCE = 50

Test = Callable[[Floats], Floats]


def readiness(watch: Watch, case: Case, *, rollouts: int, seed: int) -> dict[str, Any]:
    """Requests until a live guard ejects a candidate that is bad from the first request on: as it is, with fresh steps,
    restarts and scopes, and with all of its alpha on the whole release. Both look equally often: twenty times or more
    in the time that Wald expects of an oracle, or after each request."""
    limit, stream = watch.limit, case.stream
    expected = walds_expectation(stream, limit)
    block = next(size for size in _BLOCKS if size <= max(1, expected / 20))
    blocks = math.ceil(40 * expected / block)
    n, rng = np.arange(1, blocks + 1) * float(block), np.random.default_rng(seed)
    ready, plain = [], []
    for rows in _parts(rollouts, 500):
        sums = rules.Rollouts.of(n, stream.sums(rng, (rows, blocks), block), 1, RATE)
        ready.append(rules.airlock(sums, limit, look=block))
        found = rules.exceeds(n, sums.total, sums.squares, sums.smallest, sums.largest, limit, limit.alpha)
        plain.append(sums.first(found))
    return {"looks": block, "ready": quantiles(np.concatenate(ready)), "plain": quantiles(np.concatenate(plain))}


def rare() -> Case:
    """Differences that are nearly always none, and then the largest that there can be, on either side."""
    values = np.repeat([1.0, -1.0, 0.0], [15, 3, 238])
    return Case("+1 in 15 of 256, -1 in 3 of 256", Values(values), bad=True)


def forms(limit: Limit, stream: Stream, *, rollouts: int, seed: int) -> dict[str, Any]:
    """Observations until three tests of the whole release reject: with the former lower bound of the wealth and bets,
    as it is, and with the wealth itself, of the same bets on each observation.

    A live limit has half of its alpha, which was the whole release's part, and differences half of that on their side.
    """
    alpha = limit.alpha if limit.late else limit.alpha / 2
    wanted = -math.log(alpha / 2 if limit.signal == "difference" else alpha)
    tests: dict[str, Test] = {
        "former": lambda values: _by_sums(values, limit, former_bets(limit), from_the_end=True),
        "present": lambda values: _by_sums(values, limit, rules.bets(limit), from_the_end=False),
        "exact": lambda values: _by_products(values, limit),
    }
    times: dict[str, list[Floats]] = {name: [] for name in tests}
    longest = math.ceil(20 * walds_expectation(stream, limit) / stream.per) + 1000
    rng = np.random.default_rng(seed)
    for rows in _parts(rollouts, _AT_ONCE):
        values = stream.draw(rng, (rows, longest))
        for name, test in tests.items():
            rejected = test(values) >= wanted
            times[name].append(np.where(rejected.any(axis=1), rejected.argmax(axis=1) + 1.0, np.inf))
    return {name: quantiles(np.concatenate(found) * stream.per) for name, found in times.items()}


def former_bets(limit: Limit, points: int = 24) -> Bets:
    """As they were before they were weighed: evenly mixed, no steady one among them, spaced quadratically in the log
    odds up to nine tenths of the way from the bound to the range's end."""
    least, greatest = rules.ends(limit)
    share = (limit.bound - least) / (greatest - least)
    odds = math.log(share / (1 - share))
    first, last = math.log(1.02) + odds, math.log((1 - 0.1 * (1 - share)) / (0.1 * (1 - share)))
    logs = (first + (last - first) * (index / (points - 1)) ** 2 for index in range(points))
    return tuple(((1 / (1 + math.exp(-value)) - share) / (1 - share), -math.log(points)) for value in logs)


def _by_sums(values: Floats, limit: Limit, bets: Bets, *, from_the_end: bool) -> Floats:
    """The log of the wealth's lower bound after each observation; nothing where the mean keeps the bound."""
    n = np.broadcast_to(np.arange(1.0, values.shape[1] + 1), values.shape)
    total, squares = values.cumsum(axis=1), (values * values).cumsum(axis=1)
    smallest = np.full(values.shape, -np.inf) if from_the_end else np.minimum.accumulate(values, axis=1)
    over = total > limit.bound * n
    found = np.full(values.shape, -np.inf)
    found[over] = rules.log_e_values(n[over], total[over], squares[over], smallest[over], limit, bets)
    return found


def _by_products(values: Floats, limit: Limit) -> Floats:
    least, _ = rules.ends(limit)
    gained = (values - limit.bound) / (limit.bound - least)
    logs = [np.log1p(bet * gained).cumsum(axis=1) + weight for bet, weight in rules.bets(limit)]
    found: Floats = np.logaddexp.reduce(logs, axis=0)
    return found


def shifts_and_losses() -> list[tuple[str, Case, Limit]]:
    """What the forms are compared on: guards by bounded means, and the candidates that are demanded of them."""
    means = [watch for watch in worlds.watches() if watch.limit.signal not in rules.COUNTS]
    bounded = [watch for watch in means if watch.limit.reach is not None]
    found = [(watch.name, case, watch.limit) for watch in bounded for case in watch.cases if case.bad and case.demanded]
    shift = next(watch for watch in bounded if watch.limit.signal == "difference")
    return [*found, (shift.name, rare(), shift.limit)]


def _parts(rollouts: int, at_once: int) -> Iterator[int]:
    for start in range(0, rollouts, at_once):
        yield min(at_once, rollouts - start)
