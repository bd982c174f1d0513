"""What is equal is found whatever the hashes look like, and what is there twice is left to others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from airlock.steps.hash_join import meet


def hashes(values: object) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


@given(
    some.lists(some.integers(0, 2**64 - 1) | some.integers(0, 40), unique=True, max_size=60),
    some.lists(some.integers(0, 40) | some.integers(0, 2**64 - 1), unique=True, max_size=60),
)
def test_it_finds_what_is_in_both_in_the_order_of_the_other(one: list[int], other: list[int]) -> None:
    met = meet(hashes(one), hashes(other))
    assert met is not None
    pairs = [(one.index(value), place) for place, value in enumerate(other) if value in one]
    assert list(zip(*(places.tolist() for places in met), strict=True)) == pairs


def test_it_finds_all_of_many() -> None:
    draw = np.random.default_rng(1)
    one = np.unique(draw.integers(0, 2**64 - 1, 100_000, np.uint64))
    order = draw.permutation(one.size)
    met = meet(one, one[order])
    assert met is not None
    assert (met[0] == order).all()
    assert (met[1] == np.arange(one.size)).all()


@pytest.mark.parametrize(("one", "other"), [([7, 7], [7]), ([7], [7, 7]), ([7, 7], [8]), ([7, 2**60, 7], [7])])
def test_what_is_there_twice_is_left_to_who_asked(one: list[int], other: list[int]) -> None:
    assert meet(hashes(one), hashes(other)) is None
