"""What every part of release control stands on: the ledger, what a release is held to, and a turn at the model."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from uuid import uuid4

from airlock import specs
from airlock.control.projection import Aliases, show_aliases
from airlock.control.turn import Turn
from airlock.core.errors import AirlockError, Conflict, NotFound, NotPossible, Unavailable
from airlock.core.release import LIVE, WAITING, Phase, PlannedStep, Release, plan, planned
from airlock.core.route import Limit, Route
from airlock.core.spec import ModelSpec
from airlock.ledger import Effect, EffectKind, Lease, Ledger
from airlock.settings import Settings

log = logging.getLogger(__name__)

LEASE = timedelta(seconds=5)
"""How long a turn lasts at most. It holds a transaction and the writing of a file; MLflow is asked after it."""
PATIENCE = timedelta(seconds=6)
"""How long another's turn is waited for: longer than a lease lasts whose holder was killed."""
_AGAIN_S = 0.05
_SKEW = timedelta(minutes=1)
"""How far the clocks of two machines may be apart before a lease counts as one from before a clock was put back."""


def _utcnow() -> datetime:
    return datetime.now(UTC)


class Controller:
    """What every part of release control stands on. See ``ReleaseControl``.

    Args:
        spec: what releases are opened with from now on; or the model's name, to read the project's file when that is
            asked for. Whatever is done to a release that is open goes by the spec that it was opened with.
    """

    def __init__(
        self,
        spec: ModelSpec | str,
        settings: Settings,
        ledger: Ledger,
        *,
        aliases: Aliases | None = None,
        clock: Callable[[], datetime] = _utcnow,
        holder: str | None = None,
        patience: timedelta = PATIENCE,
    ) -> None:
        self.model = spec if isinstance(spec, str) else spec.model
        if not isinstance(spec, str):
            self.spec = spec
        self._opened_with: dict[str, ModelSpec] = {}
        self.settings = settings
        self.ledger = ledger
        self.holder = holder or f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self.aliases = aliases
        self.clock = clock
        self._patience = patience

    @cached_property
    def spec(self) -> ModelSpec:
        """What the next release is opened with: the project's file.

        Raises:
            NotFound: there is none.
            SpecError: it cannot be used.
        """
        return specs.find(self.settings, self.model)

    def spec_of(self, release: Release) -> ModelSpec:
        """The spec that a release was opened with: it is held to it, whatever has become of the file since.

        One from before specs were kept in the ledger is held to the file as it is now.

        Raises:
            SpecError: it cannot be read.
        """
        if release.spec is None:
            log.warning(
                "%s: release %s was opened before the ledger kept specs; it is held to the file as it is now",
                *(release.model, release.id),
            )
            return self.spec
        if release.spec not in self._opened_with:
            self._opened_with[release.spec] = self.ledger.spec(release.spec)
        return self._opened_with[release.spec]

    def step_of(self, release: Release, name: str) -> PlannedStep:
        """A step of the rollout that a release was opened with.

        Raises:
            NotFound: it has none of that name; tells whether the project's file has one by now.
        """
        spec = self.spec_of(release)
        try:
            return planned(spec, name)
        except NotFound:
            if not self._in_file(name):
                raise
            steps = ", ".join(step.name for step in plan(spec))
            raise NotFound(
                f"release {release.id} was opened with another spec (digest {spec.digest[:19]}): it has the steps "
                f"{steps}; this task is for step {name}, which the file of {self.model} has by now. Release version "
                f"{release.version} again, which takes the steps of the file"
            ) from None

    def _in_file(self, step: str) -> bool:
        """Whether the rollout in the project's file has a step of that name."""
        with suppress(AirlockError):
            planned(self.spec, step)
            return True
        return False

    def own_route(self, release: Release) -> Route | None:
        """The newest route that a release was given; ``None`` before its first step, and for a first version."""
        current = self.ledger.route(self.model)
        if current is None or current.release == release.id:
            return current
        own = (route for route in reversed(self.ledger.routes(self.model)) if route.release == release.id)
        return next(own, None)

    def limits_of(self, release: Release) -> tuple[Limit, ...] | None:
        """The limits of its own route, by which the gateway counts; ``None``: it has none."""
        route = self.own_route(release)
        return None if route is None else route.limits

    def opponent_of(self, release: Release) -> str | None:
        """The version that a release is compared with: the champion of its own route.

        It need not be the one of its opening: people may have let it on under another that came meanwhile.
        """
        route = self.own_route(release)
        return release.champion if route is None else route.champion

    def open_releases(self) -> list[Release]:
        """Those whose end is still to come: waiting, on their way, or the champion until its labels say otherwise."""
        return self.ledger.releases(self.model, phases=WAITING | LIVE | {Phase.PROVISIONAL})

    def spec_note(self, release: Release) -> str | None:
        """How the project's file differs from the spec that a release is held to; ``None`` if it does not."""
        who = f"release {release.id} of {release.model} version {release.version}"
        if release.spec is None:
            return f"{who} was opened before the ledger kept specs: it is held to the file as it is now"
        goes_on = f"{who} goes on by the spec that it was opened with ({release.spec[:19]})"
        try:
            held, now = self.spec_of(release), self.spec
        except AirlockError as error:
            return f"{goes_on}; the spec cannot be compared with it: {error}"
        changed = [name for name in type(now).model_fields if getattr(now, name) != getattr(held, name)]
        if not changed:
            return None
        return f"{goes_on}; {', '.join(changed)} in the file changed since, which is for the next release"

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Be alone in changing the model. What an earlier controller left undone is done first.

        Raises:
            Conflict: another controller holds the model and does not let go.
            Unavailable: the ledger is too slow for a lease.
        """
        lease = self._take()
        turn = Turn(self, lease)
        refused: NotPossible | None = None
        try:
            turn.project()
            yield turn
        except NotPossible as error:
            refused = error
        finally:
            self._give_back(lease)
        self.catch_up()  # also of who was refused: what it would have gone on with may have been ended first
        if refused is not None:
            raise refused

    def catch_up(self, *, strictly: bool = False) -> None:
        """Show the aliases that are still to be shown. Traffic never waits for it: when the registry is down that is
        logged, and they stay to be shown. ``strictly``: it is raised.

        Raises:
            Unavailable: the registry does not answer, or none is known here.
        """
        pending = self.pending("aliases")
        if pending and self.aliases is None and strictly:
            raise Unavailable("no registry is known here; the aliases are written where one is")
        if not pending or self.aliases is None:
            return
        try:
            show_aliases(self.ledger, self.model, self.aliases)
        except Exception as error:
            if strictly:
                raise
            log.warning("%s: the MLflow aliases are behind the ledger: %s", self.model, error)
            return
        for effect in pending:
            self.done(effect)

    def pending(self, kind: EffectKind) -> list[Effect]:
        """The effects of a kind that were decided on and are not done yet, the oldest first."""
        return [effect for effect in self.ledger.pending_effects(self.model) if effect.kind == kind]

    @property
    def generation(self) -> int:
        """The newest generation of the route; 0 before there is one."""
        route = self.ledger.route(self.model)
        return route.generation if route is not None else 0

    def announced(self, generation: int) -> None:
        """Say that an event of a champion has been sent that names who was it in that generation of the route.

        It stands for every earlier one that was due: an event says who is champion, not what happened.
        """
        for effect in self.pending("champion_asset"):
            if effect.generation <= generation:
                self.done(effect)

    def done(self, effect: Effect) -> None:
        """Say that an effect is done."""
        self.ledger.effect_done(effect, self.clock())

    def _take(self) -> Lease:
        model, give_up = self.model, time.monotonic() + self._patience.total_seconds()
        while True:
            began, now = time.monotonic(), self.clock()
            try:
                lease = self.ledger.lease(model, self.holder, ttl=LEASE, now=now)
                if self.clock() < lease.expires_at:
                    return lease
                # The ledger was locked for longer than a lease lasts: this one has run out in the waiting.
                if began < give_up:
                    continue
                raise Unavailable(
                    f"the ledger takes longer than {LEASE.total_seconds():g} s to grant a lease, which is how long one "
                    f"lasts: {model} is left as it is; see what locks or slows down the ledger's database"
                )
            except Conflict:
                held = self.ledger.lease_of(model)
                if held is not None and held.expires_at > now + LEASE + _SKEW:
                    # No lease is granted for so long: the clock was put back since. It is taken over as its holder
                    # could, which fences that one off.
                    return self.ledger.lease(model, held.holder, ttl=LEASE, now=now)
                if time.monotonic() >= give_up:
                    raise
            time.sleep(_AGAIN_S)

    def _give_back(self, lease: Lease) -> None:
        try:
            self.ledger.release_lease(lease)
        except AirlockError as error:
            log.warning("%s: the lease is not given back and runs out by itself: %s", self.model, error)
