"""What becomes of a release, by how good its candidate really is: promoted, taken back, or ended by the deadline.

    python tests/benchmarks/operating_characteristic.py [--rollouts 200] [--json out.json] [--plots docs/images]
        [--watched errors:50 errors:500 shift:50 served:100] [--truths 1.5 2]

The truth goes from 0.2 to 3 times the bound. Each release has the default plan (a shadow and four canary steps, ten
minutes each) and a deadline of two hours a step, and is judged once a minute by the real functions: ``breach`` as the
gateway does, which looks after every request and is up to a minute sooner, and ``decide``. One guard, the whole budget:

    errors  error_rate, at most 0.5 %
    shift   prediction_shift, max_mean 0.01; differences are normal with a deviation of 0.05
    served  error_rate, at most 5 %; the candidate fails only where it serves, and never in the 1,000 requests of shadow

Beside it stands the rule that asks of a pass only its minimum sample and that no breach is proved, on the same traffic.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from airlock.core import guards  # noqa: E402
from airlock.core.counters import Counters  # noqa: E402
from airlock.core.decide import Decision, Evidence, decide  # noqa: E402
from airlock.core.guards import breach, limits_of, may_pass  # noqa: E402
from airlock.core.release import Phase, PlannedStep, Release, plan  # noqa: E402
from airlock.core.route import Bundle  # noqa: E402
from airlock.core.spec import ModelSpec  # noqa: E402
from airlock.core.tally import GatewayStatus, Role, Tally  # noqa: E402
from airlock.steps.observations import summed  # noqa: E402

TRUTHS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
"""How often the truth holds the bound."""
WATCHED = (("errors", 50), ("errors", 500), ("shift", 50), ("served", 100))
"""Guards, and requests a minute."""
CELLS = [(guard, rate, truth) for guard, rate in WATCHED for truth in (TRUTHS if guard != "served" else (3.0,))]
"""Each has the seed of its place."""
SEED = 32_000
START = datetime(2026, 1, 1, tzinfo=UTC)
GUARDS: dict[str, dict[str, Any]] = {
    "errors": {"kind": "error_rate", "max": 0.005},
    "shift": {"kind": "prediction_shift", "max_mean": 0.01},
    "served": {"kind": "error_rate", "max": 0.05},
}
_DEVIATION = 0.05
_ENDS = ("promoted", "breach", "deadline")
_COLOURS = {"promoted": "#0b6e4f", "breach": "#c1440e", "deadline": "#d19a00"}


def spec_of(guard: str) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "model": "m",
            "task": "classification",
            "data": {"key": "id", "event_time": "at"},
            "label": {"name": "y"},
            "inputs": {"x": "float"},
            "gates": [{"kind": "finite"}],
            "guards": [GUARDS[guard]],
        }
    )


class Candidate:
    """A source of what a candidate does, whose truth is known."""

    def __init__(self, guard: str, truth: float, seed: int) -> None:
        (self._bound,) = (value for name, value in GUARDS[guard].items() if name.startswith("max"))
        self._guard, self._truth, self._rng = guard, truth, np.random.default_rng(seed)

    def asked(self, role: Role, n: int) -> Tally:
        """What it does with ``n`` requests."""
        if self._guard != "shift":
            fails = self._guard == "errors" or role == "served"
            return Tally(requests=n, errors=int(self._rng.binomial(n, self._truth * self._bound)) if fails else 0)
        values = self._rng.normal(self._truth * self._bound, _DEVIATION, n)
        return Tally(requests=n, difference=summed(values))


@contextlib.contextmanager
def any_pass() -> Iterator[None]:
    """Ask nothing of a pass but its minimum sample."""
    with mock.patch.object(guards, "no_pass_yet", return_value=None):
        yield


class Ended(NamedTuple):
    how: str
    requests: int


def release_of(spec: ModelSpec, candidate: Candidate, rate: int) -> Ended:
    """Take a candidate through its plan, minute by minute; what it does not serve it is asked in shadow."""
    limits, counters = limits_of(spec), Counters()
    total: dict[Role, Tally] = {"served": Tally(), "shadow": Tally()}
    for place, step in enumerate(plan(spec)[1:]):
        if place:
            counters.begin_step()
        of_step: dict[Role, Tally] = {"served": Tally(), "shadow": Tally()}
        for minute in itertools.count(1):
            served = round(rate * step.weight / 100)
            asked: dict[Role, int] = {"served": served, "shadow": rate - served}
            for role, n in asked.items():
                tally = candidate.asked(role, n) if n else Tally()
                counters.include(role, tally)
                of_step[role].include(tally)
                total[role].include(tally)
            counters.restart_if_due()
            requests = counters.all.sums.requests
            if breach(limits, counters):
                return Ended("breach", requests)
            elapsed = timedelta(minutes=minute)
            # Before its deadline a step ends only by a breach, or with enough requests and limits that let it pass.
            enough = step.role == "warm_up" or of_step[step.role].requests >= step.min_requests
            if elapsed < step.bake or (elapsed < step.deadline and not (enough and may_pass(limits, counters))):
                continue
            action = _decided(spec, step, counters, total, of_step, minute).action
            if action == "roll_back":
                return Ended("deadline", requests)
            if action == "advance":
                break
    return Ended("promoted", requests)


def _decided(
    spec: ModelSpec,
    step: PlannedStep,
    counters: Counters,
    total: dict[Role, Tally],
    of_step: dict[Role, Tally],
    minute: int,
) -> Decision:
    release = Release(
        id="r",
        model="m",
        version="2",
        champion="1",
        bundle=Bundle(path="/b", digest="sha256:" + "0" * 64),
        phase=Phase.SHADOW if step.role == "shadow" else Phase.CANARY,
        step=step.name,
        generation=1,
        entered_at=START,
    )
    status = GatewayStatus(
        model="m",
        generation=1,
        checksum="",
        release="r",
        rollout_step=step.name,
        champion="1",
        candidate="2",
        share=step.weight,
        loaded=("1", "2"),
        since=START,
        observed_s=60.0 * minute,
        step={"2": {str(role): tally for role, tally in of_step.items()}},
        total={"2": {str(role): tally for role, tally in total.items()}},
        checkpoints=counters.checkpoints,
    )
    return decide(spec, release, Evidence(gateway=status), START + timedelta(minutes=minute))


def cell(guard: str, rate: int, truth: float, rollouts: int, seed: int) -> dict[str, Any]:
    """What became of so many releases, and after how many requests, by both rules on the same traffic."""
    spec = spec_of(guard)
    found: dict[str, Any] = {"guard": guard, "rate": rate, "truth": truth, "rollouts": rollouts, "seed": seed}
    for rule, applied in (("airlock", contextlib.nullcontext()), ("no breach", any_pass())):
        found[rule] = {}
        with applied:
            ends = [release_of(spec, Candidate(guard, truth, seed + 1000 * run), rate) for run in range(rollouts)]
        for how in _ENDS:
            asked = [end.requests for end in ends if end.how == how]
            found[rule][how] = len(asked)
            found[rule][f"{how} after"] = statistics.median(asked) if asked else None
    return found


def measure(
    rollouts: int, truths: tuple[float, ...] = TRUTHS, watched: tuple[tuple[str, int], ...] = WATCHED
) -> list[dict[str, Any]]:
    cells = []
    for index, (guard, rate, truth) in enumerate(CELLS):
        if (guard, rate) in watched and truth in truths:
            cells.append(cell(guard, rate, truth, rollouts, SEED + index))
            print(json.dumps(cells[-1]), file=sys.stderr, flush=True)  # noqa: T201
    return cells


def table(cells: list[dict[str, Any]]) -> str:
    head: tuple[str, ...] = ("guard", "requests/min", "truth / bound", "promoted", "taken back: breach", "deadline")
    head += ("requests: promoted", "breach", "deadline", "promoted without the rule", "requests")
    lines: list[tuple[str, ...]] = [head, ("---",) * len(head)]
    for found in cells:
        ours, other = found["airlock"], found["no breach"]
        shares = [f"{100 * ours[end] / found['rollouts']:.0f} %" for end in _ENDS]
        requests = ["-" if ours[f"{end} after"] is None else f"{ours[f'{end} after']:,.0f}" for end in _ENDS]
        after = "-" if other["promoted after"] is None else f"{other['promoted after']:,.0f}"
        before = f"{100 * other['promoted'] / found['rollouts']:.0f} %"
        lines.append((found["guard"], str(found["rate"]), f"{found['truth']:g}", *shares, *requests, before, after))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(cells: list[dict[str, Any]], folder: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    cells = [found for found in cells if found["guard"] != "served"]  # of which there is one truth alone
    watched = list(dict.fromkeys((found["guard"], found["rate"]) for found in cells))
    figure, axes = plt.subplots(1, len(watched), figsize=(9.5, 3.4), sharey=True, squeeze=False)
    for axis, (guard, rate) in zip(axes[0], watched, strict=True):
        mine = [found for found in cells if (found["guard"], found["rate"]) == (guard, rate)]
        truths = [found["truth"] for found in mine]
        shares = {end: [100 * found["airlock"][end] / found["rollouts"] for found in mine] for end in _ENDS}
        before = [100 * found["no breach"]["promoted"] / found["rollouts"] for found in mine]
        axis.stackplot(truths, *shares.values(), labels=_ENDS, colors=[_COLOURS[end] for end in _ENDS], alpha=0.8)
        axis.plot(truths, before, "k--", linewidth=1, label="promoted if no breach is proved")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xticks([0.2, 0.5, 1, 2, 3], ["0.2", "0.5", "1", "2", "3"])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(truths[0], truths[-1])
        axis.set_ylim(0, 100)
        axis.set_title(f"{guard}, {rate} requests a minute", fontsize=8)
        axis.set_xlabel("truth / bound", fontsize=8)
    axes[0][0].set_ylabel("releases, %", fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "operating_characteristic.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=200, help="of each cell")
    names = {f"{guard}:{rate}": (guard, rate) for guard, rate in WATCHED}
    parser.add_argument("--watched", nargs="+", choices=names, default=list(names), help="guards and requests a minute")
    parser.add_argument("--truths", nargs="+", type=float, choices=TRUTHS, default=TRUTHS, help="times the bound")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--plots", type=Path, help="folder for the picture")
    arguments = parser.parse_args()
    started = time.monotonic()
    cells = measure(arguments.rollouts, tuple(arguments.truths), tuple(names[name] for name in arguments.watched))
    if arguments.json:
        arguments.json.write_text(json.dumps(cells, indent=1) + "\n")
    if arguments.plots:
        plot(cells, arguments.plots)
    print(table(cells))  # noqa: T201
    print(f"\n{arguments.rollouts} releases a cell, seeds from {SEED}, {time.monotonic() - started:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
