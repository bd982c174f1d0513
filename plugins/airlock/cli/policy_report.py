"""What ``airlock policy replay`` found: as a table with the end, in words, or as a document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock.cli.output import out

if TYPE_CHECKING:
    from airlock.core.replay_report import Repeated, ReplayReport


def tell(report: ReplayReport) -> None:
    """The decisions as a table, and the end."""
    from rich.table import Table

    table = Table("request", "time", "step", "decision", "by", "reason", box=None, pad_edge=False)
    for decided in report.decisions:
        when = f"{decided.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(f"{decided.request:,}", when, decided.step, decided.action, decided.by, decided.reason)
    out.print(table, markup=False)
    out.print(f"[bold]end[/bold]: {report.ending.replace('_', ' ')}", markup=True)
    if not report.decisions or report.ending in ("promoted", "unfinished"):
        out.print(report.reason, markup=False)


def tell_repeated(found: Repeated) -> None:
    said = f"the truth breaks {', '.join(found.bad)}" if found.bad else "the truth keeps every bound"
    count = found.missed if found.bad else found.false_rollbacks
    if found.runs == 1:
        taken_back = "was taken back" if "rolled_back" in found.endings else "was not taken back"
        out.print(f"[bold]how wrong[/bold]: {said} and it {taken_back}: {'wrong' if count else 'right'}")
        return
    out.print(
        f"[bold]how wrong[/bold]: {said}; {'missed' if found.bad else 'falsely taken back'} in {count} of {found.runs} "
        f"({100 * found.rate:.2g} %, 95 % interval {100 * found.low:.2g} to {100 * found.high:.2g} %)"
    )
    if found.to_detection:
        name = "requests until it was taken back"
        out.print(f"{name}: median {found.to_detection['median']:,.0f}, p90 {found.to_detection['p90']:,.0f}")
    endings = ", ".join(f"{number} {ending.replace('_', ' ')}" for ending, number in sorted(found.endings.items()))
    out.print(f"of {found.runs} runs: {endings}; the table shows the first")


def tell_plot(plot: Path | None) -> None:
    if plot is not None:
        out.print(f"drawn to {plot}", markup=False)


def as_document(report: ReplayReport) -> dict[str, Any]:
    return {**report.model_dump(mode="json"), "wrong": report.wrong, "over": list(report.over)}
