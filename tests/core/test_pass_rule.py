"""What a pass asks for: estimates that keep the bound, known well enough. No proof of a breach is no pass."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from airlock.core.counters import Counters
from airlock.core.decide import Decision, Evidence, decide, decide_late
from airlock.core.guard_words import Seen
from airlock.core.guards import judge, limits_of
from airlock.core.pass_rule import estimate, no_pass_yet, upper_end
from airlock.core.release import Phase, Release
from airlock.core.route import Bundle, Limit
from airlock.core.spec import ModelSpec
from airlock.core.tally import GatewayStatus, LateEvidence, Sums, Tally
from airlock.core.verdict import Status

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ERRORS = {"kind": "error_rate", "max": 0.05}


def spec_of(*guards: dict[str, Any], task: str = "classification", **rollout: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "model": "m",
            "task": task,
            "data": {"key": "id", "event_time": "at"},
            "label": {"name": "y", "delay": "6h"},
            "inputs": {"x": "float"},
            "gates": [{"kind": "finite"}],
            "guards": guards,
            "rollout": {
                "shadow": {"bake": "5s", "min_requests": 30},
                "steps": [{"weight": 5, "bake": "5s", "min_requests": 30}, {"weight": 100, "min_requests": 30}],
                **rollout,
            },
        }
    )


def only(*guards: dict[str, Any], **changes: Any) -> Limit:
    (limit,) = limits_of(spec_of(*guards, **changes))
    return limit


def errors(hits: int, n: int) -> Tally:
    return Tally(requests=n, errors=hits)


def decided(
    spec: ModelSpec, step: str, total: dict[str, Tally], fresh: dict[str, Tally], *, observed_s: float = 600
) -> Decision:
    release = Release(
        id="r1",
        model="m",
        version="2",
        champion="1",
        bundle=Bundle(path="/b", digest="sha256:" + "0" * 64),
        phase=Phase.SHADOW if step == "shadow" else Phase.CANARY,
        step=step,
        generation=4,
        entered_at=NOW,
    )
    status = GatewayStatus(
        model="m",
        generation=4,
        checksum="",
        release="r1",
        rollout_step=step,
        champion="1",
        candidate="2",
        share=5,
        loaded=("1", "2"),
        since=NOW,
        observed_s=observed_s,
        step={"2": fresh},
        total={"2": total},
    )
    return decide(spec, release, Evidence(gateway=status), NOW + timedelta(seconds=observed_s))


class TestThroughTheDoor:
    def test_a_shadow_over_its_bound_does_not_advance(self) -> None:
        """32 errors in 300 where 5 % are allowed: chance may still explain it, and nobody would call it good."""
        counts = {"shadow": errors(24, 300)}
        decision = decided(spec_of(ERRORS), "shadow", counts, counts)
        assert decision.action == "wait"
        assert "no proof of a breach, and no pass" in decision.reason
        worse = {"shadow": errors(32, 300)}
        assert decided(spec_of(ERRORS), "shadow", worse, worse).action != "advance"

    def test_a_step_over_its_bound_does_not_advance_on_a_good_past(self) -> None:
        fresh = {"served": errors(4, 60)}
        decision = decided(spec_of(ERRORS), "canary_5", {"shadow": errors(0, 2000), **fresh}, fresh)
        assert decision.action == "wait"
        assert "this step is at 6.67%" in decision.reason
        fine = {"served": errors(3, 60)}
        assert decided(spec_of(ERRORS), "canary_5", {"shadow": errors(0, 2000), **fine}, fine).action == "advance"

    def test_a_step_that_fails_where_it_answers_does_not_advance_on_its_shadow(self) -> None:
        fresh = {"served": errors(2, 30), "shadow": errors(0, 570)}
        decision = decided(spec_of(ERRORS), "canary_5", {"shadow": errors(0, 2570), "served": errors(2, 30)}, fresh)
        assert decision.action == "wait"
        assert "this step is at 6.67%" in decision.reason

    def test_a_past_over_its_bound_does_not_advance_on_a_good_step(self) -> None:
        total = {"shadow": errors(40, 600), "served": errors(0, 100)}
        decision = decided(spec_of(ERRORS), "canary_5", total, {"served": errors(0, 100)})
        assert decision.action == "wait"
        assert "the whole release is at 5.71%" in decision.reason

    def test_too_few_to_tell_it_from_twice_the_bound_do_not_advance(self) -> None:
        spec = spec_of({"kind": "error_rate", "max": 0.02})
        few, enough = ({"shadow": errors(0, n)} for n in (56, 57))
        assert "more requests will tell" in decided(spec, "shadow", few, few).reason
        assert decided(spec, "shadow", enough, enough).action == "advance"

    @pytest.mark.parametrize("policy", ["rollback", "hold"])
    def test_at_the_deadline_it_says_what_kept_it_back_and_what_to_do(self, policy: str) -> None:
        counts = {"shadow": errors(16, 300)}
        spec = spec_of(ERRORS, deadline="11m", on_deadline=policy)
        assert decided(spec, "shadow", counts, counts, observed_s=659).action == "wait"
        decision = decided(spec, "shadow", counts, counts, observed_s=660)
        assert decision.action == {"rollback": "roll_back", "hold": "hold"}[policy]
        assert "failed 16 of 300 requests (5.33%)" in decision.reason
        assert "no pass" in decision.reason
        assert ("on_deadline: hold" if policy == "rollback" else "extends and resumes, promotes") in decision.reason

    def test_a_loss_of_three_times_its_margin_is_not_confirmed(self) -> None:
        spec = spec_of({"kind": "paired_loss", "metric": "brier", "margin": 0.01})
        (confirmed, kept), release = (_labelled(mean) for mean in (0.009, 0.03)), _provisional()
        assert decide_late(spec, release, confirmed, NOW).action == "advance"
        decision = decide_late(spec, release, kept, NOW)
        assert decision.action == "wait"
        assert "the whole release is at 0.03" in decision.reason

    def test_a_label_metric_that_may_well_be_twice_its_bound_is_not_confirmed(self) -> None:
        spec, release = spec_of({"kind": "label_metric", "metric": "brier", "max": 0.05}), _provisional()
        wide, narrow = (_labelled(0.045, spread, name="label_brier") for spread in (0.5, 0.1))
        assert "more requests will tell" in decide_late(spec, release, wide, NOW).reason
        assert decide_late(spec, release, narrow, NOW).action == "advance"


def _labelled(mean: float, spread: float = 0.1, *, name: str = "paired_loss_brier", n: int = 100) -> LateEvidence:
    sums = Sums(n=n, total=n * mean, squares=n * (mean**2 + spread**2), smallest=0, largest=1)
    return LateEvidence(until=NOW, answers=n, due=n, labelled=n, observations={name: sums})


def _provisional() -> Release:
    return Release(
        id="r1",
        model="m",
        version="2",
        champion="1",
        bundle=Bundle(path="/b", digest="sha256:" + "0" * 64),
        phase=Phase.PROVISIONAL,
        generation=4,
        entered_at=NOW,
    )


class TestCeilings:
    @pytest.mark.parametrize(
        ("guard", "task", "ceiling"),
        [
            ({"kind": "error_rate", "max": 0.05}, "classification", 0.1),
            ({"kind": "fallback_rate", "max": 0.05}, "classification", 0.1),
            ({"kind": "latency", "max_p99_ms": 100}, "classification", 0.02),
            ({"kind": "disagreement", "max": 0.1}, "classification", 0.2),
            ({"kind": "prediction_shift", "max_mean": 0.03}, "classification", 0.06),
            ({"kind": "prediction_shift", "max_absolute": 0.03}, "regression", 0.06),
            ({"kind": "paired_loss", "metric": "brier", "margin": 0.01}, "classification", None),
            ({"kind": "paired_loss", "metric": "brier", "margin": 0}, "classification", None),
            ({"kind": "label_metric", "metric": "brier", "margin": 0.01}, "classification", None),
            ({"kind": "label_metric", "metric": "brier", "max": 0.2}, "classification", 0.4),
            ({"kind": "label_metric", "metric": "accuracy", "min": 0.9}, "classification", 0.2),
            ({"kind": "label_metric", "metric": "rmse", "max": 3}, "regression", 36),
            ({"kind": "business_metric", "name": "r", "range": (0, 1), "max": 0.1}, "classification", 0.2),
            ({"kind": "business_metric", "name": "r", "range": (-5, 5), "max": 0.1}, "classification", None),
            ({"kind": "business_metric", "name": "r", "range": (0, 9), "min": 2}, "classification", None),
            ({"kind": "business_metric", "name": "r", "range": (0, 9), "max_drop": 1}, "classification", None),
        ],
    )
    def test_it_is_twice_the_bound_where_that_means_anything(
        self, guard: dict[str, Any], task: str, ceiling: float | None
    ) -> None:
        assert only(guard, task=task).ceiling == (None if ceiling is None else pytest.approx(ceiling))

    def test_without_one_the_estimates_decide(self) -> None:
        limit = only({"kind": "paired_loss", "metric": "brier", "margin": 0})
        for mean, passes in ((-0.001, True), (0.0, True), (0.001, False)):
            seen = Seen(50, 50 * mean, 50 * (mean**2 + 0.09))
            assert (no_pass_yet(limit, seen, None) is None) is passes


class TestUpperEnds:
    @given(st.integers(0, 300), st.integers(1, 300))
    def test_of_counts_it_is_that_of_clopper_and_pearson(self, hits: int, more: int) -> None:
        limit, n = only(ERRORS), hits + more
        found = upper_end(limit, Seen(n, hits, hits))
        assert found == pytest.approx(stats.binomtest(hits, n).proportion_ci(0.8).high)

    def test_where_all_are_hits_it_is_one(self) -> None:
        assert upper_end(only(ERRORS), Seen(7, 7, 7)) == 1

    def test_of_means_it_is_that_of_student(self) -> None:
        limit, values = only({"kind": "prediction_shift", "max_mean": 0.05}), np.array([-0.1, 0.02, -0.06, -0.03, 0.01])
        seen = Seen(5, values.sum(), values @ values)
        low = stats.t.interval(0.8, 4, values.mean(), stats.sem(values))[0]
        assert upper_end(limit, seen) == pytest.approx(-low)
        assert estimate(limit, seen) == pytest.approx(-values.mean())
        assert upper_end(limit, Seen(1, 0.01, 0.0001)) == math.inf

    @pytest.mark.parametrize("n", [60, 300, 2000])
    def test_twice_the_bound_passes_one_look_in_ten_at_most(self, n: int) -> None:
        """Exactly, over all counts of errors."""
        limit = only(ERRORS)
        passing = [hits for hits in range(n) if no_pass_yet(limit, Seen(n, hits, hits), None) is None]
        assert stats.binom.pmf(passing, n, 2 * limit.bound).sum() <= 0.1

    @given(st.integers(1, 400), st.integers(0, 40), st.integers(0, 400), st.integers(0, 40))
    def test_a_pass_keeps_the_bound_by_every_estimate(self, n: int, hits: int, fresh: int, of_step: int) -> None:
        limit = only({**ERRORS, "min_requests": 1})
        total, step = errors(min(hits, n) + of_step, n + fresh + of_step), errors(of_step, fresh + of_step)
        (verdict,) = judge([limit], Counters.at_step({"served": total}, {"served": step}))
        if verdict.status is Status.PASS:
            assert total.errors <= 0.05 * total.requests + 1e-9
            assert step.errors <= 0.05 * step.requests + 1e-9
            assert upper_end(limit, Seen(total.requests, total.errors, total.errors)) < 0.1

    def test_the_bound_itself_is_kept_whatever_a_float_makes_of_it(self) -> None:
        for percent in range(1, 50):
            limit = only({"kind": "error_rate", "max": percent / 100})
            assert no_pass_yet(limit, Seen(10_000, 100 * percent, 100 * percent), None) is None
