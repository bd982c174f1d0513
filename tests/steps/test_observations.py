"""Outcomes are paired as a queue would pair them."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from airlock.core.spec import BusinessMetricGuard
from airlock.steps.observations import outcomes

DROP = BusinessMetricGuard.model_validate(
    {"kind": "business_metric", "name": "revenue", "range": (0, 100), "max_drop": 5}
)


def one_by_one(ours: list[bool], most: int) -> tuple[list[float], list[int], list[float]]:
    """The n-th outcome has the value 2^n, so that a difference tells which two it is of."""
    spare: deque[float] = deque(maxlen=most)
    whose = False
    found, places = [], []
    for place, mine in enumerate(ours):
        if spare and mine is not whose:
            found.append((spare.popleft() - 2.0**place) * (1 if mine else -1))
            places.append(place)
        else:
            whose = mine
            spare.append(2.0**place)
    return found, places, [float(whose), *spare] if spare else []


@given(some.lists(some.booleans(), max_size=50), some.integers(1, 6), some.integers(0, 50))
def test_they_are_paired_in_order_whatever_is_left_over_and_whenever_one_looks(
    ours: list[bool], most: int, first: int
) -> None:
    values = 2.0 ** np.arange(len(ours))
    start, place, spare = outcomes(DROP, values[:first], np.array(ours[:first], bool), [], most)
    then, later, spare = outcomes(DROP, values[first:], np.array(ours[first:], bool), spare, most)
    places = [*place.tolist(), *(later + len(ours[:first])).tolist()]
    assert ([*start.tolist(), *then.tolist()], places, spare) == one_by_one(ours, most)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_many_of_them_too(share: float) -> None:
    ours = np.random.default_rng(1).random(1_000) < share
    found, places, spare = outcomes(DROP, 2.0 ** np.arange(1_000), ours, [], 10)
    assert (found.tolist(), places.tolist(), spare) == one_by_one(ours.tolist(), 10)


@pytest.mark.parametrize("run", [19, 21, 25, 40])
def test_so_are_those_that_come_in_runs(run: int) -> None:
    ours = np.arange(1_000) // run % 2 == 0
    found, places, spare = outcomes(DROP, 2.0 ** np.arange(1_000), ours, [], 10)
    assert (found.tolist(), places.tolist(), spare) == one_by_one(ours.tolist(), 10)
