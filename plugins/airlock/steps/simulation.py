"""Traffic that might be, for replays: frames whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from statistics import NormalDist
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from airlock.core.guards import guarded, limits_of, slow_limits
from airlock.core.policy import Policy
from airlock.core.replay import Frame
from airlock.core.route import Limit
from airlock.core.spec import ModelSpec
from airlock.core.tally import BUCKETS, LateEvidence, Sums, Tally
from airlock.steps.observations import summed

Floats = npt.NDArray[np.float64]

START = datetime(2026, 1, 1, tzinfo=UTC)
_LATER_LOOKS = 50
_TAIL = timedelta(minutes=1)


class Simulation(Policy):
    """Traffic as it might be: what is true of a candidate beside its champion.

    ``shift`` and ``noise`` are the mean and the standard deviation of the difference of the answers; ``flips`` the
    share decided otherwise; ``latency`` how far the strictest bound on latency is used: at 1.5 that quantile takes 1.5
    times what the bound allows. ``loss`` is how much worse the candidate's labels and outcomes are, in the units of
    each late guard: 0 lies at the champion's, or a tenth inside an absolute bound; ``spread`` is the standard
    deviation of one such observation. ``delay`` is how long they take, in seconds. ``rate`` is in requests a minute.
    """

    error_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    shift: Annotated[float, Field(ge=-1, le=1)] = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.05
    flips: Annotated[float, Field(ge=0, le=1)] = 0.0
    latency: Annotated[float, Field(gt=0)] = 0.8
    loss: float = 0.0
    spread: Annotated[float, Field(ge=0)] = 0.2
    delay: Annotated[float, Field(ge=0)] = 0.0
    requests: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    rate: Annotated[float, Field(gt=0)] = 600.0


_SIGMA = 0.5  # of the logarithm of a latency


class Truth(NamedTuple):
    """What a simulation makes true: each limit's mean, and which limits it breaks."""

    means: dict[str, float]
    bad: tuple[str, ...]


def _median_ms(spec: ModelSpec, simulation: Simulation) -> float:
    """The median latency at which the strictest limit is used as far as the simulation says."""
    slow = [(1 - limit.bound, limit.over_ms) for limit in limits_of(spec) if limit.over_ms is not None]
    if not slow:
        return 5.0
    return min(simulation.latency * ms / math.exp(_SIGMA * NormalDist().inv_cdf(q)) for q, ms in slow)


def _late_mean(limit: Limit, margin: bool, simulation: Simulation) -> float:
    return simulation.loss if margin else limit.bound - abs(limit.bound) / 10 + simulation.loss


def truth(spec: ModelSpec, simulation: Simulation) -> Truth:
    """What is true in a simulation. Exactly at a bound is not broken."""
    median, means = _median_ms(spec, simulation), {}
    for guard, limit in guarded(spec):
        match limit.signal:
            case "errors" | "fallbacks":
                means[limit.name] = simulation.error_rate
            case "slow":
                means[limit.name] = 1 - NormalDist().cdf(math.log((limit.over_ms or 0) / median) / _SIGMA)
            case "difference":
                means[limit.name] = simulation.shift
            case "absolute":
                means[limit.name] = _folded_mean(simulation.shift, simulation.noise)
            case "flips":
                means[limit.name] = simulation.flips
            case _:
                means[limit.name] = _late_mean(limit, _is_margin(guard), simulation)
    bad = []
    for limit in limits_of(spec):
        mean = abs(means[limit.name]) if limit.signal == "difference" else means[limit.name]
        if mean > limit.bound * (1 + 1e-9):
            bad.append(limit.name)
    return Truth(means, tuple(bad))


def _is_margin(guard: object) -> bool:
    return getattr(guard, "margin", None) is not None or getattr(guard, "max_drop", None) is not None


def _folded_mean(mean: float, spread: float) -> float:
    """The mean of the absolute value of a normal variable (Leone, Nelson, Nottingham 1961)."""
    if spread == 0:
        return abs(mean)
    normal = NormalDist()
    at = mean / spread
    return spread * math.sqrt(2 / math.pi) * math.exp(-at * at / 2) + mean * (1 - 2 * normal.cdf(-at))


def simulated(spec: ModelSpec, simulation: Simulation, *, seed: int, every: int) -> Iterator[Frame]:
    """Frames of ``every`` requests; where guards wait for labels, frames without requests until they have come."""
    random = np.random.default_rng(seed)
    n, limits = simulation.requests, limits_of(spec)
    times = np.arange(1, n + 1) * 60 / simulation.rate
    failed = random.random(n) < simulation.error_rate
    latency = _median_ms(spec, simulation) * np.exp(_SIGMA * random.standard_normal(n))
    differences = random.normal(simulation.shift, simulation.noise, n)
    flips = (random.random(n) < simulation.flips).astype(np.float64)
    late = {
        limit.name: Arrivals(
            (times + simulation.delay)[limit.batch - 1 :: limit.batch],
            _late_values(random, n, guard, limit, simulation),
        )
        for guard, limit in guarded(spec)
        if limit.late
    }
    maturity = spec.maturity.total_seconds()
    for asked, until in looks(times, every, simulation.delay + maturity if late else 0.0):
        part = slice(asked.start, asked.stop)
        tally = tally_of(failed[part], latency[part], slow_limits(limits))
        ok = ~failed[part]
        tally.difference, tally.absolute = summed(differences[part][ok]), summed(np.abs(differences[part][ok]))
        tally.flips = summed(flips[part][ok])
        tally.fallbacks = tally.errors
        evidence = None
        if late:
            due = int(np.searchsorted(times, until - maturity, "right"))
            came = int(np.searchsorted(times, until - simulation.delay, "right"))
            evidence = LateEvidence(
                until=START + timedelta(seconds=until),
                answers=asked.stop,
                due=min(due, asked.stop),
                labelled=min(due, came),
                observations={name: arrivals.by(until) for name, arrivals in late.items()},
            )
        yield Frame(START + timedelta(seconds=until), tally, None, evidence)


def _late_values(random: np.random.Generator, n: int, guard: object, limit: Limit, simulation: Simulation) -> Floats:
    count = n // limit.batch
    mean = _late_mean(limit, _is_margin(guard), simulation)
    spread = simulation.spread / math.sqrt(limit.batch)
    if limit.reach is not None:
        # Two values that have this mean and this spread and stay in the range: of a normal one the tails would not.
        room = max(0.0, min(mean - limit.least, limit.least + limit.reach - mean))
        return mean + min(spread, room) * random.choice([-1.0, 1.0], count)
    return random.normal(mean, spread, count)


class Arrivals:
    """Observations of one late limit by when they become known, as sums that can be read at any time."""

    def __init__(self, times: Floats, values: Floats) -> None:
        self._times, self._total, self._squares = times, np.cumsum(values), np.cumsum(values * values)
        self._smallest, self._largest = np.minimum.accumulate(values), np.maximum.accumulate(values)

    @property
    def last(self) -> float:
        return float(self._times[-1]) if self._times.size else 0.0

    def by(self, time: float) -> Sums:
        n = int(np.searchsorted(self._times, time, "right"))
        if not n:
            return Sums()
        last = (column[n - 1] for column in (self._total, self._squares, self._smallest, self._largest))
        total, squares, smallest, largest = map(float, last)
        return Sums(n=n, total=total, squares=squares, smallest=smallest, largest=largest)


def looks(times: Floats, every: int, wait: float) -> Iterator[tuple[range, float]]:
    """Which requests each look adds, and its time: after every so many, and then until all has come."""
    for start in range(0, times.size, every):
        stop = min(start + every, times.size)
        yield range(start, stop), float(times[stop - 1])
    for number in range(1, _LATER_LOOKS + 1 if wait else 0):
        until = float(times[-1]) + (wait + _TAIL.total_seconds()) * number / _LATER_LOOKS
        yield range(times.size, times.size), until


def tally_of(failed: npt.NDArray[np.bool_], latency: Floats, slow: Mapping[str, float]) -> Tally:
    """Requests as a tally: which failed, their latencies in ms, and the limits on latency by name."""
    buckets = np.ceil(4 * np.log2(np.maximum(latency, 0.05) / 0.05)).astype(int)
    over = {name: int(np.count_nonzero(latency > ms)) for name, ms in slow.items()}
    return Tally(
        requests=failed.size,
        errors=int(failed.sum()),
        latency=np.bincount(np.minimum(buckets, BUCKETS - 1), minlength=BUCKETS).tolist(),
        slow={name: count for name, count in over.items() if count},
    )
