"""One model as it is served: the route in effect, its loaded versions, and what was counted of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from airlock.core.guards import breach
from airlock.core.route import Route, place
from airlock.core.tally import Ejection, GatewayStatus, Tally
from gateway.schema import Feeds, Schema
from gateway.versions import Version

logger = logging.getLogger("airlock.gateway")

Role = Literal["served", "shadow"]
SERVED: Role = "served"
SHADOW: Role = "shadow"
Tallies = dict[str, dict[Role, Tally]]


class Effect:
    """A route with its loaded versions, less the one that was ejected. It never changes: a request keeps its own.

    The champion's inputs are what a request must carry. Inputs that only another version takes may
    be sent, but need not be: whoever lacks one fails, and the champion answers.
    """

    def __init__(self, route: Route, versions: Mapping[str, Version], ejected: str | None) -> None:
        self.route = route
        self.versions = {name: versions[name] for name in route.versions}
        self.champion = self.versions[route.champion]
        self.candidate = self.versions[route.candidate] if route.candidate and route.candidate != ejected else None
        self.share = route.share if self.candidate else 0.0
        shadows = [name for name in route.shadow if name not in (ejected, route.champion)]
        # While a candidate answers some, it is compared on all: each answer is paired with the other version's.
        if self.candidate and self.share > 0 and self.candidate.name not in shadows:
            shadows.append(self.candidate.name)
        self.shadows = tuple(self.versions[name] for name in shadows)
        involved = {version.name: version for version in (self.champion, self.candidate, *self.shadows) if version}
        required = self.champion.manifest.inputs
        optional = {
            name: declared.model_copy(update={"nullable": True})
            for version in involved.values()
            for name, declared in version.manifest.inputs.items()
            if name not in required
        }
        self.schema = Schema(required, optional)
        self.columns = tuple((name, str(declared.type)) for name, declared in self.schema.inputs.items())
        features = [version.manifest.features for version in involved.values()]
        self.services = tuple(dict.fromkeys(part.service for part in features if part is not None))
        self.entities: Schema | None = None
        self.feeds = {name: Feeds(version.manifest.inputs, self.schema) for name, version in involved.items()}

    def choose(self, key: str) -> Version:
        """The version that answers ``key``."""
        if self.candidate is not None and self.share > 0 and place(self.route.salt, key) < self.share:
            return self.candidate
        return self.champion

    def variant(self, version: Version) -> str:
        return "champion" if version is self.champion else "candidate"


class Served:
    """The state of one model. It belongs to the event loop: no other thread touches it.

    ``ejection`` is the candidate's in the route's own release, made now or before a restart.
    """

    def __init__(self, route: Route, versions: Mapping[str, Version], ejection: Ejection | None = None) -> None:
        self.since = datetime.now(UTC)
        self.step: Tallies = {}
        self.total: Tallies = {}
        self.error: str | None = None
        self._first_asked: dict[str, datetime] = {}
        self._take(route, versions, ejection)

    def follow(self, route: Route, versions: Mapping[str, Version]) -> None:
        """Take a newer route. What was counted of a release goes on while the release does."""
        if route.release != self.effect.route.release:
            self.total, self._first_asked = {}, {}
        self.step, self.since, self.error = {}, datetime.now(UTC), None
        self._take(route, versions, self.ejection)

    def _take(self, route: Route, versions: Mapping[str, Version], ejection: Ejection | None) -> None:
        self.ejection = ejection if ejection is not None and _concerns(ejection, route) else None
        self.effect = Effect(route, versions, self.ejection.version if self.ejection else None)

    def tallies(self, version: str, role: Role) -> tuple[Tally, Tally]:
        """The tallies of the step and of the release."""
        try:
            return self.step[version][role], self.total[version][role]
        except KeyError:
            self._first_asked.setdefault(version, datetime.now(UTC))
            for tallies in (self.step, self.total):
                tallies.setdefault(version, {}).setdefault(role, Tally())
            return self.step[version][role], self.total[version][role]

    def must_go(self, version: str, role: Role) -> Ejection | None:
        """Whether the candidate has just passed one of the route's limits; if so it gets no further request."""
        candidate, route = self.effect.candidate, self.effect.route
        if candidate is None or version != candidate.name:
            return None
        reason = breach(route.limits, self.total[version][role])
        if reason is None:
            return None
        now = datetime.now(UTC)
        self.ejection = Ejection(
            model=route.model,
            version=version,
            release=route.release,
            generation=route.generation,
            at=now,
            reason=reason,
            requests=sum(tally.requests for tally in self.total[version].values()),
            seconds=(now - self._first_asked[version]).total_seconds(),
        )
        self.effect = Effect(route, self.effect.versions, version)
        logger.warning("%s: version %s ejected: %s", route.model, version, reason)
        return self.ejection

    def status(self) -> GatewayStatus:
        route = self.effect.route
        return GatewayStatus(
            model=route.model,
            generation=route.generation,
            checksum=route.checksum,
            release=route.release,
            champion=route.champion,
            candidate=route.candidate,
            share=self.effect.share,
            loaded=tuple(sorted(self.effect.versions)),
            since=self.since,
            ejection=self.ejection,
            step=_plain(self.step),
            total=_plain(self.total),
            error=self.error,
        )


def _concerns(ejection: Ejection, route: Route) -> bool:
    """An ejection holds for its own release: a newer one is a new decision."""
    return (ejection.model, ejection.release) == (route.model, route.release)


def _plain(tallies: Tallies) -> dict[str, dict[str, Tally]]:
    return {version: {str(role): tally for role, tally in roles.items()} for version, roles in tallies.items()}
