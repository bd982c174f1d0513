"""The model card of a released version, in Markdown and HTML, made from its release record.

Follows the sections of Mitchell et al. (2019), Model Cards for Model Reporting. What no measurement can say (intended
use, limits) comes from the spec's ``card``; where the spec is silent, so is not the card: it says that nobody said.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock.core.spec import ModelSpec, written
from airlock.core.verdict import Verdict

if TYPE_CHECKING:
    from airlock.steps.record import ReleaseRecord

MARKDOWN = "model_card.md"
HTML = "model_card.html"
PICTURE = "traffic.png"
_MOST_SLICES = 30
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2733; }
table { border-collapse: collapse; margin: .5rem 0 1rem; display: block; overflow-x: auto; }
th, td { border: 1px solid #d5dde5; padding: .25rem .6rem; text-align: left; vertical-align: top; }
th { background: #f2f6fa; } h1, h2 { line-height: 1.2; } img { max-width: 100%; } code { font-size: .9em; }
"""


def write(spec: ModelSpec, record: ReleaseRecord, folder: Path) -> None:
    """Write ``model_card.md``, ``model_card.html`` and the picture of the traffic into ``folder``."""
    picture = folder / PICTURE
    _draw_traffic(record, picture)
    text = markdown(spec, record)
    (folder / MARKDOWN).write_text(text)
    (folder / HTML).write_text(_page(f"{record.model} version {record.version}", text, picture))


def markdown(spec: ModelSpec, record: ReleaseRecord) -> str:
    """The whole card."""
    card = spec.card
    return "\n".join(
        [
            f"# {record.model} version {record.version}",
            "",
            summary(spec, record),
            "",
            "## Purpose",
            "",
            spec.description or "Not stated.",
            "",
            "### Intended use",
            "",
            *_listed(card.intended),
            "",
            "### Not intended",
            "",
            *_listed(card.not_intended),
            "",
            "### Limits",
            "",
            *_listed(card.limits),
            "",
            "## Data",
            "",
            *_data(spec, record),
            "",
            "## Metrics and gates",
            "",
            _held_out(record),
            "",
            *_verdicts(record.gates),
            "",
            "### Slices",
            "",
            *_slices(record.gates),
            "",
            "## On live traffic",
            "",
            *_traffic(record),
            "",
            "## Lineage",
            "",
            *_table(("what", "value"), _lineage(record)),
            "",
        ]
    )


def summary(spec: ModelSpec, record: ReleaseRecord) -> str:
    """The first paragraph: what became of the version, and whose it is."""
    name = f" (semantic version {record.semantic_version})" if record.semantic_version else ""
    owner = f" Owner: {spec.owner}." if spec.owner else ""
    trained = f" Trained by {record.author}." if record.author else ""
    return (
        f"Version {record.version}{name} of {record.model}: **{record.outcome}** at "
        f"{record.ended_at:%Y-%m-%d %H:%M} UTC, {record.reason}.{owner}{trained} Release {record.release}."
    )


def _held_out(record: ReleaseRecord) -> str:
    held_out = record.data["evaluation"]
    return (
        f"Held out and never trained on: {held_out['rows']:,} rows from {held_out['from']} on. Each bound of an "
        "interval holds at the confidence of its gate, 95 % unless the gate says otherwise."
    )


def _data(spec: ModelSpec, record: ReleaseRecord) -> list[str]:
    train = record.data["train"]
    label = spec.label
    asked = f"`{label.name}`" + (f", positive means {label.positive}" if spec.task.value == "classification" else "")
    return [
        f"- {train['rows']:,} rows of `{spec.data.table}`, events from {train['from']} to {train['to']}",
        f"- predicted: {asked}; its label takes about {written(label.delay)}, at most {written(spec.maturity)}",
        f"- snapshot `{record.data['snapshot']}`, training set `{record.data['training_set']}`",
        f"- inputs: {', '.join(f'{name} ({kind})' for name, kind in record.features['inputs'].items())}",
    ]


def _traffic(record: ReleaseRecord) -> list[str]:
    if not record.traffic:
        return ["The version has had no traffic."]
    last: dict[tuple[str, str], Verdict] = {(each.step, each.verdict.name): each.verdict for each in record.guards}
    rows = [
        (step, name, _status(verdict), _span(verdict), _number(verdict.threshold), verdict.reason)
        for (step, name), verdict in last.items()
    ]
    judged = _table(("step", "guard", "verdict", "estimate", "bound", "reason"), rows) if rows else []
    return [f"![share of the traffic over time]({PICTURE})", "", *judged]


def _slices(gates: Iterable[Verdict]) -> list[str]:
    rows = [
        (gate.details["column"], name, str(group.get("rows", "")), _group(group), str(group.get("status", "")))
        for gate in gates
        if isinstance(gate.details.get("groups"), dict) and "column" in gate.details
        for name, group in list(gate.details["groups"].items())[:_MOST_SLICES]
        if isinstance(group, dict)
    ]
    return _table(("column", "group", "rows", "estimate", "verdict"), rows) if rows else ["No slices are declared."]


def _group(group: dict[str, Any]) -> str:
    if group.get("estimate") is None:
        return ""
    return f"{group['estimate']:.4g} ({_number(group.get('low'))} to {_number(group.get('high'))})"


def _lineage(record: ReleaseRecord) -> list[tuple[str, ...]]:
    said = (f"{answer.actor} ({'yes' if answer.yes else 'no'}: {answer.reason})" for answer in record.answers)
    approved = ", ".join(said)
    return [
        ("bundle", f"`{record.bundle}`"),
        ("MLflow run", f"`{record.training['run_id']}`"),
        ("commit", f"`{record.code['commit']}`"),
        ("recipe", f"`{record.code['recipe']}`, seed {record.code['seed']}"),
        ("environment", f"{len(record.environment)} packages, listed in the release record"),
        ("answers", approved or "nobody was asked"),
        ("champion before", record.champion_before or "none"),
    ]


def _verdicts(verdicts: Iterable[Verdict]) -> list[str]:
    rows = [
        (each.name, _status(each), _span(each), _number(each.threshold), str(each.n or ""), each.reason)
        for each in verdicts
    ]
    if not rows:
        return ["No gate was judged."]
    return _table(("gate", "verdict", "estimate", "bound", "n", "reason"), rows)


def _status(verdict: Verdict) -> str:
    return f"{verdict.status} (dry run)" if verdict.dry_run else str(verdict.status)


def _span(verdict: Verdict) -> str:
    if verdict.estimate is None:
        return ""
    if verdict.low == verdict.high:  # neither is known, or it was counted
        return _number(verdict.estimate)
    return f"{_number(verdict.estimate)} ({_number(verdict.low)} to {_number(verdict.high)})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _listed(items: Sequence[str]) -> list[str]:
    return [f"- {item}" for item in items] or ["Not stated by the owner."]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _page(title: str, text: str, picture: Path) -> str:
    """The card as one file that needs no other: the picture is in it."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    inline = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    body = body.replace(f'src="{PICTURE}"', f'src="{inline}"')
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _draw_traffic(record: ReleaseRecord, path: Path) -> None:
    """The candidate's share over time, from the ledger's routes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), layout="tight")
    axes: Any = figure.subplots()  # dates are what its stubs do not know
    times = [entry.at for entry in record.traffic]
    shares = [100.0 if entry.champion == record.version else entry.share for entry in record.traffic]
    if times:
        end = max(record.ended_at, times[-1])
        axes.step([*times, end], [*shares, shares[-1]], where="post", color="#1f6fb2", linewidth=2)
        axes.fill_between([*times, end], [*shares, shares[-1]], step="post", alpha=0.15, color="#1f6fb2")
    axes.set(ylim=(-3, 103), ylabel="share, %", title=f"version {record.version}: {record.outcome}")
    axes.grid(alpha=0.3)
    figure.autofmt_xdate(rotation=20)
    figure.savefig(path, dpi=100, metadata={"Software": None})
