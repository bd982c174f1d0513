"""What is counted of a candidate, and the windows over which its limits are tested."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import RootModel

from airlock.core import guards, sequential
from airlock.core.counters import PER_OCTAVE, SPACING, Counters
from airlock.core.guards import breach, judge
from airlock.core.route import Limit
from airlock.core.tally import SCOPES, Checkpoint, Role, Scope, Tally
from airlock.core.verdict import Status
from airlock.core.windows import Window, weight, windows

ERRORS = Limit(name="error_rate", signal="errors", bound=0.05, alpha=0.01, steps=5)
SLOW = Limit(name="latency_p99", signal="slow", bound=0.01, alpha=0.01, steps=5, over_ms=100)
FALLBACKS = Limit(name="fallback_rate", signal="fallbacks", bound=0.1, alpha=0.01, steps=5)
SHIFT = Limit(name="prediction_shift", signal="difference", bound=0.05, alpha=0.01, steps=5, reach=2.0, least=-1.0)
FLIPS = Limit(name="disagreement", signal="flips", bound=0.4, alpha=0.01, steps=5, reach=1.0)
ALL = (ERRORS, SLOW, FALLBACKS, SHIFT, FLIPS)
Kept = RootModel[tuple[dict[str, Tally], dict[Scope, tuple[Checkpoint, ...]]]]


class Event(NamedTuple):
    role: Role
    failed: bool
    slow: bool
    difference: float
    begins_step: bool = False


def events(seed: int, count: int, *, errors: float = 0.05, slow: float = 0.01, steps: float = 0.003) -> list[Event]:
    rng = random.Random(seed)  # noqa: S311 - a simulation
    return [
        Event(
            "served" if rng.random() < 0.3 else "shadow",
            rng.random() < errors,
            rng.random() < slow,
            rng.choice([-0.125, 0.125, 0.25]),  # which add up exactly, in whatever order
            rng.random() < steps,
        )
        for _ in range(count)
    ]


def count(counters: Counters, event: Event) -> None:
    """As the gateway does: count, then test, then take a checkpoint where one is due."""
    if event.begins_step:
        counters.begin_step()
    for tally in counters.tallies(event.role):
        (tally.failed if event.failed else tally.answered)(200.0 if event.slow else 5.0, {"latency_p99": 100})
        tally.fallbacks += event.failed
        tally.compared([event.difference], int(event.difference < 0))


class Recount:
    """The same, from the events themselves: every checkpoint that ever was, by where its stream stood."""

    def __init__(self, happened: list[Event]) -> None:
        self.happened = happened
        self.starts: dict[tuple[Scope, str, int], int] = {}
        seen: dict[Scope, int] = dict.fromkeys(SCOPES, 0)
        steps: dict[Scope, int] = dict.fromkeys(SCOPES, 1)
        for index, event in enumerate(happened):
            for scope in SCOPES:
                if event.begins_step and seen[scope]:
                    steps[scope] += 1
                    self.starts[scope, "step", steps[scope]] = index
                if scope == "all" or event.role == "served":
                    seen[scope] += 1
                    if seen[scope] % SPACING == 0:
                        self.starts[scope, "restart", seen[scope] // SPACING] = index + 1

    def since(self, window: Window) -> list[Event]:
        checkpoint = window.since
        start = 0 if checkpoint is None else self.starts[window.scope, checkpoint.kind, checkpoint.number]
        return [event for event in self.happened[start:] if window.scope == "all" or event.role == "served"]


@given(st.integers(0, 2**32), st.integers(0, 900))
def test_the_sums_of_each_window_are_those_of_what_came_since(seed: int, length: int) -> None:
    happened = events(seed, length)
    counters = Counters()
    for event in happened:
        count(counters, event)
        counters.restart_if_due()
    recount = Recount(happened)
    for limit in ALL:
        for window in windows(limit, counters):
            came = recount.since(window)
            values = {
                "errors": [float(event.failed) for event in came],
                "slow": [float(event.slow) for event in came],
                "fallbacks": [float(event.failed) for event in came],
                "difference": [event.difference for event in came],
                "flips": [float(event.difference < 0) for event in came],
            }[limit.signal]
            if not any(values):
                continue
            assert window.seen.n == len(came)
            assert window.seen.total == pytest.approx(sum(values), abs=1e-9)
            assert window.seen.squares == pytest.approx(sum(value * value for value in values), abs=1e-9)


@given(st.integers(0, 2**32), st.lists(st.integers(1, 400), min_size=1, max_size=4))
def test_counters_that_were_killed_and_read_back_are_those_that_were_not(seed: int, cuts: list[int]) -> None:
    whole, broken = Counters(), Counters()
    roles: dict[str, Tally] = {"served": Tally(), "shadow": Tally()}
    happened = iter(events(seed, sum(cuts)))
    for cut in cuts:
        for event in itertools.islice(happened, cut):
            count(whole, event)
            whole.restart_if_due()
            count(broken, event)
            broken.restart_if_due()
            mirror = Counters({"served": Tally()})
            count(mirror, event._replace(begins_step=False))
            roles[event.role].include(mirror.all.sums)
        kept = Kept((roles, broken.checkpoints)).model_dump_json()
        broken = Counters(*Kept.model_validate_json(kept).root)
        assert broken.checkpoints == whole.checkpoints
        for scope in SCOPES:
            assert broken.stream(scope).sums == whole.stream(scope).sums


class TestCheckpoints:
    @staticmethod
    def numbers(requests: int) -> list[int]:
        counters = Counters()
        for number in range(1, requests // SPACING + 1):
            counters.all.sums.requests = number * SPACING
            counters.restart_if_due()
        return [checkpoint.number for checkpoint in counters.all.checkpoints]

    def test_their_ages_are_about_geometric(self) -> None:
        newest = 20_000
        ages = [newest - number for number in self.numbers(newest * SPACING)]
        assert len(ages) <= 60
        assert ages[-2 * PER_OCTAVE :] == list(reversed(range(2 * PER_OCTAVE)))
        for older, younger in itertools.pairwise(ages):
            assert older - younger <= max(1, younger * 2 / PER_OCTAVE)

    def test_one_that_went_does_not_come_back(self) -> None:
        gone: set[int] = set()
        before: set[int] = set()
        for blocks in range(1, 400):
            now = set(self.numbers(blocks * SPACING))
            assert blocks in now
            assert not now & gone
            gone |= before - now
            before = now

    def test_counts_that_jump_give_no_number_twice(self) -> None:
        counters = Counters()
        counters.include("served", Tally(requests=3 * SPACING + 7))
        counters.restart_if_due()
        counters.restart_if_due()
        counters.include("shadow", Tally(requests=SPACING))
        counters.restart_if_due()
        assert [checkpoint.number for checkpoint in counters.all.checkpoints] == [3, 4]
        assert [checkpoint.number for checkpoint in counters.served.checkpoints] == [3]

    def test_a_step_that_begins_with_its_stream_has_none(self) -> None:
        counters = Counters()
        counters.begin_step()
        counters.include("shadow", Tally(requests=10))
        counters.begin_step()
        counters.include("served", Tally(requests=5))
        counters.begin_step()
        assert [(c.kind, c.number, c.requests) for c in counters.all.checkpoints] == [("step", 2, 10), ("step", 3, 15)]
        assert [(c.kind, c.number, c.requests) for c in counters.served.checkpoints] == [("step", 2, 5)]

    def test_a_fallback_that_is_counted_in_the_next_step_breaks_nothing(self) -> None:
        """A request fails, the route moves on, and only then the champion has answered in its place."""
        counters = Counters({"served": Tally(requests=500, slow={"latency_p99": 0})})
        for tally in counters.tallies("served"):
            tally.failed(5.0)
        counters.begin_step()
        for tally in counters.tallies("served"):
            tally.fallbacks += 1
        assert counters.served.step.fallbacks == 0
        assert breach(ALL, counters) is None
        assert {verdict.status for verdict in judge(ALL[:3], counters)} == {Status.PASS}


def test_what_an_outlier_before_it_has_rounded_away_ejects_nobody() -> None:
    shift = Limit(name="prediction_disagreement", signal="absolute", bound=10, alpha=0.01, steps=5)
    counters, limits = Counters(), [shift]
    for difference in [1e6] + 2000 * [5.77]:
        for tally in counters.tallies("served"):
            tally.answered(5.0)
            tally.compared([difference], 0)
        assert breach(limits, counters) is None
        counters.restart_if_due()


class TestWeights:
    @pytest.mark.parametrize("steps", [1, 5])
    @pytest.mark.parametrize("limit", [ERRORS, SHIFT])
    def test_they_add_up_to_at_most_1(self, limit: Limit, steps: int) -> None:
        limit = limit.model_copy(update={"steps": steps})
        spent = 0.0
        for scope in SCOPES if limit.signal == "errors" else SCOPES[:1]:
            spent += weight(limit, scope, None)
            spent += sum(weight(limit, scope, Checkpoint(kind="step", number=n)) for n in range(-1, 50))
            spent += sum(weight(limit, scope, Checkpoint(kind="restart", number=n)) for n in range(-1, 100_000))
        assert 0.95 < spent <= 1

    def test_more_steps_than_planned_spend_nothing(self) -> None:
        assert weight(ERRORS, "all", Checkpoint(kind="step", number=5)) > 0
        assert weight(ERRORS, "all", Checkpoint(kind="step", number=6)) == 0


def wealth(values: np.ndarray, limit: Limit) -> float:
    """Log of what the test's bets really come to: the mixture of the products of 1 + bet * (y - 1)."""
    least, greatest = guards._ends(limit) or (0.0, 1.0)
    scale = limit.bound - least
    y = (values - least) / scale
    bets, weights = np.array(sequential._bets(scale / (greatest - least))).T
    return float(np.logaddexp.reduce(np.log1p(bets[:, None] * (y - 1)).sum(axis=1) + weights))


@given(st.integers(0, 2**32), st.sampled_from([SHIFT, FLIPS, ERRORS]))
def test_no_window_s_e_value_exceeds_what_its_bets_come_to(seed: int, limit: Limit) -> None:
    """So that the mixture of what is computed from sums never exceeds the mixture of the products themselves."""
    happened = events(seed, 400, errors=0.15)
    counters = Counters()
    for event in happened:
        count(counters, event)
        counters.restart_if_due()
    recount = Recount(happened)
    for window in windows(limit, counters):
        if not guards._is_over(limit, window.seen):
            continue
        came = recount.since(window)
        if limit.signal == "errors":
            exact = wealth(np.array([float(event.failed) for event in came]), limit)
        elif limit.signal == "flips":
            exact = wealth(np.array([float(event.difference < 0) for event in came]), limit)
        else:
            side = math.copysign(1, window.seen.total)
            exact = wealth(np.array([side * event.difference for event in came]), limit) - math.log(2)
        assert guards._log_e(limit, window.seen) <= exact + 1e-9


def streams() -> Iterator[tuple[str, list[Event]]]:
    yield "at the bound", events(1, 600, errors=0.05, slow=0.01)
    yield "bad from the start", events(2, 600, errors=0.15)
    yield "bad later", events(3, 400, errors=0.02) + events(4, 400, errors=0.2, steps=0)
    yield "slow later", events(5, 400, errors=0.0, slow=0.002) + events(6, 400, errors=0, slow=0.1, steps=0)
    served = [event._replace(failed=event.role == "served" and event.failed) for event in events(7, 1000, errors=0.25)]
    yield "bad where it answers", served


@pytest.mark.parametrize(("name", "happened"), list(streams()), ids=[name for name, _ in streams()])
def test_what_is_not_tested_again_would_not_have_been_found(name: str, happened: list[Event]) -> None:
    """The gateway leaves out what cannot reject. It ejects at the very request at which all windows together do."""
    limits = ALL[:3] + ALL[4:]
    counters = Counters()
    for event in happened:
        count(counters, event)
        reason = breach(limits, counters)
        verdicts = judge(limits, counters)
        failed = [verdict.reason for verdict in verdicts if verdict.status in (Status.FAIL, Status.ERROR)]
        assert (reason is None) == (not failed)
        counters.restart_if_due()
        if reason is not None:
            assert reason in failed
            break
    assert (reason is None) == (name == "at the bound")


class TestWords:
    def test_a_failure_of_what_was_served_is_told_as_such(self) -> None:
        counters = Counters({"shadow": Tally(requests=2000), "served": Tally(requests=21, errors=21)})
        (verdict,) = judge([ERRORS], counters)
        assert verdict.status is Status.FAIL
        assert "failed 21 of 21 requests that were for it to answer (100%)" in verdict.reason
        assert breach([ERRORS], counters) == verdict.reason
        assert verdict.low is not None
        assert verdict.low > ERRORS.bound

    def test_a_failure_of_late_is_told_as_such(self) -> None:
        counters = Counters({"shadow": Tally(requests=20_000, errors=100)})
        counters.restart_if_due()
        counters.include("shadow", Tally(requests=100, errors=30))
        (verdict,) = judge([ERRORS], counters)
        assert verdict.reason.startswith("the candidate failed 30 of the last 100 requests (30%)")
        assert (verdict.n, verdict.estimate) == (100, 0.3)
