"""Traffic that might be, for replays: requests whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from statistics import NormalDist
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from airlock.core.guards import guarded, limits_of
from airlock.core.policy import Policy
from airlock.core.replay_traffic import Observation, Traffic
from airlock.core.route import Limit, place
from airlock.core.spec import ModelSpec
from airlock.core.tally import BUCKETS, LateEvidence, Sums, Tally

Floats = npt.NDArray[np.float64]

START = datetime(2026, 1, 1, tzinfo=UTC)


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


def simulated(spec: ModelSpec, simulation: Simulation, *, seed: int) -> Traffic:
    """Requests whose candidate does as the simulation says; the router's own hash decides which ones it answers.

    Answers are paired at once. Labels come in the order of the requests.
    """
    random = np.random.default_rng(seed)
    n = simulation.requests
    times = np.arange(1, n + 1) * 60 / simulation.rate
    failed = random.random(n) < simulation.error_rate
    latency = _median_ms(spec, simulation) * np.exp(_SIGMA * random.standard_normal(n))
    differences = random.normal(simulation.shift, simulation.noise, n)
    flips = random.random(n) < simulation.flips
    arrivals = {
        limit.name: Arrivals(
            (times + simulation.delay)[limit.batch - 1 :: limit.batch],
            _late_values(random, n, guard, limit, simulation),
        )
        for guard, limit in guarded(spec)
        if limit.late
    }

    def observations() -> Iterator[Observation]:
        columns = (times.tolist(), failed.tolist(), latency.tolist(), differences.tolist(), flips.tolist())
        for number, (at, fails, ms, difference, flip) in enumerate(zip(*columns, strict=True)):
            where = place(f"simulation-{seed}", str(number))
            if fails:
                yield Observation(at, place=where, failed=True, latency_ms=ms, stood_in=True)
            else:
                yield Observation(at, place=where, latency_ms=ms, differences=(difference,), flips=flip)

    late = SimulatedLabels(times, simulation.delay, spec.maturity.total_seconds(), arrivals) if arrivals else None
    return Traffic(START, observations(), late)


class SimulatedLabels:
    """Labels and outcomes that all take the same time. Seconds are since :data:`START`."""

    def __init__(self, asked_s: Floats, delay: float, maturity: float, arrivals: Mapping[str, Arrivals]) -> None:
        self._asked, self._delay, self._maturity, self._arrivals = asked_s, delay, maturity, arrivals

    @property
    def until(self) -> float:
        return float(self._asked[-1]) + max(self._delay, self._maturity)

    def by(self, seconds: float) -> LateEvidence:
        due, came = (
            int(np.searchsorted(self._asked, seconds - wait, "right")) for wait in (self._maturity, self._delay)
        )
        return LateEvidence(
            until=START + timedelta(seconds=seconds),
            answers=int(np.searchsorted(self._asked, seconds, "right")),
            due=due,
            labelled=min(due, came),
            observations={name: arrivals.by(seconds) for name, arrivals in self._arrivals.items()},
        )


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


def tally_of(latency: Floats) -> Tally:
    """Requests as a tally, of their latencies in ms alone."""
    buckets = np.ceil(4 * np.log2(np.maximum(latency, 0.05) / 0.05)).astype(int)
    return Tally(
        requests=latency.size, latency=np.bincount(np.minimum(buckets, BUCKETS - 1), minlength=BUCKETS).tolist()
    )
