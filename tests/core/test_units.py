"""Units of evidence: a customer counts once, a minute counts once, and nothing goes by unguarded."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from airlock.core import units as module
from airlock.core.counters import Counters
from airlock.core.guards import breach, judge, limits_of
from airlock.core.replay import replay
from airlock.core.replay_traffic import Observation, Traffic
from airlock.core.route import Limit
from airlock.core.spec import ModelSpec
from airlock.core.tally import Sums
from airlock.core.units import SLOTS, Units, UnitsState
from airlock.core.verdict import Status
from tests.support.toy_model import toy_spec


def limits(*guards: dict[str, Any]) -> tuple[Limit, ...]:
    return limits_of(
        ModelSpec.model_validate(
            {
                "model": "m",
                "task": "classification",
                "data": {"key": "id", "event_time": "t"},
                "label": {"name": "y"},
                "inputs": {"x": "float"},
                "gates": [{"kind": "finite"}],
                "guards": guards,
            }
        )
    )


ERRORS = {"kind": "error_rate", "max": 0.02}
BY_KEY, BY_MINUTE = limits({**ERRORS, "by": "key"}, {**ERRORS, "by": "minute"})


def counting(*wanted: Limit, state: UnitsState | None = None) -> tuple[Counters, Units]:
    counters = Counters(units=state.sums if state else None)
    return counters, Units(wanted, counters, state)


def of(counters: Counters, limit: Limit, scope: Any = "all") -> Sums:
    return counters.stream(scope).sums.units.get(limit.name, Sums())


class TestSpec:
    def test_a_unit_makes_a_limit_of_its_own(self) -> None:
        found = limits({**ERRORS, "max": 0.05}, {**ERRORS, "by": "key"}, {**ERRORS, "by": "minute", "min_requests": 20})
        assert [(limit.name, limit.by, limit.bound, limit.minimum) for limit in found] == [
            ("error_rate", "request", 0.05, 50),
            ("error_rate_by_key", "key", 0.02, 50),
            ("error_rate_by_minute", "minute", 0.02, 20),
        ]
        assert sum(limit.alpha for limit in found) == pytest.approx(0.01)

    @pytest.mark.parametrize(
        "guard",
        [
            {"kind": "paired_loss", "metric": "brier", "margin": 0.01, "by": "key"},
            {**ERRORS, "by": "hour"},
        ],
    )
    def test_what_has_no_such_unit_is_refused(self, guard: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="by"):
            limits(guard)


class TestKeys:
    def test_only_the_first_request_of_a_key_counts(self) -> None:
        counters, units = counting(BY_KEY)
        for failed in (True, True, True):
            units.answered("served", "ann", 1.0, failed=failed, at=0.0)
        units.answered("served", "bob", 1.0, failed=False, at=0.0)
        units.answered("served", "bob", 1.0, failed=True, at=500.0)
        assert (of(counters, BY_KEY).n, of(counters, BY_KEY).total) == (2, 1.0)

    def test_a_key_that_was_asked_in_shadow_counts_anew_where_it_is_served(self) -> None:
        counters, units = counting(BY_KEY)
        units.answered("shadow", "ann", 1.0, failed=False, at=0.0)
        units.answered("served", "ann", 1.0, failed=True, at=0.0)
        assert (of(counters, BY_KEY).n, of(counters, BY_KEY).total) == (1, 0.0)
        assert (of(counters, BY_KEY, "served").n, of(counters, BY_KEY, "served").total) == (1, 1.0)

    def test_requests_without_a_key_are_guarded_one_by_one(self) -> None:
        counters, units = counting(BY_KEY)
        for _ in range(60):
            units.answered("served", None, 1.0, failed=True, at=0.0)
        assert of(counters, BY_KEY).n == 60
        assert "60 of 60 keys" in str(breach([BY_KEY], counters))

    def test_two_keys_in_one_slot_count_once_and_none_counts_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "SLOTS", 1024)
        counters, units = counting(BY_KEY)
        for _ in range(3):
            for number in range(1000):
                units.answered("shadow", f"k{number}", 1.0, failed=number % 4 == 0, at=0.0)
        seen = of(counters, BY_KEY)
        assert abs(seen.n - 1024 * (1 - np.exp(-1000 / 1024))) < 60
        assert abs((seen.mean or 0) - 0.25) < 0.06

    def test_what_answers_are_compared_on_has_its_own_first_request(self) -> None:
        (shift,) = limits({"kind": "prediction_shift", "max_mean": 0.05, "by": "key"})
        counters, units = counting(BY_KEY, shift)
        units.answered("served", "ann", 1.0, failed=False, at=0.0)
        units.compared("ann", [0.25, 0.75], 1, at=0.0)
        units.compared("ann", [0.9], 1, at=0.0)
        assert (of(counters, shift).n, of(counters, shift).total) == (1, 0.5)
        assert of(counters, BY_KEY).n == 1

    @pytest.mark.parametrize("by", ["minute", "key"])
    def test_who_was_seen_is_kept_only_where_a_limit_asks_for_it(self, by: str) -> None:
        (shift,) = limits({"kind": "prediction_shift", "max_mean": 0.05, "by": by})
        _, units = counting(BY_MINUTE, shift)
        units.answered("served", "ann", 1.0, failed=False, at=0.0)
        units.compared("ann", [0.25], 0, at=0.0)
        assert list(units.state().keys) == (["all compared"] if by == "key" else [])


class TestMinutes:
    def test_a_minute_is_the_mean_of_its_requests(self) -> None:
        counters, units = counting(BY_MINUTE)
        for second in range(0, 60, 10):
            units.answered("served", None, 1.0, failed=second == 0, at=1200.0 + second)
        assert of(counters, BY_MINUTE).n == 0, "it is not over"
        units.until(1260.0)
        assert of(counters, BY_MINUTE).model_dump(include={"n", "total"}) == {"n": 1, "total": pytest.approx(1 / 6)}
        units.until(9000.0)
        assert of(counters, BY_MINUTE).n == 1, "minutes without requests are no observations"

    def test_roles_are_one_minute_together_and_what_was_served_one_of_its_own(self) -> None:
        counters, units = counting(BY_MINUTE)
        for role, failed in (("served", True), ("shadow", False), ("shadow", False), ("shadow", False)):
            units.answered(role, None, 1.0, failed=failed, at=5.0)  # type: ignore[arg-type]
        units.until(60.0)
        assert of(counters, BY_MINUTE).total == pytest.approx(0.25)
        assert of(counters, BY_MINUTE, "served").total == 1.0

    def test_it_is_tested_as_a_mean_of_bounded_values(self) -> None:
        """Ten minutes in which a tenth failed are not ten requests of which one failed."""
        counters, units = counting(BY_MINUTE)
        for minute in range(200):
            for second in range(10):
                units.answered("served", None, 1.0, failed=second == 0, at=60.0 * minute + second)
        units.until(1e6)
        reason = breach([BY_MINUTE], counters)
        assert reason is not None
        assert "10% of a minute's requests in the mean over 200 minutes" in reason


@pytest.mark.parametrize("at", [0, 3, 7, 12])
def test_counting_goes_on_after_a_restart_as_if_nothing_had_been(at: int) -> None:
    def ask(units: Units, numbers: range) -> None:
        for number in numbers:
            units.answered("served", f"k{number % 5}", 1.0, failed=number % 3 == 0, at=20.0 * number)

    counters, units = counting(BY_KEY, BY_MINUTE)
    ask(units, range(12))
    whole = units.state()
    _, first = counting(BY_KEY, BY_MINUTE)
    ask(first, range(at))
    state = UnitsState.model_validate_json(first.state().model_dump_json())
    counters, second = counting(BY_KEY, BY_MINUTE, state=state)
    ask(second, range(at, 12))
    assert second.state().sums["all"]["error_rate_by_key"] == whole.sums["all"]["error_rate_by_key"]
    second.until(1e6)
    assert of(counters, BY_MINUTE).n == 4, "the minute in which it happened goes on"


def test_torn_bitmaps_are_refused() -> None:
    with pytest.raises(ValidationError, match="slots"):
        UnitsState(keys={"all answered": base64.b64encode(bytes(SLOTS // 8 - 1)).decode()})


@pytest.mark.parametrize("limit", limits(*({**ERRORS, "max": 0.1, "by": by} for by in ("key", "minute"))))
def test_a_pass_needs_its_minimum_of_units(limit: Limit) -> None:
    counters, units = counting(limit)
    for number in range(49):
        for _ in range(20):
            units.answered("served", f"k{number}", 1.0, failed=False, at=60.0 * number)
    units.until(60.0 * 49)
    (verdict,) = judge([limit], counters)
    assert (verdict.status, verdict.n) == (Status.INCONCLUSIVE, 49)
    assert f"49 of the 50 {'keys' if limit.by == 'key' else 'minutes'}" in verdict.reason
    units.answered("served", "one more", 1.0, failed=False, at=60.0 * 50)
    units.until(60.0 * 51)
    (verdict,) = judge([limit], counters)
    assert (verdict.status, verdict.n) == (Status.PASS, 50)


@pytest.mark.parametrize(("by", "n"), [("key", 30), ("minute", 5)])
def test_a_replay_counts_by_the_same_units(by: str, n: int) -> None:
    """300 requests of 30 customers in five minutes, all in shadow."""
    spec = toy_spec(guards=[{**ERRORS, "by": by, "min_requests": 5}], rollout={"shadow": {"bake": "1h"}})
    seen = [Observation(float(number), role="shadow", key=f"k{number % 30}") for number in range(300)]
    report = replay(
        spec, Traffic(datetime(2026, 1, 1, tzinfo=UTC), [*seen, Observation(300.0, role="shadow", key="k0")])
    )
    (verdict,) = report.hindsight
    assert (verdict.name, verdict.n) == (f"error_rate_by_{by}", n)


@pytest.mark.parametrize("by", ["key", "minute"])
def test_latency_is_counted_by_unit(by: str) -> None:
    (limit,) = limits({"kind": "latency", "max_p50_ms": 10, "by": by, "min_requests": 5})
    counters, units = counting(limit)
    for number in range(20):
        for tally in counters.tallies("served"):
            tally.answered(5.0)
        units.answered("served", f"k{number}", 50.0 if number % 10 == 0 else 5.0, failed=False, at=60.0 * number)
    units.until(1e6)
    (verdict,) = judge([limit], counters)
    assert (verdict.status, verdict.n, verdict.estimate) == (Status.PASS, 20, pytest.approx(0.1))
    assert "a p50 of 10 ms" in verdict.reason
