"""A controller's turn at a model: alone, under a lease, with every decision in the ledger before it is in effect.

The order of every change is the same. One transaction of the ledger holds the new phase, the journal's entry, the
route and the effects that have to follow; then the effects are done; then they are marked as done. A controller that
is killed in between leaves its effects pending, and whoever has the next turn does them first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from airlock.control.projection import project_route
from airlock.core.release import Event, Release
from airlock.core.route import Route
from airlock.core.spec import ModelSpec
from airlock.core.verdict import Verdict
from airlock.ledger import EffectKind, Lease

if TYPE_CHECKING:
    from airlock.control.controller import Controller

log = logging.getLogger(__name__)

CONTROLLER = "airlock"
"""Who acts when no person does."""


class Turn:
    """Writes under one lease."""

    def __init__(self, controller: Controller, lease: Lease) -> None:
        self._controller = controller
        self._lease = lease

    @property
    def now(self) -> datetime:
        return self._controller.clock()

    def open(
        self, release: Release, *, key: str, actor: str, spec: ModelSpec, verdicts: Sequence[Verdict] = ()
    ) -> Release:
        """Open a release with its spec, or find the one that was opened with the same ``key``."""
        return self._controller.ledger.open(
            release, key=key, actor=actor, verdicts=verdicts, spec=spec, lease=self._lease
        )

    def move(
        self,
        release: Release,
        event: Event,
        *,
        actor: str,
        reason: str,
        step: str | None = None,
        route: Route | None = None,
        effects: Sequence[EffectKind] = (),
        evidence: str | None = None,
        changes: Mapping[str, object] | None = None,
    ) -> Release:
        """Move a release on and its traffic with it. The journal also says which pins end with the former route.

        Raises:
            Conflict: somebody else wrote first.
            NotPossible: the machine forbids it.
        """
        ledger = self._controller.ledger
        if route is not None and (former := ledger.route(release.model)) is not None:
            kept = {pin.name for pin in route.pins}
            reason += "".join(
                f"; pin {p.name} ends with version {p.version}" for p in former.pins if p.name not in kept
            )
        moved = ledger.transition(
            release,
            event,
            actor=actor,
            reason=reason,
            now=self.now,
            step=step,
            route=route,
            evidence=evidence,
            effects=("route", *effects) if route is not None else effects,
            changes=changes,
            lease=self._lease,
        )
        log.info("%s release %s of version %s: %s: %s", moved.model, moved.id, moved.version, event, reason)
        self.project()
        return moved

    def reroute(self, route: Route, *, actor: str, event: str = "reroute") -> Route:
        """Put a route into effect that belongs to no transition."""
        self._controller.ledger.route_only(
            route, actor=actor, reason=route.reason, now=self.now, event=event, lease=self._lease
        )
        self.project()
        return route

    def record(self, release: Release, verdicts: Sequence[Verdict], *, step: str) -> None:
        """Keep the verdicts of a step. What the newest one of a policy said already is not kept once more."""
        ledger = self._controller.ledger
        newest = {verdict.name: verdict for at, verdict in ledger.verdicts(release.id) if at == step}
        if news := [verdict for verdict in verdicts if newest.get(verdict.name) != verdict]:
            ledger.record(release, news, step=step, now=self.now, lease=self._lease)

    def project(self) -> bool:
        """Have the gateway's file say what the ledger says. Returns whether it did not.

        Who is put to sleep in here may be overtaken: it is written until it agrees.
        """
        ledger, model = self._controller.ledger, self._controller.model
        pending, written = self._controller.pending("route"), False
        while (route := ledger.route(model)) is not None and project_route(self._controller.settings.routes, route):
            written = True
        for effect in pending:
            ledger.effect_done(effect, self.now)
        return written
