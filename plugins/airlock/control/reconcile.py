"""Reconciling: make what lies outside the ledger say what the ledger says, and end what nobody carries any more.

It can run at any time, beside everything else and twice at once: it does what a killed controller left undone, through
the same turns. What it finds and does is returned; what it cannot do (a registry that is down, an asset's event that
Airflow has to emit) is returned as not done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from airlock.control.projection import Aliases, read_ejection, read_route, show_aliases
from airlock.control.release import ReleaseControl
from airlock.control.turn import CONTROLLER
from airlock.core.decide import Decision, Evidence
from airlock.core.errors import AirlockError, Conflict, NotFound, SpecError
from airlock.core.release import LIVE, WAITING, Phase, Release
from airlock.core.route import Route
from airlock.core.tally import GatewayStatus, LateEvidence
from airlock.ledger import Ledger
from airlock.settings import Settings
from airlock.specs import spec_files

log = logging.getLogger(__name__)

GRACE = timedelta(minutes=2)
"""How long an effect or a gateway may take before it counts as lost: whoever caused it is at it."""
_ENDED = frozenset({"success", "failed", None})

Kind = Literal[
    "spec",
    "lease",
    "route",
    "gateway",
    "ejection",
    "unattended",
    "orphan",
    "aliases",
    "record",
    "champion_asset",
    "candidate_asset",
]


class Repair(BaseModel):
    """Something that did not agree with the ledger. ``done``: it does now.

    Of ``champion_asset`` and ``candidate_asset``, ``version`` is what the lost event has to name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    what: str
    done: bool
    release: str | None = None
    version: str | None = None


@runtime_checkable
class ReadableAliases(Aliases, Protocol):
    """Aliases that can be compared with the ledger."""

    def alias(self, model: str, alias: str) -> str | None:
        """The version that an alias names."""


def models(settings: Settings, ledger: Ledger) -> list[str]:
    """Every model that is reconciled, by name: those with a spec file, also a broken one, and those of the ledger.

    A release that is open and a route that is in effect outlive their file.
    """
    return sorted({path.stem for path in spec_files(settings.specs)} | set(ledger.models()))


def reconcile(
    control: ReleaseControl,
    *,
    status: Callable[[], GatewayStatus | None],
    run_state: Callable[[Release], str | None],
    now: datetime,
    dry_run: bool = False,
) -> list[Repair]:
    """Find and repair what does not agree with the ledger, for one model.

    Args:
        status: what the gateway says; ``None`` if it does not answer.
        run_state: the state of the DAG run that carries a release (``Release.run``), ``None`` if there is no such run.
            An ``AirlockError`` means that nobody knows, and then nothing is ended.
        dry_run: only tell.
    """
    work = _Reconciliation(control, now, dry_run=dry_run)
    answer = status()
    return [
        *work.spec(),
        *work.ejection(answer),
        *work.unattended(answer),
        *work.lease(),
        *work.route(answer),
        *work.orphans(run_state),
        *work.aliases(),
        *work.champion_asset(),
    ]


def orphaned(release: Release, run_state: str | None) -> str | None:
    """Why nobody carries a release on any more, by the state of its run (``None``: there is none); else ``None``."""
    if release.run is None or run_state not in _ENDED:
        return None
    how = f"has ended as {run_state}" if run_state else "is gone"
    return f"its run {release.run} {how}, and nobody carries it on"


class _Reconciliation:
    def __init__(self, control: ReleaseControl, now: datetime, *, dry_run: bool) -> None:
        self.control = control
        self.ledger = control.ledger
        self.model = control.model
        self.now = now
        self.dry_run = dry_run

    def spec(self) -> Iterator[Repair]:
        """A file that cannot be used. It stops nothing here: what is open goes by the spec that it was opened with."""
        try:
            _ = self.control.spec
        except SpecError as error:
            yield Repair(kind="spec", what=str(error), done=False)
        except NotFound:
            for release in self.control.open_releases():
                what = f"the spec of {self.model} is gone, but its release {release.id} is {release.phase}"
                yield Repair(kind="spec", what=what, done=False, release=release.id, version=release.version)

    def lease(self) -> Iterator[Repair]:
        """A turn whose holder never gave it back."""
        held = self.ledger.lease_of(self.model)
        if held is not None and held.expires_at <= self.now:
            yield self._repair("lease", f"the turn of {held.holder} ran out at {held.expires_at}", self._take_turn)

    def route(self, status: GatewayStatus | None) -> Iterator[Repair]:
        """The gateway's file, and what the gateway made of it."""
        route = self.ledger.route(self.model)
        if route is None:
            return
        lying = read_route(self.control.settings.routes, self.model)
        newest = f"generation {route.generation}"
        ahead = max(lying.generation if lying else 0, status.generation if status else 0)
        forged = lying is not None and lying.generation == route.generation and lying != route
        if status is not None and status.generation == route.generation:
            forged = forged or status.checksum != route.checksum
        if ahead > route.generation or forged:
            # A document as old as the one in effect is refused: the ledger's must become a later one.
            what = f"another route is in effect as generation {ahead} than the ledger's {newest}"
            yield self._repair("route", what, lambda: self._write_above(route, ahead))
        elif lying is None:
            yield self._repair("route", f"the file of {newest} is missing or torn", self._take_turn)
        elif lying.generation < route.generation:
            what = f"the file still says generation {lying.generation}, the ledger {newest}"
            yield self._repair("route", what, self._take_turn)
        elif self.control.pending("route"):
            yield self._repair("route", f"{newest} was written, but not marked as done", self._take_turn)
        if status is None:
            yield Repair(kind="gateway", what="the gateway does not answer", done=False)
        elif status.generation < route.generation and self.now - route.written_at > GRACE:
            why = f": {status.error}" if status.error else ""
            what = f"the gateway still follows generation {status.generation}, not {newest}{why}"
            yield Repair(kind="gateway", what=what, done=False)

    def ejection(self, status: GatewayStatus | None) -> Iterator[Repair]:
        """A version that the gateway has ejected, or whose guards have failed, and whose release goes on."""
        try:
            out = read_ejection(self.control.settings.ejections, self.model)
            champion = self.ledger.champion(self.model)
        except AirlockError as error:
            out = champion = None
            yield Repair(kind="ejection", what=str(error), done=False)
        if out and champion and (out.release, out.version) == (champion.release, champion.version):
            # A promotion that crossed an ejection on its way.
            what = f"the champion, version {champion.version}, was ejected by the gateway: {out.reason}"
            repair = self._repair("ejection", what, self._leave_champion)
            yield repair.model_copy(update={"release": champion.release, "version": champion.version})
        evidence = Evidence(gateway=status)
        for release in self.ledger.releases(self.model, phases=LIVE):
            try:
                found = self.control.breach_of(release, evidence)
            except AirlockError as error:
                what = f"release {release.id} cannot be judged: {error}"
                yield Repair(kind="spec", what=what, done=False, release=release.id, version=release.version)
                continue
            if found is not None:
                what = f"release {release.id} of version {release.version} is {release.phase}, but {found.reason}"
                repair = self._repair("ejection", what, lambda: self.control.guard(evidence))
                yield repair.model_copy(update={"release": release.id, "version": release.version})

    def unattended(self, status: GatewayStatus | None) -> Iterator[Repair]:
        """Releases that Airflow cannot carry, because the model's file cannot be used: it schedules none of its DAGs.

        They are judged here, by the spec that they were opened with. That takes back and holds, and lets nothing on.
        """
        try:
            _ = self.control.spec
        except (SpecError, NotFound):
            pass
        else:
            return
        for release in self._answering():
            who = f"release {release.id} of version {release.version} is {release.phase}"
            if self.dry_run:
                what = f"{who}, and is judged here by the spec that it was opened with"
                yield Repair(kind="unattended", what=what, done=False, release=release.id, version=release.version)
                continue
            try:
                decision = self._judge(release, status)
            except Exception as error:  # noqa: BLE001 - whatever one release raises, the other is judged without it
                what, done = f"{who}, and cannot be judged: {type(error).__name__}: {error}", False
            else:
                done = decision.action in ("roll_back", "hold")
                waits = "" if done else ". It waits for the file to come back: Airflow loads none of its DAGs before"
                what = f"{who}, and judged here: {decision.action.replace('_', ' ')}: {decision.reason}{waits}"
            yield Repair(kind="unattended", what=what, done=done, release=release.id, version=release.version)

    def orphans(self, run_state: Callable[[Release], str | None]) -> Iterator[Repair]:
        """Releases whose run has ended, or is gone, before they did. Those that no run carries are left alone."""
        for release in self.ledger.releases(self.model, phases=LIVE | WAITING):
            if release.run is None:
                continue
            try:
                state = run_state(release)
            except AirlockError as error:
                what = f"nobody can say whether release {release.id} is still carried: {error}"
                yield Repair(kind="orphan", what=what, done=False, release=release.id, version=release.version)
                continue
            if (why := orphaned(release, state)) is not None:
                yield self._end("orphan", release, why)

    def aliases(self) -> Iterator[Repair]:
        """MLflow's aliases, and a candidate that was registered, but never opened a release."""
        if self.control.pending("aliases"):
            repair = self._repair("aliases", "aliases were decided on, but not written", self._catch_up)
            yield repair
            if not repair.done:
                return
        port = self.control.aliases
        if not isinstance(port, ReadableAliases):
            return
        try:
            shown = {name: port.alias(self.model, name) for name in ("champion", "candidate")}
            champion = self.ledger.champion(self.model)
        except Exception as error:  # noqa: BLE001 - whatever one part raises, the others are repaired without it
            yield Repair(kind="aliases", what=f"the aliases cannot be compared: {error}", done=False)
            return
        if champion is not None and shown["champion"] != champion.version:
            version = champion.version
            what = f"champion names version {shown['champion']}, the ledger says version {version}"
            yield self._repair("aliases", what, lambda: show_aliases(self.ledger, self.model, port))
        if (candidate := shown["candidate"]) is not None:
            yield from self._candidate(port, candidate)

    def champion_asset(self) -> Iterator[Repair]:
        """Events of a new champion that nobody has sent for a while."""
        for effect in self.control.pending("champion_asset"):
            if self.now - effect.at > GRACE:
                release = self.ledger.release(effect.release) if effect.release else None
                champion = self.ledger.champion(self.model)
                version = champion.version if champion else release.version if release else None
                what = f"the event of champion {version} is due since {effect.at:%Y-%m-%d %H:%M:%S}"
                yield Repair(kind="champion_asset", what=what, done=False, release=effect.release, version=version)

    def _answering(self) -> list[Release]:
        """Those whose version answers, or is asked in shadow, and that are not decided on."""
        champion = None
        with suppress(AirlockError):  # it is told where the aliases are compared
            champion = self.ledger.champion(self.model)
        return [
            release
            for release in self.ledger.releases(self.model, phases=LIVE | {Phase.PROVISIONAL})
            if release.phase in LIVE or (champion is not None and champion.release == release.id)
        ]

    def _judge(self, release: Release, status: GatewayStatus | None) -> Decision:
        """As the task of its step does, or as the monitor does; but whoever may go on waits for its own tasks."""
        control = self.control
        if release.phase is Phase.PROVISIONAL:
            decision = control.judge_late(release.id, self._late(release))
            if decision.action == "roll_back":
                control.roll_back(release.id, reason=decision.reason)
            return decision
        try:
            late = self._late(release)
        except Exception as error:  # noqa: BLE001 - whatever labels cannot be read for, missing evidence is never a pass
            log.warning("no evidence from labels for release %s: %s: %s", release.id, type(error).__name__, error)
            late = None
        if control.is_let_through(release):
            ended = control.guard(Evidence(gateway=status, late=late), release.id)
            action: Literal["roll_back", "wait"] = "roll_back" if ended else "wait"
            return Decision(action=action, reason=ended.reason if ended else f"let through {release.step}")
        polls = control.polled(release.id, status, timed_out=True)
        decision = control.judged(release.id, Evidence(gateway=status, late=late, polls=polls))
        if decision.action in ("roll_back", "hold"):
            decision = control.observe(release.id, status, late, polls)
        return decision

    def _late(self, release: Release) -> LateEvidence | None:
        """What labels and outcomes say by now, where the release is held to any."""
        spec = self.control.spec_of(release)
        if not spec.late_guards:
            return None
        from airlock.steps import evidence

        opponent = self.control.opponent_of(release)
        return evidence.late_evidence(spec, self.control.settings, self.ledger, release, opponent, until=self.now)

    def _candidate(self, port: ReadableAliases, candidate: str) -> Iterator[Repair]:
        releases = self.ledger.releases(self.model)
        going = any(release.phase in LIVE | WAITING for release in releases)
        mine = [release for release in releases if release.version == candidate]
        if not mine and not going:
            what = f"version {candidate} is the candidate, but no release of it was ever opened"
            yield Repair(kind="candidate_asset", what=what, done=False, version=candidate)
        elif mine and not any(release.phase in LIVE | WAITING for release in mine):
            what = f"candidate names version {candidate}, whose release is {mine[0].phase}"
            yield self._repair("aliases", what, lambda: port.clear_alias(self.model, "candidate", candidate))

    def _end(self, kind: Kind, release: Release, reason: str) -> Repair:
        """End it as a teardown does: whoever promoted it since it was looked at keeps it."""
        what = f"release {release.id} of version {release.version} is {release.phase}, but {reason}"
        repair = self._repair(kind, what, lambda: self.control.restore(release.id, reason=reason))
        return repair.model_copy(update={"release": release.id, "version": release.version})

    def _repair(self, kind: Kind, what: str, act: Callable[[], object]) -> Repair:
        if self.dry_run:
            return Repair(kind=kind, what=what, done=False)
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever one part raises, the others are repaired without it
            return Repair(kind=kind, what=f"{what}; not repaired: {error}", done=False)
        return Repair(kind=kind, what=what, done=True)

    def _take_turn(self) -> None:
        """Whoever takes a turn first does what an earlier controller left undone."""
        with self.control.turn():
            pass

    def _leave_champion(self) -> None:
        """End an ejected champion, as every turn does; nothing is written while there is nowhere to go back to."""
        self.control.version_before()
        self._take_turn()

    def _write_above(self, route: Route, generation: int) -> None:
        with self.control.turn() as turn:
            reason = f"written again above generation {generation}, which the ledger does not know: {route.reason}"
            if self.ledger.route(self.model) != route:
                raise Conflict("the ledger has moved on meanwhile; reconcile again to see whether they agree by now")
            again = self.control.traffic.again(route, reason=reason, now=turn.now, above=generation)
            turn.reroute(again, actor=CONTROLLER, event="reconcile")

    def _catch_up(self) -> None:
        self.control.catch_up(strictly=True)
