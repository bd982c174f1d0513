"""Anytime-valid statistics: they keep their promise at every look, and they do find what is there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize

from airlock.core import sequential
from airlock.core.guards import SLOW_SHARE, breach
from airlock.core.route import Limits
from airlock.core.sequential import ASYMPTOTIC_MINIMUM, mean_interval, rate_interval, rate_log_e_value
from airlock.core.tally import Tally


def critical_hits(looks: int, bound: float, alpha: float) -> np.ndarray:
    """The fewest hits that reject, after 1, 2, ... ``looks`` events."""
    hits, found = 0, []
    for n in range(1, looks + 1):
        while hits <= n and rate_log_e_value(hits, n, bound) < -math.log(alpha):
            hits += 1
        found.append(hits)
    return np.array(found)


class TestRateTest:
    @pytest.mark.parametrize("bound", [0.01, 0.02, 0.1, 0.5])
    def test_its_expectation_under_the_null_is_one(self, bound: float) -> None:
        """Summed over every outcome of 12 events; below the bound it is less."""
        for rate, expected in ((bound, 1.0), (bound / 2, None)):
            mean = sum(
                math.comb(12, hits)
                * rate**hits
                * (1 - rate) ** (12 - hits)
                * math.exp(rate_log_e_value(hits, 12, bound))
                for hits in range(13)
            )
            assert mean == pytest.approx(expected) if expected else mean < 1

    @pytest.mark.parametrize("bound", [0.01, 0.02, 0.1])
    @pytest.mark.parametrize("alpha", [0.01, 0.05])
    def test_false_alarms_at_the_bound_stay_below_alpha(self, bound: float, alpha: float) -> None:
        """4,000 runs of 400 events, a look after each; seed 20."""
        events = np.random.default_rng(20).random((4000, 400)) < bound
        alarms = (events.cumsum(axis=1) >= critical_hits(400, bound, alpha)).any(axis=1)
        assert alarms.mean() <= alpha

    def test_false_alarms_when_the_rate_moves_below_the_bound(self) -> None:
        """Rates that change with what came before are covered too: nothing is assumed to be independent. Seed 21."""
        rng, critical = np.random.default_rng(21), critical_hits(400, 0.05, 0.05)
        hits, alarms = np.zeros(4000, dtype=int), np.zeros(4000, dtype=bool)
        for n in range(400):
            hits += rng.random(4000) < np.where(hits > 0.03 * n, 0.05, 0.01)
            alarms |= hits >= critical[n]
        assert alarms.mean() <= 0.05

    @pytest.mark.parametrize(("rate", "median"), [(1.0, 3), (0.5, 6), (0.2, 25), (0.1, 80)])
    def test_excesses_over_two_percent_are_found(self, rate: float, median: int) -> None:
        """Events until detection, 1,000 runs; seed 22."""
        events = np.random.default_rng(22).random((1000, 600)) < rate
        crossed = events.cumsum(axis=1) >= critical_hits(600, 0.02, 0.005)
        assert crossed.any(axis=1).mean() > 0.99
        assert np.median(crossed.argmax(axis=1) + 1) <= median

    def test_against_numerical_integration_of_the_likelihoods(self) -> None:
        """The mixture lies where it should: within a factor of the continuous one on the log-odds scale."""
        bound = 0.02
        low, high = (math.log(rate / (1 - rate)) for rate in (bound * 1.05, 1 - 0.1 * (1 - bound)))

        def ratio(log_odds: float, hits: int, n: int) -> float:
            rate = 1 / (1 + math.exp(-log_odds))
            return (rate / bound) ** hits * ((1 - rate) / (1 - bound)) ** (n - hits)

        for hits, n in ((1, 50), (5, 50), (8, 100), (20, 100), (30, 1000)):
            continuous = integrate.quad(ratio, low, high, args=(hits, n))[0] / (high - low)
            assert math.exp(rate_log_e_value(hits, n, bound)) == pytest.approx(continuous, rel=0.15)

    @given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0.001, 0.9))
    def test_more_hits_never_look_better(self, n: int, share: float, bound: float) -> None:
        hits = int(share * (n - 1))
        more, fewer = rate_log_e_value(hits + 1, n, bound), rate_log_e_value(hits, n, bound)
        assert more > fewer - 1e-9
        assert math.isfinite(more)


class TestRateInterval:
    def test_without_events_nothing_is_known(self) -> None:
        estimate, low, high = rate_interval(0, 0, 0.05)
        assert math.isnan(estimate)
        assert (low, high) == (0, 1)

    @given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.001, 0.01, 0.2]))
    def test_it_holds_the_estimate_and_is_symmetric(self, n: int, share: float, alpha: float) -> None:
        hits = round(share * n)
        estimate, low, high = rate_interval(hits, n, alpha)
        mirrored = rate_interval(n - hits, n, alpha)
        assert 0 <= low <= estimate <= high <= 1
        assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high))

    @given(st.integers(30, 3000), st.floats(0.001, 0.5), st.floats(0.001, 0.3))
    def test_its_lower_bound_is_where_the_test_stops_rejecting(self, n: int, share: float, bound: float) -> None:
        hits = max(1, round(share * n))
        low = rate_interval(hits, n, 0.01).low
        if abs(low - bound) > 1e-6:
            assert (low > bound) == (rate_log_e_value(hits, n, bound) >= math.log(100) and hits > bound * n)

    def test_every_bound_covers_at_all_times(self) -> None:
        """1,000 runs of 150 events at a rate of 0.1, looked at 15 times; each bound misses at most alpha. Seed 23."""
        events = np.random.default_rng(23).random((1000, 150)) < 0.1
        missed = np.zeros((1000, 2), dtype=bool)
        cached = {(hits, n): rate_interval(hits, n, 0.05) for n in range(10, 151, 10) for hits in range(n // 2 + 1)}
        for run, hits in enumerate(events.cumsum(axis=1)):
            for n in range(10, 151, 10):
                interval = cached[int(hits[n - 1]), n]
                missed[run] |= [interval.low > 0.1, interval.high < 0.1]
        assert (missed.mean(axis=0) <= 0.05).all()


class TestMeanInterval:
    def test_one_value_tells_nothing_of_the_spread(self) -> None:
        assert mean_interval(1, 0.3, 0.09, 0.05, sharpest=50) == (0.3, -math.inf, math.inf)
        assert math.isnan(mean_interval(0, 0, 0, 0.05, sharpest=50).estimate)

    def test_the_half_width_is_that_of_the_paper(self) -> None:
        """Theorem 2.2 of Waudby-Smith et al. (2024), written out with its rho."""
        values = np.random.default_rng(1).normal(2, 3, 400)
        n, alpha, sharpest = 400, 0.05, 100
        rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / sharpest
        half = values.std(ddof=1) * np.sqrt(2 * (n * rho2 + 1) / (n**2 * rho2) * np.log(np.sqrt(n * rho2 + 1) / alpha))
        interval = mean_interval(n, values.sum(), (values**2).sum(), alpha, sharpest=sharpest)
        assert interval == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))

    def test_it_is_narrowest_relative_to_its_time_where_asked(self) -> None:
        """The margin over a fixed-sample interval is smallest near ``sharpest``."""

        def excess(n: float) -> float:
            interval = mean_interval(int(n), 0.0, n - 1, 0.01, sharpest=200)
            return (interval.high - interval.low) * math.sqrt(n)

        best = optimize.minimize_scalar(excess, bounds=(20, 2000), method="bounded").x
        assert 150 < best < 260

    @pytest.mark.parametrize(
        ("name", "draw"),
        [
            ("normal", lambda rng, shape: rng.normal(0.05, 0.2, shape)),
            ("exponential", lambda rng, shape: rng.exponential(0.05, shape)),
            ("left-skewed", lambda rng, shape: 0.1 - rng.exponential(0.05, shape)),
            ("two values", lambda rng, shape: np.where(rng.random(shape) < 0.5, 0.0, 0.1)),
        ],
    )
    def test_false_alarms_at_the_bound_stay_below_alpha(self, name: str, draw: object) -> None:
        """3,000 runs of up to 350 values with mean 0.05, a look after each from the minimum on; seed 24."""
        values = draw(np.random.default_rng(24), (3000, 350))  # type: ignore[operator]
        sums, squares = values.cumsum(axis=1), (values**2).cumsum(axis=1)
        alarms = 0
        for run in range(len(values)):
            # The interval is far from the bound at most looks: ask only where the mean is above it.
            looks = np.flatnonzero(sums[run] > 0.05 * np.arange(1, 351)) + 1
            alarms += any(
                mean_interval(int(n), sums[run, n - 1], squares[run, n - 1], 0.01, sharpest=50).low > 0.05
                for n in looks
                if n >= ASYMPTOTIC_MINIMUM and (n % 5 == 0)
            )
        assert alarms / 3000 <= 0.01, name

    def test_rounding_never_makes_a_variance_negative(self) -> None:
        interval = mean_interval(100, 100 * 0.1, 100 * 0.1 * 0.1, 0.01, sharpest=50)
        assert interval.low == pytest.approx(0.1)
        assert interval.high == pytest.approx(0.1)


@pytest.mark.slow
def test_a_candidate_that_sits_on_every_bound_is_rarely_ejected() -> None:
    """All four limits at once through the gateway's door: 1,000 runs of 400 requests, alpha 0.01, seed 25."""
    rng, limits = (
        np.random.default_rng(25),
        Limits(
            min_requests=50, min_pairs=50, max_error_rate=0.02, max_latency_ms=10, max_shift=0.02, max_disagreement=0.05
        ),
    )
    ejected = 0
    for _ in range(1000):
        failed, slow = rng.random(400) < 0.02, rng.random(400) < SLOW_SHARE
        differences = np.where(rng.random(400) < 0.7, 0.05, -0.05)
        tally = Tally()
        for index in range(400):
            latency = 30.0 if slow[index] else 5.0
            if failed[index]:
                tally.failed(latency)
            else:
                tally.answered(latency)
            tally.compared(0.5 + differences[index] * 0.999, 0.5)
            if breach(limits, tally):
                ejected += 1
                break
    assert ejected / 1000 <= 0.01


def test_a_test_that_is_repeated_without_correction_would_not_do() -> None:
    """Why this module exists: a one-sided 1 % z-test looked at after each of 400 events. Seed 26."""
    events = np.random.default_rng(26).random((2000, 400)) < 0.05
    n = np.arange(1, 401)
    scores = (events.cumsum(axis=1) / n - 0.05) / np.sqrt(0.05 * 0.95 / n)
    assert (scores[:, 49:] > 2.326).any(axis=1).mean() > 0.03


def test_alternatives_lie_between_the_bound_and_one() -> None:
    for bound in (1e-9, 0.01, 0.5, 0.99, 1 - 1e-9):
        hits = [hit for hit, _ in sequential._alternatives(bound)]
        assert hits == sorted(hits)
        assert all(hit > 0 for hit in hits)
        assert all(miss < 0 for _, miss in sequential._alternatives(bound))
