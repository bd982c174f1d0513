"""Pictures of a replay: how far each bound was used as traffic came in, or when many runs were taken back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from airlock.core.guards import limits_of
from airlock.core.replay_report import ReplayReport
from airlock.core.replay_traffic import Glance
from airlock.core.route import Limit
from airlock.core.spec import ModelSpec
from airlock.core.tally import Sums


class Line(NamedTuple):
    """What a look saw of every bound: the estimate as a share of the bound, by limit; ``None`` where there is none."""

    request: int
    used: dict[str, float | None]


def line(spec: ModelSpec, glance: Glance) -> Line:
    """One look's place in the picture."""
    return Line(glance.request, {limit.name: _used(limit, glance) for limit in limits_of(spec)})


def _used(limit: Limit, glance: Glance) -> float | None:
    total = glance.total
    match limit.signal:
        case "errors":
            n, value = total.requests, float(total.errors)
        case "slow":
            n, value = total.requests, float(total.slow.get(limit.name, 0))
        case "fallbacks":
            n, value = total.requests, float(total.fallbacks)
        case "difference":
            n, value = total.difference.n, abs(total.difference.total)
        case "absolute" | "flips":
            sums: Sums = getattr(total, limit.signal)
            n, value = sums.n, sums.total
        case _:
            seen = glance.late.observations.get(limit.name, Sums()) if glance.late else Sums()
            n, value = seen.n, seen.total
    # Of a bound at 0 or below, such as one on minus an outcome, there is no share.
    return value / n / limit.bound if n and limit.bound > 0 else None


def draw_one(path: Path, title: str, lines: Sequence[Line], report: ReplayReport) -> None:
    """One run: every estimate as a share of its bound, and what was decided when."""
    figure, axes = _axes(title)
    requests = [seen.request for seen in lines]
    for name in lines[0].used if lines else ():
        values = [np.nan if (used := seen.used[name]) is None else used for seen in lines]
        if not np.all(np.isnan(values)):
            axes.plot(requests, values, label=name, linewidth=1.2)
    axes.axhline(1.0, color="black", linestyle="--", linewidth=1)
    for decided in report.decisions:
        axes.axvline(decided.request, color="tab:red" if decided.action == "roll_back" else "tab:grey", linewidth=0.8)
        text = decided.action.replace("_", " ")
        axes.text(decided.request, 2.95, f" {text}: {decided.step}", rotation=90, va="top", fontsize=7)
    axes.set(xlabel="requests that the candidate was asked", ylabel="estimate as a share of its bound", ylim=(-0.5, 3))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, loc="upper right")
    _save(figure, path)


def draw_many(path: Path, title: str, reports: Sequence[ReplayReport]) -> None:
    """Many runs: the share that was taken back by then."""
    figure, axes = _axes(title)
    taken_back = sorted(report.taken_back_after for report in reports if report.taken_back_after is not None)
    shares = np.arange(len(taken_back) + 1) / len(reports)
    axes.step([0, *taken_back, max(report.requests for report in reports)], [*shares, shares[-1]], where="post")
    axes.set(xlabel="requests", ylabel="share of the runs taken back", ylim=(0, 1.02))
    _save(figure, path)


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
