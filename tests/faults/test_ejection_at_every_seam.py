"""F21: the gateway ejects the candidate between any two tasks of a release, or while none of them can run.

The gateway, the ledger, the operators and the triggers are real; the test is the scheduler, and says which task comes
first after the ejection. That very run of it, no try after it and no deferral, takes the release back, and no client
has seen an error. On PostgreSQL in the slow form.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from airflow.triggers.base import BaseTrigger

from airlock.control import ReleaseControl
from airlock.core.errors import AirlockError, Unavailable
from airlock.core.release import LIVE, Event, Phase, Release
from airlock.operators import approval
from airlock.operators.approval import ApproveReleaseOperator
from airlock.operators.release import (
    CompleteReleaseOperator,
    PackageBentoOperator,
    PromoteOperator,
    RestoreTrafficOperator,
)
from airlock.operators.steering import SteerReleaseOperator
from airlock.operators.step import ReleaseStepOperator, WatchTrafficOperator
from airlock.triggers.approval import ApprovalTrigger
from tests.faults.conftest import Injected
from tests.support.clients import Client
from tests.support.control import held
from tests.support.fault_world import World
from tests.support.operator_task import context_of
from tests.support.tiny_models import GOOD_ROW
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.parametrize(
        "ledger_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
    ),
]

ONLY_UA = ("UA",)
"""The candidate raises on every other carrier."""
ASKED = {"required": 1, "before": "promotion"}
LABELS = {"kind": "label_metric", "metric": "brier", "max": 0.25, "min_requests": 50}


class Seam:
    """One release of version 2 under traffic, and whoever may act on it."""

    def __init__(self, world: World, client: Client) -> None:
        self.world = world
        self.client = client
        self.release: Release

    def stands(self, step: str, *, passed: bool = True) -> None:
        """The release has gone up to a step, and has passed it unless said otherwise."""
        self.release = self.world.in_step("2", step, carriers=ONLY_UA)
        if passed:
            held(self.world.control(), self.release)

    def eject(self) -> None:
        """Ask with what the candidate cannot answer until the gateway has ejected it and has written that down."""
        self.world.followed()
        self.client.row = GOOD_ROW | {"carrier": "EV"}
        self.world.followed(lambda status: status.ejection is not None)
        wait_until((self.world.settings.ejections / f"{self.world.model}.json").exists, "the ejection on the disk")

    def task(
        self, kind: Callable[..., BaseOperator], task_id: str, release: Release | None = None, **known: Any
    ) -> Any:
        """A task, as a worker of its own would make it."""
        if kind not in (SteerReleaseOperator, PackageBentoOperator):
            known["release"] = (release or self.release).id
        made: Any = kind(task_id=task_id, dag=DAG("a_release", schedule=None), model=self.world.model, **known)
        made.__dict__["settings"] = self.world.settings
        made.__dict__["control"] = self.world.control()
        made.__dict__["registry_hook"] = SimpleNamespace(get_conn=_no_registry)
        return made

    def step(self, name: str, release: Release | None = None) -> Any:
        return self.task(ReleaseStepOperator, name, release, step=name)

    def runs(self, task: Any, *, woken: dict[str, Any] | None = None) -> tuple[str, Any]:
        """How one run of a task ends: done, deferred with its trigger, failed for good, or up for retry."""
        context = context_of(self.world, "run-1")
        context["dag_run"].conf = None
        context["ti"].id, context["ti"].xcom_pull = str(uuid4()), lambda **_: ""
        try:
            if woken is None:
                task.execute(context)
            else:
                getattr(task, "execute_complete" if isinstance(task, ApproveReleaseOperator) else "resume")(
                    context, woken
                )
        except TaskDeferred as deferred:
            return "deferred", deferred.trigger
        except AirflowFailException as final:
            return "failed", str(final)
        except AirlockError as again:
            return "up for retry", str(again)
        return "done", None

    def deferred(self, task: Any) -> BaseTrigger:
        how, trigger = self.runs(task)
        assert how == "deferred", trigger
        return trigger  # type: ignore[no-any-return]

    def fails(self, task: Any, *, woken: dict[str, Any] | None = None) -> None:
        """This run of the task fails for good, with what the release was taken back for."""
        how, said = self.runs(task, woken=woken)
        assert (how, "the gateway ejected version 2" in str(said)) == ("failed", True), (how, said)


def _no_registry() -> None:
    raise Unavailable("MLflow does not answer")


def fired(trigger: BaseTrigger) -> dict[str, Any]:
    """What a real trigger fires with."""

    async def first() -> dict[str, Any]:
        async with asyncio.timeout(60):
            return dict((await anext(trigger.run())).payload)  # type: ignore[arg-type]

    return asyncio.run(first())


def while_doing(control: ReleaseControl, name: str, meanwhile: Callable[[], None], *, after: bool) -> None:
    """Have something happen right before or after the controller does something, once."""
    act = getattr(control, name)

    def acting(*args: Any, **kwargs: Any) -> Any:
        delattr(control, name)
        if not after:
            meanwhile()
        done = act(*args, **kwargs)
        if after:
            meanwhile()
        return done

    setattr(control, name, acting)


# Each brings the release to its seam, has the candidate ejected there, and lets the first task run.


def _next_step(before: str, step: str) -> Callable[[Seam], None]:
    def seam(at: Seam) -> None:
        at.stands(before)
        at.eject()
        at.fails(at.step(step))

    return seam


def _entered_and_not_yet_deferred(at: Seam) -> None:
    at.stands("canary_5")
    task = at.step("canary_50")
    while_doing(task.control, "enter", at.eject, after=True)
    at.fails(task)


def _about_to_enter(at: Seam) -> None:
    at.stands("canary_50")
    task = at.step("canary_100")
    while_doing(task.control, "enter", at.eject, after=False)
    at.fails(task)


def _deferred(at: Seam) -> None:
    at.stands("canary_50", passed=False)
    at.client.row = GOOD_ROW
    task = at.step("canary_50")
    how, trigger = at.runs(task)
    if how == "done":  # its evidence was there already: it stands in the step all the same
        trigger = task.watch(at.world.ledger.release(at.release.id), guards_only=True)
    at.eject()
    at.fails(at.step("canary_50"), woken=fired(trigger))


def _last_step_passed(at: Seam) -> None:
    at.stands("canary_100")
    at.eject()
    at.fails(at.task(PromoteOperator, "promote"))


def _about_to_promote(at: Seam) -> None:
    at.stands("canary_100")
    task = at.task(PromoteOperator, "promote")
    while_doing(task.control, "promote", at.eject, after=False)
    at.fails(task)


def _promotion_paused(at: Seam) -> None:
    at.stands("canary_100")
    at.world.control().pause(at.release.id, actor="ann", reason="wait for me")
    task = at.task(PromoteOperator, "promote")
    trigger = at.deferred(task)
    at.eject()
    at.fails(at.task(PromoteOperator, "promote"), woken=fired(trigger))


def _watch(at: Seam) -> Any:
    return at.task(WatchTrafficOperator, "watch", step="canary_100")


def _approval_open(at: Seam) -> None:
    at.stands("canary_100")
    asks = at.deferred(at.task(ApproveReleaseOperator, "approve"))
    watches = at.deferred(_watch(at))
    at.eject()
    at.fails(_watch(at), woken=fired(watches))
    assert isinstance(asks, ApprovalTrigger)
    at.fails(at.task(ApproveReleaseOperator, "approve"), woken=fired(asks))


def _approval_given_before_the_watch_could_run(at: Seam) -> None:
    at.stands("canary_100")
    at.deferred(at.task(ApproveReleaseOperator, "approve"))
    at.eject()
    yes = {"chosen_options": ["Approve"], "responded_by_user": {"id": "ann", "name": "ann"}}
    at.fails(at.task(ApproveReleaseOperator, "approve"), woken=yes)


def _watch_queued(at: Seam) -> None:
    at.stands("canary_100")
    at.eject()
    at.fails(_watch(at))


def _up_for_retry(at: Seam) -> None:
    at.stands("canary_5")
    first = at.step("canary_50")

    def away() -> None:
        raise Unavailable("the ledger does not answer")

    while_doing(first.control, "enter", away, after=False)
    assert at.runs(first) == ("up for retry", "the ledger does not answer")
    at.eject()
    at.fails(at.step("canary_50"))


def _run_paused_and_the_sweep_comes(at: Seam) -> None:
    at.stands("canary_5")
    at.eject()
    assert [repair.kind for repair in at.world.reconciled() if repair.done] == ["ejection"]


def _run_paused_and_somebody_steers(at: Seam) -> None:
    at.stands("canary_50")
    at.eject()
    at.fails(at.task(SteerReleaseOperator, "steer", action="promote", reason="it takes too long"))


def _next_release_comes(at: Seam) -> None:
    """The pool is full, and the worker that is free again takes a task of another run."""
    at.stands("canary_50")
    later = at.world.opened("3")
    at.eject()
    at.runs(at.step("warm_up", later))
    assert at.world.ledger.release(later.id).phase is Phase.WARM
    at.world.control().abort(later.id, actor="ann", reason="enough")


def _next_release_waits(at: Seam) -> None:
    at.stands("canary_50")
    later = at.world.opened("3")
    trigger = at.deferred(at.step("warm_up", later))
    at.eject()
    at.runs(at.step("warm_up", later), woken=fired(trigger))
    assert at.world.ledger.release(later.id).phase is Phase.WARM
    at.world.control().abort(later.id, actor="ann", reason="enough")


def _next_release_is_packed(at: Seam) -> None:
    at.stands("canary_5")
    at.eject()
    how, said = at.runs(at.task(PackageBentoOperator, "package", version="3"))
    assert (how, said) == ("up for retry", "MLflow does not answer"), "that it can pack nothing stops nobody"


def _teardown(at: Seam) -> None:
    at.stands("canary_100")
    at.eject()
    assert at.runs(at.task(RestoreTrafficOperator, "restore_traffic"))[0] == "done"


def _cleared(at: Seam) -> None:
    at.stands("canary_50")
    at.eject()
    at.fails(at.step("warm_up"))


def _completed(at: Seam) -> None:
    at.stands("shadow")
    at.eject()
    at.fails(at.task(CompleteReleaseOperator, "complete"))


def _about_to_complete(at: Seam) -> None:
    at.stands("shadow")
    task = at.task(CompleteReleaseOperator, "complete")
    while_doing(task.control, "complete", at.eject, after=False)
    at.fails(task)


SHADOW_ONLY = {"plan": "shadow_only", "shadow": {"bake": "0s", "min_requests": 5}}
SEAMS: dict[str, tuple[Callable[[Seam], None], dict[str, Any]]] = {
    "shadow passed, canary_5 queued": (_next_step("shadow", "canary_5"), {}),
    "canary_5 passed, canary_50 queued": (_next_step("canary_5", "canary_50"), {}),
    "canary_50 passed, canary_100 queued": (_next_step("canary_50", "canary_100"), {}),
    "task looked and about to enter": (_about_to_enter, {}),
    "task entered and not yet deferred": (_entered_and_not_yet_deferred, {}),
    "task deferred": (_deferred, {}),
    "last step passed, promotion queued": (_last_step_passed, {}),
    "promotion looked and about to promote": (_about_to_promote, {}),
    "promotion waits while paused": (_promotion_paused, {}),
    "blue/green passed, promotion queued": (
        lambda at: (at.stands("green"), at.eject(), at.fails(at.task(PromoteOperator, "promote")), None)[-1],
        {"rollout": {"plan": "blue_green", "shadow": None, "steps": [{"weight": 100, "min_requests": 5}]}},
    ),
    "provisional promotion queued": (
        _last_step_passed,
        {"guards": [{"kind": "error_rate", "max": 0.05, "min_requests": 5}, LABELS]},
    ),
    "approval open": (_approval_open, {"approvals": ASKED}),
    "approval given, watch waits for a worker": (_approval_given_before_the_watch_could_run, {"approvals": ASKED}),
    "approval open, watch queued": (_watch_queued, {"approvals": ASKED}),
    "task up for retry": (_up_for_retry, {}),
    "run paused in the UI, the sweep comes": (_run_paused_and_the_sweep_comes, {}),
    "run paused in the UI, somebody steers": (_run_paused_and_somebody_steers, {}),
    "pool full, the next release's first task runs": (_next_release_comes, {}),
    "pool full, the next release waits for the way": (_next_release_waits, {}),
    "pool full, the next run packs": (_next_release_is_packed, {}),
    "run marked as failed, teardown": (_teardown, {}),
    "passed step cleared": (_cleared, {}),
    "shadow passed, completion queued": (_completed, {"rollout": SHADOW_ONLY}),
    "completion looked and about to complete": (_about_to_complete, {"rollout": SHADOW_ONLY}),
}


@pytest.fixture
def at(
    make_world: Callable[..., World], ledger_url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Seam]:
    """Version 1 is champion, and clients ask all the time; they must never see an error."""
    world = make_world(**SEAMS[request.getfixturevalue("seam")][1])
    for part, url in (("gateway", world.settings.gateway_url), ("ledger", ledger_url)):
        connection = json.dumps({"conn_type": f"airlock_{part}", "host": url})
        monkeypatch.setenv(f"AIRFLOW_CONN_AIRLOCK_{part.upper()}", connection)
    monkeypatch.setattr(approval, "upsert_hitl_detail", lambda **_: None)
    unanswered = SimpleNamespace(response_received=False, chosen_options=[])
    monkeypatch.setattr("airlock.triggers.approval.get_hitl_detail_content_detail", lambda **_: unanswered)
    with settled_traffic(world) as client:
        yield Seam(world, client)


@contextmanager
def settled_traffic(world: World) -> Iterator[Client]:
    _first(world)
    world.followed()
    with Client(world.settings.gateway_url, world.model) as client:
        yield client
        client.more(5)
    assert client.errors == []


def _first(world: World) -> None:
    """The champion, whatever the spec under test asks of those after it."""
    control = world.control(spec=World(world.settings, world.model, {}).spec)
    opened = control.open("1", world.bento("1"), actor="ann", key=f"{world.model}-1", verdicts=(_finite(),))
    control.approve(opened.id, actor="spec", reason="nobody has to be asked")
    control.promote(opened.id)


def _finite() -> Any:
    from tests.support.control import FINITE

    return FINITE


@pytest.mark.parametrize("seam", SEAMS)
def test_f21_the_first_task_that_can_run_takes_it_back(seam: str, at: Seam, injected: Injected) -> None:
    SEAMS[seam][0](at)
    ledger, world = at.world.ledger, at.world
    ended = ledger.release(at.release.id)
    assert (ended.phase, "the gateway ejected version 2" in ended.reason) == (Phase.ROLLED_BACK, True), ended
    assert world.happened(Event.ROLL_BACK).count(ended.id) == 1
    assert ledger.releases(world.model, phases=LIVE) == []
    world.followed()
    route = world.require_sound()
    assert (route.champion, route.weights) == ("1", {"1": 100.0})
    injected("F21", seam)
