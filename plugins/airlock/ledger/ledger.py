"""Writing the ledger.

Every change of a release is one transaction: its new phase, its journal entry, where traffic changes the new route,
and the effects that have to follow outside. Two controllers that do the same thing at once meet at the release as
they read it and at the route's generation; one commits, the other gets a ``Conflict``. A controller that was
overtaken in its sleep meets its lease and gets a ``Fenced``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import cast
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from airlock.core.errors import Conflict
from airlock.core.release import Event, Release, next_phase
from airlock.core.route import Route
from airlock.core.spec import ModelSpec
from airlock.core.verdict import Verdict
from airlock.ledger.effects import Effects, ask
from airlock.ledger.journal import entry
from airlock.ledger.leases import Leases
from airlock.ledger.reading import Reading
from airlock.ledger.records import EffectKind, Lease
from airlock.ledger.shared import Shared
from airlock.ledger.store import found, release_of
from airlock.ledger.tables import JournalRow, ReleaseRow, RouteRow, SpecRow, VerdictRow
from airlock.ledger.votes import Votes

GATES = "gates"
"""The step under which the verdicts are kept that a release was opened with."""

_STEERING = frozenset({Event.PAUSE, Event.RESUME, Event.EXTEND, Event.PROMOTE_NOW, Event.APPROVE})
"""Where they do not change the phase, the release stays in its step and has been there since it entered it."""
_CHANGES = frozenset({"paused", "promote_now", "extended"})


class Ledger(Reading, Leases, Effects, Votes, Shared):
    """The ledger at an SQLAlchemy ``url``, SQLite or PostgreSQL. Its tables are brought up to date when it is opened.

    A write under a ``lease`` that is not the newest, was given back or has run out raises ``Fenced`` and writes
    nothing.
    """

    def open(
        self,
        release: Release,
        *,
        key: str,
        actor: str,
        verdicts: Sequence[Verdict] = (),
        spec: ModelSpec | None = None,
        lease: Lease | None = None,
    ) -> Release:
        """Record a new release with what its gates found, or return the one that was opened with the same ``key``.

        ``spec`` is what it is opened with, and held to from then on: it is kept beside it, under its digest.
        """
        what, now = f"opening a release of {release.model} {release.version}", release.entered_at
        with self._writing(release.model, what, lease=lease, now=now) as session:
            known = session.scalar(select(ReleaseRow).where(ReleaseRow.key == key))
            if known is not None:
                return release_of(known)
            release = release.model_copy(update={"spec": _keep_spec(session, spec, now)})
            session.add(
                ReleaseRow(
                    id=release.id,
                    key=key,
                    model=release.model,
                    version=release.version,
                    champion=release.champion,
                    bundle=release.bundle.model_dump_json(),
                    phase=release.phase,
                    step=release.step,
                    generation=release.generation,
                    entered_at=now,
                    opened_at=now,
                    reason=release.reason,
                    author=release.author,
                    run=release.run,
                    paused=release.paused,
                    promote_now=release.promote_now,
                    extended_s=release.extended.total_seconds(),
                    spec=release.spec,
                )
            )
            session.flush()
            session.add(entry(release, "open", actor, release.reason, now))
            session.add_all(_verdict_rows(release, verdicts, GATES, now))
            return release

    def transition(
        self,
        release: Release,
        event: Event,
        *,
        actor: str,
        reason: str,
        now: datetime,
        step: str | None = None,
        route: Route | None = None,
        evidence: str | None = None,
        effects: Sequence[EffectKind] = (),
        changes: Mapping[str, object] | None = None,
        lease: Lease | None = None,
    ) -> Release:
        """Move a release on, with the route that goes with it and the effects that follow, or not at all.

        ``release`` is what the caller read: when the ledger has moved on since, nothing is written. Steering that
        changes no phase (pause, resume, extend, promote now, approve on the way) keeps the step and the time it was
        entered. ``evidence`` is the digest of what was decided on; ``changes`` sets ``paused``, ``promote_now`` or
        ``extended``.

        Raises:
            Conflict: the release or the route changed meanwhile.
            NotPossible: the machine forbids the event.
        """
        wanted = dict(changes or {})
        if unknown := sorted(set(wanted) - _CHANGES):
            raise ValueError(f"a transition cannot change {unknown}; it can change {sorted(_CHANGES)}")
        what = f"{event} of release {release.id}"
        with self._writing(release.model, what, lease=lease, now=now) as session:
            row = found(session, release.id)
            if release_of(row) != release:
                raise Conflict(
                    f"release {release.id} is {row.phase} {row.step or ''} by now, it was {release.phase} "
                    f"{release.step or ''} when {event} was decided; decide again"
                )
            phase = next_phase(release.phase, event)
            if not (event in _STEERING and phase is release.phase):
                row.phase, row.step, row.entered_at = phase, step, now
            row.reason = reason
            row.paused = bool(wanted.get("paused", row.paused))
            row.promote_now = bool(wanted.get("promote_now", row.promote_now))
            row.extended_s = cast("timedelta", wanted.get("extended", release.extended)).total_seconds()
            if route is not None:
                row.generation = route.generation
                session.add(_route_row(route, now))
            moved = release_of(row)
            session.add(entry(moved, event, actor, reason, now, evidence=evidence))
            _follow(session, moved, effects, now)
            return moved

    def route_only(
        self, route: Route, *, actor: str, reason: str, now: datetime, event: str, lease: Lease | None = None
    ) -> None:
        """Write a route that belongs to no transition, such as one with another pin, and ask for its projection.

        A release that the route names stays where it is; the route is from now on the one that puts it into effect.

        Raises:
            Conflict: the model has a route of that generation.
        """
        with self._writing(route.model, f"{event} of {route.model}", lease=lease, now=now) as session:
            session.add(_route_row(route, now))
            if route.release is None:
                session.add(
                    JournalRow(
                        model=route.model,
                        version=route.champion,
                        event=event,
                        generation=route.generation,
                        actor=actor,
                        reason=reason,
                        at=now,
                    )
                )
            else:
                row = found(session, route.release)
                row.generation = route.generation
                session.add(entry(release_of(row), event, actor, reason, now))
            ask(
                session,
                ("route",),
                model=route.model,
                release=route.release,
                step=route.step,
                generation=route.generation,
                now=now,
            )

    def note(
        self,
        release: Release,
        event: str,
        *,
        actor: str,
        reason: str,
        now: datetime,
        evidence: str | None = None,
        lease: Lease | None = None,
    ) -> None:
        """Journal something that changes no phase, such as a projection that has to be repaired."""
        with self._writing(release.model, f"note on release {release.id}", lease=lease, now=now) as session:
            session.add(entry(release, event, actor, reason, now, evidence=evidence))

    def record(
        self,
        release: Release,
        verdicts: Sequence[Verdict],
        *,
        step: str,
        now: datetime,
        lease: Lease | None = None,
    ) -> None:
        """Keep the verdicts of a step."""
        with self._writing(release.model, f"verdicts of release {release.id}", lease=lease, now=now) as session:
            session.add_all(_verdict_rows(release, verdicts, step, now))


def new_release_id() -> str:
    return uuid4().hex[:12]


def _follow(session: Session, release: Release, effects: Sequence[EffectKind], now: datetime) -> None:
    ask(
        session,
        effects,
        model=release.model,
        release=release.id,
        step=release.step,
        generation=release.generation,
        now=now,
    )


def _verdict_rows(release: Release, verdicts: Sequence[Verdict], step: str, now: datetime) -> list[VerdictRow]:
    return [
        VerdictRow(
            release=release.id,
            step=step,
            generation=release.generation,
            name=verdict.name,
            status=verdict.status,
            document=verdict.model_dump_json(),
            at=now,
        )
        for verdict in verdicts
    ]


def _keep_spec(session: Session, spec: ModelSpec | None, now: datetime) -> str | None:
    """Keep a spec once, however many releases are opened with it, and return its digest."""
    if spec is None:
        return None
    if session.get(SpecRow, spec.digest) is None:
        session.add(SpecRow(digest=spec.digest, document=spec.model_dump_json(), at=now))
    return spec.digest


def _route_row(route: Route, now: datetime) -> RouteRow:
    return RouteRow(model=route.model, generation=route.generation, document=route.to_json(), at=now)
