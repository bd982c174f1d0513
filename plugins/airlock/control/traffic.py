"""Routes: who answers, who is shadowed, and which versions stay loaded for the way back.

The last good version beside the champion is kept loaded, so that a rollback takes effect at once. A pin is carried
from route to route for as long as its version may answer: while it is the champion, a candidate on its way, or a
version that was promoted and not taken back, which is then kept loaded for it. With a version that was taken back its
pins go too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime

from airlock.control.projection import read_route
from airlock.core.errors import AirlockError
from airlock.core.guards import limits_of
from airlock.core.release import HELD, PlannedStep, Release
from airlock.core.route import Bundle, Limit, Route
from airlock.core.segment import Pin
from airlock.core.spec import ModelSpec
from airlock.ledger import Ledger, VersionRecord
from airlock.settings import Settings


class Traffic:
    """Makes the next route of ``model``. ``spec_of`` gives the spec that a release was opened with."""

    def __init__(self, model: str, settings: Settings, ledger: Ledger, spec_of: Callable[[Release], ModelSpec]) -> None:
        self.model = model
        self.settings = settings
        self.ledger = ledger
        self.spec_of = spec_of

    def to_champion(
        self, champion: VersionRecord, *, reason: str, now: datetime, without: Collection[str] = ()
    ) -> Route:
        """All traffic to the champion. ``without``: versions that are taken back with it and are not kept."""
        return self._route(champion, None, None, reason=reason, now=now, without=without)

    def in_step(
        self, champion: VersionRecord, candidate: Release, step: PlannedStep, *, reason: str, now: datetime
    ) -> Route:
        """A step's share for the candidate, the rest for the champion."""
        return self._route(champion, candidate, step, reason=reason, now=now)

    def again(self, current: Route, *, reason: str, now: datetime, above: int = 0) -> Route:
        """The same route as another generation, later than ``above``."""
        return self._changed(current, reason, now, generation=max(self._generation(), above + 1))

    def with_pins(self, pins: Iterable[Pin], current: Route, *, reason: str, now: datetime) -> Route:
        """The route with other pins. Every pinned version is loaded."""
        pins = tuple(pins)
        known = self._known()
        versions = dict(current.versions)
        versions |= {pin.version: known[pin.version] for pin in pins if pin.version not in versions}
        return self._changed(current, reason, now, pins=pins, versions=versions)

    def without(self, version: str, current: Route, *, reason: str, now: datetime) -> Route:
        """The route with the same shares, but without a version that was only kept loaded, and without its pins."""
        pins = tuple(pin for pin in current.pins if pin.version != version)
        versions = {name: bundle for name, bundle in current.versions.items() if name != version}
        return self._changed(current, reason, now, pins=pins, versions=versions)

    def may_answer(self, current: Route) -> tuple[str, ...]:
        """The versions that a pin may name."""
        return tuple(dict.fromkeys([current.champion, *filter(None, [current.candidate]), *self._known()]))

    def _route(
        self,
        champion: VersionRecord,
        candidate: Release | None,
        step: PlannedStep | None,
        *,
        reason: str,
        now: datetime,
        without: Collection[str] = (),
    ) -> Route:
        model = self.model
        current = self.ledger.route(model)
        limits, timeout_ms = self._held_to(candidate or self.ledger.release(champion.release), current)
        known = {version: bundle for version, bundle in self._known().items() if version not in without}
        known[champion.version] = champion.bundle
        needed = [champion.version]
        if candidate is not None:
            known[candidate.version] = candidate.bundle
            needed.append(candidate.version)
        pins = current.pins if current else ()
        kept = tuple(pin for pin in pins if pin.version in known)
        last_good = next((version for version in known if version not in needed), None)
        needed += [*filter(None, [last_good]), *(pin.version for pin in kept)]
        weight = step.weight if step is not None else 0.0
        weights = {champion.version: 100.0 - weight}
        if candidate is not None:
            weights[candidate.version] = weight
        return Route(
            model=model,
            generation=self._generation(),
            release=candidate.id if candidate else None,
            step=step.name if step else None,
            champion=champion.version,
            candidate=candidate.version if candidate else None,
            weights=weights,
            shadow=(candidate.version,) if candidate and step and step.role == "shadow" else (),
            pins=kept,
            versions={version: known[version] for version in needed},
            limits=limits,
            timeout_ms=timeout_ms,
            salt=candidate.id if candidate else model,
            reason=reason,
            written_at=now,
        )

    def _held_to(self, release: Release, current: Route | None) -> tuple[tuple[Limit, ...], float]:
        """The limits and the time-out, in ms, by the spec that the release was opened with.

        A release keeps the limits of its first route to its end. The way back does not depend on a spec: where none
        can be read, everything stays as it is in effect.
        """
        mine = current is not None and current.release == release.id
        try:
            spec = self.spec_of(release)
        except AirlockError:
            if current is None or (release.phase not in HELD and not mine):
                raise
            return current.limits, current.timeout_ms
        return current.limits if mine and current else limits_of(spec), spec.serving.timeout.total_seconds() * 1000

    def _changed(self, current: Route, reason: str, now: datetime, **changes: object) -> Route:
        """The route as another generation, checked as a new one is."""
        fresh = {"generation": self._generation(), "reason": reason, "written_at": now}
        return Route.model_validate({**dict(current), **fresh, **changes})

    def _known(self) -> dict[str, Bundle]:
        """The good versions and their files, the newest first."""
        known: dict[str, Bundle] = {}
        for record in self.ledger.good_versions(self.model):
            known.setdefault(record.version, record.bundle)
        return known

    def _generation(self) -> int:
        """One more than the ledger's and than what lies before the gateway: it takes no older document, not even
        from a ledger that was put back from a copy.
        """
        current = self.ledger.route(self.model)
        lying = read_route(self.settings.routes, self.model)
        return max(current.generation if current else 0, lying.generation if lying else 0) + 1
