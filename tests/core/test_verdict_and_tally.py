"""Verdicts fold to the worst, and tallies are sums that lose nothing that a guard needs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.core.tally import BUCKETS, Tally, bucket, upper_ms
from airlock.core.verdict import Status, Verdict, fold


def of(*statuses: Status) -> list[Verdict]:
    return [Verdict(name="a", status=status, reason="so") for status in statuses]


class TestFold:
    def test_no_verdict_is_no_pass(self) -> None:
        assert fold([]) is Status.INCONCLUSIVE

    @pytest.mark.parametrize("statuses", [*itertools.product(Status), *itertools.product(Status, repeat=3)])
    def test_it_passes_only_when_all_do(self, statuses: tuple[Status, ...]) -> None:
        folded = fold(of(*statuses))
        assert (folded is Status.PASS) == all(status is Status.PASS for status in statuses)
        assert folded in statuses
        assert folded is fold(of(*reversed(statuses)))
        if Status.FAIL in statuses:
            assert folded is Status.FAIL

    def test_only_pass_is_passed(self) -> None:
        assert [verdict.passed for verdict in of(*Status)] == [status is Status.PASS for status in Status]


class TestBuckets:
    @given(st.floats(0, 1e9))
    def test_a_latency_lies_in_its_bucket(self, latency: float) -> None:
        index = bucket(latency)
        assert 0 <= index < BUCKETS
        assert latency <= upper_ms(index) * (1 + 1e-12)
        if index:
            assert latency > upper_ms(index - 1) * (1 - 1e-12)

    def test_they_grow_by_less_than_a_fifth(self) -> None:
        edges = [upper_ms(index) for index in range(BUCKETS - 1)]
        assert all(later / earlier < 1.2 for earlier, later in itertools.pairwise(edges))
        assert edges[-1] > 9_000
        assert upper_ms(BUCKETS - 1) == math.inf


latencies = st.lists(st.floats(0.01, 20_000), min_size=1, max_size=200)


class TestTally:
    @given(latencies, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
    def test_a_quantile_is_known_to_its_bucket(self, values: list[float], q: float) -> None:
        tally = Tally()
        for value in values:
            tally.answered(value)
        exact = float(np.quantile(values, q, method="inverted_cdf"))
        assert tally.quantile_ms(q) == upper_ms(bucket(exact))

    def test_without_requests_there_is_no_quantile(self) -> None:
        assert Tally().quantile_ms(0.99) is None

    def test_what_is_counted(self) -> None:
        tally = Tally()
        tally.answered(3)
        tally.failed(4)
        tally.failed(300, timeout=True)
        tally.compared(0.7, 0.5)
        tally.compared(0.4, 0.5)
        assert (tally.requests, tally.errors, tally.timeouts, tally.paired) == (3, 2, 1, 2)
        assert sum(tally.latency) == 3
        assert (tally.difference, tally.difference_squared, tally.absolute) == pytest.approx((0.1, 0.05, 0.3))

    @given(latencies, latencies)
    def test_two_tallies_add_up_to_one_of_everything(self, one: list[float], two: list[float]) -> None:
        def tally(values: list[float]) -> Tally:
            counted = Tally()
            for index, value in enumerate(values):
                counted.failed(value, timeout=index % 3 == 0) if index % 2 else counted.answered(value)
                counted.compared(value, 1)
            return counted

        whole, parts = tally(one).model_dump(), (tally(one) + Tally()).model_dump()
        assert parts == whole
        both = tally(one) + tally(two)
        assert both.requests == len(one) + len(two)
        assert sum(both.latency) == both.requests
        assert both.difference == pytest.approx(sum(one) + sum(two) - both.requests, abs=1e-6)
        assert Tally.model_validate_json(both.model_dump_json()) == both

    def test_two_tallies_share_nothing(self) -> None:
        first, second = Tally(), Tally()
        first.answered(1)
        assert sum(second.latency) == 0
