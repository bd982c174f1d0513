"""The statistics of an A/B test against statsmodels, scipy, published examples, and by simulation.

Published:
    Chow, Shao, Wang (2008), Sample Size Calculations in Clinical Research, sections 3.2.1 and 4.2.1: 63 subjects a
    group for means (standard deviation 10, difference 5), 70 for proportions (0.65 against 0.85).
    Kohavi, Longbotham, Sommerfield, Henne (2009), Controlled experiments on the web, section 3.2.1: 121,600 users a
    group for a change of a 5 % conversion by 5 % of it, 409,000 for a change of 3.75 dollars by 5 % of it with a
    standard deviation of 30; both by the rule of 16, which rounds 2 (1.96 + 0.84)^2 = 15.7 up.
    Kohavi, Tang, Xu (2020), Trustworthy Online Controlled Experiments, chapter 3: 821,588 users against 815,482,
    where half were asked for: p = 1.8e-6.
"""

from __future__ import annotations

import math
from datetime import timedelta

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.power import NormalIndPower

from airlock.core.experiment import MISMATCH_ALPHA, Evidence, analyse
from airlock.core.experiment_statistics import (
    Measured,
    difference,
    effect_for,
    explained,
    fixed_deviates,
    half_width,
    looked_deviates,
    ratio_log_e_value,
    ratio_p_value,
    units_for,
)
from airlock.core.spec import Experiment, OutcomeGuard


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.01, 0.95)])
@pytest.mark.parametrize("effect", [0.02, 0.3])
def test_sample_sizes_of_means_are_those_of_statsmodels(
    share: float, alpha: float, power: float, effect: float
) -> None:
    ours = units_for(effect, (4.0, 4.0), share, fixed_deviates(alpha, power, sides=2))
    champion = NormalIndPower().solve_power(effect / 2, alpha=alpha, power=power, ratio=share / (1 - share))
    assert ours * (1 - share) == pytest.approx(champion, rel=1e-4)
    one_sided = units_for(effect, (4.0, 4.0), share, fixed_deviates(alpha, power, sides=1))
    champion = NormalIndPower().solve_power(
        effect / 2, alpha=alpha, power=power, ratio=share / (1 - share), alternative="larger"
    )
    assert one_sided * (1 - share) == pytest.approx(champion, rel=1e-4)


def test_sample_sizes_of_textbooks() -> None:
    once = fixed_deviates(0.05, 0.8, sides=2)
    assert math.ceil(units_for(5, (100, 100), 0.5, once) / 2) == 63
    assert math.ceil(units_for(0.2, (0.65 * 0.35, 0.85 * 0.15), 0.5, once) / 2) == 70
    rounded = 2 * once**2 / 16
    conversion = 0.05 * 0.95
    assert units_for(0.0025, (conversion, conversion), 0.5, once) / 2 == pytest.approx(121_600 * rounded, rel=1e-3)
    assert units_for(0.1875, (900, 900), 0.5, once) / 2 == pytest.approx(409_000 * rounded, rel=2e-3)


def test_the_detectable_effect_is_the_one_that_needs_so_many_units() -> None:
    for share in (0.5, 0.1):
        units = units_for(0.3, (1.0, 2.0), share, 3.9)
        assert effect_for(units, (1.0, 2.0), share, 3.9) == pytest.approx(0.3)


def test_the_planned_units_have_the_planned_power_when_every_look_counts() -> None:
    generator = np.random.default_rng(3)
    effect, deviates = 0.2, looked_deviates(0.05, 0.8, sides=2)
    units = math.ceil(units_for(effect, (1.0, 1.0), 0.5, deviates))
    assert deviates**2 / fixed_deviates(0.05, 0.8, sides=2) ** 2 == pytest.approx(1.91, abs=0.01)
    found = generator.normal(effect, math.sqrt(4 / units), 20_000)
    half = half_width(4 / units, units, 0.05, sides=2, sharpest=units)
    assert np.mean(found - half > 0) == pytest.approx(0.8, abs=0.012)


@pytest.mark.parametrize(
    ("candidate", "champion", "share"), [(815_482, 821_588, 0.5), (510, 490, 0.5), (120, 880, 0.1), (7, 3, 0.9)]
)
def test_the_chi_squared_test_of_the_ratio_is_that_of_scipy(candidate: int, champion: int, share: float) -> None:
    units = candidate + champion
    expected = stats.chisquare([candidate, champion], [units * share, units * (1 - share)]).pvalue
    assert ratio_p_value(candidate, champion, share) == pytest.approx(expected, rel=1e-9)


def test_the_published_sample_ratio_mismatch_is_found() -> None:
    assert ratio_p_value(815_482, 821_588, 0.5) == pytest.approx(1.8e-6, rel=0.02)
    assert ratio_log_e_value(815_482, 821_588, 0.5) >= -math.log(MISMATCH_ALPHA)
    assert ratio_log_e_value(818_535, 818_535, 0.5) < 0


@pytest.mark.parametrize(("candidate", "champion", "share"), [(0, 0, 0.5), (52, 40, 0.5), (70, 4_000, 0.02)])
def test_the_e_value_of_the_ratio_is_the_bayes_factor_of_scipys_beta_binomial(
    candidate: int, champion: int, share: float
) -> None:
    units = candidate + champion
    factors = [
        stats.betabinom(units, k * share, k * (1 - share)).pmf(candidate) / stats.binom(units, share).pmf(candidate)
        for k in (100, 10_000)
    ]
    assert ratio_log_e_value(candidate, champion, share) == pytest.approx(math.log(np.mean(factors)), abs=1e-8)


def test_a_ratio_that_is_looked_at_after_every_unit_is_seldom_called_a_mismatch() -> None:
    generator = np.random.default_rng(11)
    share, wanted = 0.3, math.log(100)  # alpha of 1 %, to see it in fewer runs
    runs = 1_000
    called = 0
    for _ in range(runs):
        hits = np.cumsum(generator.random(2_000) < share)
        looks = range(9, 2_000, 10)
        called += any(ratio_log_e_value(int(hits[i]), i + 1 - int(hits[i]), share) >= wanted for i in looks)
    assert called / runs <= 0.01 + 2 * math.sqrt(0.01 * 0.99 / runs)


def _correlated(seed: int, sizes: tuple[int, int] = (700, 300)) -> Measured:
    generator = np.random.default_rng(seed)
    before = [generator.normal(size=size) for size in sizes]
    champion, candidate = (0.8 * x + 0.6 * generator.normal(size=x.size) for x in before)
    return Measured(champion, candidate + 0.1, before[0], before[1])


def test_cuped_is_the_regression_on_group_and_covariate() -> None:
    measured = _correlated(5)
    found = difference(measured)
    assert measured.champion_before is not None
    assert measured.candidate_before is not None
    group = np.repeat([0.0, 1.0], [700, 300])
    before = np.concatenate([measured.champion_before, measured.candidate_before])
    design = np.column_stack([np.ones(1_000), group, before])
    fit = sm.OLS(np.concatenate([measured.champion, measured.candidate]), design).fit(cov_type="HC1")
    assert found.estimate == pytest.approx(fit.params[1], abs=1e-12)
    # The regression's error also counts the doubt about theta, a term of order 1/n of it.
    assert math.sqrt(found.variance) == pytest.approx(fit.bse[1], rel=5e-3)


def test_cuped_takes_off_the_squared_correlation() -> None:
    measured = _correlated(6, (40_000, 40_000))
    assert difference(measured).reduction == pytest.approx(0.64, abs=0.01)
    assert measured.champion_before is not None
    assert explained(measured.champion, measured.champion_before) == pytest.approx(
        stats.pearsonr(measured.champion, measured.champion_before).statistic ** 2
    )


def test_a_difference_without_covariate_is_welchs() -> None:
    measured = _correlated(7)._replace(champion_before=None, candidate_before=None)
    found = difference(measured)
    welch = stats.ttest_ind(measured.candidate, measured.champion, equal_var=False)
    assert found.estimate / math.sqrt(found.variance) == pytest.approx(welch.statistic)


def test_half_widths_are_the_boundary_of_the_normal_mixture() -> None:
    """Found here by root-finding on the mixture itself: an integral over the effect, without its closed form."""
    from scipy.integrate import quad
    from scipy.optimize import brentq

    n, sharpest, alpha = 400, 1_000, 0.05
    doubt = -2 * math.log(alpha)
    density = stats.norm(0, math.sqrt((doubt + math.log(doubt + 1)) / sharpest))

    def log_mixture(total: float) -> float:
        value, _ = quad(lambda effect: math.exp(effect * total - effect**2 * n / 2) * density.pdf(effect), -2, 2)
        return math.log(value)

    boundary = brentq(lambda total: log_mixture(total) + math.log(alpha), 1, 300)
    assert half_width(1 / n, n, alpha, sides=2, sharpest=sharpest) == pytest.approx(boundary / n, rel=1e-6)


def test_one_sided_bounds_are_no_tighter_than_the_half_normal_mixture() -> None:
    from scipy.integrate import quad
    from scipy.optimize import brentq

    n, sharpest, alpha = 400, 1_000, 0.025
    doubt = -2 * math.log(2 * alpha)
    density = stats.halfnorm(0, math.sqrt((doubt + math.log(doubt + 1)) / sharpest))

    def log_mixture(total: float) -> float:
        value, _ = quad(lambda effect: math.exp(effect * total - effect**2 * n / 2) * density.pdf(effect), 0, 2)
        return math.log(value)

    boundary = brentq(lambda total: log_mixture(total) + math.log(alpha), 1, 300) / n
    ours = half_width(1 / n, n, alpha, sides=1, sharpest=sharpest)
    assert boundary <= ours <= 1.02 * boundary


DAYS, A_DAY = 20, 300


def _daily(
    generator: np.random.Generator, experiment: Experiment, *, truth: float = 0.0, guard: float = 0.0, rate: float = 0.0
) -> set[str]:
    """What an experiment that is looked at every day ever advises; units at random, the outcome with a covariate.

    ``rate``: the outcome is a hit with that chance, instead of a normal value.
    """
    units = DAYS * A_DAY
    to_candidate = generator.random(units) < experiment.weight / 100
    before = generator.normal(size=units)
    value = (
        (generator.random(units) < rate + truth * to_candidate).astype(float)
        if rate
        else 0.7 * before + generator.normal(size=units) + truth * to_candidate
    )
    other = generator.normal(size=units) + guard * to_candidate
    said = set()
    for day in range(1, DAYS + 1):
        seen = np.arange(units) < day * A_DAY
        groups = seen & ~to_candidate, seen & to_candidate
        x = (before[groups[0]], before[groups[1]]) if experiment.covariate else (None, None)
        outcomes = {"spent": Measured(value[groups[0]], value[groups[1]], *x)}
        if experiment.guards:
            outcomes["calm"] = Measured(other[groups[0]], other[groups[1]])
        counts = int(groups[1].sum()), int(groups[0].sum())
        evidence = Evidence(*counts, 0, outcomes, timedelta(days=day))
        said.add(analyse(experiment, evidence, {"spent": units // 2}).action)
    return said


def _rate(runs: int, action: str, experiment: Experiment, **world: float) -> float:
    generator = np.random.default_rng(17)
    return sum(action in _daily(generator, experiment, **world) for _ in range(runs)) / runs


def _experiment(**changes: object) -> Experiment:
    values: dict[str, object] = {"primary": {"name": "spent"}, "minimum_effect": 0.1, "alpha": 0.1}
    return Experiment.model_validate(values | changes)


RUNS = 400


@pytest.mark.parametrize(
    ("changes", "world"),
    [
        ({}, {}),
        ({"weight": 10.0, "covariate": "before"}, {}),
        ({"minimum_effect": 0.03}, {"rate": 0.08}),
        ({"minimum_effect": 0.03, "weight": 20.0}, {"rate": 0.08}),
    ],
)
def test_a_candidate_that_is_equal_is_seldom_promoted_though_looked_at_daily(
    changes: dict[str, object], world: dict[str, float]
) -> None:
    # alpha is for both sides, a false promotion is on one of them.
    assert _rate(RUNS, "promote", _experiment(**changes), **world) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / RUNS)


def test_a_candidate_that_breaks_a_guard_is_seldom_promoted_however_much_better_it_is() -> None:
    guard = OutcomeGuard(name="calm", margin=0.1)
    experiment = _experiment(guards=[guard.model_dump()])
    promoted = _rate(RUNS, "promote", experiment, truth=0.5, guard=-0.1)
    assert promoted <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / RUNS)


def test_a_candidate_that_is_better_is_promoted() -> None:
    assert _rate(50, "promote", _experiment(covariate="before"), truth=0.2) >= 0.95
    assert _rate(50, "keep", _experiment(covariate="before"), truth=0.2) <= 0.1


def test_intervals_cover_with_cuped_at_all_looks_at_once() -> None:
    generator = np.random.default_rng(23)
    missed = 0
    for _ in range(RUNS):
        before = generator.normal(size=2_000)
        value = 0.7 * before + generator.exponential(size=2_000)
        assigned = generator.random(2_000) < 0.3
        value[assigned] += 0.2
        for n in range(600, 2_001, 100):
            known = np.arange(2_000) < n
            groups = known & ~assigned, known & assigned
            found = difference(Measured(*(value[group] for group in groups), *(before[group] for group in groups)))
            half = half_width(found.variance, found.n, 0.1, sides=2, sharpest=1_000)
            if abs(found.estimate - 0.2) > half:
                missed += 1
                break
    assert missed / RUNS <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / RUNS)
