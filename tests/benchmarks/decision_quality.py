"""How often the guards take back a good version, and how soon they find a bad one, beside an oracle and references.

    python tests/benchmarks/decision_quality.py [--rollouts 10000] [--json out.json] [--plots docs/images] [--quick]

Every cell simulates that many rollouts of 100,000 requests from its own stated seed. Printed, as Markdown:
    1. false rollbacks: candidates that are as good as the champion, or that lie on the guard's very bound, looked at
       every 100 requests; the share rolled back, and its upper 95 % bound (Clopper and Pearson);
    2. detection: requests until the guard, which looks at every request, ejects a bad candidate; beside Wald's
       expected sample number of the SPRT that knows the bound and the candidate, and that SPRT run on such candidates;
    3. the same bad candidates judged by the guard and the references with looks every 100 requests;
    4. a candidate that is good for 20,000 requests and bad from then on;
    5. what it comes to;
    6. what fresh steps, restarts and scopes cost where a candidate is bad from its first request on, beside the same
       guard with all of its alpha on the whole release (at most 2,000 rollouts);
    7. how soon means are found out by the former lower bound of the wealth, by the present one and by the wealth
       itself (at most 1,000 rollouts).

The guards are the shipped ones (core/guards.py), in a twin that judges many rollouts at once (quality/rules.py). The
references: a z-test at 5 % repeated at every look; a test planned for a fixed horizon at the same budget, with 80 %
power for the smallest bad candidate; five bad one-minute windows as Flagger counts them, at the guard's bound and at
twice the bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from tests.benchmarks.quality import prices, report, rules, simulate, worlds  # noqa: E402

RATES = (50, 500, 5000)
SEED = 31_000
"""Of the first cell; each further cell has the next one."""


class _Seeds:
    def __init__(self) -> None:
        self.last = SEED - 1

    def __call__(self) -> int:
        self.last += 1
        return self.last


def judges(watch: worlds.Watch) -> dict[str, simulate.Rule]:
    """The rules, for what one guard watches."""
    limit = watch.limit
    horizon = rules.planned_horizon(limit, watch.planned_for, worlds.BUDGET)
    return {
        "airlock": lambda sums: rules.airlock(sums, limit),
        "z-test": lambda sums: rules.repeated_z_test(sums.looks(), limit),
        "fixed horizon": lambda sums: rules.fixed_horizon(sums, limit, horizon, worlds.BUDGET),
        "threshold": lambda sums: rules.threshold(sums, limit),
        "threshold x2": lambda sums: rules.threshold(sums, limit, 2.0),
    }


def false_rollbacks(watches: tuple[worlds.Watch, ...], rollouts: int, seeds: _Seeds) -> list[dict[str, Any]]:
    cells = []
    for watch in watches:
        for case in watch.cases:
            for rate in RATES if not case.bad else ():
                seed = seeds()
                times = simulate.judged(case.stream, judges(watch), rate=rate, rollouts=rollouts, seed=seed)
                counts = {rule: int(np.isfinite(found).sum()) for rule, found in times.items()}
                cells.append(_cell(watch.name, case.name, seed, rollouts, rate=rate, rolled_back=counts))
                _say(cells[-1])
    return cells


def together(watches: tuple[worlds.Watch, ...], rollouts: int, seeds: _Seeds) -> list[dict[str, Any]]:
    """A spec with all the guards, whose candidate lies on every bound: the budget is that of all of them."""
    cells = []
    for rate in RATES:
        rolled_back = np.zeros(rollouts, dtype=bool)
        first = seeds()
        for offset, watch in enumerate(watches):
            seed = first if not offset else seeds()
            limit = watch.limit.model_copy(update={"alpha": worlds.BUDGET / len(watches)})
            judge = {"airlock": lambda sums, limit=limit: rules.airlock(sums, limit)}
            worst = [case for case in watch.cases if not case.bad][-1]
            times = simulate.judged(worst.stream, judge, rate=rate, rollouts=rollouts, seed=seed)
            rolled_back |= np.isfinite(times["airlock"])
        counts = {"airlock": int(rolled_back.sum())}
        cells.append(_cell("all five", "on every bound", first, rollouts, rate=rate, rolled_back=counts))
        _say(cells[-1])
    return cells


def detection(watches: tuple[worlds.Watch, ...], rollouts: int, seeds: _Seeds) -> list[dict[str, Any]]:
    cells = []
    for watch in watches:
        for case in watch.cases:
            if case.bad:
                seed = seeds()
                ours = simulate.detected(case.stream, watch.limit, rollouts=rollouts, seed=seed)
                oracle = simulate.oracle(case.stream, watch.limit, rollouts=rollouts, seed=seeds())
                found = {"airlock": report.quantiles(ours), "oracle": report.quantiles(oracle)}
                wald = simulate.walds_expectation(case.stream, watch.limit)
                cells.append(_cell(watch.name, case.name, seed, rollouts, wald=wald, **found))
                _say(cells[-1])
    return cells


def references(watches: tuple[worlds.Watch, ...], rollouts: int, seeds: _Seeds) -> list[dict[str, Any]]:
    cells = []
    for watch in watches:
        for case in watch.cases:
            if case.bad:
                seed, found = seeds(), {}
                for rate in RATES:
                    # The same rollouts at each rate: what counts no minutes is judged at the first one alone.
                    windows = {
                        f"{name}, {rate:,}/min": rule for name, rule in judges(watch).items() if _by_minute(name)
                    }
                    others = {name: rule for name, rule in judges(watch).items() if not _by_minute(name)}
                    asked = windows if rate != RATES[0] else others | windows
                    times = simulate.judged(case.stream, asked, rate=rate, rollouts=rollouts, seed=seed)
                    found |= {name: report.quantiles(result) for name, result in times.items()}
                cells.append(_cell(watch.name, case.name, seed, rollouts, found=found))
                _say(cells[-1])
    return cells


def _by_minute(rule: str) -> bool:
    return rule.startswith("threshold")


def turning(watches: tuple[worlds.Watch, ...], rollouts: int, seeds: _Seeds) -> list[dict[str, Any]]:
    watch, case, cells = watches[0], worlds.turning(), []
    for rate in RATES:
        seed = seeds()
        times = simulate.judged(case.stream, judges(watch), rate=rate, rollouts=rollouts, seed=seed)
        # Who was rolled back while good is not counted here: that is what the first table counts.
        late = {rule: found[found > worlds.TURNS_AFTER] for rule, found in times.items()}
        found = {
            rule: report.quantiles(kept, since=worlds.TURNS_AFTER) if len(kept) else None for rule, kept in late.items()
        }
        cells.append(_cell(watch.name, case.name, seed, rollouts, rate=rate, found=found))
        _say(cells[-1])
    return cells


def readiness(watches: tuple[worlds.Watch, ...], rollouts: int, seeds: _Seeds) -> list[dict[str, Any]]:
    cells = []
    for watch in watches:
        for case in watch.cases:
            if case.bad and not watch.limit.late:
                seed = seeds()
                found = prices.readiness(watch, case, rollouts=rollouts, seed=seed)
                cells.append(_cell(watch.name, case.name, seed, rollouts, **found))
                _say(cells[-1])
    return cells


def forms(rollouts: int, seeds: _Seeds) -> list[dict[str, Any]]:
    cells = []
    for name, case, limit in prices.shifts_and_losses():
        seed = seeds()
        found = prices.forms(limit, case.stream, rollouts=rollouts, seed=seed)
        cells.append(_cell(name, case.name, seed, rollouts, **found))
        _say(cells[-1])
    return cells


def _cell(guard: str, case: str, seed: int, rollouts: int, **found: Any) -> dict[str, Any]:
    return {"guard": guard, "case": case, "seed": seed, "rollouts": rollouts, **found}


def _say(cell: dict[str, Any]) -> None:
    print(json.dumps(cell), file=sys.stderr, flush=True)  # noqa: T201


def measure(rollouts: int) -> dict[str, Any]:
    """All cells."""
    watches, seeds, start = worlds.watches(), _Seeds(), time.monotonic()
    found = {
        "false_rollbacks": false_rollbacks(watches, rollouts, seeds) + together(watches, rollouts, seeds),
        "detection": detection(watches, rollouts, seeds),
        "references": references(watches, rollouts, seeds),
        "turning": turning(watches, rollouts, seeds),
        "readiness": readiness(watches, min(rollouts, 2000), seeds),
        "forms": forms(min(rollouts, 1000), seeds),
    }
    return {"rollouts": rollouts, "budget": worlds.BUDGET, "seconds": time.monotonic() - start, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=10_000, help="of each cell")
    parser.add_argument("--quick", action="store_true", help="200 rollouts a cell: whether it runs, not what it finds")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--plots", type=Path, help="folder for the pictures")
    arguments = parser.parse_args()
    found = measure(200 if arguments.quick else arguments.rollouts)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.plots:
        report.plots(found, arguments.plots)
    print(report.tables(found))  # noqa: T201
    ended = f"{found['rollouts']:,} rollouts a cell, seeds from {SEED}, {found['seconds']:.0f} s"
    print(f"\n{ended}")  # noqa: T201


if __name__ == "__main__":
    main()
