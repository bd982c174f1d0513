"""Tables in Markdown and pictures of what the simulation found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

RULES = ("airlock", "z-test", "fixed horizon", "threshold", "threshold x2")
_COLOURS = {
    "airlock": "#0b6e4f",
    "SPRT": "#888888",
    "z-test": "#c1440e",
    "fixed horizon": "#3465a4",
    "threshold": "#d19a00",
    "threshold x2": "#8e5ea2",
}
_NEVER = 100_000


def upper(count: int, of: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's upper bound of a share."""
    return 1.0 if count == of else float(stats.beta.ppf(confidence, count + 1, of - count))


def tables(found: dict[str, Any]) -> str:
    """Everything, as it stands in RESULTS.md."""
    return "\n\n".join(
        (
            _false_rollbacks(found),
            _detection(found),
            _references(found),
            _turning(found),
            _summary(found),
            _readiness(found),
            _forms(found),
        )
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.2f} % ({100 * upper(count, of):.2f} %)"


def _false_rollbacks(found: dict[str, Any]) -> str:
    rows = []
    for cell in found["false_rollbacks"]:
        counts = [_share(cell["rolled_back"][rule], cell["rollouts"]) for rule in RULES if rule in cell["rolled_back"]]
        rows.append([cell["guard"], cell["case"], f"{cell['rate']:,}", *counts, *["-"] * (len(RULES) - len(counts))])
    return _table(("guard", "candidate", "requests/min", *RULES), rows)


def _detection(found: dict[str, Any]) -> str:
    rows = []
    for cell in found["detection"]:
        ours, oracle, wald = cell["airlock"], cell["oracle"], cell["wald"]
        rows.append(
            [
                cell["guard"],
                cell["case"],
                *(_requests(value) for value in (ours["median"], ours["p90"])),
                f"{100 * ours['never']:.2f} %",
                *(_requests(value) for value in (wald, oracle["median"], oracle["p90"])),
                *(_ratio(ours[key], wald) for key in ("median", "mean", "p90")),
                _ratio(ours["p90"], oracle["p90"]),
            ]
        )
    head = ("guard", "candidate", "median", "p90", "never", "Wald's E[N]", "SPRT median", "SPRT p90")
    return _table((*head, "median / E[N]", "mean / E[N]", "p90 / E[N]", "p90 / SPRT p90"), rows)


def _ratio(ours: float | None, other: float | None) -> str:
    return "-" if ours is None or other is None else f"{ours / other:.2f}"


def _requests(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f}"


def _times(found: dict[str, Any] | None) -> str:
    if found is None:
        return "all taken back while good"
    never = f", never {100 * found['never']:.1f} %" if found["never"] else ""
    return f"{_requests(found['median'])} / {_requests(found['p90'])}{never}"


def _references(found: dict[str, Any]) -> str:
    columns = found["references"][0]["found"]
    rows = [
        [cell["guard"], cell["case"], *(_times(cell["found"][name]) for name in columns)]
        for cell in found["references"]
    ]
    return _table(("guard", "candidate", *columns), rows)


def _turning(found: dict[str, Any]) -> str:
    columns = found["turning"][0]["found"]
    rows = [[f"{cell['rate']:,}", *(_times(cell["found"][name]) for name in columns)] for cell in found["turning"]]
    return _table(("requests/min", *columns), rows)


def holds(found: dict[str, Any], rule: str) -> str:
    """Whether a rule's false rollbacks keep the budget in every cell, by their upper 95 % bound; ``about``: not
    surely, but none of them is surely above it either."""
    cells = [(cell["rolled_back"][rule], cell["rollouts"]) for cell in _judged_by(found, rule)]
    if all(upper(*cell) <= found["budget"] for cell in cells):
        return "yes"
    # Of so many cells one lies above its 95 % bound by chance: here each is held to 99.9 %.
    return "about" if all(upper(n - count, n, 0.999) >= 1 - found["budget"] for count, n in cells) else "no"


def _judged_by(found: dict[str, Any], rule: str) -> list[dict[str, Any]]:
    return [cell for cell in found["false_rollbacks"] if rule in cell["rolled_back"]]


def _summary(found: dict[str, Any]) -> str:
    budget = found["budget"]
    rows = []
    for rule in RULES:
        false = max(upper(cell["rolled_back"][rule], cell["rollouts"]) for cell in _judged_by(found, rule))
        missed = max(
            result["never"]
            for cell in found["references"]
            for name, result in cell["found"].items()
            if name == rule or name.startswith(f"{rule}, ")
        )
        blind = "yes" if missed > budget else "none"
        rows.append([rule, f"{100 * false:.2f} %", holds(found, rule), f"{100 * missed:.1f} %", blind])
    head = ("rule", "worst false rollbacks (upper 95 %)", f"holds {100 * budget:g} %", "worst share never found")
    return _table((*head, "blind spot"), rows)


def _readiness(found: dict[str, Any]) -> str:
    rows, slower = [], []
    for cell in found["readiness"]:
        ready, plain = cell["ready"], cell["plain"]
        if ready["median"] is not None and plain["median"] is not None:
            slower.append(ready["median"] / plain["median"])
        requests = [_requests(part[key]) for key in ("median", "p90") for part in (ready, plain)]
        ratios = [_ratio(ready[key], plain[key]) for key in ("median", "p90")]
        rows.append([cell["guard"], cell["case"], str(cell["looks"]), *requests, *ratios])
    rows.append(["median of all", *[""] * 6, f"{statistics.median(slower):.2f}", ""])
    head = ("guard", "candidate", "a look each", "median", "release alone", "p90", "release alone")
    return _table((*head, "median, ratio", "p90, ratio"), rows)


def _forms(found: dict[str, Any]) -> str:
    rows = []
    for cell in found["forms"]:
        former, present, exact = (cell[name]["median"] for name in ("former", "present", "exact"))
        requests = [_requests(value) for value in (former, present, exact)]
        rows.append([cell["guard"], cell["case"], *requests, _ratio(present, former), _ratio(present, exact)])
    head = ("guard", "candidate", "former bound and bets", "present", "exact wealth of the present bets")
    return _table((*head, "present / former", "present / exact"), rows)


def plots(found: dict[str, Any], folder: Path) -> list[Path]:
    """Two pictures: false rollbacks, and requests until a bad candidate is found."""
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [_plot_false_rollbacks(found, folder), _plot_detection(found, folder)]


def _plot_false_rollbacks(found: dict[str, Any], folder: Path) -> Path:
    from matplotlib import pyplot as plt

    cells = found["false_rollbacks"]
    figure, axes = plt.subplots(figsize=(9.5, 0.27 * len(cells) + 1.6))
    floor = 100 / cells[0]["rollouts"] / 2
    for row, cell in enumerate(cells):
        for at, rule in enumerate(rule for rule in RULES if rule in cell["rolled_back"]):
            count, of = cell["rolled_back"][rule], cell["rollouts"]
            share, bound = max(100 * count / of, floor), 100 * upper(count, of)
            y = row + (at - 2) * 0.15
            axes.plot([share, bound], [y, y], color=_COLOURS[rule], linewidth=1)
            axes.plot(share, y, "o", color=_COLOURS[rule], markersize=4, label=rule if row == 0 else None)
    axes.axvline(100 * found["budget"], color="black", linestyle="--", linewidth=1, label="declared budget")
    axes.set_xscale("log")
    axes.set_xlim(floor / 1.5, 130)
    axes.set_yticks(range(len(cells)), [f"{c['guard']}, {c['case']}, {c['rate']:,}/min" for c in cells], fontsize=7)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    for row in range(len(cells) - 1):
        axes.axhline(row + 0.5, color="black", linewidth=0.3, alpha=0.3)
    axes.set_xlabel(
        "good candidates rolled back within 100,000 requests, %\n"
        f"(point; line to the upper 95 % bound; leftmost: none of {cells[0]['rollouts']:,})",
        fontsize=8,
    )
    figure.legend(loc="upper center", ncols=6, fontsize=8, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    return _saved(figure, folder / "decision_quality_false_rollbacks.png", top=1 - 0.3 / figure.get_figheight())


def _plot_detection(found: dict[str, Any], folder: Path) -> Path:
    from matplotlib import pyplot as plt

    cells = found["detection"]
    references = {(cell["guard"], cell["case"]): cell["found"] for cell in found["references"]}
    figure, axes = plt.subplots(figsize=(9.5, 0.55 * len(cells) + 1.4))
    for row, cell in enumerate(cells):
        results = references[cell["guard"], cell["case"]]
        shown = {"SPRT": cell["oracle"], "airlock": cell["airlock"]}
        shown |= {name: results[name] for name in ("z-test", "fixed horizon")}
        shown |= {name: results[f"{name}, 500/min"] for name in ("threshold", "threshold x2")}
        for at, (name, result) in enumerate(shown.items()):
            y = row + (at - 2.5) * 0.14
            median, p90 = (_NEVER * 1.3 if result[key] is None else result[key] for key in ("median", "p90"))
            axes.plot([median, p90], [y, y], color=_COLOURS[name], linewidth=1.5)
            cheats = name != "SPRT" and holds(found, name) == "no"
            face = "white" if cheats else _COLOURS[name]
            label = f"{name}, 500/min" if name.startswith("threshold") else name
            label = label if row == 0 else None
            axes.plot(median, y, "o", color=_COLOURS[name], markerfacecolor=face, markersize=4, label=label)
            if result["never"] > 0.02:
                axes.text(p90 * 1.1, y, f"{100 * result['never']:.0f} % never", fontsize=6, va="center")
    axes.axvline(_NEVER, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(2, _NEVER * 5)
    axes.set_yticks(range(len(cells)), [f"{cell['guard']}\n{cell['case']}" for cell in cells], fontsize=7)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xlabel(
        "requests until a bad candidate is found (point: median; line to the 90th percentile; "
        "hollow: the rule does not hold the error budget)",
        fontsize=8,
    )
    figure.legend(loc="upper center", ncols=6, fontsize=8, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    return _saved(figure, folder / "decision_quality_detection.png", top=1 - 0.3 / figure.get_figheight())


def _saved(figure: Any, path: Path, *, top: float) -> Path:
    from matplotlib import pyplot as plt

    figure.tight_layout(rect=(0, 0, 1, top))
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def quantiles(times: Any, *, since: int = 0) -> dict[str, float | None]:
    """Median, 90th percentile, mean of those found, and the share never found, counted ``since`` a request."""
    import numpy as np

    times = np.asarray(times) - since
    found = times[np.isfinite(times)]

    def at(q: float) -> float | None:
        value = float(np.quantile(times, q, method="higher"))
        return value if math.isfinite(value) else None

    return {
        "median": at(0.5),
        "p90": at(0.9),
        "mean": float(found.mean()) if len(found) else None,
        "never": 1 - len(found) / len(times),
    }
