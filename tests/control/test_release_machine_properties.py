"""Whatever is killed, doubled, lost, overtaken or put back: the release converges, and nothing is promoted on trust.

Two controllers work on one model of a real ledger, with a gateway, a registry and Airflow that come and go. Each
action may be killed before or after any of its side effects, or stopped there until the other controller has done
something. After every action the promises below are checked against the ledger and the files, by rules of their own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from airlock.control import ReleaseControl
from airlock.control import turn as turns
from airlock.control.controller import LEASE
from airlock.control.projection import project_route
from airlock.control.reconcile import reconcile
from airlock.core.errors import AirlockError
from airlock.core.guards import limits_of
from airlock.core.release import HELD, LIVE, TRANSITIONS, WAITING, Event, Phase, Release, plan
from airlock.core.route import Route, parse_route
from airlock.core.segment import Condition, Pin
from airlock.core.tally import Ejection, GatewayStatus
from airlock.core.verdict import Status
from airlock.ledger import Ledger, TimelineEntry
from airlock.settings import Settings
from tests.support.control import ERRORS, FINITE, LABELS, Clock, FakeAliases, bento, labels, seen, spec_of

_WRITES = frozenset({"lease", "release_lease", "open", "transition", "route_only", "record", "vote", "effect_done"})
_PEOPLE = ("ann", "bob", "eve")
_AUTHOR = "eve"
# Memory, where there is any: what is tested is the order of the writes, not that the disk keeps them.
_MEMORY = Path("/dev/shm")


class Killed(BaseException):
    """What a controller feels of SIGKILL: nothing it does after it happens."""


class Fuse:
    """Counts the side effects of an action, and goes off at one of them."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.after = False
        self.burnt = False
        self.instead: Callable[[], None] | None = None

    def arm(self, at: int | None, *, after: bool = False, instead: Callable[[], None] | None = None) -> None:
        self.left, self.after, self.burnt, self.instead = at, after, False, instead

    def around(self, act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.burnt:
            raise Killed
        due = self._due()
        if due and not self.after:
            self._go_off()
        result = act(*args, **kwargs)
        if due and self.after:
            self._go_off()
        return result

    def _due(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        if self.left:
            return False
        self.left = None
        return True

    def _go_off(self) -> None:
        if self.instead is not None:
            self.instead()
            return
        self.burnt = True
        raise Killed


class FusedLedger:
    """The ledger, with a fuse before its writes."""

    def __init__(self, ledger: Ledger, fuse: Fuse) -> None:
        self._ledger = ledger
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        act = getattr(self._ledger, name)
        if name not in _WRITES:
            return act
        return lambda *args, **kwargs: self._fuse.around(act, *args, **kwargs)


class FusedAliases(FakeAliases):
    """The registry, with a fuse before its writes."""

    fuse: Fuse

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self.fuse.around(super().set_alias, model, alias, version)

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        self.fuse.around(super().clear_alias, model, alias, version)


class Gateway:
    """Follows the route's file, as the real one does: never back, and an ejected version stays ejected."""

    def __init__(self, home: Settings, model: str) -> None:
        self._file = home.routes / f"{model}.json"
        self._ejections = home.ejections
        self.route: Route | None = None
        self.up = True
        self.observed_s = 0.0
        self.good = 0
        self.failed = 0
        self.ejection: Ejection | None = None

    def look(self) -> None:
        if not self.up or not self._file.exists():
            return
        route = parse_route(self._file.read_bytes())
        if self.route is not None and route.generation <= self.route.generation:
            return
        if self.route is None or (self.route.release, self.route.step) != (route.release, route.step):
            self.observed_s, self.good, self.failed = 0.0, 0, 0
        self.route = route

    def serve(self, good: int, failed: int) -> None:
        if self.up and self.route is not None and self.route.candidate is not None:
            self.observed_s += 10
            self.good += good
            self.failed += failed

    def eject(self, clock: Clock) -> None:
        route = self.route
        if not self.up or route is None or route.candidate is None:
            return
        self.ejection = Ejection(
            model=route.model,
            version=route.candidate,
            release=route.release,
            generation=route.generation,
            at=clock.now,
            reason="it failed",
            requests=50,
            seconds=1,
        )
        self._ejections.mkdir(exist_ok=True)
        (self._ejections / f"{route.model}.json").write_text(self.ejection.model_dump_json())

    def status(self) -> GatewayStatus | None:
        if not self.up or self.route is None:
            return None
        ejection = self.ejection if self.ejection and self.ejection.release == self.route.release else None
        return seen(self.route, good=self.good, failed=self.failed, observed_s=self.observed_s, ejection=ejection)


class ReleaseMachine(RuleBasedStateMachine):
    """One model, two controllers, and everything that may happen to them."""

    home: ClassVar[Path]
    numbers: ClassVar[Iterator[int]] = count(1)

    @initialize(
        guards=st.sampled_from([(ERRORS,), (ERRORS, LABELS)]),
        before=st.sampled_from(["traffic", "promotion"]),
        on_deadline=st.sampled_from(["rollback", "hold"]),
        kind=st.sampled_from(["canary", "blue_green"]),
    )
    def begin(self, guards: Any, before: str, on_deadline: str, kind: str) -> None:
        # One database for all examples: to make one takes longer than an example. Each has a model of its own.
        self.model = f"m{next(self.numbers)}"
        self.spec = spec_of(
            model=self.model,
            guards=guards,
            approvals={"required": 2, "forbid_author": True, "before": before},
            rollout={"on_deadline": on_deadline, "plan": kind},
        )
        url = f"sqlite:///{self.home / 'ledger.db'}"
        home = self.home / self.model
        home.mkdir()
        self.settings = Settings(project=home, home=home, mlflow_url="", gateway_url="", airflow_url="", ledger_url=url)
        self.ledger = Ledger(url)
        self.clock = Clock()
        self.fuse = Fuse()
        self.aliases = FusedAliases()
        self.aliases.fuse = self.fuse
        self.gateway = Gateway(self.settings, self.model)
        turns.project_route = lambda *args: self.fuse.around(project_route, *args)
        fused: Any = FusedLedger(self.ledger, self.fuse)
        self.controls = [
            ReleaseControl(
                self.spec,
                self.settings,
                fused,
                aliases=self.aliases,
                clock=self.clock,
                holder=f"controller {number}",
                patience=timedelta(0),
            )
            for number in range(2)
        ]
        self.version = 0
        self.checked: set[str] = set()
        self.ejected: set[str] = set()
        # Most of what can go wrong needs a champion and a release on its way.
        for _ in range(6):
            self._go_on(self.controls[0])
            self.gateway.look()

    def teardown(self) -> None:
        turns.project_route = project_route
        if hasattr(self, "model"):
            self._converges()

    # What controllers do. Each looks at the ledger first, as operators do.

    def _current(self, control: ReleaseControl) -> Release:
        """The release on its way, or else the newest: what has ended is acted on too, by those who are late."""
        return control.current() or control.ledger.releases(self.model)[0]

    def _open(self, control: ReleaseControl) -> None:
        if control.current() is None:
            self.version += 1
            self.aliases.names["candidate"] = str(self.version)
        version = str(self.version)
        ref = bento(version).model_copy(update={"digest": "sha256:" + f"{self.version:064d}", "model": self.model})
        release = control.open(
            version,
            ref,
            actor="airflow",
            key=f"{self.model}-{version}",
            author=_AUTHOR,
            run="release/1",
            verdicts=(FINITE,),
        )
        if self.spec.approvals.before == "promotion":
            control.approve(release.id, actor="spec", reason="people are asked later")

    def _vote(self, control: ReleaseControl, actor: str, *, yes: bool) -> None:
        release = self._current(control)
        control.vote(release.id, actor=actor, yes=yes, reason="so it is", evidence=control.evidence(release.id))

    def _go_on(self, control: ReleaseControl) -> None:
        """What the tasks of a release's run do next, one of them at a time, and the people who are asked."""
        release = control.current()
        if release is None:
            self._open(control)
        elif release.phase in WAITING and not control.ballot(release.id).approved:
            for actor in _PEOPLE[:2]:
                self._vote(control, actor, yes=True)
        elif control.ledger.champion(self.model) is None:
            control.promote(release.id)
        elif release.phase in WAITING:
            control.enter(release.id, plan(self.spec)[0].name)
        else:
            self._settle(control, release, [step.name for step in plan(self.spec)])

    def _settle(self, control: ReleaseControl, release: Release, names: list[str]) -> None:
        decision = control.observe(release.id, self.gateway.status())
        if decision.action == "roll_back":
            control.roll_back(release.id, reason=decision.reason)
        elif decision.action == "advance":
            following = names[names.index(release.step or "") + 1 :]
            if following:
                control.enter(release.id, following[0])
            else:
                control.promote(release.id)

    def _enter(self, control: ReleaseControl, place: int) -> None:
        steps = plan(self.spec)
        control.enter(self._current(control).id, steps[place % len(steps)].name)

    def _late(self, control: ReleaseControl, *, good: bool) -> None:
        late = labels(0.1 if good else 0.9)
        for release in control.ledger.releases(self.model, phases={Phase.PROVISIONAL}):
            decision = control.judge_late(release.id, late)
            if decision.action == "roll_back":
                control.roll_back(release.id, reason=decision.reason)
            elif decision.action == "advance":
                control.confirm(release.id, reason=decision.reason)

    def _pin(self, control: ReleaseControl) -> None:
        pin = Pin(name="beta", when=(Condition(attribute="a", values=(1,)),), version=str(self.version))
        control.pin(pin, actor="ann", reason="try")

    def _reconcile(self, control: ReleaseControl, run: str | None = "running") -> list[Any]:
        return reconcile(control, status=self.gateway.status, run_state=lambda _: run, now=self.clock())

    ACTIONS: ClassVar[dict[str, Callable[[ReleaseMachine, ReleaseControl], object]]] = {
        "open": lambda self, control: self._open(control),
        "yes of ann": lambda self, control: self._vote(control, "ann", yes=True),
        "yes of bob": lambda self, control: self._vote(control, "bob", yes=True),
        "yes of the author": lambda self, control: self._vote(control, _AUTHOR, yes=True),
        "no": lambda self, control: self._vote(control, "bob", yes=False),
        "go on": lambda self, control: self._go_on(control),
        "enter the first step": lambda self, control: self._enter(control, 0),
        "enter the second step": lambda self, control: self._enter(control, 1),
        "enter the last step": lambda self, control: self._enter(control, -1),
        "promote": lambda self, control: control.promote(self._current(control).id),
        "pause": lambda self, control: control.pause(self._current(control).id, actor="ann", reason="look"),
        "resume": lambda self, control: control.resume(self._current(control).id, actor="ann", reason="fine"),
        "promote now": lambda self, control: control.promote_now(self._current(control).id, actor="a", reason="b"),
        "extend": lambda self, control: control.extend(
            self._current(control).id, timedelta(seconds=30), actor="ann", reason="slow"
        ),
        "abort": lambda self, control: control.abort(self._current(control).id, actor="ann", reason="no"),
        "restore": lambda self, control: control.restore(self._current(control).id),
        "roll back": lambda self, control: control.roll_back_model(None, actor="ann", reason="complaints"),
        "good labels": lambda self, control: self._late(control, good=True),
        "bad labels": lambda self, control: self._late(control, good=False),
        "pin": lambda self, control: self._pin(control),
        "unpin": lambda self, control: control.unpin("beta", actor="ann", reason="enough"),
        "reconcile": lambda self, control: self._reconcile(control),
    }

    # What happens around them.

    def _requests(self, good: int, failed: int) -> None:
        self.gateway.look()
        self.gateway.serve(good, failed)

    def _eject(self) -> None:
        self.gateway.eject(self.clock)
        if self.gateway.ejection is not None:
            self.ejected.add(str(self.gateway.ejection.release))

    def _jump(self, seconds: int) -> None:
        self.clock.now += timedelta(seconds=seconds)

    EVENTS: ClassVar[dict[str, Callable[[ReleaseMachine], object]]] = {
        "good requests": lambda self: self._requests(60, 0),
        "bad requests": lambda self: self._requests(0, 60),
        "few requests": lambda self: self._requests(1, 0),
        "ejection": lambda self: self._eject(),
        "gateway down or up": lambda self: setattr(self.gateway, "up", not self.gateway.up),
        "mlflow down or up": lambda self: setattr(self.aliases, "down", not self.aliases.down),
        "route file lost": lambda self: (self.settings.routes / f"{self.model}.json").unlink(missing_ok=True),
        "a while": lambda self: self._jump(6),
        "an hour": lambda self: self._jump(3600),
        "an hour back": lambda self: self._jump(-3600),
    }

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Being refused and being killed are both ways to end."""
        try:
            yield
        except (AirlockError, Killed):
            pass
        finally:
            self.fuse.arm(None)

    @rule(who=st.integers(0, 1), twice=st.booleans())
    def the_run_goes_on(self, who: int, twice: bool) -> None:
        self._requests(60, 0)
        for _ in range(1 + twice):
            with self._tolerant():
                self._go_on(self.controls[who])

    @rule(who=st.integers(0, 1), at=st.integers(1, 9), after=st.booleans())
    def the_run_goes_on_and_is_killed(self, who: int, at: int, after: bool) -> None:
        self._requests(60, 0)
        with self._tolerant():
            self.fuse.arm(at, after=after)
            self._go_on(self.controls[who])
        self.clock.now += LEASE

    @rule(action=st.sampled_from(sorted(ACTIONS)), who=st.integers(0, 1), twice=st.booleans())
    def somebody_acts(self, action: str, who: int, twice: bool) -> None:
        for _ in range(1 + twice):
            with self._tolerant():
                self.ACTIONS[action](self, self.controls[who])

    @rule(action=st.sampled_from(sorted(ACTIONS)), who=st.integers(0, 1), at=st.integers(1, 9), after=st.booleans())
    def somebody_acts_and_is_killed(self, action: str, who: int, at: int, after: bool) -> None:
        with self._tolerant():
            self.fuse.arm(at, after=after)
            self.ACTIONS[action](self, self.controls[who])

    @rule(
        action=st.sampled_from(["go on", *sorted(ACTIONS)]),
        other=st.sampled_from(["go on", *sorted(ACTIONS)]),
        who=st.integers(0, 1),
        at=st.integers(1, 9),
        slept=st.booleans(),
    )
    def somebody_acts_and_is_overtaken(self, action: str, other: str, who: int, at: int, slept: bool) -> None:
        def meanwhile() -> None:
            if slept:
                self.clock.now += LEASE
            with suppress(AirlockError):
                self.ACTIONS[other](self, self.controls[1 - who])

        self._requests(60, 0)
        with self._tolerant():
            self.fuse.arm(at, instead=meanwhile)
            self.ACTIONS[action](self, self.controls[who])

    @rule(event=st.sampled_from(sorted(EVENTS)))
    def something_happens(self, event: str) -> None:
        self.EVENTS[event](self)

    # What must hold, whatever happened.

    @invariant()
    def every_promise_is_kept(self) -> None:
        if not hasattr(self, "model"):
            return
        routes = self.ledger.routes(self.model)
        releases = self.ledger.releases(self.model)
        self._shares_are_whole(routes)
        self._only_what_is_on_its_way_is_a_candidate(routes, releases)
        self._the_champion_was_promoted(routes, releases)
        self._no_share_skips_a_step_or_moves_back(routes)
        timeline = self.ledger.timeline(self.model)
        self._every_journal_is_a_walk_through_the_table(timeline)
        self._nothing_is_promoted_without_what_it_needs(releases, timeline)

    def _every_journal_is_a_walk_through_the_table(self, timeline: list[TimelineEntry]) -> None:
        stands: dict[str | None, Phase] = {}
        for entry in timeline:
            if entry.event == "open":
                stands[entry.release] = Phase.OPENED
            elif entry.event in set(Event):
                stands[entry.release] = TRANSITIONS[stands[entry.release], Event(entry.event)]
                assert entry.phase == stands[entry.release]

    def _shares_are_whole(self, routes: list[Route]) -> None:
        file = self.settings.routes / f"{self.model}.json"
        lying = [parse_route(file.read_bytes())] if file.exists() else []
        for document in [*routes[-1:], *lying, *filter(None, [self.gateway.route])]:
            assert abs(sum(document.weights.values()) - 100) < 1e-9

    def _only_what_is_on_its_way_is_a_candidate(self, routes: list[Route], releases: list[Release]) -> None:
        live = [release for release in releases if release.phase in LIVE]
        assert len(live) <= 1
        for route in routes[-1:]:
            standing = [(release.id, release.step, release.generation) for release in live]
            assert standing == ([(route.release, route.step, route.generation)] if route.release else [])

    def _the_champion_was_promoted(self, routes: list[Route], releases: list[Release]) -> None:
        held = {release.version for release in releases if release.phase in HELD}
        taken_back = {release.version for release in releases if release.phase is Phase.ROLLED_BACK} - held
        for route in routes[-1:]:
            assert route.champion in held
            assert not taken_back & set(route.versions)

    def _no_share_skips_a_step_or_moves_back(self, routes: list[Route]) -> None:
        assert [route.generation for route in routes] == sorted({route.generation for route in routes})
        names = [step.name for step in plan(self.spec)]
        for before, after in pairwise(routes):
            if before.release is not None and before.release == after.release:
                jump = names.index(str(after.step)) - names.index(str(before.step))
                assert jump in {0, 1} or (jump == 2 and before.step == "warm_up")

    def _nothing_is_promoted_without_what_it_needs(
        self, releases: list[Release], timeline: list[TimelineEntry]
    ) -> None:
        for release in releases:
            promotions = [
                entry
                for entry in timeline
                if entry.release == release.id and entry.event in {"promote", "promote_provisionally"}
            ]
            assert len(promotions) <= 1
            if not promotions or release.id in self.checked:
                continue
            self.checked.add(release.id)
            yes = {vote.actor for vote in self.ledger.votes(release.id) if vote.yes}
            assert len(yes - {_AUTHOR}) >= 2
            if release.champion is not None:
                assert release.id not in self.ejected
                self._was_let_through(release)

    def _was_let_through(self, release: Release) -> None:
        last = plan(self.spec)[-1].name
        found = {verdict.name: verdict.status for step, verdict in self.ledger.verdicts(release.id) if step == last}
        for limit in limits_of(self.spec):
            enough = {Status.PASS} | ({Status.INCONCLUSIVE} if limit.late or release.promote_now else set())
            assert found.get(limit.name) in enough

    def _converges(self) -> None:
        """Once everything is up and a lease that was left has run out, reconciling makes all of it agree."""
        self.gateway.up, self.aliases.down = True, False
        self.clock.now += LEASE + timedelta(hours=2)
        control = self.controls[0]
        self._reconcile(control)
        self.gateway.look()
        self._reconcile(control)
        self.gateway.look()
        left = [repair for repair in self._reconcile(control) if repair.kind not in {"record", "champion_asset"}]
        assert [repair for repair in left if repair.kind != "candidate_asset"] == []
        self._agrees()
        assert not {release.id for release in self.ledger.releases(self.model, phases=LIVE)} & self.ejected
        self._reconcile(control, run=None)
        self.gateway.look()
        assert self.ledger.releases(self.model, phases=LIVE | WAITING) == []
        self._agrees()
        if self.gateway.route is not None:
            assert self.gateway.route.weights == {self.gateway.route.champion: 100.0}

    def _agrees(self) -> None:
        route = self.ledger.route(self.model)
        assert self.gateway.route == route
        if route is not None:
            assert parse_route((self.settings.routes / f"{self.model}.json").read_bytes()) == route
            assert self.aliases.names["champion"] == route.champion
        kinds = {effect.kind for effect in self.ledger.pending_effects(self.model)}
        assert kinds <= {"record", "champion_asset"}


def test_whatever_happens_it_converges_and_promotes_nothing_on_trust() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    home = tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else None)
    try:
        ReleaseMachine.home = Path(home)
        # The same examples each time: a test that fails once in a hundred runs is no test.
        chosen = hypothesis_settings(max_examples=25, stateful_step_count=25, derandomize=True, database=None)
        run_state_machine_as_test(ReleaseMachine, settings=chosen)
    finally:
        shutil.rmtree(home)
