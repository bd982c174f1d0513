"""Gates on groups: chance alone fails nobody, and what falls short is found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from airlock.core.spec import (
    FairnessGate,
    SliceGate,
)
from airlock.core.verdict import Status, Verdict
from tests.support.gate_evidence import (
    ALL,
    GOOD,
    GROUP,
    ROWS,
    only,
)


class TestSlices:
    def groups_of(self, rows: int, count: int, *, short: int = 0, seed: int = 0) -> Verdict:
        """Groups of right and wrong answers: each right with a chance of 0.8, the first ``short`` with one of 0.5."""
        rng = np.random.default_rng(seed)
        names = np.repeat([f"g{number:03d}" for number in range(count)], rows)
        chance = np.where(np.repeat(np.arange(count), rows) < short, 0.5, 0.8)
        labels = rng.integers(0, 2, names.size).astype(float)
        scores = np.where(rng.random(names.size) < chance, labels, 1 - labels)
        gate = SliceGate(kind="slices", column="group", metric="accuracy", min=0.8, min_rows=50)
        return only(gate, labels=labels, candidate=scores, slices={"group": names})

    def test_many_good_groups_seldom_fail_a_candidate_by_chance(self) -> None:
        """40 groups that lie exactly on the bound, 300 times; seeds 0 to 299: at most about 5 % may fail."""
        found = [self.groups_of(100, 40, seed=seed) for seed in range(300)]
        assert sum(verdict.status is Status.FAIL for verdict in found) <= 0.075 * 300
        below = [verdict for verdict in found if "within what chance explains" in verdict.reason]
        assert len(below) > 290, "on the bound, half of the groups lie below it"

    def test_groups_that_fall_short_are_found_and_named(self) -> None:
        verdict = self.groups_of(200, 30, short=2)
        assert verdict.status is Status.FAIL
        assert "2 fall short" in verdict.reason
        assert verdict.details["worst"] in {"g000", "g001"}
        failed = {name for name, group in verdict.details["groups"].items() if group["status"] == "fail"}
        assert failed == {"g000", "g001"}
        assert all(group["adjusted_p_value"] >= group["p_value"] for group in verdict.details["groups"].values())

    def test_small_groups_are_told_and_decide_nothing(self) -> None:
        candidate = np.where(GROUP == "EV", 1 - GOOD, GOOD)
        verdict = only(ALL["slices"], candidate=candidate)
        assert verdict.passed
        assert verdict.details["too_few_rows"] == {"EV": 50}
        assert "1 with too few rows decide nothing: EV" in verdict.reason

    def test_no_group_is_judged_on_a_handful(self) -> None:
        """Whatever ``min_rows`` says, 29 rows are too few for the test."""
        gate = SliceGate(kind="slices", column="carrier", metric="accuracy", min=0.5, min_rows=1)
        few = np.array(["AA"] * 29 + ["UA"] * (ROWS - 29), dtype=object)
        assert only(gate, slices={"carrier": few}).details["too_few_rows"] == {"AA": 29}

    def test_small_groups_are_left_out_and_missing_values_are_a_group(self) -> None:
        verdict = only(ALL["slices"])
        assert set(verdict.details["groups"]) == {"AA", "UA", "(missing)"}
        assert verdict.details["worst"] in verdict.details["groups"]

    def test_nan_and_none_are_the_same_group(self) -> None:
        mixed = GROUP.copy()
        mixed[np.flatnonzero(GROUP == None)[::2]] = math.nan  # noqa: E711 - elementwise
        assert only(ALL["slices"], slices={"carrier": mixed}) == only(ALL["slices"])

    def test_an_upper_bound_picks_the_largest_as_the_worst(self) -> None:
        gate = SliceGate(kind="slices", column="carrier", metric="brier", max=0.5)
        groups = only(gate).details["groups"]
        assert only(gate).details["worst"] == max(groups, key=lambda name: groups[name]["estimate"])


class TestFairness:
    """Groups A and B of 1,000 rows each; the table of decisions is given."""

    def judged(
        self, criterion: Any, table: dict[str, tuple[int, int, int, int]], max_difference: float = 0.1
    ) -> Verdict:
        """``table``: true positives, false negatives, false positives, true negatives of each group."""
        labels, scores, groups = [], [], []
        for group, cells in table.items():
            for count, (label, score) in zip(cells, [(1, 0.9), (1, 0.1), (0, 0.9), (0, 0.1)], strict=True):
                labels += [label] * count
                scores += [score] * count
                groups += [group] * count
        gate = FairnessGate(kind="fairness", criterion=criterion, column="group", max_difference=max_difference)
        columns = {"group": np.array(groups, dtype=object)}
        return only(gate, labels=np.array(labels), candidate=np.array(scores), slices=columns)

    def test_demographic_parity_worked_by_hand(self) -> None:
        """A: 300 + 100 of 1,000 are answered as positive; B: 250 + 200 of 1,000. They differ by 0.05."""
        table = {"A": (300, 100, 100, 500), "B": (250, 50, 200, 500)}
        verdict = self.judged("demographic_parity", table)
        assert verdict.estimate == pytest.approx(0.05)
        rates = verdict.details["rates"]["positive answers"]
        assert (rates["A"]["estimate"], rates["B"]["estimate"]) == (0.4, 0.45)
        assert verdict.passed, verdict
        assert verdict.n == 2000
        assert self.judged("demographic_parity", table, 0.06).status is Status.INCONCLUSIVE
        assert self.judged("demographic_parity", table, 0.005).status is Status.FAIL

    def test_equalised_odds_worked_by_hand(self) -> None:
        """True positives: 300/400 and 250/300, 0.0833 apart; false positives: 100/600 and 200/700, 0.119 apart."""
        table = {"A": (300, 100, 100, 500), "B": (250, 50, 200, 500)}
        verdict = self.judged("equalised_odds", table)
        assert verdict.estimate == pytest.approx(200 / 700 - 100 / 600)
        assert "false positives differs most between B (0.286) and A (0.167)" in verdict.reason
        assert verdict.status is Status.INCONCLUSIVE
        swapped = self.judged("equalised_odds", {"A": (100, 500, 300, 100), "B": (200, 500, 250, 50)})
        assert swapped.estimate == verdict.estimate
        assert "true positives differs most" in swapped.reason

    def test_a_group_without_positives_cannot_be_compared(self) -> None:
        verdict = self.judged("equalised_odds", {"A": (300, 100, 100, 500), "B": (0, 0, 200, 500)})
        assert verdict.status is Status.INCONCLUSIVE
        assert "group B has no rows that could be true positives" in verdict.reason

    def test_small_groups_are_told_and_decide_nothing(self) -> None:
        verdict = self.judged("demographic_parity", {"A": (9, 1, 400, 600), "B": (9, 1, 400, 600), "C": (99, 0, 0, 0)})
        assert verdict.passed
        assert verdict.details["too_few_rows"] == {"C": 99}

    @pytest.mark.parametrize("truth", [(0.30, 0.34, 0.34, 0.34, 0.34, 0.38), (0.3,) * 8])
    def test_the_bounds_of_the_largest_of_many_differences_hold(self, truth: tuple[float, ...]) -> None:
        """Groups of 300 rows, 300 samples, seed 41: each bound misses at most about 5 %, also where all are alike."""
        rng, misses, largest = np.random.default_rng(41), np.zeros(2), max(truth) - min(truth)
        for _ in range(300):
            hits = rng.binomial(300, truth)
            table = {f"{number}": (0, 0, int(hit), int(300 - hit)) for number, hit in enumerate(hits)}
            verdict = self.judged("demographic_parity", table)
            assert verdict.low is not None
            assert verdict.high is not None
            misses += [verdict.low > largest, verdict.high < largest]
        assert (misses / 300 < 0.075).all()
