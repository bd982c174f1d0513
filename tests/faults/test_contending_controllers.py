"""F4, F5, F6 and F8 of the fault table: several controllers at once, one that wakes up late, one that comes again.

Every controller is a process of its own with the product's own leases and patience.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from threading import Event as Flag
from threading import Thread
from typing import Self

import pytest

from airlock.control.projection import read_route
from airlock.core.errors import Conflict, NotPossible
from airlock.core.release import Event, Phase
from airlock.core.tally import GatewayStatus
from tests.faults.conftest import Injected
from tests.support.clients import Client
from tests.support.control import ejection
from tests.support.fault_worker import FORKS, Points, Worker
from tests.support.fault_world import AHEAD, World, clock_ahead
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.integration

Task = tuple[World, str, str]
"""A model, what is done, and the release it is done to."""


def do(points: Points | None, world: World, action: str, release: str) -> None:
    """One action of release control, once, by a controller of its own."""
    control = world.control(points)
    if action == "promote":
        control.promote(release)
    elif action == "abort":
        control.abort(release, actor="ann", reason="enough")
    elif action == "roll back to 1":
        control.roll_back_model("1", actor="ann", reason="complaints")
    elif action == "breach":
        standing = control.ledger.release(release)
        route = control.ledger.route(world.model)
        assert route is not None
        decision = control.observe(release, ejected(world, route.generation))
        assert decision.action == "roll_back", decision
        assert standing.phase in {Phase.CANARY, Phase.ROLLED_BACK}
        control.roll_back(release, reason=decision.reason)
    elif action == "write past the lease":
        standing, route = control.ledger.release(release), control.ledger.route(world.model)
        assert route is not None
        again = route.model_copy(update={"generation": 9}).sealed()
        control.ledger.transition(
            standing, Event.PAUSE, actor="ann", reason="look", now=control.clock(), route=again,
            changes={"paused": True}, effects=["route"],
        )  # fmt: skip
    else:
        control.enter(release, action)


def ejected(world: World, generation: int) -> GatewayStatus:
    """A gateway that has just ejected the candidate."""
    (release,) = world.ledger.releases(world.model)[:1]
    return GatewayStatus(
        model=world.model, generation=generation, checksum="", release=release.id, rollout_step=release.step,
        champion="1", candidate=release.version, share=0, loaded=("1", release.version), since=release.entered_at,
        ejection=ejection(release),
    )  # fmt: skip


def in_turn(points: Points, tasks: list[Task], barrier: Barrier) -> list[str]:
    """Do each task at the moment that the other process does its own."""
    outcomes = []
    for world, action, release in tasks:
        barrier.wait(PATIENCE_S)
        try:
            do(None, world, action, release)
        except (Conflict, NotPossible) as error:
            outcomes.append(type(error).__name__)
        else:
            outcomes.append("done")
    return outcomes


def at_once(start: Callable[..., Worker], *tasks: list[Task]) -> list[tuple[str, ...]]:
    """How each round went for each process."""
    barrier = FORKS.Barrier(len(tasks))
    workers = [start(in_turn, todo, barrier) for todo in tasks]
    return list(zip(*(worker.result() for worker in workers), strict=True))


ROUNDS = [3, pytest.param(60, marks=pytest.mark.slow)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_f4_two_versions_are_promoted_at_once(
    make_world: Callable[..., World], start: Callable[..., Worker], injected: Injected, rounds: int
) -> None:
    """The first version of all: whoever comes second was compared with nobody, and is not promoted."""
    one: list[Task] = []
    other: list[Task] = []
    for _ in range(rounds):
        world = make_world()
        one.append((world, "promote", world.opened("1").id))
        other.append((world, "promote", world.opened("2").id))
    outcomes = at_once(start, one, other)
    assert {tuple(sorted(outcome)) for outcome in outcomes} == {("NotPossible", "done")}
    for world, _, _ in one:
        world.require_sound()
        assert len(world.happened(Event.PROMOTE)) == 1
        injected("F4", "two first versions promoted at once")


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("against", ["promote", "abort", "roll back to 1"])
def test_f4_a_promotion_meets_something_else(
    make_world: Callable[..., World], start: Callable[..., Worker], injected: Injected, against: str, rounds: int
) -> None:
    one: list[Task] = []
    other: list[Task] = []
    for _ in range(rounds):
        world = make_world()
        world.promoted(*(("1", "2") if against == "roll back to 1" else ("1",)))
        release = world.let_through("3").id
        one.append((world, "promote", release))
        other.append((world, against, release))
    outcomes = at_once(start, one, other)
    for (world, _, release), outcome in zip(one, outcomes, strict=True):
        route = world.require_sound()
        promoted = world.happened(Event.PROMOTE).count(release)
        if against == "promote":
            assert (outcome, promoted, route.champion) == (("done", "done"), 1, "3")
        elif against == "abort":
            assert sorted(outcome) == ["NotPossible", "done"]
            assert (promoted, route.champion) == ((1, "3") if outcome[0] == "done" else (0, "1"))
        else:
            assert (outcome[1], route.champion) == ("done", "1")
            assert promoted == (outcome[0] == "done")
        injected("F4", f"a promotion and at once: {against}")


@pytest.mark.parametrize("rounds", ROUNDS)
def test_f4_two_that_do_not_ask_for_the_lease_meet_at_the_generation(
    make_world: Callable[..., World], start: Callable[..., Worker], injected: Injected, rounds: int
) -> None:
    tasks: list[Task] = []
    for _ in range(rounds):
        world = make_world()
        world.promoted("1")
        tasks.append((world, "write past the lease", world.in_step("2", "canary_5").id))
    outcomes = at_once(start, tasks, tasks)
    assert {tuple(sorted(outcome)) for outcome in outcomes} == {("Conflict", "done")}
    for world, _, _ in tasks:
        assert len(world.happened(Event.PAUSE)) == 1
        assert world.ledger.routes(world.model)[-1].generation == 9
        injected("F4", "two writes without a lease")


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("action", ["canary_50", "breach"])
def test_f8_a_trigger_fires_twice(
    make_world: Callable[..., World], start: Callable[..., Worker], injected: Injected, action: str, rounds: int
) -> None:
    """Two resumed tasks do the same at the same moment: into the next step, or back."""
    tasks: list[Task] = []
    for _ in range(rounds):
        world = make_world()
        world.promoted("1")
        tasks.append((world, action, world.in_step("2", "canary_5").id))
    assert set(at_once(start, tasks, tasks)) == {("done", "done")}
    for world, _, release in tasks:
        route = world.require_sound()
        if action == "breach":
            assert world.happened(Event.ROLL_BACK) == [release]
            assert route.weights == {"1": 100.0}
        else:
            assert world.happened(Event.STEP) == [release, release]  # into 5 %, and once into 50 %
            assert route.weights == {"1": 50.0, "2": 50.0}
        injected("F8", f"two resumptions at once: {action}")


SLEEPS = {
    "everything read for transition promote": "Fenced",
    "after the commit of transition promote": "done",
    "route written beside its place": "done",
    "before alias champion is set": "done",
}


@pytest.mark.parametrize("point", list(SLEEPS))
def test_f5_a_controller_sleeps_past_its_lease(
    world: World, start: Callable[..., Worker], injected: Injected, point: str
) -> None:
    """SIGSTOP in the middle of a promotion; somebody goes back to version 1; SIGCONT: nothing moves any more."""
    world.promoted("1", "2")
    release = world.let_through("3").id
    world.followed()
    with Client(world.settings.gateway_url, world.model) as client:
        sleeper = start(do, world, "promote", release, stop_at=point)
        assert sleeper.stopped() == point
        sleeper.sleep()
        sleeper.go_on()
        do(None, world, "roll back to 1", release)  # waits for the lease to run out, by the clock on the wall
        after = world.followed()
        seen = len(client.answers)
        sleeper.wake()
        assert sleeper.outcome().partition(":")[0] == SLEEPS[point]
        client.more(10)
    assert client.errors == []
    assert {answer["version"] for answer in client.answers[seen + 2 :]} == {"1"}
    route = world.require_sound()
    assert (route.champion, route.generation) == ("1", after.generation), "the sleeper changed nothing"
    assert world.followed().generation == after.generation
    injected("F5", f"asleep {point}")


def test_f6_a_step_that_is_entered_again_keeps_its_share(
    world: World, start: Callable[..., Worker], injected: Injected
) -> None:
    """Tasks of this step and of earlier ones run again in the middle of a canary, two at once, some of them killed."""
    world.promoted("1")
    release = world.in_step("2", "canary_50").id
    world.followed()
    chance = random.Random(6)  # noqa: S311 - nothing secret
    with Client(world.settings.gateway_url, world.model) as client, Watched(world) as watched:
        for number in range(12):
            steps = [chance.choice(["warm_up", "shadow", "canary_5", "canary_50"]) for _ in range(2)]
            stop_at = chance.randrange(4) if number % 2 else None
            first = start(enter, world, steps[0], release, number, stop_at=stop_at)
            second = start(enter, world, steps[1], release, number + 1)
            if stop_at is not None and first.stopped():
                first.kill()
                injected("F6", "entered again and killed")
            else:
                assert first.outcome() == "done"
                injected("F6", "entered again")
            assert second.outcome() == "done"
            injected("F6", "entered again")
        client.more(20)
    assert client.errors == []
    assert watched.shares == {50.0}
    assert watched.lying == {50.0}
    assert watched.requests == sorted(watched.requests), "what was counted is not counted anew"
    assert watched.requests[-1] > watched.requests[0]
    assert len(world.happened(Event.STEP)) == 2
    start(enter, world, "canary_100", release, 14).result()
    assert world.require_sound().weights == {"1": 0.0, "2": 100.0}
    assert [route.share for route in world.ledger.routes(world.model)] == [0.0, 0.0, 0.0, 5.0, 50.0, 100.0]


def enter(points: Points, world: World, step: str, release: str, turn: int) -> None:
    """Enter a step by a clock on which every lease of the turn before has run out."""
    world.control(points, clock=clock_ahead(turn * AHEAD)).enter(release, step)


class Watched:
    """What a gateway and its file say of a canary, many times a second."""

    def __init__(self, world: World) -> None:
        self.shares: set[float] = set()
        self.lying: set[float | None] = set()
        self.requests: list[int] = []
        self._world = world
        self._ended = Flag()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._ended.is_set():
            lying = read_route(self._world.settings.routes, self._world.model)
            self.lying.add(lying.share if lying else None)
            if (status := self._world.status()) is not None:
                self.shares.add(status.share)
                self.requests.append(sum(tally.requests for tally in status.step.get("2", {}).values()))
            self._ended.wait(0.01)
