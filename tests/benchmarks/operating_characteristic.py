"""What becomes of a release, by how good its candidate really is: promoted, taken back, or ended by the deadline.

    python tests/benchmarks/operating_characteristic.py [--rollouts 1000] [--json out.json] [--plots docs/images]

The truth goes from 0.2 to 3 times the bound. Each release has the default plan (a shadow and four canary steps, ten
minutes each) and a deadline of two hours a step, and is judged once a minute by the real functions, through
core/replay.py; the gateway looks after every request, and is up to a minute sooner. One guard, the whole budget:

    errors  error_rate, at most 0.5 %
    shift   prediction_shift, max_mean 0.01; differences are normal with a deviation of 0.05

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
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from airlock.core import guards  # noqa: E402
from airlock.core.replay import Frame, replay  # noqa: E402
from airlock.core.replay_report import ReplayReport  # noqa: E402
from airlock.core.spec import ModelSpec  # noqa: E402
from airlock.core.tally import Sums, Tally  # noqa: E402

TRUTHS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
"""How often the truth holds the bound."""
WATCHED = (("errors", 50), ("errors", 500), ("shift", 50))
"""Guards, and requests a minute."""
SEED = 32_000
START = datetime(2026, 1, 1, tzinfo=UTC)
GUARDS: dict[str, dict[str, Any]] = {
    "errors": {"kind": "error_rate", "max": 0.005},
    "shift": {"kind": "prediction_shift", "max_mean": 0.01},
}
_DEVIATION = 0.05
_MINUTES = 5 * 120
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


def frames(guard: str, rate: int, truth: float, seed: int) -> Iterator[Frame]:
    """A frame a minute, for as long as a release may take."""
    rng = np.random.default_rng(seed)
    for minute in range(1, _MINUTES + 1):
        tally = Tally(requests=rate)
        if guard == "errors":
            tally.errors = int(rng.binomial(rate, truth * GUARDS[guard]["max"]))
        else:
            values = rng.normal(truth * GUARDS[guard]["max_mean"], _DEVIATION, rate)
            total, squares = float(values.sum()), float(values @ values)
            ends = {"smallest": float(values.min()), "largest": float(values.max())}
            tally.difference = Sums(n=rate, total=total, squares=squares, **ends)
        yield Frame(START + timedelta(minutes=minute), tally)


@contextlib.contextmanager
def any_pass() -> Iterator[None]:
    """Ask nothing of a pass but its minimum sample."""
    with mock.patch.object(guards, "no_pass_yet", return_value=None):
        yield


def ending(report: ReplayReport) -> str:
    if report.ending == "promoted":
        return "promoted"
    return "deadline" if report.reason.startswith("no decision within") else "breach"


def cell(guard: str, rate: int, truth: float, rollouts: int, seed: int) -> dict[str, Any]:
    """What became of so many releases, and after how many requests, by both rules on the same traffic."""
    spec = spec_of(guard)
    found: dict[str, Any] = {"guard": guard, "rate": rate, "truth": truth, "rollouts": rollouts, "seed": seed}
    for rule, applied in (("airlock", contextlib.nullcontext()), ("no breach", any_pass())):
        with applied:
            reports = [_run(spec, guard, rate, truth, seed + 1000 * run) for run in range(rollouts)]
        ends = [ending(report) for report in reports]
        found[rule] = {end: ends.count(end) for end in _ENDS}
        for end in _ENDS:
            asked = [report.decisions[-1].request for report, of in zip(reports, ends, strict=True) if of == end]
            found[rule][f"{end} after"] = statistics.median(asked) if asked else None
    return found


def _run(spec: ModelSpec, guard: str, rate: int, truth: float, seed: int) -> ReplayReport:
    """The frames end with the release: what comes after it would only cost time."""
    ended = False

    def until_ended() -> Iterator[Frame]:
        for frame in frames(guard, rate, truth, seed):
            if ended:
                return
            yield frame

    def watch(glance: Any) -> None:
        nonlocal ended
        ended = glance.step in ("promoted", "rolled_back", "held", "completed")

    return replay(spec, until_ended(), watch)


def measure(
    rollouts: int, truths: tuple[float, ...] = TRUTHS, watched: tuple[tuple[str, int], ...] = WATCHED
) -> list[dict[str, Any]]:
    cells = []
    for index, ((guard, rate), truth) in enumerate(itertools.product(watched, truths)):
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
    parser.add_argument("--rollouts", type=int, default=1000, help="of each cell")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--plots", type=Path, help="folder for the picture")
    arguments = parser.parse_args()
    started = time.monotonic()
    cells = measure(arguments.rollouts)
    if arguments.json:
        arguments.json.write_text(json.dumps(cells, indent=1) + "\n")
    if arguments.plots:
        plot(cells, arguments.plots)
    print(table(cells))  # noqa: T201
    print(f"\n{arguments.rollouts} releases a cell, seeds from {SEED}, {time.monotonic() - started:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
