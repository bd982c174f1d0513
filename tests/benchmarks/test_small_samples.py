"""The tables of small and skewed samples are made of the shipped code, and their rows fit their heads."""

from __future__ import annotations

import numpy as np
import pytest

from airlock.core.experiment_statistics import Measured, difference
from tests.benchmarks import small_samples as tables


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_the_statistic_of_every_look_is_that_of_the_shipped_difference(share: float) -> None:
    rng = np.random.default_rng(1)
    mine = round(tables.UNITS * share)
    champion, candidate = rng.exponential(1, (2, tables.UNITS - mine)), rng.exponential(1, (2, mine))
    _, shipped, ready = tables._statistics(champion, candidate, share)
    assert ready.all()
    for place in (0, 9, tables.LOOKS.size - 1):
        units = int(tables.LOOKS[place])
        own = max(100, round(units * share))
        found = difference(Measured(champion[1, : units - own], candidate[1, :own]))
        assert shipped[1, place] == pytest.approx(found.estimate / found.variance**0.5)


def test_each_table_has_a_cell_for_each_head(capsys: pytest.CaptureFixture[str]) -> None:
    row = next(tables.non_inferiority(2))
    tables.table("Title", "a | b | c | d | e | f | g | h", iter([row]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in lines if line.startswith("|")] == [9, 9, 9]
    assert next(tables.calibrated(4)).count("|") == 9
    assert next(tables.one_group(2)).count("|") == 5
