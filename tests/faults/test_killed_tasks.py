"""F9 and F20 of the fault table: tasks whose processes die anywhere and are tried again; events doubled and lost.

The operators are the real ones, each attempt in a process of its own. With the API server gone a task is killed by
missed heartbeats and tried again: that is what is done here, at points of every task of a whole release.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from airlock.control.reconcile import GRACE
from airlock.core.release import Event, Phase
from tests.faults.conftest import ON_SQLITE_FIRST, Injected
from tests.support.clients import Client
from tests.support.fault_worker import Worker
from tests.support.fault_world import World, clock_ahead
from tests.support.operator_task import answer_drift, task

pytestmark = pytest.mark.integration

STEPS = ("warm_up", "shadow", "canary_5", "canary_50", "canary_100")


@ON_SQLITE_FIRST
@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_f9_every_task_of_a_release_is_killed_and_tried_again(
    world: World, start: Callable[..., Worker], injected: Injected, kills: int
) -> None:
    world.promoted("1")
    release = world.opened("2").id
    world.followed()
    chance, attempts = random.Random(9), itertools.count(1)  # noqa: S311 - nothing secret
    with Client(world.settings.gateway_url, world.model) as client:
        for name in (*STEPS, "promote", "rollback"):
            killed = 0
            for _ in range(300):
                stop_at = chance.randrange(12) if killed < kills else None
                attempt = start(task, world, name, release, next(attempts), stop_at=stop_at)
                if stop_at is not None and attempt.stopped():
                    attempt.kill()
                    world.require_journalled()
                    injected("F9", f"task killed: {name.partition('_')[0]}")
                    killed += 1
                elif attempt.result() == "done":
                    break
                client.more(5)
            else:
                raise AssertionError(f"{name} does not end")
            if name == "promote":
                assert world.require_sound().champion == "2"
                assert world.followed().champion == "2"
        world.followed()
        client.more(3)
    assert client.errors == []
    assert world.require_sound().weights == {"1": 100.0}
    assert world.ledger.release(release).phase is Phase.ROLLED_BACK
    assert [route.share for route in world.ledger.routes(world.model)] == [0, 0, 0, 5, 50, 100, 0, 0]
    assert world.happened(Event.PROMOTE).count(release) == 1
    assert world.happened(Event.ROLL_BACK) == [release]


START = datetime(2013, 4, 1, tzinfo=UTC)


def test_f20_drift_is_answered_once_a_window(
    make_world: Callable[..., World], start: Callable[..., Worker], injected: Injected
) -> None:
    """Events doubled, an hour apart because a clock jumped, tasks killed around their claim: one training a window."""
    for round_ in range(4):
        world = make_world(retrain={"cool_down": "6h"})
        for window in range(2):
            begin = START + window * timedelta(hours=8)
            times = [begin, begin, begin + timedelta(hours=1), begin - timedelta(hours=1)]
            stop_at = [None, 0, 1, 0][round_]  # nowhere, before the claim is committed, after it
            runs = [(f"w{window}-run{number}", at.isoformat()) for number, at in enumerate(times)]
            first = start(answer_drift, world, *runs[0], stop_at=stop_at)
            if stop_at is not None:
                assert first.stopped()
                first.kill()
                injected("F20", "killed at its claim on a window")
            others = [start(answer_drift, world, *run) for run in (runs if stop_at is not None else runs[1:])]
            said = [worker.result() for worker in (others if stop_at is not None else [first, *others])]
            assert said.count("training") == 1, said
            assert said.count("skipped") == 3
            injected("F20", "event of drift fourfold, up to an hour apart")
        trainings = (world.folder / "trainings").read_text().split()
        assert [run.partition("-")[0] for run in trainings] == ["w0", "w1"]


def test_f20_what_was_lost_is_found_by_the_sweep(
    world: World, start: Callable[..., Worker], injected: Injected
) -> None:
    """A lost event of drift is made up for by the next measurement; lost events of versions by reconciling."""
    lost, again = START, START + timedelta(hours=1)
    assert lost < again
    assert start(answer_drift, world, "run-1", again.isoformat()).result() == "training"
    injected("F20", "event of drift lost")
    world.promoted("1")
    world.aliases.set_alias(world.model, "candidate", "2")  # registered; its event reached nobody
    told = world.reconciled(clock_ahead(GRACE + timedelta(minutes=1)))
    found = {(repair.kind, repair.version) for repair in told if not repair.done}
    assert found >= {("candidate_asset", "2"), ("champion_asset", "1")}
    injected("F20", "event of a candidate and of a champion lost")
