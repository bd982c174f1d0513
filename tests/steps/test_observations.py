"""Outcomes are paired as a queue would pair them; batches lose no row, however rare a class is."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from airlock.core.limits import guarded
from airlock.core.spec import BusinessMetricGuard
from airlock.core.stats import roc_auc
from airlock.steps import observations
from airlock.steps.observations import Begun, Labelled, batches, begin, outcomes
from tests.support.toy_model import toy_spec

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


(AUC, AUC_LIMIT), (LOWEST, LOWEST_LIMIT), *_ = guarded(
    toy_spec(
        guards=[
            {"kind": "label_metric", "metric": "roc_auc", "margin": 0.02},
            {"kind": "label_metric", "metric": "roc_auc", "min": 0.6},
        ]
    )
)


def rare(rows: int, rate: float, seed: int = 3) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < rate).astype(float)
    odds = rng.normal(size=rows) + labels - 8
    ours, theirs = (1 / (1 + np.exp(-odds - rng.normal(0, 0.3, rows))) for _ in range(2))
    return Labelled(labels, ours, theirs)


def in_looks(rows: Labelled, every: int, guard: Any = AUC, limit: Any = AUC_LIMIT) -> tuple[list[float], Begun | None]:
    begun: Begun | None = None
    found: list[float] = []
    for start in range(0, rows.labels.size, every):
        some, begun = batches(guard, limit, rows.only(slice(start, start + every)), begun)
        found += some.tolist()
    return found, begun


@pytest.mark.parametrize("every", [700, 30_000, 400_000])
def test_no_label_of_a_rare_class_is_thrown_away(every: int) -> None:
    """One positive in 3,300: a batch takes 33,000 answers, and twelve of them take 400,000."""
    rows = rare(400_000, 0.0003)
    found, begun = in_looks(rows, every)
    ends = np.flatnonzero(rows.labels == 1)[9::10] + 1
    expected = [
        roc_auc(rows.labels[a:b], rows.theirs[a:b]) - roc_auc(rows.labels[a:b], rows.ours[a:b])
        for a, b in zip([0, *ends[:-1]], ends, strict=True)
    ]
    assert len(expected) >= 11
    assert found == pytest.approx(expected, abs=2e-4)
    assert begun is not None
    assert begun.size == rows.labels.size - ends[-1]
    assert begun.times[begun.labels == 1].sum() == rows.labels[ends[-1] :].sum()


def test_batches_do_not_depend_on_when_one_looks() -> None:
    rows = rare(120_000, 0.0005)
    for guard, limit in ((AUC, AUC_LIMIT), (LOWEST, LOWEST_LIMIT)):
        at_once, often = (in_looks(rows, every, guard, limit) for every in (120_000, 999))
        assert len(at_once[0]) >= 4
        assert at_once[0] == pytest.approx(often[0], abs=1e-12)


def test_a_batch_that_is_begun_does_not_grow_without_bound() -> None:
    begun = begin(rare(300_000, 0.0))
    assert begun.size == 300_000
    assert begun.labels.size < observations.MOST_EXACT
    more = begun.then(rare(300_000, 0.0, seed=4))
    assert more.size == 600_000
    assert more.labels.size < 1.2 * begun.labels.size


def test_where_no_class_is_rare_rows_are_kept_as_they_are() -> None:
    rows = rare(150, 0.4)
    _, begun = in_looks(rows, 40)
    assert begun is not None
    for kept, given_ in zip(begun, (*rows, np.ones(150)), strict=True):
        assert kept.tolist() == given_.tolist()
