"""Traffic whose requests hang together, and how often a guard takes back a version that keeps its bound on it.

Every stream is counted by the shipped counters and tested by the shipped guard (``core/counters.py``,
``core/guards.py``), at the looks at which something may be found. ``python -m tests.benchmarks.quality.dependence``
prints the table of RESULTS.md. What is exactly at its bound is the mean of the unit that is observed: of a guard by key
the share of the customers whose first request fails, else the share of the requests. That is the hardest version that
must still be left alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from airlock.core.counters import SPACING, Counters
from airlock.core.guards import breach, limits_of
from airlock.core.policy import Unit
from airlock.core.route import Limit
from airlock.core.spec import ModelSpec
from airlock.core.tally import Sums
from tests.benchmarks.quality import rules

Floats = npt.NDArray[np.float64]

BUDGET = 0.01
UNITS: tuple[Unit, ...] = ("request", "key", "minute")
ERRORS, SHIFT, SPREAD = 0.02, 0.01, 0.048
_ROOM = 1e-6


class Traffic(NamedTuple):
    """Requests in order: their times in seconds, their customers, and of each whether it failed or its difference."""

    at: Floats
    key: npt.NDArray[np.int64]
    value: Floats


class Stream(NamedTuple):
    """``make(rng, requests, rate, unit)``: so many requests, so many a minute, at the bound for that unit."""

    name: str
    guard: dict[str, Any]
    make: Callable[[np.random.Generator, int, float, Unit], Traffic]


def _times(rng: np.random.Generator, requests: int, rate: float) -> Floats:
    return np.cumsum(rng.exponential(60 / rate, requests))


def _customers(rng: np.random.Generator, requests: int) -> npt.NDArray[np.int64]:
    """Each has three requests or so, in any order."""
    return rng.integers(0, max(1, requests // 3), requests)


def independent(rng: np.random.Generator, requests: int, rate: float, _unit: Unit) -> Traffic:
    failed = rng.random(requests) < ERRORS
    return Traffic(_times(rng, requests, rate), _customers(rng, requests), failed.astype(float))


def retries(rng: np.random.Generator, requests: int, rate: float, unit: Unit, tries: int = 6) -> Traffic:
    """Whoever fails asks again every second, up to ``tries`` times in all; each try fails again in nine of ten."""
    again = 0.9
    # Of a customer whose first request fails with chance p: requests and failures in expectation.
    failures = (1 - again**tries) / (1 - again)
    asked = 1 + (1 - again ** (tries - 1)) / (1 - again)
    # p * failures / (1 - p + p * asked) is the share of the requests that fail.
    first = ERRORS if unit == "key" else ERRORS / (failures - ERRORS * (asked - 1))
    failed = rng.random((requests, tries)) < np.r_[first, np.full(tries - 1, again)]
    asks = np.column_stack([np.ones(requests, dtype=bool), np.logical_and.accumulate(failed, axis=1)[:, :-1]])
    customer, second = np.nonzero(asks)
    at = _times(rng, requests, rate)[customer] + second
    order = np.argsort(at, kind="stable")[:requests]
    return Traffic(at[order], customer[order], failed[asks][order].astype(float))


def alike(rng: np.random.Generator, requests: int, rate: float, _unit: Unit) -> Traffic:
    """Customers who send the same request again and again, a few of them very often: it fails always or never."""
    customers = max(1, requests // 20)
    often = rng.pareto(1.5, customers) + 1
    keys = rng.choice(customers, requests, p=often / often.sum())
    fails = rng.random(customers) < ERRORS
    return Traffic(_times(rng, requests, rate), keys, fails[keys].astype(float))


def bursts(rng: np.random.Generator, requests: int, rate: float, _unit: Unit) -> Traffic:
    """Outages of 6 seconds or so, five minutes apart or so, in which everything fails."""
    at = _times(rng, requests, rate)
    down, up = 6.0, 6.0 * (1 - ERRORS) / ERRORS
    ends = np.cumsum(
        np.column_stack(
            [rng.exponential(up, 4 * int(at[-1] / up) + 50), rng.exponential(down, 4 * int(at[-1] / up) + 50)]
        ).ravel()
    )
    failed = np.searchsorted(ends, at, "right") % 2 == 1
    return Traffic(at, _customers(rng, requests), failed.astype(float))


def _autoregressive(rng: np.random.Generator, count: int, rho: float) -> Floats:
    """Standard normal values, each correlated ``rho`` with the one before."""
    from scipy.signal import lfilter

    shocks = rng.standard_normal(count) * math.sqrt(1 - rho * rho)
    shocks[0] = rng.standard_normal()
    found: Floats = lfilter([1.0], [1.0, -rho], shocks)
    return found


def neighbours(rng: np.random.Generator, requests: int, rate: float, _unit: Unit) -> Traffic:
    """Differences of answers, each correlated 0.9 with the one before."""
    values = SHIFT + SPREAD * _autoregressive(rng, requests, 0.9)
    return Traffic(_times(rng, requests, rate), _customers(rng, requests), values)


def drifting(rng: np.random.Generator, requests: int, rate: float, _unit: Unit) -> Traffic:
    """Minutes whose means are correlated 0.9 with the minute before, a tenth of each difference's variance."""
    at = _times(rng, requests, rate)
    minutes = _autoregressive(rng, int(at[-1] // 60) + 1, 0.9)[(at // 60).astype(int)]
    values = SHIFT + SPREAD * (math.sqrt(0.1) * minutes + math.sqrt(0.9) * rng.standard_normal(requests))
    return Traffic(at, _customers(rng, requests), values)


_ERROR_RATE = {"kind": "error_rate", "max": ERRORS}
_SHIFT = {"kind": "prediction_shift", "max_mean": SHIFT}
STREAMS = (
    Stream("independent requests", _ERROR_RATE, independent),
    Stream("retries: who fails asks again", _ERROR_RATE, retries),
    Stream("the same request again and again", _ERROR_RATE, alike),
    Stream("bursts: outages of 6 s", _ERROR_RATE, bursts),
    Stream("AR(1) from request to request, rho 0.9", _SHIFT, neighbours),
    Stream("AR(1) from minute to minute, rho 0.9", _SHIFT, drifting),
)


def limit_of(guard: dict[str, Any], unit: Unit) -> Limit:
    """The only limit of a spec with this guard, which has all of the budget."""
    spec = {
        "model": "dependence",
        "task": "classification",
        "data": {"key": "id", "event_time": "t"},
        "label": {"name": "y"},
        "inputs": {"x": "float"},
        "gates": [{"kind": "finite"}],
        "false_rollback_budget": BUDGET,
        "guards": [{**guard, "by": unit}],
    }
    (limit,) = limits_of(ModelSpec.model_validate(spec))
    return limit


def ejected_after(limit: Limit, traffic: Traffic) -> float:
    """After how many requests the guard ejects; infinity: never. Everything is served, in one step.

    The shipped counters and guard, fed with running sums of observations: what ``Units`` makes of requests is made here
    for all of them at once (a test holds the two to each other). The guard looks after each request that failed, and of
    differences after every tenth observation: in between there is nothing that can break an error rate. Looks that
    surely find nothing are left out.
    """
    places, values = observations(limit, traffic)
    if not values.size:
        return math.inf
    sums = np.zeros((values.size + 1, 5))
    sums[1:, 0] = np.arange(1, values.size + 1)
    sums[1:, 1], sums[1:, 2] = values.cumsum(), (values * values).cumsum()
    sums[1:, 3], sums[1:, 4] = np.minimum.accumulate(values), np.maximum.accumulate(values)
    looks = np.flatnonzero(values > 0) + 1 if limit.signal == "errors" else np.arange(10, values.size + 1, 10)
    restarts = np.arange(SPACING, places[-1], SPACING)
    known = np.searchsorted(places, restarts, "right")
    counters, taken = Counters(), 0
    for seen in looks[_may_eject(limit, sums, looks, places[looks - 1], restarts, known)].tolist():
        place = int(places[seen - 1])
        while taken < restarts.size and restarts[taken] < place:
            _count(counters, limit, int(restarts[taken]), sums[known[taken]])
            counters.restart_if_due()
            taken += 1
        _count(counters, limit, place, sums[seen])
        if breach((limit,), counters) is not None:
            return float(place)
    return math.inf


def _may_eject(
    limit: Limit,
    sums: Floats,
    looks: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    restarts: npt.NDArray[np.int64],
    known: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """At which looks a window may reject on its own: as the weights add up to 1, no others find anything together."""
    found = np.zeros(looks.size, dtype=bool)
    begun, begins = np.r_[0, known], np.r_[0, restarts]
    for side in (1, -1) if limit.signal == "difference" else (1,):
        excess = side * sums[:, 1] - limit.bound * sums[:, 0]
        over = excess[looks, None] - excess[begun] >= rules.slack(limit, limit.alpha)
        look, begin = np.nonzero(over & (begins < places[:, None]))
        n, total, squares = (sums[looks[look], :3] - sums[begun[begin], :3]).T
        lowest = sums[looks[look], 3] if side > 0 else -sums[looks[look], 4]
        halved = math.log(2) if limit.signal == "difference" else 0.0
        logs = rules.best_logs(n, side * total, squares, lowest, limit) - halved
        found[look[logs >= -math.log(limit.alpha) - _ROOM]] = True
    return found


def _count(counters: Counters, limit: Limit, requests: int, sums: Floats) -> None:
    n, total, squares, smallest, largest = sums.tolist()
    for stream in (counters.all, counters.served):
        stream.sums.requests = requests
        if limit.by == "request" and limit.signal == "errors":
            stream.sums.errors = int(total)
            continue
        values = Sums(n=int(n), total=total, squares=squares, smallest=smallest, largest=largest)
        if limit.by == "request":
            stream.sums.difference = values
        else:
            stream.sums.units[limit.name] = values


def observations(limit: Limit, traffic: Traffic) -> tuple[npt.NDArray[np.int64], Floats]:
    """What the limit observes: after how many requests each is known, and its value."""
    size = traffic.value.size
    if limit.by == "key":
        _, first = np.unique(traffic.key, return_index=True)
        first = np.sort(first)
        return first + 1, traffic.value[first]
    if limit.by == "minute":
        minute = (traffic.at // 60).astype(np.int64)
        ends = np.flatnonzero(minute[1:] != minute[:-1]) + 1  # the next minute's first request closes it
        starts = np.r_[0, ends[:-1]] if ends.size else ends
        sums = np.add.reduceat(traffic.value[: ends[-1]], starts) if ends.size else np.empty(0)
        return ends + 1, sums / np.diff(np.r_[0, ends])
    return np.arange(1, size + 1), traffic.value


def false_alarms(stream: Stream, unit: Unit, *, rollouts: int, requests: int, rate: float, seed: int) -> int:
    """How many of so many rollouts are taken back."""
    limit = limit_of(stream.guard, unit)
    found = 0
    for number in range(rollouts):
        rng = np.random.default_rng([seed, number])
        found += math.isfinite(ejected_after(limit, stream.make(rng, requests, rate, unit)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000, help="of each cell")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    print("| traffic | by request | by key | by minute |\n| --- | --- | --- | --- |")  # noqa: T201 - what it is for
    for stream in STREAMS:
        cells = []
        for unit in UNITS:
            count = false_alarms(
                stream, unit, rollouts=given.rollouts, requests=given.requests, rate=given.rate, seed=given.seed
            )
            cells.append(f"{100 * count / given.rollouts:.1f} %")
        print(f"| {stream.name} | {' | '.join(cells)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
