"""The benchmark of the guards judges as the shipped guards do, and still runs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from airlock.core import guards
from airlock.core.counters import Counters
from airlock.core.guard_words import Seen
from airlock.core.guards import breach
from airlock.core.route import Limit
from airlock.core.tally import Sums, Tally
from tests.benchmarks.quality import prices, report, rules, simulate, worlds

WATCHES = {watch.name: watch for watch in worlds.watches()}


def sums_of(limit: Limit, rng: np.random.Generator, count: int) -> tuple[worlds.Floats, ...]:
    """Sums near the limit's bound, where judgements differ, with their smallest and largest value."""
    n = np.floor(10 ** rng.uniform(0, 5, count))
    if limit.signal in rules.COUNTS:
        hits = rng.binomial(n.astype(int), np.minimum(1, limit.bound * 10 ** rng.uniform(-0.3, 0.7, count)))
        return n, hits.astype(float), hits.astype(float), np.zeros(count), np.ones(count)
    mean = limit.bound + 0.05 * rng.standard_normal(count) * 10 ** rng.uniform(-2, 0, count)
    mean *= rng.choice([-1, 1], count) if limit.signal == "difference" else 1
    spread = rng.uniform(0.01, 0.1, count)
    reach = spread * rng.uniform(1, 10, (2, count))
    return n, n * mean, n * (mean**2 + spread**2), np.maximum(-1, mean - reach[0]), np.minimum(1, mean + reach[1])


@pytest.mark.parametrize("name", WATCHES)
def test_the_twin_is_the_shipped_guard(name: str) -> None:
    """On 3,000 random sums; seed 40."""
    limit, alpha = WATCHES[name].limit, 0.005
    n, *sums = sums_of(limit, np.random.default_rng(40), 3000)
    twin = rules.exceeds(n, *sums, limit, alpha)
    shipped = [guards._exceeds(limit, Seen(int(a), *b), alpha) for a, *b in zip(n, *sums, strict=True)]
    assert list(twin) == shipped
    assert 0.05 < np.mean(shipped) < 0.95


@pytest.mark.parametrize("name", ["error rate", "prediction shift", "paired loss (Brier)"])
def test_what_leaves_looks_out_never_leaves_out_too_much(name: str) -> None:
    """The best bet holds at least what the mixture holds, and so does the excess allow: 3,000 random sums; seed 44."""
    limit, alpha = WATCHES[name].limit, 0.005
    n, total, squares, smallest, largest = sums_of(limit, np.random.default_rng(44), 3000)
    over = total > limit.bound * n
    sums = [part[over] for part in (n, total, squares, smallest)]
    mixed, best = rules.log_e_values(*sums, limit), rules.best_logs(*sums, limit)
    assert (mixed <= best + 1e-9 * (1 + abs(best))).all()
    excess = (np.abs(total) if limit.signal == "difference" else total) - limit.bound * n
    found = rules.exceeds(n, total, squares, smallest, largest, limit, alpha)
    assert found.any()
    assert (excess[found] >= rules.slack(limit, alpha)).all()


def test_the_present_bound_lies_between_the_former_one_and_the_wealth_itself() -> None:
    """A shift of 0.05, 30 rollouts, seed 45."""
    watch = WATCHES["prediction shift"]
    found = prices.forms(watch.limit, watch.cases[-1].stream, rollouts=30, seed=45)
    assert found["exact"]["median"] <= found["present"]["median"] < 0.85 * found["former"]["median"]


@pytest.mark.parametrize("name", ["error rate", "latency p99"])
def test_the_table_of_critical_hits_is_the_shipped_guard(name: str) -> None:
    limit = WATCHES[name].limit
    n = np.array([1.0, 2.0, 5.0, 100.0, 777.0, 100_000.0])
    for count, hits in zip(n, rules.critical_hits(limit, n, 0.005), strict=True):
        if math.isfinite(hits):
            assert guards._exceeds(limit, Seen(int(count), hits, hits), 0.005)
            assert not guards._exceeds(limit, Seen(int(count), hits - 1, hits - 1), 0.005)


@pytest.mark.parametrize(("name", "case"), [("error rate", 3), ("prediction shift", 4)])
def test_a_rollout_ends_when_the_gateways_breach_ends_it(name: str, case: int) -> None:
    """Through the gateway's door, step by step, with looks every 100 requests; 12 rollouts, seed 41."""
    watch, rate = WATCHES[name], 50
    limit, stream = watch.limit, watch.cases[case].stream
    blocks = stream.sums(np.random.default_rng(41), (12, 200), 50)
    found = rules.airlock(rules.Rollouts.of(np.arange(1, 201) * 50.0, blocks, stream.per, rate), limit)
    for row in range(12):
        of_row = worlds.Blocks(*(part[row] for part in blocks))
        assert found[row] == _by_breach(limit, of_row, rate * rules.BAKE_MINUTES)


@pytest.mark.parametrize(("name", "case"), [("error rate", 0), ("error rate", 1), ("prediction shift", 1)])
def test_looks_are_left_out_only_where_nothing_can_eject(name: str, case: int) -> None:
    """300 rollouts of 6,000 requests, all with what no look is left out of; a large budget, seed 43."""
    watch = WATCHES[name]
    limit, stream = watch.limit.model_copy(update={"alpha": 0.3}), watch.cases[case].stream
    blocks = stream.sums(np.random.default_rng(43), (300, 120), 50)
    sums = rules.Rollouts.of(np.arange(1, 121) * 50.0, blocks, stream.per, 50)
    every = np.full(300, math.inf)
    for column in range(1, 120, 2):
        alive = np.flatnonzero(np.isinf(every))
        ejected = rules.log_mixtures(sums, limit, alive, column, sums.n[column]) >= -math.log(limit.alpha)
        every[alive[ejected]] = sums.n[column]
    assert list(rules.airlock(sums, limit)) == list(every)
    assert 0.01 < np.isfinite(every).mean() < 1


def _by_breach(limit: Limit, blocks: worlds.Blocks, step_requests: int) -> float:
    counters, last_step = Counters(), 0
    for block in range(len(blocks.total)):
        requests = (block + 1) * 50
        step = min((requests - 1) // step_requests, limit.steps - 1)
        if step != last_step:
            counters.begin_step()
        last_step = step
        counters.include(
            "served" if step else "shadow", _tally(limit, worlds.Blocks(*(part[block] for part in blocks)))
        )
        if requests % 100 == 0 and breach([limit], counters):
            return requests
        counters.restart_if_due()
    return math.inf


def _tally(limit: Limit, blocks: worlds.Blocks) -> Tally:
    total, squares = float(blocks.total.sum()), float(blocks.squares.sum())
    if limit.signal == "errors":
        return Tally(requests=50, errors=int(total))
    smallest, largest = float(blocks.smallest.min()), float(blocks.largest.max())
    sums = Sums(n=50, total=total, squares=squares, smallest=smallest, largest=largest)
    return Tally(requests=50, difference=sums)


def test_walds_expectation_is_that_of_the_book() -> None:
    """Errors from 0.5 % to 1 % with alpha and beta of 1 %: 4.5032 nats at 0.0019443 nats a request."""
    watch = WATCHES["error rate"]
    assert simulate.walds_expectation(worlds.Events(0.01), watch.limit) == pytest.approx(2316, rel=1e-3)


def test_the_oracle_needs_about_what_wald_expects() -> None:
    watch = WATCHES["error rate"]
    times = simulate.oracle(worlds.Events(0.05), watch.limit, rollouts=2000, seed=42)
    found = times[np.isfinite(times)]
    assert len(found) / len(times) > 0.97
    assert found.mean() == pytest.approx(simulate.walds_expectation(worlds.Events(0.05), watch.limit), rel=0.35)


def test_windows_are_counted_as_flagger_counts_them() -> None:
    """The fifth bad window of ten, of which every other is bad, is the ninth."""
    limit = WATCHES["error rate"].limit
    hits = np.array([[1.0, 0.0] * 5])
    sums = rules.Rollouts.of(np.arange(1, 11) * 50.0, worlds.Blocks(hits, hits, hits * 0, hits), 1, 50)
    assert rules.threshold(sums, limit)[0] == 450
    assert rules.threshold(sums, limit, 5.0)[0] == math.inf


def test_the_upper_bound_is_that_of_clopper_and_pearson() -> None:
    assert report.upper(0, 10_000) == pytest.approx(1 - 0.05**1e-4)
    assert report.upper(10, 10) == 1


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    here = Path(__file__).parent
    command = [sys.executable, here / "decision_quality.py", "--rollouts", "20"]
    command += ["--json", tmp_path / "out.json", "--plots", tmp_path]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=here.parents[1])
    assert "| rule | worst false rollbacks" in done.stdout
    found = json.loads((tmp_path / "out.json").read_text())
    assert {cell["guard"] for cell in found["detection"]} == set(WATCHES)
    assert len(list(tmp_path.glob("*.png"))) == 2
