"""One model as it is served: the route in effect, its loaded versions, and what was counted of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from airlock.core.guards import breach, slow_limits
from airlock.core.limits import answers_apart
from airlock.core.route import Route, place
from airlock.core.segment import met
from airlock.core.tally import Ejection, GatewayStatus, Role, Tally
from gateway.evidence import Evidence, Kept, Lost, Tallies
from gateway.stand_ins import StandIns
from runtime.schema import Feeds, Schema
from runtime.versions import Version

logger = logging.getLogger("airlock.gateway")

Variant = Literal["champion", "candidate", "pinned"]


class Effect:
    """A route with its loaded versions, less the one that was ejected. It never changes: a request keeps its own.

    The champion's inputs are what a request must carry. Inputs that only another version takes may
    be sent, but need not be: whoever lacks one fails, and the champion answers. What does not change from one
    request to the next is worked out here, once.
    """

    def __init__(
        self, route: Route, versions: Mapping[str, Version], ejected: str | None, before: Effect | None = None
    ) -> None:
        self.route = route
        self.release = route.release
        self.versions = {name: versions[name] for name in route.versions}
        self.champion = self.versions[route.champion]
        self.candidate = self.versions[route.candidate] if route.candidate and route.candidate != ejected else None
        self.share = route.share if self.candidate else 0.0
        self.pins = tuple((pin, self.versions[pin.version]) for pin in route.pins if pin.version != ejected)
        self.limits = tuple(limit for limit in route.limits if not limit.late)
        self.slow = slow_limits(self.limits)
        self.apart = answers_apart(self.limits)
        shadows = [name for name in route.shadow if name not in (ejected, route.champion)]
        # While a candidate answers some, it is compared on all: each answer is paired with the other version's.
        if self.candidate and self.share > 0 and self.candidate.name not in shadows:
            shadows.append(self.candidate.name)
        self.shadows = tuple(self.versions[name] for name in shadows)
        asked = (self.champion, self.candidate, *self.shadows, *(version for _, version in self.pins))
        involved = {version.name: version for version in asked if version}
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
        kept = before.stand_ins if before and before.champion is self.champion else None
        self.stand_ins: StandIns = kept or StandIns(self.champion.manifest.serving.fallback, len(required))

    def pinned(self, attributes: Mapping[str, Any]) -> tuple[Version, str] | None:
        """The version that a request with these attributes is pinned to, and the name of the first pin that holds.

        A pin to the version that was ejected is as good as none.
        """
        for pin, version in self.pins:
            if met(pin.when, attributes):
                return version, pin.name
        return None

    def choose(self, key: str) -> Version:
        """The version that answers ``key`` by the shares."""
        if self.candidate is not None and self.share > 0 and place(self.route.salt, key) < self.share:
            return self.candidate
        return self.champion

    def others(self, answered_by: Version) -> tuple[Version, ...]:
        """The versions to score on what was answered, so that candidate and champion are compared."""
        if answered_by is self.champion:
            return self.shadows
        return (self.champion,) if answered_by is self.candidate else ()

    def variant(self, version: Version) -> Variant:
        if version is self.champion:
            return "champion"
        return "candidate" if version.name == self.route.candidate or version in self.shadows else "pinned"


class Served:
    """The state of one model. It belongs to the event loop: no other thread touches it.

    ``ejection`` is the candidate's in the route's own release, made now or before a restart; ``kept`` is what was
    counted before a restart.
    """

    def __init__(
        self,
        route: Route,
        versions: Mapping[str, Version],
        ejection: Ejection | None = None,
        kept: Kept | Lost | None = None,
    ) -> None:
        self.error: str | None = None
        self.unwritten: str | None = None
        self.ejection = _still(ejection, route)
        self.effect = Effect(route, versions, self.ejection.version if self.ejection else None)
        self.evidence = Evidence(route, kept)

    def follow(self, route: Route, versions: Mapping[str, Version]) -> None:
        """Take a newer route. What was counted of a release goes on while the release does, of a step likewise."""
        self.error = None
        self.ejection = _still(self.ejection, route)
        self.effect = Effect(route, versions, self.ejection.version if self.ejection else None, self.effect)
        self.evidence = Evidence(route, self.evidence.kept())

    def tallies(self, effect: Effect, version: str, role: Role) -> tuple[Tally, ...]:
        """Where to count what happened to a request that came under ``effect``; nowhere once its release is over."""
        return self.evidence.tallies(version, role) if effect.release == self.effect.release else ()

    def answered(
        self, effect: Effect, version: str, role: Role, key: str | None, latency_ms: float, *, failed: bool, at_us: int
    ) -> None:
        """Count a request where a customer or a minute is the unit; nowhere once its release is over."""
        if effect.release == self.effect.release:
            self.evidence.answered(version, role, key, latency_ms, failed=failed, at_us=at_us)

    def compared(
        self, effect: Effect, version: str, key: str | None, differences: Sequence[float], flips: int, *, at_us: int
    ) -> None:
        """The same of a request that both versions answered."""
        if effect.release == self.effect.release:
            self.evidence.compared(version, key, differences, flips, at_us=at_us)

    def step_of(self, effect: Effect) -> str | None:
        """The step in whose counters a request that came under ``effect`` is counted now; ``None``: in no step's."""
        return self.effect.route.step if effect.release == self.effect.release else None

    def must_go(self, version: str) -> Ejection | None:
        """Whether the candidate has just passed one of the route's limits; if so it gets no further request."""
        candidate, route = self.effect.candidate, self.effect.route
        if candidate is None or version != candidate.name:
            return None
        evidence = self.evidence
        reason = breach(self.effect.limits, evidence.counters)
        if reason is None:
            evidence.counters.restart_if_due()
            return None
        now = datetime.now(UTC)
        self.ejection = Ejection(
            model=route.model,
            version=version,
            release=route.release,
            generation=route.generation,
            at=now,
            reason=reason,
            requests=evidence.counters.all.sums.requests,
            seconds=evidence.seconds_since_first(version, now),
        )
        self.effect = Effect(route, self.effect.versions, version, self.effect)
        logger.warning("%s: version %s ejected: %s", route.model, version, reason)
        return self.ejection

    def status(self) -> GatewayStatus:
        route, evidence = self.effect.route, self.evidence
        evidence.settle()
        return GatewayStatus(
            model=route.model,
            generation=route.generation,
            checksum=route.checksum,
            release=route.release,
            rollout_step=route.step,
            champion=route.champion,
            candidate=route.candidate,
            share=self.effect.share,
            loaded=tuple(sorted(self.effect.versions)),
            since=evidence.since,
            observed_s=evidence.observed_s,
            ejection=self.ejection,
            step=_plain(evidence.step),
            total=_plain(evidence.total),
            checkpoints=evidence.counters.checkpoints,
            units=evidence.counters.units,
            error=self.error,
            lost=evidence.lost or self.unwritten,
        )


def _still(ejection: Ejection | None, route: Route) -> Ejection | None:
    """An ejection holds for its own release: a newer one is a new decision."""
    if ejection is None or (ejection.model, ejection.release) != (route.model, route.release):
        return None
    return ejection


def _plain(tallies: Tallies) -> dict[str, dict[str, Tally]]:
    return {version: {str(role): tally for role, tally in roles.items()} for version, roles in tallies.items()}
