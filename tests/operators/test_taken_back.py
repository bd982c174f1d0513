"""The first task that can run takes a failed version back, whatever it is for and whichever run it is of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError, ErrorType, TaskDeferred
from airflow.sdk.execution_time.comms import ErrorResponse

from airlock import steps
from airlock.control import ReleaseControl
from airlock.core.release import Phase, Release
from airlock.ledger import Ledger
from airlock.operators.approval import ApproveReleaseOperator
from airlock.operators.labels import JudgeLabelsOperator
from airlock.operators.release import (
    CompleteReleaseOperator,
    PackageBentoOperator,
    PromoteOperator,
    RestoreTrafficOperator,
)
from airlock.operators.steering import SteerReleaseOperator
from airlock.operators.step import ReleaseStepOperator, WatchTrafficOperator
from airlock.triggers.way import ClearWayTrigger
from tests.support.control import ejection
from tests.support.operator_world import Gateway, Versions, opened, shares, waiting

pytestmark = pytest.mark.usefixtures("champion", "versions")
Make = Callable[..., dict[str, Any]]

STEPS = ("warm_up", "shadow", "canary_5", "canary_100")


def _known(name: str) -> dict[str, Any]:
    return {"task_id": name, "dag": DAG("toy__release", schedule=None), "model": "toy"}


OWN: dict[str, Callable[[Release], BaseOperator]] = {
    **{
        step: lambda release, step=step: ReleaseStepOperator(**_known(step), release=release.id, step=step)  # type: ignore[misc]
        for step in STEPS
    },
    "watch": lambda release: WatchTrafficOperator(**_known("watch"), release=release.id, step="canary_100"),
    "approve": lambda release: ApproveReleaseOperator(**_known("approve"), release=release.id),
    "promote": lambda release: PromoteOperator(**_known("promote"), release=release.id),
    "complete": lambda release: CompleteReleaseOperator(**_known("complete"), release=release.id),
}
"""The tasks of the release's own run."""

OTHERS: dict[str, Callable[[Release], BaseOperator]] = {
    "teardown": lambda release: RestoreTrafficOperator(**_known("restore"), release=release.id),
    "steering": lambda _: SteerReleaseOperator(**_known("steer"), action="resume", reason="go on"),
    "monitor": lambda _: JudgeLabelsOperator(**_known("judge")),
    "next run packs": lambda _: PackageBentoOperator(**_known("package"), version="3"),
}
"""Tasks that are there for something else."""


@pytest.fixture
def release(control: ReleaseControl) -> Release:
    """A release that stands in its first step with real traffic."""
    release = opened(control, "2")
    for step in ("warm_up", "shadow", "canary_5"):
        release = control.enter(release.id, step)
    return release


FAULTS: dict[str, Callable[[Gateway], None]] = {
    "ejected": lambda gateway: setattr(gateway, "ejected", "12 of 60 requests failed"),
    "a guard failed": lambda gateway: vars(gateway).update(requests=1000, errors=400),
}


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("task", sorted({**OWN, **OTHERS}))
def test_the_first_task_that_runs_takes_it_back(
    task: str,
    fault: str,
    paused: bool,
    release: Release,
    gateway: Gateway,
    control: ReleaseControl,
    make_context: Make,
    home: Path,
) -> None:
    if paused:
        control.pause(release.id, actor="ada", reason="look")
    FAULTS[fault](gateway)
    operator = {**OWN, **OTHERS}[task](release)
    if task in OWN:
        with pytest.raises(AirflowFailException, match="of version 2 is rolled back by airlock: "):
            operator.execute(make_context())  # type: ignore[arg-type]
    else:
        with suppress(AirflowFailException):
            operator.execute(make_context())  # type: ignore[arg-type]
    ended = control.ledger.release(release.id)
    assert ended.phase is Phase.ROLLED_BACK
    assert "failed" in ended.reason
    assert shares(home) == {"1": 100}


class TestTheNextRelease:
    """It waits for the one that has traffic, and takes it back itself when that one can do nothing any more."""

    def enter(self, later: Release, context: dict[str, Any]) -> None:
        ReleaseStepOperator(**_known("warm_up"), release=later.id, step="warm_up").execute(context)  # type: ignore[arg-type]

    @pytest.mark.parametrize("fault", sorted(FAULTS))
    def test_takes_back_what_failed_and_goes_on(
        self, fault: str, release: Release, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        later = opened(control, "3")
        FAULTS[fault](gateway)
        # This gateway ejects whoever comes, so that the next one is taken back as well, once it has entered.
        with pytest.raises(AirflowFailException, match="rolled back in warm_up"):
            self.enter(later, make_context())
        assert control.ledger.release(release.id).phase is Phase.ROLLED_BACK
        went = [(entry.event, entry.version) for entry in control.ledger.timeline("toy")]
        assert went[-3:] == [("roll_back", "2"), ("warm_up", "3"), ("roll_back", "3")]

    @pytest.mark.parametrize("state", ["success", "failed", None])
    def test_ends_what_no_run_carries_any_more(
        self, state: str | None, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        dead = control.approve(waiting(control, "2", run="toy__release/gone").id, actor="ada", reason="fine")
        control.enter(dead.id, "warm_up")
        later = opened(control, "3")
        context = make_context()
        context["ti"].get_dr_count = lambda *_, **__: int(state is not None)
        context["ti"].get_dagrun_state = lambda *_: state
        with suppress(TaskDeferred):
            self.enter(later, context)
        ended = control.ledger.release(dead.id)
        assert (ended.phase, "nobody carries it on" in ended.reason) == (Phase.ROLLED_BACK, True)
        assert control.ledger.release(later.id).phase is Phase.WARM

    @pytest.mark.parametrize("known", [True, False])
    def test_waits_for_one_that_goes_on_and_looks_again(
        self, known: bool, gateway: Gateway, control: ReleaseControl, make_context: Make
    ) -> None:
        going = control.approve(waiting(control, "2", run="toy__release/going").id, actor="ada", reason="fine")
        control.enter(going.id, "warm_up")
        later = opened(control, "3")
        context = make_context()

        def nobody_knows(*_: object) -> str:
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR))

        if not known:
            context["ti"].get_dagrun_state = nobody_knows
        with pytest.raises(TaskDeferred) as waits:
            self.enter(later, context)
        trigger = waits.value.trigger
        assert isinstance(trigger, ClearWayTrigger)
        assert trigger.seen["in_the_way"] == going.id
        assert waits.value.timeout is not None, "no trigger sees that a run is gone"
        assert control.ledger.release(going.id).phase is Phase.WARM


def test_the_reason_is_what_it_was_taken_back_for_and_not_that_its_run_ended(
    release: Release, gateway: Gateway, ledger: Ledger, make_context: Make, versions: Versions
) -> None:
    gateway.ejected = "12 of 60 requests failed"
    RestoreTrafficOperator(**_known("restore"), release=release.id).execute(make_context())  # type: ignore[arg-type]
    assert ledger.release(release.id).reason == "the gateway ejected version 2: 12 of 60 requests failed"


@pytest.mark.parametrize("written", [True, False])
def test_labels_that_cannot_be_read_keep_nobody_from_taking_it_back(
    written: bool,
    respec: Callable[[str], None],
    gateway: Gateway,
    control: ReleaseControl,
    make_context: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    respec("guards: [{kind: error_rate, max: 0.2, min_requests: 5}, {kind: label_metric, metric: mae, max: 0.5}]")
    looked: list[object] = []

    def unreadable(*at: object, **_: object) -> None:
        looked.append(at)
        raise OSError("the disk of the labels is gone")

    monkeypatch.setattr(steps, "evidence", SimpleNamespace(late_evidence=unreadable), raising=False)
    release = opened(control, "2")
    for step in ("warm_up", "shadow", "canary_5"):
        release = control.enter(release.id, step)
    if written:
        folder = control.settings.ejections
        folder.mkdir(exist_ok=True)
        (folder / "toy.json").write_text(ejection(release).model_dump_json())
    else:
        gateway.ejected = "12 of 60 requests failed"
    with pytest.raises(AirflowFailException, match="of version 2 is rolled back by airlock: the gateway ejected"):
        OWN["promote"](release).execute(make_context())  # type: ignore[arg-type]
    assert bool(looked) is not written, "what was written down needs no labels"
