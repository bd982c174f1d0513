"""Reading the ledger. Every answer is of one moment."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from airlock.core.errors import ArtifactCorrupt, NotFound, NotPossible, SpecError
from airlock.core.release import HELD, Phase, Release
from airlock.core.route import Bundle, Route, parse_route
from airlock.core.spec import KEPT, ModelSpec
from airlock.core.verdict import Verdict
from airlock.ledger.records import TimelineEntry, VersionRecord
from airlock.ledger.store import Store, found, release_of
from airlock.ledger.tables import JournalRow, ReleaseRow, RouteRow, SpecRow, VerdictRow

_WITHOUT_SPEC = (
    "End the releases that were opened with it (airlock abort MODEL; airlock rollback MODEL if the version is the "
    "provisional champion)"
)


class Reading(Store):
    """What the ledger knows."""

    def models(self) -> list[str]:
        """Every model that has had a release, by name."""
        query = select(ReleaseRow.model).distinct().order_by(ReleaseRow.model)
        with self._reading("reading the models") as session:
            return list(session.scalars(query))

    def release(self, release_id: str) -> Release:
        """One release.

        Raises:
            NotFound: there is none of that id.
        """
        with self._reading(f"reading release {release_id}") as session:
            return release_of(found(session, release_id))

    def releases(self, model: str, *, phases: Collection[Phase] | None = None) -> list[Release]:
        """A model's releases, the newest first; only those in ``phases``, if given."""
        query = select(ReleaseRow).where(ReleaseRow.model == model).order_by(ReleaseRow.opened_at.desc())
        if phases is not None:
            query = query.where(ReleaseRow.phase.in_(phases))
        with self._reading(f"reading the releases of {model}") as session:
            return [release_of(row) for row in session.scalars(query)]

    def spec(self, digest: str) -> ModelSpec:
        """The spec of that digest, as releases were opened with it.

        Raises:
            NotFound: there is none.
            ArtifactCorrupt: it was changed since.
            SpecError: this version of Airlock cannot read it.
        """
        with self._reading(f"reading spec {digest}") as session:
            row = session.get(SpecRow, digest)
        if row is None:
            raise NotFound(f"the ledger has no spec {digest}. {_WITHOUT_SPEC}")
        if digest != (now := "sha256:" + hashlib.sha256(row.document.encode()).hexdigest()):
            raise ArtifactCorrupt(
                f"spec {digest} in the ledger was changed since it was written: it is {now} by now. "
                f"{_WITHOUT_SPEC}, or restore the ledger from a copy"
            )
        try:
            return ModelSpec.model_validate_json(row.document, context=KEPT)
        except ValidationError as error:
            raise SpecError(
                f"spec {digest} was kept in the ledger by another version of Airlock, and this one cannot read it: "
                f"{error}. {_WITHOUT_SPEC}, or go back to that version of Airlock"
            ) from error

    def route(self, model: str) -> Route | None:
        """The newest route of a model."""
        with self._reading(f"reading the route of {model}") as session:
            return _newest_route(session, model)

    def routes(self, model: str) -> list[Route]:
        """Every route a model has had, the oldest first."""
        query = select(RouteRow).where(RouteRow.model == model).order_by(RouteRow.generation)
        with self._reading(f"reading the routes of {model}") as session:
            return [parse_route(row.document) for row in session.scalars(query)]

    def champion(self, model: str) -> VersionRecord | None:
        """The version that holds production; ``None`` before the first was promoted.

        Raises:
            NotPossible: the newest route names a version that no promoted release stands for. To take that for
                "no champion" would let the next candidate through without a comparison.
        """
        with self._reading(f"reading the champion of {model}") as session:
            route = _newest_route(session, model)
            good = _good_versions(session, model)
        if route is None:
            return None
        for record in good:
            if record.version == route.champion:
                return record
        raise NotPossible(
            f"{model}: route generation {route.generation} names version {route.champion} as the champion, but the "
            f"ledger has no promoted release of it; see airlock history {model}"
        )

    def good_versions(self, model: str) -> list[VersionRecord]:
        """Versions that were promoted, provisionally or not, and not taken back; the newest first."""
        with self._reading(f"reading the good versions of {model}") as session:
            return _good_versions(session, model)

    def verdicts(self, release_id: str, *, generation: int | None = None) -> list[tuple[str, Verdict]]:
        """A release's verdicts with their steps, in the order they were made; ``generation``: of that route only."""
        query = select(VerdictRow).where(VerdictRow.release == release_id).order_by(VerdictRow.id)
        if generation is not None:
            query = query.where(VerdictRow.generation == generation)
        with self._reading(f"reading the verdicts of release {release_id}") as session:
            return [(row.step, Verdict.model_validate_json(row.document)) for row in session.scalars(query)]

    def timeline(self, model: str) -> list[TimelineEntry]:
        """A model's whole history, the oldest first."""
        query = select(JournalRow).where(JournalRow.model == model).order_by(JournalRow.id)
        with self._reading(f"reading the history of {model}") as session:
            return [
                TimelineEntry(
                    at=row.at,
                    release=row.release,
                    version=row.version,
                    actor=row.actor,
                    event=row.event,
                    phase=row.phase,
                    step=row.step,
                    generation=row.generation,
                    reason=row.reason,
                    evidence=row.evidence,
                )
                for row in session.scalars(query)
            ]


def _newest_route(session: Session, model: str) -> Route | None:
    query = select(RouteRow).where(RouteRow.model == model).order_by(RouteRow.generation.desc()).limit(1)
    row = session.scalar(query)
    return None if row is None else parse_route(row.document)


def _good_versions(session: Session, model: str) -> list[VersionRecord]:
    query = (
        select(ReleaseRow)
        .where(ReleaseRow.model == model, ReleaseRow.phase.in_(HELD))
        .order_by(ReleaseRow.entered_at.desc())
    )
    return [
        VersionRecord(
            model=row.model,
            version=row.version,
            bundle=Bundle.model_validate_json(row.bundle),
            release=row.id,
            since=row.entered_at,
        )
        for row in session.scalars(query)
    ]
