"""Guards: what the gateway ejects for and what the control plane judges are one and the same."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airlock.core.guards import breach, judge_guards, limits_of
from airlock.core.route import Limits
from airlock.core.sequential import ASYMPTOTIC_MINIMUM
from airlock.core.spec import ErrorRateGuard, Guard, LatencyGuard, PredictionShiftGuard
from airlock.core.tally import BUCKETS, Tally
from airlock.core.verdict import Status, fold

ERRORS = ErrorRateGuard(kind="error_rate", max=0.02)
LATENCY = LatencyGuard(kind="latency", max_p99_ms=100)
SHIFT = PredictionShiftGuard(kind="prediction_shift", max_mean=0.05, max_absolute=0.1)
ALL: tuple[Guard, ...] = (ERRORS, LATENCY, SHIFT)


def counted(
    *, good: int = 0, bad: int = 0, slow: int = 0, timeouts: int = 0, pairs: int = 0, shift: float = 0.0
) -> Tally:
    """A tally of ``good`` answers in 5 ms, ``slow`` ones in 900 ms, failures, and pairs ``shift`` +- 0.01 apart."""
    tally = Tally()
    for _ in range(good):
        tally.answered(5)
    for _ in range(slow):
        tally.answered(900)
    for _ in range(bad):
        tally.failed(5)
    for _ in range(timeouts):
        tally.failed(5, timeout=True)
    for index in range(pairs):
        tally.compared(0.5 + shift + (0.01 if index % 2 else -0.01), 0.5)
    return tally


class TestLimits:
    def test_every_guard_becomes_a_limit(self) -> None:
        assert limits_of(ALL) == Limits(max_error_rate=0.02, max_latency_ms=100, max_shift=0.05, max_disagreement=0.1)

    def test_of_two_guards_the_stricter_bound_and_the_larger_minimum_hold(self) -> None:
        limits = limits_of(
            [
                ErrorRateGuard(kind="error_rate", max=0.05, min_requests=10),
                ErrorRateGuard(kind="error_rate", max=0.01, min_requests=300),
                PredictionShiftGuard(kind="prediction_shift", max_mean=1, min_requests=70),
            ]
        )
        assert (limits.max_error_rate, limits.min_requests, limits.min_pairs) == (0.01, 300, 70)
        assert limits.max_latency_ms is None
        assert limits.max_disagreement is None

    def test_no_guard_ejects_nothing(self) -> None:
        assert breach(limits_of([]), counted(timeouts=500)) is None


class TestJudgements:
    @pytest.mark.parametrize(
        ("tally", "statuses"),
        [
            (counted(), "iiii"),
            (counted(good=49, pairs=99), "iiii"),
            (counted(good=50, pairs=100), "pppp"),
            (counted(good=49, bad=1, pairs=100), "pppp"),
            (counted(good=30, bad=20, pairs=100), "fppp"),
            (counted(good=30, timeouts=20, pairs=100), "fppp"),
            (counted(good=40, slow=10, pairs=100), "pfpp"),
            (counted(good=50, pairs=100, shift=0.08), "ppfp"),
            (counted(good=50, pairs=100, shift=-0.08), "ppfp"),
            (counted(good=50, pairs=100, shift=-0.2), "ppff"),
            (counted(good=50, pairs=0), "ppii"),
            (counted(good=0, bad=50), "fpii"),
        ],
    )
    def test_table(self, tally: Tally, statuses: str) -> None:
        letters = {Status.PASS: "p", Status.INCONCLUSIVE: "i", Status.FAIL: "f", Status.ERROR: "e"}
        assert "".join(letters[verdict.status] for verdict in judge_guards(ALL, tally, None)) == statuses

    def test_a_failure_is_told_with_its_numbers(self) -> None:
        errors, latency, shift, disagreement = judge_guards(
            ALL, counted(good=20, bad=10, timeouts=10, slow=20, pairs=120, shift=0.3), counted(good=60)
        )
        assert "failed 20 of 60 requests (33.3%), 10 of them by running out of time" in errors.reason
        assert "allows 2%" in errors.reason
        assert errors.low is not None
        assert errors.low > errors.threshold == 0.02
        assert errors.estimate == pytest.approx(1 / 3)
        assert "20 of 60 requests (33.3%) took the candidate longer than 100 ms" in latency.reason
        assert "champion's p99 in the same time was at most 5.38 ms" in latency.reason
        assert latency.low is not None
        assert latency.low > 0.01
        assert "0.3 above the champion's in the mean" in shift.reason
        assert shift.low is not None
        assert shift.low > 0.05
        assert "differ from the champion's by 0.3 in the mean" in disagreement.reason
        assert disagreement.n == 120

    def test_the_slow_are_only_those_that_surely_were(self) -> None:
        tally = Tally()
        for _ in range(500):
            tally.answered(101)  # in the bucket that holds the bound of 100 ms
        assert judge_guards([LATENCY], tally, None)[0].status is Status.PASS

    def test_no_guard_is_no_verdict_and_no_pass(self) -> None:
        assert fold(judge_guards([], counted(good=500), None)) is Status.INCONCLUSIVE

    def test_a_minimum_under_the_asymptotic_one_waits_for_that(self) -> None:
        guard = PredictionShiftGuard(kind="prediction_shift", max_mean=0.05, min_requests=1)
        (verdict,) = judge_guards([guard], counted(pairs=ASYMPTOTIC_MINIMUM - 1, shift=0.4), None)
        assert verdict.status is Status.INCONCLUSIVE
        assert breach(limits_of([guard]), counted(pairs=ASYMPTOTIC_MINIMUM - 1, shift=0.4)) is None
        assert breach(limits_of([guard]), counted(pairs=ASYMPTOTIC_MINIMUM, shift=0.4)) is not None


class TestNoEvidenceIsNeverAPass:
    @pytest.mark.parametrize("field", ["difference", "difference_squared", "absolute"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_sums_that_are_not_finite(self, field: str, value: float) -> None:
        tally = counted(good=80, pairs=120).model_copy(update={field: value})
        verdicts = judge_guards(ALL, tally, None)
        assert {verdict.status for verdict in verdicts} == {Status.ERROR}
        assert "NaN or infinite" in verdicts[0].reason
        reason = breach(limits_of([SHIFT]), tally)
        assert reason is not None
        assert "NaN or infinite" in reason

    @pytest.mark.parametrize(
        "changes",
        [{"errors": 101}, {"errors": -1}, {"requests": -5}, {"latency": [100, -1, *[0] * (BUCKETS - 2)]}],
    )
    def test_counts_that_cannot_be_true(self, changes: dict[str, Any]) -> None:
        tally = counted(good=100, pairs=60).model_copy(update=changes)
        assert {verdict.status for verdict in judge_guards(ALL, tally, None)} == {Status.ERROR}

    def test_a_bound_that_the_buckets_cannot_tell(self) -> None:
        guard = LatencyGuard(kind="latency", max_p99_ms=20_000)
        (verdict,) = judge_guards([guard], counted(good=100), None)
        assert verdict.status is Status.ERROR
        assert "choose a lower bound" in verdict.reason

    def test_latencies_missing(self) -> None:
        (verdict,) = judge_guards([LATENCY], Tally(requests=100), None)
        assert verdict.status is Status.INCONCLUSIVE


tallies = st.builds(
    counted,
    good=st.integers(0, 80),
    bad=st.integers(0, 20),
    slow=st.integers(0, 20),
    timeouts=st.integers(0, 20),
    pairs=st.integers(0, 200),
    shift=st.floats(-0.3, 0.3),
)


def summed(requests: int, error_rate: float, slow_rate: float, mean: float, spread: float) -> Tally:
    """The sums of any number of requests, without counting them one by one."""
    slow = int(requests * slow_rate)
    return Tally(
        requests=requests,
        errors=int(requests * error_rate),
        latency=[0] * 20 + [requests - slow] + [0] * (BUCKETS - 22) + [slow],
        paired=requests,
        difference=requests * mean,
        difference_squared=requests * (mean * mean + spread * spread),
        absolute=requests * max(abs(mean), spread * 0.8),
    )


large = st.builds(
    summed,
    requests=st.integers(0, 100_000),
    error_rate=st.floats(0, 0.06),
    slow_rate=st.floats(0, 0.04),
    mean=st.floats(-0.1, 0.1),
    spread=st.floats(0, 0.3),
)


@given(st.one_of(tallies, large))
def test_the_gateway_ejects_exactly_what_the_control_plane_fails(tally: Tally) -> None:
    failed = [verdict.reason for verdict in judge_guards(ALL, tally, None) if verdict.status is Status.FAIL]
    reason = breach(limits_of(ALL), tally)
    assert (reason is None) == (not failed)
    if reason is not None:
        assert reason in failed


@pytest.mark.parametrize("excess", [1.3, 2.0, 10.0])
def test_with_enough_requests_every_excess_is_found(excess: float) -> None:
    for tally in (summed(50_000, 0.02 * excess, 0, 0, 0), summed(50_000, 0, 0.01 * excess, 0, 0)):
        assert breach(limits_of([ERRORS, LATENCY]), tally) is not None
    for mean in (0.05 * excess, -0.05 * excess):
        assert breach(limits_of([SHIFT]), summed(50_000, 0, 0, mean, 0.1)) is not None


def test_at_the_bound_nothing_is_found_however_many_the_requests() -> None:
    assert breach(limits_of(ALL), summed(1_000_000, 0.02, 0.01, 0.05, 0.1)) is None


@given(tallies)
def test_verdicts_survive_json_and_pass_only_with_their_sample(tally: Tally) -> None:
    for verdict, needed in zip(
        judge_guards(ALL, tally, tally), (50, 50, ASYMPTOTIC_MINIMUM, ASYMPTOTIC_MINIMUM), strict=True
    ):
        assert type(verdict).model_validate_json(verdict.model_dump_json()) == verdict
        if verdict.passed:
            assert verdict.n is not None
            assert verdict.n >= needed


def test_a_healthy_candidate_costs_little_to_look_at() -> None:
    """Called after each candidate request: the best of several rounds, because the machine is shared."""
    tally, limits = counted(good=990, bad=10, pairs=1000, shift=0.01), limits_of(ALL)
    rounds = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(200):
            breach(limits, tally)
        rounds.append((time.perf_counter() - start) / 200)
    assert min(rounds) < 10e-6


def test_a_candidate_that_fails_one_in_five_is_ejected_at_once() -> None:
    """Requests until ejection over 300 runs (seed 11): the minimum sample nearly always suffices."""
    limits, needed = limits_of(ALL), []
    for seed in range(300):
        rng, tally = random.Random(1100 + seed), Tally()  # noqa: S311 - a simulation
        while breach(limits, tally) is None:
            if rng.random() < 0.2:
                tally.failed(5)
            else:
                tally.answered(5)
            assert tally.requests < 200
        needed.append(tally.requests)
    assert sorted(needed)[150] <= 52
    assert sorted(needed)[285] <= 80
