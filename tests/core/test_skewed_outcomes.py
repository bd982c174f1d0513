"""A/B tests of skewed outcomes in groups of unequal size: no difference is seldom called one.

The larger tables, and what it costs in power, are made by tests/benchmarks/small_samples.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as scipy_stats

from airlock.core.experiment_statistics import Floats, Measured, difference, interval
from airlock.core.uncertainty import TooFew, deviate

ALPHA = 0.05
EXPERIMENTS = 250
UNITS = 8_000
LOOKS = np.unique(np.geomspace(2_000, UNITS, 10).astype(int))
Draw = Callable[[np.random.Generator, int], Floats]

SKEWED: dict[str, Draw] = {
    "lognormal": lambda rng, size: rng.lognormal(0, 1.5, size),
    "exponential": lambda rng, size: rng.exponential(1, size),
    "one in ten buys": lambda rng, size: (rng.random(size) < 0.1) * rng.exponential(1, size),
}


def found_at(champion: Floats, candidate: Floats, units: int, share: float, sides: int) -> tuple[bool, bool]:
    """Whether the candidate is called better or worse at this look."""
    mine = round(units * share)
    try:
        found = difference(Measured(champion[: units - mine], candidate[:mine]))
    except TooFew:
        return False, False
    bounds = interval(found, ALPHA, sides=sides, sharpest=4_000)
    return bounds.low > 0, bounds.high < 0


@pytest.mark.parametrize("share", [0.05, 0.95])
@pytest.mark.parametrize("values", SKEWED)
def test_no_difference_is_seldom_called_one_however_often_it_is_looked_at(values: str, share: float) -> None:
    """250 experiments at 5 to 95 %, ten looks each, seed 11: at most 9 %, three standard errors above 5 %."""
    rng, draw = np.random.default_rng(11), SKEWED[values]
    calls = np.zeros(3)
    for _ in range(EXPERIMENTS):
        mine = round(UNITS * share)
        champion, candidate = draw(rng, UNITS - mine), draw(rng, mine)
        looks = np.array(
            [
                (any(found_at(champion, candidate, units, share, 2)), *found_at(champion, candidate, units, share, 1))
                for units in LOOKS
            ]
        )
        calls += looks.any(axis=0)
    both, better, worse = calls / EXPERIMENTS
    assert both <= 0.09
    assert better <= 0.09, "one-sided, as a guard is judged"
    assert worse <= 0.09


@pytest.mark.parametrize("values", SKEWED)
def test_one_look_by_the_normal_deviate_holds_as_well(values: str) -> None:
    """The same difference and variance, looked at once: 800 experiments of 4,000 units at 5 to 95 %, seed 12."""
    rng, draw, called = np.random.default_rng(12), SKEWED[values], 0
    for _ in range(800):
        try:
            found = difference(Measured(draw(rng, 3_800), draw(rng, 200)))
        except TooFew:
            continue
        called += abs(found.estimate) > deviate(1 - ALPHA / 2) * found.variance**0.5
    assert called / 800 <= 0.073, "three standard errors above 5 %"


def test_groups_of_one_size_have_welchs_variance_and_unequal_ones_at_least() -> None:
    rng = np.random.default_rng(13)
    champion, candidate = rng.exponential(1, 500), rng.exponential(3, 500)
    for size in (500, 100):
        few = candidate[:size]
        found = difference(Measured(champion, few))
        welch = found.estimate / scipy_stats.ttest_ind(few, champion, equal_var=False).statistic
        student = found.estimate / scipy_stats.ttest_ind(few, champion).statistic
        assert found.variance == pytest.approx(max(welch, student) ** 2)
        assert found.variance == pytest.approx(welch**2), "the smaller group varies more: nothing changes"
    assert difference(Measured(candidate, champion[:100])).variance > 2 * (
        candidate.var(ddof=1) / 500 + champion[:100].var(ddof=1) / 100
    )
