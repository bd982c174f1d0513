"""What a person is shown who has to answer for a version: in Markdown, as Airflow's approval page takes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from airlock.core.release import Release
from airlock.core.spec import ModelSpec
from airlock.core.verdict import Verdict
from airlock.ledger import Ledger
from airlock.ledger.ledger import GATES

_MOST_GROUPS = 30


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from, as far as the registry says. ``facts`` by name, ``links`` by title."""

    facts: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """The evidence about a release, all of it from the ledger."""

    release: Release
    gates: tuple[Verdict, ...]
    guards: tuple[tuple[str, Verdict], ...]
    earlier: tuple[Release, ...]
    champion: str | None


def evidence_of(ledger: Ledger, release: Release) -> Shown:
    """What the ledger knows of a release now."""
    found = ledger.verdicts(release.id)
    champion = ledger.champion(release.model)
    newest = {(step, verdict.name): verdict for step, verdict in found if step != GATES}
    same = (other for other in ledger.releases(release.model) if other.version == release.version)
    return Shown(
        release=release,
        gates=tuple(verdict for step, verdict in found if step == GATES),
        guards=tuple((step, verdict) for (step, _), verdict in newest.items()),
        earlier=tuple(other for other in same if other.id != release.id),
        champion=champion.version if champion else None,
    )


def question(spec: ModelSpec, shown: Shown, lineage: Lineage, *, expires_at: datetime) -> str:
    """The body of the approval."""
    release = shown.release
    against = f"champion version {release.champion}" if release.champion else "a constant, as there was no champion"
    parts = [f"**{release.model} version {release.version}**, judged against {against}."]
    if shown.champion != release.champion:
        now = f"version {shown.champion}" if shown.champion else "nobody"
        parts.append(
            f"**The champion has changed since: it is {now}.** The gates below compare with another one. An answer "
            "that was given before counts no more."
        )
    parts += [_who(spec, release, expires_at), "### Gates", verdict_table(shown.gates)]
    if groups := slice_table(shown.gates):
        parts += ["### Slices", groups]
    if shown.guards:
        parts += ["### Guards, on live traffic", _guards(shown.guards)]
    parts += ["### The version", _facts(spec, shown, lineage)]
    parts.append(" · ".join(f"[{title}]({url})" for title, url in lineage.links.items()))
    return "\n\n".join(part for part in parts if part)


def _who(spec: ModelSpec, release: Release, expires_at: datetime) -> str:
    asked = spec.approvals
    people = "One person has" if asked.required == 1 else f"{asked.required} different people have"
    author = ""
    if asked.forbid_author:
        author = (
            f" {release.author}, who started its training, may not."
            if release.author
            else " **Nobody can: who started its training is not known, and the spec forbids its author.**"
        )
    return (
        f"{people} to approve; the first rejection ends the release.{author} Nobody counts twice, and where an answer "
        f"does not count the question is asked again. It expires at {expires_at:%Y-%m-%d %H:%M} UTC."
    )


def _facts(spec: ModelSpec, shown: Shown, lineage: Lineage) -> str:
    facts = dict(lineage.facts)
    if shown.release.author:
        facts["author"] = shown.release.author
    facts |= {
        name: "; ".join(text.rstrip(".") for text in said)
        for name, said in (
            ("intended use", spec.card.intended),
            ("not intended", spec.card.not_intended),
            ("limits", spec.card.limits),
        )
        if said
    }
    earlier = [
        f"- earlier release {other.id} of this version: {other.phase.replace('_', ' ')}, {_line(other.reason)}"
        for other in shown.earlier
    ]
    return "\n".join([*(f"- {name}: {_line(value)}" for name, value in facts.items()), *earlier])


def verdict_table(verdicts: Iterable[Verdict]) -> str:
    """Verdicts with their intervals; one in a dry run is marked."""
    rows = [_row(verdict) for verdict in verdicts]
    if not rows:
        return "**The ledger holds no verdict of a gate.**"
    return _table(("gate", "verdict", "estimate", "interval", "bound", "n", "reason"), rows)


def slice_table(verdicts: Iterable[Verdict]) -> str:
    """The groups that the slice and fairness gates looked at; empty without such a gate."""
    rows = [
        (verdict.name, str(name), str(group.get("rows", "")), *_numbers(group), str(group.get("status", "")))
        for verdict in verdicts
        for name, group in _groups(verdict)
    ]
    return _table(("gate", "group", "rows", "estimate", "interval", "verdict"), rows) if rows else ""


def _groups(verdict: Verdict) -> list[tuple[str, dict[str, Any]]]:
    groups = verdict.details.get("groups")
    if not isinstance(groups, dict):
        return []
    return [(name, group) for name, group in groups.items() if isinstance(group, dict)][:_MOST_GROUPS]


def _numbers(group: dict[str, Any]) -> tuple[str, str]:
    return _number(group.get("estimate")), _interval(group.get("low"), group.get("high"))


def _guards(found: Iterable[tuple[str, Verdict]]) -> str:
    head = ("step", "guard", "verdict", "estimate", "interval", "bound", "n", "reason")
    return _table(head, [(step, *_row(verdict)) for step, verdict in found])


def _row(verdict: Verdict) -> tuple[str, ...]:
    return (
        verdict.name,
        f"{verdict.status} (dry run)" if verdict.dry_run else str(verdict.status),
        _number(verdict.estimate),
        _interval(verdict.low, verdict.high),
        _number(verdict.threshold),
        "" if verdict.n is None else str(verdict.n),
        verdict.reason,
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_line(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _line(text: str) -> str:
    return text.replace("\n", " ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None and high is None else f"{_number(low)} to {_number(high)}"
