"""F1 and F2 of the fault table: a controller is killed with SIGKILL at every border of everything it does.

The order of the product is ledger, route, aliases. Each action is done once undisturbed, which tells its points; then
once for every point, by a process that is killed right there. The next to come is ``reconcile`` or the action again.
A client asks a real gateway all the time. The fast form kills at every point of a promotion, which has every kind of
effect, on both databases, and at half of the points of everything else on SQLite.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from airlock.core.release import Event, Release
from tests.faults.conftest import Injected
from tests.support.clients import Client
from tests.support.fault_worker import Points, Worker
from tests.support.fault_world import World, clock_ahead

pytestmark = pytest.mark.integration


def act(points: Points, world: World, action: str, release: str, ahead: bool) -> None:
    """One action of release control, as often as it is asked for."""
    control = world.control(points, clock=clock_ahead() if ahead else None)
    if action == "enter":
        control.enter(release, "canary_5")
    elif action == "promote":
        control.promote(release)
    elif action == "pause":
        control.pause(release, actor="ann", reason="look")
    elif action == "abort":
        control.abort(release, actor="ann", reason="enough")
    elif action == "breach":
        decision = control.observe(release, None)
        control.roll_back(release, reason=decision.reason)
    else:
        champion = control.ledger.champion(world.model)
        assert champion is not None
        if champion.version == "1":  # as the operator does: it is there already
            control.restore(champion.release)
        else:
            control.roll_back_model("1", actor="ann", reason="complaints")


def prepared(world: World, action: str) -> Release:
    """A model with a champion and whatever the action is about."""
    world.promoted("1")
    if action == "enter":
        return world.in_step("2", "shadow")
    if action == "promote":
        return world.let_through("2")
    if action == "roll_back_model":
        world.promoted("2")
    return world.in_step("3", "canary_5")


WEIGHTS = {
    "enter": {"1": 95.0, "2": 5.0},
    "promote": {"2": 100.0},
    "pause": {"1": 95.0, "3": 5.0},
    "abort": {"1": 100.0},
    "roll_back_model": {"1": 100.0},
}
EVENTS = {
    "enter": (Event.STEP, 1),
    "promote": (Event.PROMOTE, 2),
    "pause": (Event.PAUSE, 1),
    "abort": (Event.ABORT, 1),
    "roll_back_model": (Event.ROLL_BACK, 2),
}
ROUTE, ALIAS = "route in its place", "after alias champion was set"


def points_of(start: Callable[..., Worker], world: World, action: str) -> list[str]:
    """Every point of an action that nobody disturbs."""
    release = prepared(world, action)
    names: list[str] = start(passed, world, action, release.id).result()
    return names


def passed(points: Points, world: World, action: str, release: str) -> list[str]:
    act(points, world, action, release, False)
    return points.passed


EVERY, TWO, REST = {0, 1, 2, 3}, {0, 1}, {2, 3}
"""Which of every four points; at each second one a reconciliation comes before the action again."""
OTHERS = [action for action in WEIGHTS if action != "promote"]
SLOW = pytest.mark.slow
KILLED = [
    *(pytest.param(database, "promote", EVERY, id=f"{database}-promote") for database in ("sqlite", "postgresql")),
    *(pytest.param("sqlite", action, TWO, id=f"sqlite-{action}") for action in OTHERS),
    *(pytest.param("sqlite", action, REST, id=f"sqlite-{action}-rest", marks=SLOW) for action in OTHERS),
    *(pytest.param("postgresql", action, EVERY, id=f"postgresql-{action}", marks=SLOW) for action in OTHERS),
]


@pytest.mark.parametrize(("ledger_url", "action", "which"), KILLED, indirect=["ledger_url"])
def test_f1_f2_killed_at_every_point(
    make_world: Callable[..., World], start: Callable[..., Worker], injected: Injected, action: str, which: set[int]
) -> None:
    points = points_of(start, make_world(), action)
    assert ROUTE in points
    assert f"before the commit of transition {EVENTS[action][0]}" in points
    assert (ALIAS in points) == (action in {"promote", "roll_back_model", "abort"})
    for number, name in enumerate(points):
        if number % 4 not in which:
            continue
        world = make_world()
        release = prepared(world, action)
        world.followed()
        with Client(world.settings.gateway_url, world.model) as client:
            worker = start(act, world, action, release.id, False, stop_at=number)
            assert worker.stopped() == name
            worker.kill()
            world.require_journalled()
            client.more(3)
            if number % 2:
                world.reconciled(clock_ahead())
                world.require_sound()
            start(act, world, action, release.id, True).result()
            route = world.require_sound()
            world.followed()
            client.more(3)
        _judge(world, action, route.weights, name)
        assert client.errors == []
        injected("F1" if "route" in name or "alias" in name else "F2", "killed " + _kind(name))


def _judge(world: World, action: str, weights: dict[str, float], name: str) -> None:
    event, times = EVENTS[action]
    assert {version: share for version, share in weights.items() if share} == WEIGHTS[action], name
    happened = world.happened(event)
    assert len(happened) == len(set(happened)) == times, f"killed {name}: {happened}"
    assert world.reconciled(clock_ahead()) == [], name


def _kind(name: str) -> str:
    for kind in ("everything read", "before the commit", "after the commit", "route", "alias"):
        if kind in name:
            return kind
    return name
