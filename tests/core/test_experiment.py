"""An A/B test is planned, judged and concluded; without evidence it never comes out for the candidate."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from airlock.core.errors import DataInvalid
from airlock.core.experiment import Conclusion, Evidence, analyse
from airlock.core.experiment_plan import Baseline, alphas, baseline, in_words, plan
from airlock.core.experiment_statistics import Floats, Measured
from airlock.core.spec import Experiment
from airlock.core.verdict import Status, Verdict


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({"primary": {"name": "spent"}, "minimum_effect": 0.2} | changes)


def normal(mean: float, size: int = 5_000, seed: int = 1) -> Floats:
    """Values whose mean is exactly ``mean``, with a standard deviation of 1."""
    values = np.random.default_rng(seed).normal(size=size)
    standard: Floats = (values - values.mean()) / values.std(ddof=1) + mean
    return standard


def evidence(days: float = 5, units: tuple[int, int] = (5_000, 5_000), crossed: int = 0, **gains: float) -> Evidence:
    """Half of the units in each group; ``gains`` are the candidate's by outcome."""
    outcomes = {
        name: Measured(normal(1.0, units[1]), normal(1.0 + gain, units[0], seed=2)) for name, gain in gains.items()
    }
    return Evidence(units[0], units[1], crossed, outcomes, timedelta(days=days))


def concluded(of: Experiment, seen: Evidence) -> Conclusion:
    return analyse(of, seen, {"spent": 10_000})


def verdict(conclusion: Conclusion, name: str) -> Verdict:
    return next(verdict for verdict in conclusion.verdicts if verdict.name == name)


GUARDED = experiment(guards=[{"name": "calm", "margin": 0.1}, {"name": "slow", "margin": 0.1, "better": "lower"}])


@pytest.mark.parametrize(
    ("of", "seen", "action", "status", "said"),
    [
        (experiment(), evidence(spent=0.3), "promote", Status.PASS, "the candidate is better"),
        (experiment(), evidence(spent=-0.3), "keep", Status.FAIL, "the candidate is worse"),
        (experiment(), evidence(spent=0.0), "keep", Status.FAIL, "not better by 0.2"),
        (experiment(), evidence(spent=0.05, units=(400, 400)), "go_on", Status.INCONCLUSIVE, "as it stands"),
        (experiment(), evidence(spent=0.05, units=(400, 400), days=14), "keep", Status.INCONCLUSIVE, "time of 14 days"),
        (experiment(), evidence(), "go_on", Status.INCONCLUSIVE, "no spent has come in"),
        (experiment(), evidence(spent=2, units=(99, 99)), "go_on", Status.INCONCLUSIVE, "99 of at least 100"),
        (experiment(), evidence(spent=9, units=(5_500, 5_000)), "invalid", Status.ERROR, "do not trust"),
        (experiment(), evidence(spent=9, crossed=102), "invalid", Status.ERROR, "answered by both versions"),
        (experiment(), evidence(spent=0.3, crossed=100), "promote", Status.PASS, "better"),
        (GUARDED, evidence(spent=0.3, calm=0, slow=0), "promote", Status.PASS, "not worse by 0.1"),
        (GUARDED, evidence(spent=0.3, calm=0), "go_on", Status.INCONCLUSIVE, "no slow has come in"),
        (GUARDED, evidence(spent=0.3, calm=-0.3, slow=0), "keep", Status.FAIL, "calm: worse by more than 0.1"),
        (GUARDED, evidence(spent=0.3, calm=0, slow=0.3), "keep", Status.FAIL, "slow: worse by more than 0.1"),
        (GUARDED, evidence(spent=0.3, calm=0, slow=-0.3), "promote", Status.PASS, "slow: not worse"),
        (GUARDED, evidence(spent=0.3, calm=-0.1, slow=0), "go_on", Status.INCONCLUSIVE, "cannot be told"),
    ],
)
def test_what_is_advised(of: Experiment, seen: Evidence, action: str, status: Status, said: str) -> None:
    conclusion = concluded(of, seen)
    assert (conclusion.action, conclusion.status) == (action, status), conclusion.reason
    assert said in conclusion.reason


def test_lower_is_better_where_the_spec_says_so() -> None:
    of = experiment(primary={"name": "spent", "better": "lower"})
    assert concluded(of, evidence(spent=-0.3)).action == "promote"
    assert concluded(of, evidence(spent=0.3)).action == "keep"
    found = verdict(concluded(of, evidence(spent=-0.3)), "primary spent")
    assert found.estimate == pytest.approx(-0.3)
    assert found.low is not None
    assert found.high is not None
    assert found.low < -0.3 < found.high < 0


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_values_that_are_not_numbers_conclude_nothing(spoilt: float) -> None:
    values = normal(9.0)
    values[7] = spoilt
    seen = evidence()._replace(outcomes={"spent": Measured(normal(1.0), values)})
    conclusion = concluded(experiment(), seen)
    assert conclusion.action == "go_on"
    assert "not finite" in conclusion.reason


def test_values_that_are_all_the_same_conclude_nothing() -> None:
    zeros = np.zeros(5_000)
    few = zeros.copy()
    few[:9] = 1.0
    for candidate in (zeros, few):
        seen = evidence()._replace(outcomes={"spent": Measured(zeros, candidate)})
        conclusion = concluded(experiment(), seen)
        assert conclusion.action == "go_on"
        assert "have the same value" in conclusion.reason


def test_outcomes_that_come_from_one_group_more_than_from_the_other_are_not_trusted() -> None:
    seen = evidence()._replace(outcomes={"spent": Measured(normal(1.0, 4_000), normal(9.0, 3_000))})
    conclusion = concluded(experiment(), seen)
    assert conclusion.action == "invalid"
    assert "spent known" in conclusion.reason
    assert verdict(conclusion, "sample ratio, assignment").passed


def test_the_ratio_is_held_against_the_weight() -> None:
    seen = evidence(spent=0.3, units=(1_000, 9_000))
    assert concluded(experiment(weight=10.0), seen).action == "promote"
    assert concluded(experiment(), seen).action == "invalid"


def test_alpha_is_split_between_the_primary_and_the_guards() -> None:
    assert alphas(experiment(alpha=0.04)) == (0.04, 0.04)
    assert alphas(GUARDED.model_copy(update={"alpha": 0.04})) == (0.02, 0.01)
    found = concluded(GUARDED, evidence(spent=0.3, calm=0, slow=0))
    assert [v.details["alpha"] for v in found.verdicts if "alpha" in v.details] == [0.025, 0.0125, 0.0125]


def test_how_long_it_takes_follows_the_traffic() -> None:
    slow = concluded(experiment(duration="90d"), evidence(spent=0.1, units=(400, 400), days=10)).reason
    fast = concluded(experiment(duration="90d"), evidence(spent=0.1, units=(400, 400), days=1)).reason
    assert "as it stands, a decision takes about" in slow
    assert "later than" not in slow
    days = [float(text.split("about ")[1].split(" days")[0]) for text in (slow, fast)]
    assert days[0] == pytest.approx(10 * days[1], rel=0.1)
    beyond = concluded(experiment(), evidence(spent=0.1, units=(400, 400), days=10)).reason
    assert "later than the 14 days allowed" in beyond


def test_a_decision_comes_at_about_the_units_that_were_told() -> None:
    reason = concluded(experiment(duration="90d"), evidence(spent=0.1, units=(400, 400), days=8)).reason
    days = float(reason.split("about ")[1].split(" days")[0])
    units = round(400 * (1 + days / 8))
    more, fewer = (evidence(spent=0.1, units=(n, n), days=8) for n in (round(units * 1.1), round(units * 0.9)))
    assert concluded(experiment(), more).action != "go_on"
    assert concluded(experiment(), fewer).action == "go_on"


def test_cuped_decides_what_the_plain_difference_leaves_open() -> None:
    before = normal(0.0, 600), normal(0.0, 600, seed=2)
    noise = normal(0.0, 600, seed=3) * 0.2, normal(0.0, 600, seed=4) * 0.2
    plain = Measured(before[0] + noise[0], before[1] + noise[1] + 0.15)
    reduced = plain._replace(champion_before=before[0], candidate_before=before[1])
    units = evidence(units=(600, 600))
    assert concluded(experiment(), units._replace(outcomes={"spent": plain})).action == "go_on"
    conclusion = concluded(experiment(), units._replace(outcomes={"spent": reduced}))
    assert conclusion.action == "promote"
    assert verdict(conclusion, "primary spent").details["variance_reduction"] > 0.9


def test_a_covariate_that_is_known_of_some_units_only_is_used_for_them() -> None:
    before = normal(0.0), normal(0.0, seed=2)
    measured = Measured(before[0] + 1, before[1] + 1.3, before[0].copy(), before[1].copy())
    assert measured.champion_before is not None
    measured.champion_before[::2] = np.nan
    conclusion = concluded(experiment(), evidence()._replace(outcomes={"spent": measured}))
    assert conclusion.action == "promote"
    assert 0.3 < verdict(conclusion, "primary spent").details["variance_reduction"] < 0.9
    nothing = np.full(5_000, np.nan)
    unknown = measured._replace(champion_before=nothing, candidate_before=nothing)
    conclusion = concluded(experiment(), evidence()._replace(outcomes={"spent": unknown}))
    assert verdict(conclusion, "primary spent").details["variance_reduction"] == pytest.approx(0)


def test_a_plan_says_units_days_and_what_could_be_found() -> None:
    known = {"spent": Baseline(mean=10.0, sd=2.0)}
    found = plan(experiment(), known, units_per_day=500)
    part = found.outcomes[0]
    assert (part.role, part.units_once) == ("primary", 3140)  # 2 * 63 * (2 / 0.2)^2 / (10 / 5)^2, see the textbook
    assert part.units == pytest.approx(3140 * 1.915, rel=1e-3)
    assert found.candidate == found.champion == pytest.approx(part.units / 2, abs=1)
    assert found.days == pytest.approx(found.units / 500)
    assert found.detectable == pytest.approx(0.2 * (found.units / (14 * 500)) ** 0.5, rel=1e-3)
    assert "12 days, within the 14 days allowed" in found.summary
    assert "more than the 14 days" in plan(experiment(), known, units_per_day=100).summary
    assert "no traffic was seen" in plan(experiment(), known).summary


def test_a_plan_needs_fewer_units_with_a_covariate_and_more_with_uneven_groups() -> None:
    plain = plan(experiment(), {"spent": Baseline(10.0, 2.0)}).units
    assert plan(experiment(), {"spent": Baseline(10.0, 2.0, explained=0.75)}).units == pytest.approx(plain / 4, abs=2)
    uneven = plan(experiment(weight=10.0), {"spent": Baseline(10.0, 2.0)})
    assert uneven.units == pytest.approx(plain * 0.25 / 0.09, abs=2)
    assert uneven.candidate == pytest.approx(uneven.units / 10, abs=1)


def test_a_proportion_is_planned_with_the_variance_of_both_groups() -> None:
    found = plan(experiment(), {"spent": Baseline(0.65, 0.477, proportion=True)})
    assert found.outcomes[0].units_once == 140  # the textbook's 70 a group
    with pytest.raises(DataInvalid, match="minimum_effect"):
        plan(experiment(), {"spent": Baseline(0.9, 0.3, proportion=True)})
    lower = experiment(primary={"name": "spent", "better": "lower"})
    assert plan(lower, {"spent": Baseline(0.9, 0.3, proportion=True)}).units > 0


def test_guards_are_planned_with_their_margins() -> None:
    known = {"spent": Baseline(10.0, 1.0), "calm": Baseline(1.0, 1.0), "slow": Baseline(1.0, 0.1)}
    found = plan(GUARDED, known)
    assert [part.name for part in found.outcomes] == ["spent", "calm", "slow"]
    assert found.units == pytest.approx(found.outcomes[1].units, abs=2)
    assert plan(GUARDED, {"spent": Baseline(10.0, 1.0)}).unplanned == ("calm", "slow")
    strict = experiment(guards=[{"name": "calm", "margin": 0}])
    unreachable = plan(strict, known).outcomes[1]
    assert (unreachable.units, unreachable.units_once) == (None, None)
    with pytest.raises(DataInvalid, match="spent"):
        plan(GUARDED, {"calm": Baseline(1.0, 1.0)})


@pytest.mark.parametrize(
    ("known", "units_per_day"),
    [
        (Baseline(1.0, 0.0), None),
        (Baseline(1.0, np.nan), None),
        (Baseline(np.nan, 1.0), None),
        (Baseline(1.0, 1.0, explained=1.0), None),
        (Baseline(1.0, 1.0), 0.0),
        (Baseline(1.0, 1.0), np.nan),
    ],
)
def test_numbers_that_cannot_be_are_not_planned_with(known: Baseline, units_per_day: float | None) -> None:
    with pytest.raises(DataInvalid):
        plan(experiment(), {"spent": known}, units_per_day)


def test_a_baseline_is_read_from_past_outcomes() -> None:
    found = baseline(np.array([0.0, 1.0, 1.0, 0.0, 1.0]))
    assert found.proportion
    assert found.mean == pytest.approx(0.6)
    values = normal(3.0)
    found = baseline(values, values * 2)
    assert not found.proportion
    assert (found.mean, found.sd, found.explained) == (pytest.approx(3), pytest.approx(1), pytest.approx(1))
    for few in (np.array([1.0]), np.ones(50)):
        with pytest.raises(DataInvalid, match="variance"):
            baseline(few)


def test_lengths_of_time_are_said_as_a_person_would() -> None:
    said = [in_words(days) for days in (3000, 2, 1.5, 0.1, 0.05, 0)]
    assert said == ["3,000 days", "2 days", "36 hours", "2 hours", "72 minutes", "a minute"]
