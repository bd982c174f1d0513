"""The controller of one model's releases.

Every method can be called again: it looks where the release stands, does what is missing and nothing twice. The
ledger's transaction comes first, the route's file and the aliases after it (control/turn.py), so that whatever is
killed in between is finished by the next call, or by ``airlock reconcile``.
"""

from __future__ import annotations

from collections.abc import Sequence

from airlock.control.approval import Approvals
from airlock.control.judging import LATE, Judging
from airlock.control.turn import CONTROLLER
from airlock.core.decide import Evidence
from airlock.core.errors import NotPossible, NotYet
from airlock.core.gates import lacking
from airlock.core.limits import limits_of
from airlock.core.refs import BentoRef
from airlock.core.release import (
    HELD,
    LIVE,
    WAITING,
    Event,
    Phase,
    PlannedStep,
    Release,
    next_phase,
    plan,
    planned,
)
from airlock.core.route import Bundle
from airlock.core.verdict import Verdict
from airlock.ledger import VersionRecord, new_release_id
from airlock.ledger.ledger import GATES

UNSEEN = Evidence(gateway=None)
"""Of whoever asks nobody: what the gateway wrote down about an ejection counts all the same."""


class ReleaseControl(Judging, Approvals):
    """Moves releases of one model, each by the spec that it was opened with.

    Each method that changes something has the model's lease meanwhile, waits a few seconds for another's, and raises
    ``Conflict`` when it does not get it. ``aliases`` may be down or absent: traffic never waits for it. Effects of
    the kinds ``record`` and ``champion_asset`` are only decided on here; whoever does them asks ``pending`` and says
    ``done``.
    """

    def current(self, model: str | None = None) -> Release | None:
        """The release on its way: the one that has traffic, or else the newest that waits for it."""
        name = model or self.model
        for phases in (LIVE, WAITING):
            if found := self.ledger.releases(name, phases=phases):
                return found[0]
        return None

    def open(
        self,
        version: str,
        bento: BentoRef,
        *,
        actor: str,
        key: str,
        author: str | None = None,
        run: str | None = None,
        verdicts: Sequence[Verdict] = (),
    ) -> Release:
        """Open a release of a packaged version with what its gates found; the same ``key`` gives the same release.

        ``author`` is who started its training, ``run`` the DAG run that carries the release.
        """
        with self.turn() as turn:
            champion = self.ledger.champion(self.model)
            if champion is not None and champion.version == version:
                raise NotPossible(f"{self.model} version {version} is the champion already: nothing to release")
            release = Release(
                id=new_release_id(),
                model=self.model,
                version=version,
                champion=champion.version if champion else None,
                bundle=Bundle(path=bento.path, digest=bento.digest),
                phase=Phase.OPENED,
                entered_at=turn.now,
                reason=f"version {version} is packaged as {bento.tag}",
                author=author,
                run=run,
            )
            return turn.open(release, key=key, actor=actor, verdicts=verdicts, spec=self.spec)

    def enter(self, release_id: str, step: str, evidence: Evidence = UNSEEN) -> Release:
        """Put a step's traffic into effect: ``warm_up``, ``shadow``, or a step with a share.

        A release that stands in this step or in a later one stays there: a task that is cleared goes on where the
        release is, and no share moves back. One that is paused stays where it is too: enter again when it goes on.

        ``evidence`` is what is known now of the step that it leaves. The verdict that let it through may be older: with
        a breach the release is taken back instead, here and now.

        Raises:
            NotYet: another release of the model is on its way.
            NotPossible: the release has ended, here or before, the step is not the next one, or the version was judged
                against another champion.
        """
        with self.turn() as turn:
            release = self._guarded(turn, release_id, evidence)
            self._require_open(release)
            todo = self.step_of(release, step)
            if release.phase in LIVE and (release.paused or not self._is_ahead(todo, release)):
                return release
            event = {"warm_up": Event.WARM_UP, "shadow": Event.SHADOW, "served": Event.STEP}[todo.role]
            next_phase(release.phase, event)  # before a route is made for it: a release that has ended gets none
            self._require_ejections()
            self._require_gates(release)
            champion = self._opponent(release)
            reason = f"{step}: {todo.weight:g} % of the traffic" if todo.role == "served" else step.replace("_", " ")
            text = f"version {release.version} {reason}"
            route = self.traffic.in_step(champion, release, todo, reason=text, now=turn.now)
            return turn.move(release, event, actor=CONTROLLER, reason=reason, step=step, route=route)

    def promote(self, release_id: str, evidence: Evidence = UNSEEN) -> Release:
        """Make the candidate the champion, provisionally where labels have still to come. The former one stays loaded.

        Where there is a champion to compare with, the ledger must hold what let the release through its last step: a
        step that was only entered, or whose task was marked as done by hand, promotes nothing. A breach in
        ``evidence`` takes the release back instead, as in ``enter``.

        Raises:
            NotYet: the release is paused.
            NotPossible: the release has ended, is not in its last step or not let through it, was opened with a
                gate that did not pass, or is not approved where the spec asks for that before the promotion.
        """
        with self.turn() as turn:
            release = self._guarded(turn, release_id, evidence)
            if release.phase in HELD:
                return release
            self._require_open(release)
            self._require_going(release)
            spec = self.spec_of(release)
            last = plan(spec)[-1]
            if last.role != "served":
                raise self._refused(release, f"{self.model} is rolled out {spec.rollout.plan}: that promotes nothing")
            champion = self.ledger.champion(self.model)
            self._require_gates(release)
            if champion is not None:
                self._require_let_through(release, last)
            self.require_approval(release)
            if champion is None and release.phase is Phase.APPROVED:
                release = turn.move(release, Event.WARM_UP, actor=CONTROLLER, reason="first version", step="warm_up")
            provisional = bool(spec.late_guards) and spec.rollout.provisional
            event = Event.PROMOTE_PROVISIONALLY if provisional else Event.PROMOTE
            next_phase(release.phase, event)
            record = VersionRecord(
                model=release.model,
                version=release.version,
                bundle=release.bundle,
                release=release.id,
                since=turn.now,
            )
            how = "is the champion until its labels say otherwise" if provisional else "is the champion"
            reason = f"version {release.version} {how}"
            return turn.move(
                release,
                event,
                actor=CONTROLLER,
                reason=reason,
                route=self.traffic.to_champion(record, reason=reason, now=turn.now),
                effects=("aliases", "champion_asset", *(() if provisional else ("record",))),
            )

    def complete(self, release_id: str, evidence: Evidence = UNSEEN) -> Release:
        """End a rollout that promotes nothing, after its shadow. A breach in ``evidence`` takes it back instead.

        Raises:
            NotYet: the release is paused.
            NotPossible: the release has ended otherwise, or was not let through its shadow.
        """
        with self.turn() as turn:
            release = self._guarded(turn, release_id, evidence)
            if release.phase is Phase.COMPLETED:
                return release
            self._require_open(release)
            next_phase(release.phase, Event.COMPLETE)
            self._require_going(release)
            self._require_let_through(release, plan(self.spec_of(release))[-1])
            reason = f"version {release.version} held in the shadow"
            return self._end(turn, release, Event.COMPLETE, actor=CONTROLLER, reason=reason)

    def confirm(self, release_id: str, *, reason: str) -> Release:
        """Make a provisional promotion final.

        Raises:
            NotYet: the ledger does not hold that every guard on labels passed.
        """
        with self.turn() as turn:
            release = self.ledger.release(release_id)
            if release.phase is Phase.PROMOTED:
                return release
            self._require_open(release)
            next_phase(release.phase, Event.CONFIRM)
            verdicts = self._newest_verdicts(release, LATE)
            limits = self.limits_of(release)
            if limits is None:
                limits = limits_of(self.spec_of(release))
            needed = {limit.name for limit in limits if limit.late}
            passed = {verdict.name for verdict in verdicts if not verdict.holds_back}
            if not needed or needed - passed:
                raise NotYet(
                    f"release {release.id} stays provisional: its guards on labels have not all passed; judge its late "
                    "evidence first"
                )
            return turn.move(release, Event.CONFIRM, actor=CONTROLLER, reason=reason, effects=("record",))

    def _is_ahead(self, step: PlannedStep, release: Release) -> bool:
        """Whether a step comes after the one that the release stands in.

        Raises:
            NotPossible: another one comes in between. Only the shadow may be left out.
            NotFound: the rollout has no step of that name any more.
        """
        spec = self.spec_of(release)
        standing = planned(spec, release.step or "")
        passed_by = {"shadow"} - {step.name, standing.name}
        names = [each.name for each in plan(spec) if each.name not in passed_by]
        at, to = names.index(standing.name), names.index(step.name)
        if to > at + 1:
            why = f"release {release.id} stands in {standing.name}; {names[at + 1]} comes before {step.name}"
            raise self._refused(release, why)
        return to > at

    def _refused(self, release: Release, why: str) -> NotPossible:
        """A refusal of what the rollout does not have next. A file that changed since is the likely cause."""
        note = self.spec_note(release)
        return NotPossible(f"{why}. {note}" if note else why)

    def _opponent(self, release: Release) -> VersionRecord:
        """The champion that a release is compared with."""
        champion = self.ledger.champion(self.model)
        if champion is None:
            raise NotPossible(f"{self.model} has no champion to compare {release.version} with: promote it instead")
        # Where people are asked, they are told of a champion that changed, and answers from before do not count.
        told = self.spec_of(release).approvals.required and self.ballot(release.id).approved
        if champion.version != release.champion and not told:
            raise NotPossible(
                f"release {release.id} was opened when {_named(release.champion)} was the champion, by now it is "
                f"{_named(champion.version)}: its gates say nothing about that one, train again"
            )
        others = self.ledger.releases(self.model, phases=LIVE)
        if other := next((other for other in others if other.id != release.id), None):
            raise NotYet(f"release {other.id} of version {other.version} is on its way; wait for it or roll it back")
        return champion

    def _require_gates(self, release: Release) -> None:
        """A gate that came, or is enforced, between the version's judgement and its release has let nothing through."""
        if missing := lacking(self.spec_of(release).gates, self._newest_verdicts(release, GATES)):
            raise NotPossible(
                f"release {release.id} has no verdict of {', '.join(missing)}: train "
                f"version {release.version} anew, so that every gate of the spec judges it"
            )
        if back := [verdict for verdict in self._newest_verdicts(release, GATES) if verdict.holds_back]:
            found = "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in back)
            raise NotPossible(f"release {release.id} was opened with gates that did not pass: {found}")

    def _require_going(self, release: Release) -> None:
        if release.phase in LIVE and release.paused:
            raise NotYet(f"release {release.id} is paused in {release.step} ({release.reason}): resume it first")

    def _require_let_through(self, release: Release, last: PlannedStep) -> None:
        self._require_ejections()
        if release.step != last.name:
            stands = f"release {release.id} stands in {release.step or release.phase}"
            raise self._refused(release, f"{stands}; it goes on after {last.name} only")
        verdicts = self._newest_verdicts(release, last.name)
        if why := self._held_back(release, last, verdicts):
            raise NotPossible(f"release {release.id} was not let through {last.name}: {why}; run the step's task again")


def _named(version: str | None) -> str:
    return f"version {version}" if version else "nobody"
