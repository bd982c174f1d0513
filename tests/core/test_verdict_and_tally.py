"""Verdicts fold to the worst, and tallies are sums that lose nothing that a guard needs."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.core.tally import BUCKETS, LateEvidence, Sums, Tally, bucket, upper_ms
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
        tally.compared([0.2], 0)
        tally.compared([-0.1, 0.3, -0.5], 2)
        assert (tally.requests, tally.errors, tally.timeouts) == (3, 2, 1)
        assert sum(tally.latency) == 3
        for sums, expected in (
            (tally.difference, {"n": 2, "total": 0.1, "squares": 0.05, "smallest": -0.1, "largest": 0.2}),
            (tally.absolute, {"n": 2, "total": 0.5, "squares": 0.13, "smallest": 0.2, "largest": 0.3}),
            (tally.flips, {"n": 2, "total": 2 / 3, "squares": 4 / 9, "smallest": 0, "largest": 2 / 3}),
        ):
            assert sums.model_dump() == pytest.approx(expected)

    def test_slow_is_what_took_longer_than_allowed_whether_it_failed_or_not(self) -> None:
        tally, allowed = Tally(), {"latency_p50": 10.0, "latency_p99": 100.0}
        for latency in (5, 10, 11, 100):
            tally.answered(latency, allowed)
        tally.failed(101, allowed)
        assert tally.slow == {"latency_p50": 3, "latency_p99": 1}

    @given(latencies, latencies)
    def test_two_tallies_add_up_to_one_of_everything(self, one: list[float], two: list[float]) -> None:
        def tally(values: list[float]) -> Tally:
            counted, allowed = Tally(), {"latency_p99": 100.0}
            for index, value in enumerate(values):
                if index % 2:
                    counted.failed(value, allowed, timeout=index % 3 == 0)
                else:
                    counted.answered(value, allowed)
                counted.compared([value - 1], index % 2)
            return counted

        assert (tally(one) + Tally()).model_dump() == tally(one).model_dump()
        both, whole = (tally(one) + tally(two)), tally(one + two)
        assert both.requests == whole.requests
        assert both.latency == whole.latency
        assert both.slow == whole.slow
        assert both.difference.model_dump() == pytest.approx(whole.difference.model_dump())
        assert both.absolute.model_dump() == pytest.approx(whole.absolute.model_dump())
        assert Tally.model_validate_json(both.model_dump_json()) == both

    def test_two_tallies_share_nothing(self) -> None:
        first, second = Tally(), Tally()
        first.answered(1)
        assert sum(second.latency) == 0

    def test_sums_without_their_extremes_hide_those_of_what_is_added(self) -> None:
        """What was written down before they were kept goes on without them: nothing is claimed of its values."""
        old = Sums.model_validate_json('{"n": 3, "total": 0.3, "squares": 0.5}')
        new = Sums()
        new.add(0.2)
        for mixed in (old + new, new + old):
            assert (mixed.n, mixed.smallest, mixed.largest) == (4, None, None)
        old.add(0.2)
        assert (old.n, old.smallest, old.largest) == (4, None, None)
        assert (new + Sums()) == (Sums() + new) == new

    def test_a_mean_of_nothing_is_not_known(self) -> None:
        sums = Sums()
        assert sums.mean is None
        sums.add(3)
        assert sums.mean == 3


def test_the_share_of_labels_counts_those_that_are_due() -> None:
    evidence = LateEvidence(until=datetime(2026, 1, 2, tzinfo=UTC), answers=100, due=40, labelled=30)
    assert evidence.share == 0.75
    assert evidence.model_copy(update={"due": 0}).share is None
