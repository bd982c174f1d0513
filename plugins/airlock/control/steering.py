"""Steering by people: pause, resume, extend, promote now; pins.

Each of them writes another generation of the route with the same step in it: the gateway goes on counting, and its
status tells whoever waits for the step that the ledger has moved on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from airlock.control.rollback import Rollbacks
from airlock.control.turn import Turn
from airlock.core.errors import NotFound, NotYet
from airlock.core.release import LIVE, Event, Release, next_phase
from airlock.core.route import Route
from airlock.core.segment import Pin


class Steering(Rollbacks):
    """What people may do to a release on its way without ending it."""

    def pause(self, release_id: str, *, actor: str, reason: str) -> Release:
        """Keep the release in its step, with the shares that it has. A breach still rolls it back."""
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            if release.phase in LIVE and release.paused:
                return release
            return self._steer(turn, release, Event.PAUSE, {"paused": True}, actor=actor, reason=reason)

    def resume(self, release_id: str, *, actor: str, reason: str) -> Release:
        """Let a paused release go on. Its deadline moves by as long as it was paused."""
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            if release.phase in LIVE and not release.paused:
                return release
            changes = {"paused": False, "extended": release.extended + self._paused_for(release, turn)}
            return self._steer(turn, release, Event.RESUME, changes, actor=actor, reason=reason)

    def extend(self, release_id: str, by: timedelta, *, actor: str, reason: str) -> Release:
        """Move the deadline of the release's steps. One that is paused stays paused.

        Raises:
            ValueError: ``by`` is not positive.
        """
        if by <= timedelta(0):
            raise ValueError(f"a deadline is moved by a positive time, got {by}")
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            changes = {"extended": release.extended + by}
            return self._steer(turn, release, Event.EXTEND, changes, actor=actor, reason=reason)

    def promote_now(self, release_id: str, *, actor: str, reason: str) -> Release:
        """Let a release through its remaining steps without waiting for their evidence, paused or not.

        A breach still rolls it back, and nothing that failed or could not be judged is gone past.
        """
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            if release.phase in LIVE and release.promote_now and not release.paused:
                return release
            changes = {"promote_now": True, "paused": False}
            return self._steer(turn, release, Event.PROMOTE_NOW, changes, actor=actor, reason=reason)

    def pin(self, pin: Pin, *, actor: str, reason: str) -> Route:
        """Have a segment's requests answered by one version. A pin of the same name is replaced.

        Raises:
            NotFound: the version may not answer: it is neither champion, nor on its way, nor a good one.
        """
        with self.turn() as turn:
            current = self._current_route()
            if pin.version not in (may := self.traffic.may_answer(current)):
                raise NotFound(
                    f"{self.model} version {pin.version} cannot be pinned: it is neither champion, nor on its "
                    f"way, nor a version that was promoted and not taken back; those are {', '.join(may)}"
                )
            if pin in current.pins:
                return current
            others = (each for each in current.pins if each.name != pin.name)
            text = f"pin {pin.name} to version {pin.version}: {reason}"
            route = self.traffic.with_pins((*others, pin), current, reason=text, now=turn.now)
            return turn.reroute(route, actor=actor, event="pin")

    def unpin(self, name: str, *, actor: str, reason: str) -> Route:
        """Take a pin away; its segment is answered as everybody else again.

        Raises:
            NotFound: there is no pin of that name.
        """
        with self.turn() as turn:
            current = self._current_route()
            others = [pin for pin in current.pins if pin.name != name]
            if len(others) == len(current.pins):
                names = ", ".join(pin.name for pin in current.pins) or "none"
                raise NotFound(f"{self.model} has no pin {name!r}; its pins: {names}")
            route = self.traffic.with_pins(others, current, reason=f"pin {name} taken away: {reason}", now=turn.now)
            return turn.reroute(route, actor=actor, event="unpin")

    def _steer(
        self, turn: Turn, release: Release, event: Event, changes: Mapping[str, object], *, actor: str, reason: str
    ) -> Release:
        self._require_open(release)
        next_phase(release.phase, event)  # before a route is made for it
        current = self.ledger.route(self.model)
        route = None
        if current is not None and current.release == release.id:
            route = self.traffic.again(current, reason=f"{event.replace('_', ' ')}: {reason}", now=turn.now)
        return turn.move(release, event, actor=actor, reason=reason, route=route, changes=changes)

    def _paused_for(self, release: Release, turn: Turn) -> timedelta:
        """Since when it is paused, by the journal; nothing where a clock was put back meanwhile."""
        paused = [
            entry.at
            for entry in self.ledger.timeline(self.model)
            if (entry.release, entry.event) == (release.id, Event.PAUSE)
        ]
        return max(turn.now - paused[-1], timedelta(0)) if paused else timedelta(0)

    def _current_route(self) -> Route:
        """The newest route.

        Raises:
            NotYet: the model has none.
        """
        route = self.ledger.route(self.model)
        if route is None:
            raise NotYet(f"{self.model} has no champion yet: there is no traffic to pin")
        return route
