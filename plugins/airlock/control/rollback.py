"""Ways back: from a release on its way to the champion, and from the champion to the last good version."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from airlock.control.controller import Controller
from airlock.control.projection import read_ejection
from airlock.control.traffic import Traffic
from airlock.control.turn import CONTROLLER, Turn
from airlock.core.decide import Decision, Evidence, breach, ejected
from airlock.core.errors import AirlockError, NotFound, NotPossible
from airlock.core.release import HELD, LIVE, TERMINAL, WAITING, Event, Phase, Release, next_phase
from airlock.core.route import Route
from airlock.core.tally import Ejection
from airlock.ledger import VersionRecord

log = logging.getLogger(__name__)


class Rollbacks(Controller):
    """Needs the ledger and the route's file alone: what it goes back to is loaded in the gateway already."""

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.model, self.settings, self.ledger, self.spec_of)

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Be alone in changing the model.

        Whatever the turn is for, what an earlier controller left undone is done first, and a release that the gateway
        has ejected ends: whoever comes first to the ledger after an ejection writes it down.
        """
        with super().turn() as turn:
            self._end_ejected(turn)
            yield turn

    def guard(self, evidence: Evidence, only: str | None = None) -> Release | None:
        """Take back the release on its way, if the gateway has ejected it or its evidence holds a breach by now.

        ``only`` this release, where the evidence holds what labels say of it.

        Everybody who can looks, before anything else, however the release stands: paused, let through, waiting for
        answers. Nothing is written while there is nothing to take back. One that cannot be judged is left as it stands:
        whoever would let it on judges it again, and is refused.

        Returns:
            The release that was taken back, if one was.
        """
        for release in self.ledger.releases(self.model, phases=LIVE):
            if only not in (None, release.id):
                continue
            try:
                found = self.breach_of(release, evidence)
            except AirlockError as error:
                log.warning("release %s cannot be judged: %s", release.id, error)
                continue
            if found is not None:
                with self.turn() as turn:
                    ended = self._guarded(turn, release.id, evidence)
                return ended if ended.phase is Phase.ROLLED_BACK else None
        return None

    def breach_of(self, release: Release, evidence: Evidence) -> Decision | None:
        """Why a release has to be taken back by what is known now, and by what the gateway wrote down.

        That the gateway has ejected a version needs no spec; one that cannot be used stops nobody from taking it back.
        """
        evidence = evidence.model_copy(update={"ejection": self._ejection(), "limits": self.limits_of(release)})
        try:
            return breach(self.spec_of(release), release, evidence)
        except AirlockError:
            if (out := ejected(release, evidence)) is None:
                raise
            return Decision(action="roll_back", reason=out.reason, verdicts=(out,))

    def roll_back(self, release_id: str, *, reason: str, actor: str = CONTROLLER) -> Release:
        """Take a release off traffic: to the champion, or from a provisional champion to the last good version.

        Raises:
            NotPossible: it was promoted for good: its traffic goes elsewhere only when somebody says so.
            NotFound: it is the provisional champion, and there is no good version to go back to.
        """
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            if release.phase is Phase.PROMOTED:
                raise NotPossible(
                    f"release {release.id} of version {release.version} was promoted; to go back to an earlier version "
                    f"roll back the model: airlock rollback {release.model}"
                )
            if release.phase in TERMINAL:
                return release
            return self._take_back(turn, release, actor=actor, reason=reason)

    def abort(self, release_id: str, *, actor: str, reason: str) -> Release:
        """End a release by hand; all traffic goes to the champion.

        Raises:
            NotPossible: it was promoted, or has ended otherwise: the message says why it did.
        """
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            if release.phase is Phase.ABORTED:
                return release
            self._require_open(release)
            return self._end(turn, release, Event.ABORT, actor=actor, reason=reason)

    def restore(self, release_id: str, *, reason: str = "the release ended before it was promoted") -> Release:
        """Teardown of a release: whatever is not promoted by now leaves no traffic behind."""
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            if release.phase in HELD | TERMINAL:
                return release
            return self._end(turn, release, Event.ROLL_BACK, actor=CONTROLLER, reason=reason)

    def version_before(self) -> str:
        """The last good version before the champion.

        Raises:
            NotFound: there is none.
        """
        return self._way_back(None)[1].version

    def roll_back_model(self, to: str | None, *, actor: str, reason: str) -> Route:
        """One step back, to the last good version before the champion, or to ``to``.

        A release on its way is taken back first. A champion that the gateway has ejected may be taken back by the turn
        itself: then the step is done.

        Raises:
            NotFound: there is no such good version; the message names those there are.
        """
        before = self.ledger.champion(self.model)
        with self.turn() as turn:
            now, route = self.ledger.champion(self.model), self.ledger.route(self.model)
            # One that was only succeeded meanwhile was not taken back.
            gone = before is not None and self.ledger.release(before.release).phase in TERMINAL
            if gone and now and route and to in (None, now.version):
                return route
            return self._back_to(turn, to, actor=actor, reason=reason)

    def _guarded(self, turn: Turn, release_id: str, evidence: Evidence) -> Release:
        """The release as it is by now: with a breach in the evidence it is taken back, and its verdicts are kept."""
        release = self.ledger.release(release_id)
        if release.phase in LIVE and (found := self.breach_of(release, evidence)) is not None:
            turn.record(release, found.verdicts, step=str(release.step))
            return self._take_back(turn, release, reason=found.reason)
        return release

    def _require_open(self, release: Release) -> None:
        """Refuse to go on with a release that was taken back, aborted or rejected, and say why it was.

        Raises:
            NotPossible: it has ended.
        """
        if release.phase in TERMINAL:
            ended = release.phase.replace("_", " ")
            raise NotPossible(f"release {release.id} of version {release.version} is {ended}: {release.reason}")

    def _end_ejected(self, turn: Turn) -> None:
        """End what the gateway has ejected; also a champion whose promotion crossed its ejection on the way."""
        out = self._ejection()
        if out is None or out.release is None:
            return
        try:
            release = self.ledger.release(out.release)
        except NotFound:
            return  # of another ledger
        verdict = ejected(release, Evidence(gateway=None, ejection=out))
        if verdict is None or release.phase not in LIVE | HELD:
            return
        turn.record(release, (verdict,), step=str(release.step or release.phase))
        try:
            self._take_back(turn, release, reason=verdict.reason)
        except NotFound as nowhere:
            log.warning("%s stays the champion: %s", release.version, nowhere)

    def _ejection(self) -> Ejection | None:
        """What the gateway wrote down. A file that nobody can read stops no way back; see ``_require_ejections``."""
        try:
            return read_ejection(self.settings.ejections, self.model)
        except AirlockError as unreadable:
            log.warning("%s", unreadable)
            return None

    def _require_ejections(self) -> None:
        """Whoever puts a version on traffic has to know whether it was ejected.

        Raises:
            NotPossible, Unavailable: the file cannot be read.
        """
        read_ejection(self.settings.ejections, self.model)

    def _take_back(self, turn: Turn, release: Release, *, reason: str, actor: str = CONTROLLER) -> Release:
        """To the champion, or from a champion to the last good version."""
        if release.phase in HELD and self._is_champion(release):
            self._back_to(turn, None, actor=actor, reason=reason)
            return self.ledger.release(release.id)
        return self._end(turn, release, Event.ROLL_BACK, actor=actor, reason=reason)

    def _back_to(self, turn: Turn, to: str | None, *, actor: str, reason: str) -> Route:
        model = self.model
        champion, target = self._way_back(to)
        for release in self.ledger.releases(model, phases=LIVE | WAITING):
            why = f"{model} is rolled back to {target.version}: {reason}"
            self._end(turn, release, Event.ROLL_BACK, actor=actor, reason=why)
        text = f"rolled back from version {champion.version} to {target.version}: {reason}"
        route = self.traffic.to_champion(target, reason=text, now=turn.now, without={champion.version})
        turn.move(
            self.ledger.release(champion.release),
            Event.ROLL_BACK,
            actor=actor,
            reason=text,
            route=route,
            effects=("aliases", "champion_asset", "record"),
        )
        return route

    def _end(
        self, turn: Turn, release: Release, event: Event, *, actor: str, reason: str, evidence: str | None = None
    ) -> Release:
        """End a release that is not the champion. Whatever traffic it has, or was kept loaded for, ends with it."""
        next_phase(release.phase, event)  # before a route is made for it: a release that has ended gets none
        champion = self.ledger.champion(self.model)
        current = self.ledger.route(self.model)
        text = f"version {release.version}: {event.replace('_', ' ')}: {reason}"
        route = None
        if champion is not None and release.phase in LIVE:
            route = self.traffic.to_champion(champion, reason=text, now=turn.now, without={release.version})
        elif current is not None and release.phase in HELD and release.version in current.versions:
            # Another version is champion by now, and a third one may be on its way in this route: it stays so.
            turn.reroute(self.traffic.without(release.version, current, reason=text, now=turn.now), actor=actor)
        return turn.move(
            release,
            event,
            actor=actor,
            reason=reason,
            route=route,
            evidence=evidence,
            effects=("aliases", "record"),
        )

    def _is_champion(self, release: Release) -> bool:
        champion = self.ledger.champion(self.model)
        return champion is not None and champion.release == release.id

    def _way_back(self, to: str | None) -> tuple[VersionRecord, VersionRecord]:
        """The champion, and the earlier good version to go to."""
        model = self.model
        champion = self.ledger.champion(model)
        if champion is None:
            raise NotFound(f"{model} has no champion: there is nothing to roll back")
        earlier = [record for record in self.ledger.good_versions(model) if record.version != champion.version]
        target = next((record for record in earlier if to is None or record.version == to), None)
        if target is None:
            versions = ", ".join(record.version for record in earlier) or "none"
            if to is None:
                raise NotFound(f"{model}: no earlier version was promoted and not taken back; good ones: none")
            why = "is the champion" if to == champion.version else "was never promoted or was taken back"
            raise NotFound(f"{model}: version {to} {why}; good ones: {versions}")
        return champion, target
