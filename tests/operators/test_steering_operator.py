"""Steering from Airflow: every action, who did it, and what is not possible."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airlock.control import ReleaseControl
from airlock.core.release import Phase, Release
from airlock.ledger import Ledger
from airlock.operators.steering import ACTIONS, SteerReleaseOperator
from tests.support.operator_world import opened, waiting

Make = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("versions")


@pytest.fixture
def live(champion: Release, control: ReleaseControl) -> Release:
    release = opened(control, "2")
    control.enter(release.id, "warm_up")
    return control.enter(release.id, "shadow")


@pytest.fixture
def steer(make_context: Make) -> Callable[..., Release]:
    def act(action: str, **kwargs: Any) -> Release:
        dag = DAG("toy__control", schedule=None)
        task = SteerReleaseOperator(task_id="steer", dag=dag, model="toy", action=action, reason="because", **kwargs)
        return Release.model_validate(task.execute(make_context()))  # type: ignore[arg-type]

    return act


def test_each_action_does_what_it_says(live: Release, steer: Callable[..., Release], ledger: Ledger) -> None:
    assert steer("pause").paused
    assert not steer("resume").paused
    assert steer("extend", extend_by="36h").extended >= timedelta(hours=36)
    assert steer("promote").promote_now
    assert steer("abort").phase is Phase.ABORTED
    last = ledger.timeline("toy")[-5:]
    assert [entry.event for entry in last] == ["pause", "resume", "extend", "promote_now", "abort"]
    assert {(entry.actor, entry.reason) for entry in last} == {("ada", "because")}


@pytest.mark.parametrize("action", ACTIONS)
def test_there_has_to_be_a_release(action: str, champion: Release, steer: Callable[..., Release]) -> None:
    with pytest.raises(AirflowFailException, match=f"toy has no release on its way that could {action}"):
        steer(action)


def test_what_is_impossible_is_not_tried_again(
    champion: Release, control: ReleaseControl, steer: Callable[..., Release]
) -> None:
    waiting(control, "2")
    with pytest.raises(AirflowFailException, match="a release that is opened cannot pause; possible: "):
        steer("pause")
    assert steer("abort").phase is Phase.ABORTED


@pytest.mark.parametrize("by", [None, "a while", "0s"])
def test_an_extension_needs_a_duration(by: str | None, live: Release, steer: Callable[..., Release]) -> None:
    with pytest.raises(AirflowFailException, match="extend_by"):
        steer("extend", extend_by=by)


def test_an_unknown_action_is_refused(live: Release, steer: Callable[..., Release]) -> None:
    with pytest.raises(AirflowFailException, match="there is no action 'stop'; choose from pause"):
        steer("stop")


def test_a_key_that_steers_nothing_is_refused(make_context: Make) -> None:
    context = make_context()
    context["dag_run"].conf = {"event": "abort", "reason": "it is bad"}
    dag = DAG("toy__control", schedule=None)
    task = SteerReleaseOperator(task_id="steer", dag=dag, model="toy", action="pause", reason="it is bad")
    with pytest.raises(AirflowFailException, match="event is nothing that steers; expected action, reason, extend_by"):
        task.execute(context)  # type: ignore[arg-type]
