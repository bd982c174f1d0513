"""F23: the spec, the champion or the bundle is another one while a release is on its way.

It is judged by what it was opened with, or refused in words, on a real gateway and a real ledger; and no version ever
passes by a counter that nobody keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from airlock.control import ReleaseControl
from airlock.control.reconcile import Repair, reconcile
from airlock.core.decide import Evidence, decide
from airlock.core.errors import NotFound, NotPossible, SpecError
from airlock.core.guards import limits_of
from airlock.core.refs import BentoRef
from airlock.core.release import Phase
from airlock.core.tally import GatewayStatus
from airlock.core.verdict import Status
from tests.faults.conftest import ON_SQLITE_FIRST, Injected
from tests.support.clients import Client
from tests.support.control import FINITE
from tests.support.fault_world import World

pytestmark = [pytest.mark.integration, ON_SQLITE_FIRST]

ERRORS = {"kind": "error_rate", "max": 0.05, "min_requests": 5}
LATENCY = {"kind": "latency", "max_p99_ms": 10_000, "min_requests": 5}
STEP = {"bake": "0s", "min_requests": 5}
STEPS = {"shadow": None, "steps": [{"weight": 50, **STEP}, {"weight": 100, **STEP}], "deadline": "10m"}


def asked(status: GatewayStatus) -> bool:
    return sum(tally.requests for tally in status.step.get("2", {}).values()) > 50


def by_name(world: World) -> ReleaseControl:
    """A controller that knows no spec but what the ledger and the project's folder say."""
    return ReleaseControl(world.model, world.settings, world.ledger, aliases=world.aliases)


EDITED = {
    "a limit added": {"guards": [ERRORS, LATENCY]},
    "a bound loosened": {"guards": [{**ERRORS, "max": 0.9}]},
    "a bound tightened": {"guards": [{**ERRORS, "max": 0.0001, "min_requests": 100_000}]},
    "people asked": {"approvals": {"required": 2, "before": "promotion"}},
    "a gate added": {"gates": [{"kind": "finite"}, {"kind": "size", "max_mb": 1}]},
    "other steps": {"rollout": {**STEPS, "steps": [{"weight": 7, **STEP}, {"weight": 100, **STEP}]}},
}


@pytest.mark.parametrize("edit", EDITED)
def test_f23_the_spec_is_edited(make_world: Callable[..., World], injected: Injected, edit: str) -> None:
    world = make_world(guards=[ERRORS], rollout=STEPS)
    world.promoted("1")
    release = world.in_step("2", "canary_50")
    before = world.ledger.route(world.model)
    world.followed()
    control = replace(world, changes={**world.changes, **EDITED[edit]}).control()
    with Client(world.settings.gateway_url, world.model) as client:
        status = world.followed(asked)
        decision = control.observe(release.id, status)
        assert decision.action == "advance", decision
        assert [verdict.name for verdict in decision.verdicts] == ["error_rate"]
        assert decision.verdicts[0].threshold == 0.05
        if edit == "other steps":
            with pytest.raises(NotFound, match="it has the steps warm_up, canary_50, canary_100; this task"):
                control.enter(release.id, "canary_7")
        control.enter(release.id, "canary_100")
        after = world.ledger.route(world.model)
        assert before is not None
        assert after is not None
        assert after.limits == before.limits
        world.followed(lambda status: control.observe(release.id, status).action == "advance")
        assert control.promote(release.id).phase is Phase.PROMOTED
        world.followed()
        client.more(3)
    assert client.errors == []
    assert world.require_sound().champion == "2"
    injected("F23", f"spec edited: {edit}")


def test_f23_nothing_passes_by_a_counter_that_nobody_keeps(world: World, injected: Injected) -> None:
    """Judged by the edited spec, as a release from before specs were kept might be, the new limit is unknown."""
    world.promoted("1")
    release = world.in_step("2", "canary_50")
    world.followed()
    stricter = replace(world, changes={**world.changes, "guards": [ERRORS, LATENCY]}).spec
    with Client(world.settings.gateway_url, world.model) as client:
        status = world.followed(asked)
    assert client.errors == []
    assert "latency_p99" not in status.total["2"]["served"].slow
    decision = decide(stricter, release, Evidence(gateway=status, limits=limits_of(stricter)), status.since)
    assert decision.action == "wait"
    verdicts = {verdict.name: verdict.status for verdict in decision.verdicts}
    assert verdicts == {"error_rate": Status.PASS, "latency_p99": Status.INCONCLUSIVE}
    injected("F23", "a counter that does not exist")


@pytest.mark.parametrize("damage", ["broken", "gone"])
def test_f23_the_spec_is_broken_or_gone(world: World, injected: Injected, damage: str) -> None:
    path = world.spec_file
    world.promoted("1", "2")
    release = world.in_step("3", "canary_5")
    world.followed()
    path.write_text("model: [") if damage == "broken" else path.unlink()
    control, who = by_name(world), {"actor": "ann", "reason": "look"}
    with Client(world.settings.gateway_url, world.model) as client:
        client.more(5)
        assert control.pause(release.id, **who).paused
        assert not control.resume(release.id, **who).paused
        decision = control.observe(release.id, world.followed())
        assert decision.action in ("wait", "advance"), decision  # as many requests as have come by now
        assert [verdict.name for verdict in decision.verdicts] == ["error_rate"]
        (world.settings.routes / f"{world.model}.json").unlink()
        repairs = reconcile(control, status=world.status, run_state=lambda _: "running", now=control.clock())
        assert ("route", True) in [(repair.kind, repair.done) for repair in repairs]
        assert ("spec", False) in [(repair.kind, repair.done) for repair in repairs]
        control.abort(release.id, **who)
        assert world.followed().share == 0
        control.roll_back_model(None, **who)
        assert world.followed().champion == "1"
        with pytest.raises((SpecError, NotFound)):
            control.open("4", world.bento("4"), actor="ann", key=f"{world.model}-4", verdicts=(FINITE,))
        client.more(3)
    assert client.errors == []
    assert world.require_sound().weights == {"1": 100.0}
    path.unlink(missing_ok=True)
    injected("F23", f"spec {damage}")


def without_file(world: World, damage: str) -> Callable[[], list[Repair]]:
    """The sweep of a model whose file is broken or gone, and whose run says that it is running."""
    if damage == "broken":
        world.spec_file.write_text("model: [")
    else:
        world.spec_file.unlink()

    def sweep() -> list[Repair]:
        control = by_name(world)
        return reconcile(control, status=world.status, run_state=lambda _: "running", now=control.clock())

    return sweep


@pytest.mark.parametrize("damage", ["broken", "gone"])
@pytest.mark.parametrize("late", [True, False])
def test_f23_a_release_whose_spec_is_broken_or_gone_is_judged_by_the_sweep(
    make_world: Callable[..., World], injected: Injected, damage: str, late: bool
) -> None:
    """Past its deadline it is taken back, and one that holds waits."""
    never = {
        "shadow": None,
        "steps": [{"weight": 50, **STEP, "min_requests": 10**6}, {"weight": 100, **STEP}],
        "deadline": "2s",
    }
    world = make_world(guards=[ERRORS], rollout=never if late else STEPS)
    replace(world, changes={**world.changes, "rollout": STEPS}).promoted("1")
    release = world.in_step("2", "canary_50")
    world.followed()
    sweep = without_file(world, damage)
    with Client(world.settings.gateway_url, world.model) as client:
        world.followed(lambda status: asked(status) and status.observed_s > 2.5)
        found = [repair for repair in sweep() if repair.kind == "unattended"]
        client.more(3)
    assert client.errors == []
    assert [(repair.release, repair.done) for repair in found] == [(release.id, late)]
    now = world.ledger.release(release.id)
    if late:
        assert now.phase is Phase.ROLLED_BACK
        assert "no decision within 2 s in canary_50" in now.reason
        assert world.followed().share == 0
    else:
        assert (now.phase, now.step) == (Phase.CANARY, "canary_50")
        assert found[0].what.endswith("It waits for the file to come back: Airflow loads none of its DAGs before")
        by_name(world).abort(release.id, actor="ann", reason="enough")
    assert world.require_sound().weights == {"1": 100.0}
    world.spec_file.unlink(missing_ok=True)
    injected("F23", f"spec {damage}, judged by the sweep")


def test_f23_the_champion_is_replaced_while_people_are_asked(
    make_world: Callable[..., World], injected: Injected
) -> None:
    world = make_world(approvals={"required": 1}, rollout=STEPS)
    free = replace(world, changes={**world.changes, "approvals": {"required": 0}})
    free.promoted("1")
    control = world.control()
    release = control.open("2", world.bento("2"), actor="ann", key=f"{world.model}-2", verdicts=(FINITE,))
    seen = control.evidence(release.id)
    control.vote(release.id, actor="bob", yes=True, reason="better than 1", evidence=seen)
    free.promoted("3")
    with pytest.raises(NotPossible, match="opened when version 1 was the champion, by now it is version 3"):
        control.enter(release.id, "warm_up")
    control.abort(release.id, actor="ann", reason="ask again")
    again = control.open("2", world.bento("2"), actor="ann", key=f"{world.model}-2b", verdicts=(FINITE,))
    free.promoted("4")
    control.vote(again.id, actor="bob", yes=True, reason="better than 4", evidence=control.evidence(again.id))
    control.enter(again.id, "warm_up")
    entered = control.enter(again.id, "canary_50")
    world.followed()
    assert entered.champion == "3"
    assert control.opponent_of(entered) == "4", "what labels say is paired with whom it is compared with"
    control.roll_back(again.id, reason="enough")
    assert world.require_sound().weights == {"4": 100.0}
    injected("F23", "champion replaced")


def test_f23_a_bundle_is_retrained_under_the_same_run(world: World, injected: Injected) -> None:
    """What was judged and loaded is what gets traffic; the run's other bundle never comes in its place."""
    world.promoted("1")
    release = world.in_step("2", "canary_50")
    world.followed()
    retrained = world.bento("9")
    other = BentoRef(**{**retrained.model_dump(), "version": "2"})
    control = world.control()
    again = control.open("2", other, actor="ann", key=f"{world.model}-2", verdicts=(FINITE,))
    assert (again.id, again.bundle) == (release.id, release.bundle), "the same run's release, with what it was opened"
    control.enter(release.id, "canary_100")
    route = world.ledger.route(world.model)
    assert route is not None
    assert route.versions["2"].digest == release.bundle.digest != retrained.digest
    with Client(world.settings.gateway_url, world.model) as client:
        status = world.followed(asked)
        assert control.observe(release.id, status).action == "advance"
    assert client.errors == []
    assert control.promote(release.id).bundle == release.bundle
    assert world.require_sound().champion == "2"
    injected("F23", "bundle retrained under the same run")
