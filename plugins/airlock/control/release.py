"""The controller of one model's releases.

Every method can be called again: it looks where the release stands, does what is missing and
nothing twice. The ledger's transaction comes first, the projections (route file, aliases) after
it, so a controller killed in between leaves a ledger that the next call projects again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

from airlock.control.projection import project_route
from airlock.core.errors import AirlockError, Conflict, NotFound
from airlock.core.guards import limits_of
from airlock.core.refs import BentoRef
from airlock.core.release import LIVE, TERMINAL, Decision, Event, Phase, Release, judge_step, next_phase, plan, planned
from airlock.core.route import Bundle, Route
from airlock.core.spec import ModelSpec
from airlock.core.tally import GatewayStatus
from airlock.core.verdict import Status, fold
from airlock.ledger import Ledger, VersionRecord
from airlock.ledger.ledger import new_release_id
from airlock.settings import Settings

log = logging.getLogger(__name__)

CONTROLLER = "airlock"


class Aliases(Protocol):
    """Where the names ``champion`` and ``candidate`` are shown; MLflow's registry."""

    def set_alias(self, model: str, alias: str, version: str) -> None: ...

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        """Remove the alias if it names ``version``."""


def _utcnow() -> datetime:
    return datetime.now(UTC)


class ReleaseControl:
    """Moves releases of ``spec.model``. ``aliases`` may be down or absent: traffic never waits for it."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        ledger: Ledger,
        *,
        aliases: Aliases | None = None,
        clock: Callable[[], datetime] = _utcnow,
    ) -> None:
        self.spec = spec
        self.settings = settings
        self.ledger = ledger
        self._aliases = aliases
        self._clock = clock

    def open(self, version: str, bento: BentoRef, *, actor: str, key: str) -> Release:
        """Open a release of a packaged version; the same ``key`` gives the same release."""
        champion = self.ledger.champion(self.spec.model)
        if champion is not None and champion.version == version:
            raise Conflict(f"{self.spec.model} version {version} is the champion already: nothing to release")
        now = self._clock()
        release = Release(
            id=new_release_id(),
            model=self.spec.model,
            version=version,
            champion=champion.version if champion else None,
            bundle=Bundle(path=bento.path, digest=bento.digest),
            phase=Phase.OPENED,
            entered_at=now,
            reason=f"version {version} is packaged as {bento.tag}",
        )
        return self.ledger.open(release, key=key, actor=actor)

    def approve(self, release_id: str, *, actor: str, reason: str) -> Release:
        """Let an opened release on its way; one that has ended stays ended.

        Raises:
            Conflict: it was rejected or rolled back meanwhile.
        """
        release = self.ledger.release(release_id)
        if release.phase is not Phase.OPENED and release.phase not in TERMINAL:
            return release
        return self._move(release, Event.APPROVE, actor=actor, reason=reason)

    def reject(self, release_id: str, *, actor: str, reason: str) -> Release:
        release = self.ledger.release(release_id)
        if release.phase is Phase.REJECTED:
            return release
        return self._move(release, Event.REJECT, actor=actor, reason=reason)

    def enter(self, release_id: str, step: str) -> Release:
        """Put a step's traffic into effect: ``warm_up``, ``shadow`` or a canary step."""
        release = self.ledger.release(release_id)
        todo = planned(self.spec, step)
        if release.phase in LIVE and release.step == step:
            self._project()
            return release
        event = {"warm_up": Event.WARM_UP, "shadow": Event.SHADOW, "served": Event.STEP}[todo.role]
        next_phase(release.phase, event)  # before a route is made for it: a release that has ended gets none
        champion = self.ledger.champion(self.spec.model)
        if champion is None:
            raise Conflict(f"{self.spec.model} has no champion to compare {release.version} with: promote it instead")
        others = self.ledger.releases(self.spec.model, phases=LIVE)
        if other := next((other for other in others if other.id != release.id), None):
            raise Conflict(f"release {other.id} of version {other.version} is on its way; wait for it or roll it back")
        weights = {champion.version: 100 - todo.weight, release.version: todo.weight}
        reason = f"{step}: {todo.weight:g} % of the traffic" if todo.role == "served" else step.replace("_", " ")
        route = self._next_route(
            champion,
            candidate=release,
            weights=weights,
            shadow=(release.version,) if todo.role == "shadow" else (),
            reason=f"version {release.version} {reason}",
        )
        return self._move(release, event, actor=CONTROLLER, reason=reason, step=step, route=route)

    def observe(self, release_id: str, status: GatewayStatus | None) -> Decision:
        """Judge the step the release stands in, and keep the verdicts."""
        release = self.ledger.release(release_id)
        if release.phase in TERMINAL:
            return Decision(action="roll_back", reason=f"release {release.id} is {release.phase}: {release.reason}")
        now = self._clock()
        decision = judge_step(self.spec, release, status, now)
        if decision.verdicts and decision.action != "wait":
            self.ledger.record(release, decision.verdicts, step=release.step or "", now=now)
        return decision

    def promote(self, release_id: str) -> Release:
        """Make the candidate the champion. The former one stays loaded for the way back.

        Where there is a champion to compare with, the ledger must hold what let the release through its last
        step: a step that was only entered, or whose task was marked as done by hand, promotes nothing.

        Raises:
            Conflict: the release does not stand in its last step, or was not let through it.
        """
        release = self.ledger.release(release_id)
        if release.phase is Phase.PROMOTED:
            self._project()
            self._show_aliases(release)
            return release
        champion = self.ledger.champion(self.spec.model)
        if champion is None and release.phase is Phase.APPROVED:
            release = self._move(release, Event.WARM_UP, actor=CONTROLLER, reason="first version", step="warm_up")
        last = plan(self.spec)[-1].name
        if champion is not None and release.step != last:
            raise Conflict(
                f"release {release.id} stands in {release.step or release.phase}; it is promoted after {last} only"
            )
        if champion is not None:
            found = [v for step, v in self.ledger.verdicts(release.id, generation=release.generation) if step == last]
            if (status := fold(found)) is not Status.PASS:
                raise Conflict(
                    f"release {release.id} was not let through {last} (evidence: {status}); run the step's task again"
                )
        record = VersionRecord(
            model=release.model,
            version=release.version,
            bundle=release.bundle,
            release=release.id,
            since=self._clock(),
        )
        route = self._next_route(record, reason=f"version {release.version} promoted", warm=champion)
        promoted = self._move(
            release, Event.PROMOTE, actor=CONTROLLER, reason=f"version {release.version} is the champion", route=route
        )
        self._show_aliases(promoted)
        return promoted

    def roll_back(self, release_id: str, *, reason: str, actor: str = CONTROLLER) -> Release:
        """Take a release off traffic and give all of it to the champion.

        Raises:
            Conflict: it was promoted: its version is or was the champion, whose traffic needs another to go to.
        """
        release = self.ledger.release(release_id)
        if release.phase is Phase.PROMOTED:
            raise Conflict(
                f"release {release.id} of version {release.version} was promoted; to go back to an earlier version "
                f"roll back the model: airlock rollback {release.model}"
            )
        if release.phase in TERMINAL:
            self._project()
            return release
        champion = self.ledger.champion(self.spec.model)
        route = None
        if champion is not None and release.phase in LIVE:
            route = self._next_route(champion, reason=f"version {release.version} rolled back: {reason}")
        rolled_back = self._move(release, Event.ROLL_BACK, actor=actor, reason=reason, route=route)
        self._show_aliases(rolled_back)
        return rolled_back

    def restore(self, release_id: str) -> Release:
        """Teardown of a release: whatever is not promoted by now leaves no traffic behind."""
        release = self.ledger.release(release_id)
        if release.phase is Phase.PROMOTED or release.phase in TERMINAL:
            self._project()
            return release
        return self.roll_back(release_id, reason="the release ended before it was promoted")

    def version_before(self) -> str:
        """The last good version before the champion.

        Raises:
            NotFound: there is none.
        """
        return self._way_back(None)[1].version

    def roll_back_model(self, to: str | None, *, actor: str, reason: str) -> Route:
        """One step back, to the last good version before the champion, or to ``to``.

        A release on its way is taken back first.

        Raises:
            NotFound: there is no such good version; the message names those there are.
        """
        model = self.spec.model
        champion, target = self._way_back(to)
        for release in self.ledger.releases(model, phases={*LIVE, Phase.OPENED, Phase.APPROVED}):
            self.roll_back(release.id, actor=actor, reason=f"{model} is rolled back to {target.version}: {reason}")
        text = f"rolled back from version {champion.version} to {target.version}: {reason}"
        route = self._next_route(target, reason=text, warm=champion)
        self._move(self.ledger.release(champion.release), Event.ROLL_BACK, actor=actor, reason=text, route=route)
        self._show_aliases(None)
        return route

    def _way_back(self, to: str | None) -> tuple[VersionRecord, VersionRecord]:
        """The champion, and the earlier good version to go to."""
        model = self.spec.model
        champion = self.ledger.champion(model)
        if champion is None:
            raise NotFound(f"{model} has no champion: there is nothing to roll back")
        earlier = [record for record in self.ledger.good_versions(model) if record.version != champion.version]
        target = next((record for record in earlier if to is None or record.version == to), None)
        if target is None:
            versions = ", ".join(record.version for record in earlier) or "none"
            wanted = f"version {to}" if to else "an earlier version"
            raise NotFound(f"{model}: {wanted} was never promoted or was taken back; good ones: {versions}")
        return champion, target

    def _move(
        self,
        release: Release,
        event: Event,
        *,
        actor: str,
        reason: str,
        step: str | None = None,
        route: Route | None = None,
    ) -> Release:
        moved = self.ledger.transition(
            release, event, actor=actor, reason=reason, now=self._clock(), step=step, route=route
        )
        log.info("%s release %s of version %s: %s: %s", moved.model, moved.id, moved.version, event, reason)
        self._project()
        return moved

    def _project(self) -> None:
        route = self.ledger.route(self.spec.model)
        if route is not None:
            project_route(self.settings.routes, route)

    def _next_route(
        self,
        champion: VersionRecord,
        *,
        reason: str,
        candidate: Release | None = None,
        weights: Mapping[str, float] | None = None,
        shadow: tuple[str, ...] = (),
        warm: VersionRecord | None = None,
    ) -> Route:
        current = self.ledger.route(self.spec.model)
        versions = {champion.version: champion.bundle}
        if candidate is not None:
            versions[candidate.version] = candidate.bundle
        last_good = warm or next(
            (record for record in self.ledger.good_versions(self.spec.model) if record.version != champion.version),
            None,
        )
        if last_good is not None:
            versions[last_good.version] = last_good.bundle
        return Route(
            model=self.spec.model,
            generation=current.generation + 1 if current else 1,
            release=candidate.id if candidate else None,
            champion=champion.version,
            candidate=candidate.version if candidate else None,
            weights=dict(weights or {champion.version: 100.0}),
            shadow=shadow,
            versions=versions,
            limits=limits_of(self.spec.guards),
            timeout_ms=self.spec.serving.timeout.total_seconds() * 1000,
            salt=candidate.id if candidate else self.spec.model,
            reason=reason,
            written_at=self._clock(),
        )

    def _show_aliases(self, release: Release | None) -> None:
        """Project the champion to MLflow. Traffic has moved already; a registry that is down is noted."""
        if self._aliases is None:
            return
        champion = self.ledger.champion(self.spec.model)
        try:
            if champion is not None:
                self._aliases.set_alias(self.spec.model, "champion", champion.version)
            if release is not None:
                self._aliases.clear_alias(self.spec.model, "candidate", release.version)
        except AirlockError as error:
            log.warning("%s: the MLflow aliases are behind the ledger: %s", self.spec.model, error)
            if release is not None:
                reason = f"aliases not written: {error}"
                self.ledger.note(release, "alias_pending", actor=CONTROLLER, reason=reason, now=self._clock())
