"""The error budget holds on traffic whose requests hang together, by the unit that does not."""

from __future__ import annotations

import numpy as np
import pytest

from airlock.core.counters import Counters
from airlock.core.policy import Unit
from airlock.core.units import Units
from tests.benchmarks.quality.dependence import STREAMS, false_alarms, limit_of, observations

_BY_NAME = {stream.make.__name__: stream for stream in STREAMS}


@pytest.mark.parametrize(
    ("name", "holds"), [("retries", "key"), ("alike", "key"), ("bursts", "minute"), ("neighbours", "minute")]
)
def test_the_budget_holds_by_the_unit_that_does_not_hang_together(name: str, holds: Unit) -> None:
    """12 rollouts each, seed 11; by request the same guard takes back many of them."""
    stream = _BY_NAME[name]
    asked = {"rollouts": 12, "requests": 12_000, "rate": 500.0, "seed": 11}
    assert false_alarms(stream, holds, **asked) == 0
    if name != "alike":  # there it takes back a few of a hundred
        assert false_alarms(stream, "request", **asked) >= 6


@pytest.mark.parametrize("name", ["retries", "neighbours"])
@pytest.mark.parametrize("by", ["key", "minute"])
def test_the_benchmark_observes_what_the_gateway_does(name: str, by: Unit) -> None:
    stream = _BY_NAME[name]
    limit = limit_of(stream.guard, by)
    traffic = stream.make(np.random.default_rng(5), 2_000, 500.0, by)
    counters = Counters()
    units = Units([limit], counters)
    for at, key, value in zip(*(column.tolist() for column in traffic), strict=True):
        if limit.signal == "errors":
            units.answered("served", str(key), 1.0, failed=value > 0, at=at)
        else:
            units.compared(str(key), [value], 0, at=at)
    sums = counters.all.sums.units[limit.name]
    _, values = observations(limit, traffic)
    # Of keys, a few share a slot; the last minute is not over.
    assert sums.n == pytest.approx(values.size, abs=10 if by == "key" else 0)
    assert sums.total == pytest.approx(values.sum(), abs=0.5 if by == "key" else 1e-9)


@pytest.mark.parametrize("by", ["request", "key", "minute"])
def test_nothing_is_taken_back_on_independent_requests(by: Unit) -> None:
    stream = _BY_NAME["independent"]
    assert false_alarms(stream, by, rollouts=12, requests=12_000, rate=500.0, seed=11) == 0
