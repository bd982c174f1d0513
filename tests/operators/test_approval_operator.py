"""Asking people: what is shown, whose answer counts, when it is asked again, and how a question ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, DownstreamTasksSkipped, TaskDeferred

from airlock import steps
from airlock.control import ReleaseControl
from airlock.core.errors import Unavailable
from airlock.core.release import Phase, Release
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger
from airlock.operators.approval import ApproveReleaseOperator, Asked
from airlock.triggers.approval import ApprovalTrigger
from tests.support.operator_world import Versions, bento, opened, promoted, waiting

Make = Callable[..., dict[str, Any]]
Respec = Callable[[str], None]

REPORT = "http://mlflow/#/experiments/9/runs/r9/artifacts/drift/report.html"
TWO = "approvals: {required: 2, forbid_author: true, expires: 2h}"
TIMED_OUT = {"error": "Trigger timeout"}


class Airflow:
    """The questions that Airflow keeps, one for each task instance, as its API server does."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[Any, dict[str, Any]] = {}

    def ask(self, **request: Any) -> None:
        self.asked.append(request)
        self.answers[request["ti_id"]] = {}

    def answer(self, ti_id: Any, who: str, choice: str = "Approve", comment: str | None = None) -> None:
        self.answers[ti_id] = {
            "chosen_options": [choice],
            "params_input": {"comment": comment},
            "responded_at": datetime.now(UTC),
            "responded_by_user": {"id": who, "name": who},
            "timedout": False,
        }


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch, versions: Versions) -> Airflow:
    airflow = Airflow()
    monkeypatch.setattr("airlock.operators.approval.upsert_hitl_detail", airflow.ask)
    monkeypatch.setattr(steps, "drift", SimpleNamespace(latest_report=lambda *_: REPORT), raising=False)
    return airflow


@pytest.fixture
def release(champion: Release, control: ReleaseControl) -> Release:
    return waiting(control, "2", author="mary")


class Questions:
    """The approval tasks of a release, as the DAG builder has them."""

    def __init__(
        self,
        airflow: Airflow,
        release: Release,
        make_context: Make,
        *names: str,
        again: bool = True,
        **kwargs: Any,
    ) -> None:
        self.airflow = airflow
        dag = DAG("toy__release", schedule=None)
        given = {"dag": dag, "model": "toy", "release": release.id, **kwargs}
        tasks = [ApproveReleaseOperator(task_id=name, **given) for name in names]
        later = [ApproveReleaseOperator(task_id=f"{name}_again", **given) for name in names] if again else []
        for task in tasks:
            for one in later:
                task >> one
        self.tasks = {task.task_id: task for task in (*tasks, *later)}
        self.contexts = {name: make_context() for name in self.tasks}
        for context in self.contexts.values():
            context["ti"].id = uuid4()

    def start(self, name: str) -> ApprovalTrigger:
        return self._deferred(lambda: self.tasks[name].execute(self.contexts[name]))  # type: ignore[arg-type]

    def still_waits(self, name: str) -> ApprovalTrigger:
        return self._deferred(lambda: self.wake(name))

    def wake(self, name: str, why: str = "") -> Any:
        """As Airflow does with an answer, or the trigger with another reason."""
        event = {"reason": why} if why else self.airflow.answers[self.ti(name)]
        return self.tasks[name].execute_complete(self.contexts[name], event)  # type: ignore[arg-type]

    def ti(self, name: str) -> Any:
        return self.contexts[name]["ti"].id

    @staticmethod
    def _deferred(act: Callable[[], Any]) -> ApprovalTrigger:
        with pytest.raises(TaskDeferred) as waits:
            act()
        trigger = waits.value.trigger
        assert isinstance(trigger, ApprovalTrigger)
        _, kwargs = trigger.serialize()
        assert json.loads(json.dumps(kwargs)) == kwargs
        assert waits.value.method_name == "execute_complete"
        assert waits.value.timeout is not None
        return trigger


class TestQuestion:
    def test_shows_the_evidence(self, release: Release, airflow: Airflow, make_context: Make) -> None:
        Questions(airflow, release, make_context, "approve", approvers=["grace"]).start("approve")
        (request,) = airflow.asked
        assert request["subject"] == "May toy version 2 see traffic?"
        assert request["assigned_users"] == [{"id": "grace", "name": "grace"}]
        body = request["body"].splitlines()
        assert r"| threshold_rmse | pass | 2.5 | 2.25 to 2.75 | 3 |  | rmse is 2.5 \| at most 3 |" in body
        assert "- semantic version: 1.2.0" in body
        assert "- data until: 2013-04-01T00:00:00+00:00" in body
        assert "- author: mary" in body
        assert f"[MLflow run](http://127.0.0.1:9/#/runs/r1) · [Evidently report]({REPORT})" in body

    def test_shows_slices_dry_runs_guards_and_earlier_releases(
        self, champion: Release, control: ReleaseControl, airflow: Airflow, make_context: Make, ledger: Ledger
    ) -> None:
        control.abort(waiting(control, "2").id, actor="ada", reason="too slow on Mondays")
        groups = {"EWR": {"rows": 700, "estimate": 0.7, "low": 0.66, "high": 0.74, "status": "pass"}}
        slices = Verdict(name="slices", status=Status.PASS, reason="all held", details={"groups": groups})
        dry = Verdict(name="calibration", status=Status.FAIL, reason="0.2 off", dry_run=True)
        again = control.open("2", bento("2"), actor="test", key="again", verdicts=(slices, dry))
        ledger.record(
            again,
            [Verdict(name="error_rate", status=Status.PASS, reason="1 of 90")],
            step="shadow",
            now=again.entered_at,
        )
        Questions(airflow, again, make_context, "approve").start("approve")
        body = airflow.asked[0]["body"]
        assert "| slices | EWR | 700 | 0.7 | 0.66 to 0.74 | pass |" in body
        assert "| calibration | fail (dry run) |" in body
        assert "| shadow | error_rate | pass |" in body
        assert "of this version: aborted, too slow on Mondays" in body

    def test_is_asked_without_mlflow(
        self, release: Release, airflow: Airflow, make_context: Make, versions: Versions
    ) -> None:
        versions.down = True
        Questions(airflow, release, make_context, "approve").start("approve")
        assert "- MLflow: does not answer: MLflow does not answer" in airflow.asked[0]["body"]
        assert "threshold_rmse" in airflow.asked[0]["body"]

    def test_expires_as_the_spec_says(
        self, release: Release, airflow: Airflow, make_context: Make, respec: Respec
    ) -> None:
        respec(TWO)
        trigger = Questions(airflow, release, make_context, "approve_1").start("approve_1")
        left = datetime.fromisoformat(trigger.expires_at) - datetime.now(UTC)
        assert timedelta(hours=1, minutes=59) < left <= timedelta(hours=2)


class TestAnswer:
    def test_is_kept_with_its_name_and_its_evidence(
        self, release: Release, airflow: Airflow, make_context: Make, ledger: Ledger, control: ReleaseControl
    ) -> None:
        asked = Questions(airflow, release, make_context, "approve")
        asked.start("approve")
        shown = control.evidence(release.id)
        airflow.answer(asked.ti("approve"), "grace", comment="read it")
        with pytest.raises(DownstreamTasksSkipped) as skipped:
            asked.wake("approve")
        assert list(skipped.value.tasks) == ["approve_again"]
        (vote,) = ledger.votes(release.id)
        assert (vote.actor, vote.yes, vote.reason, vote.evidence) == ("grace", True, "read it", shown)
        assert ledger.release(release.id).phase is Phase.APPROVED

    def test_a_no_ends_the_release(
        self, release: Release, airflow: Airflow, make_context: Make, ledger: Ledger
    ) -> None:
        asked = Questions(airflow, release, make_context, "approve")
        asked.start("approve")
        airflow.answer(asked.ti("approve"), "grace", "Reject", "too risky")
        with pytest.raises(AirflowFailException, match="rejected by grace: too risky"):
            asked.wake("approve")
        assert ledger.release(release.id).phase is Phase.REJECTED
        assert ledger.timeline("toy")[-1].actor == "grace"

    def test_none_in_time_ends_the_release(
        self, release: Release, airflow: Airflow, make_context: Make, ledger: Ledger
    ) -> None:
        asked = Questions(airflow, release, make_context, "approve", response_timeout=timedelta(microseconds=1))
        with pytest.raises(AirflowFailException, match="nobody answered approve within"):
            asked.tasks["approve"].execute(asked.contexts["approve"])  # type: ignore[arg-type]
        assert ledger.release(release.id).phase is Phase.REJECTED

    def test_one_that_comes_after_the_end_does_not_count(
        self, release: Release, airflow: Airflow, make_context: Make, ledger: Ledger
    ) -> None:
        asked = Questions(airflow, release, make_context, "approve", response_timeout=timedelta(hours=1))
        asked.start("approve")
        airflow.answer(asked.ti("approve"), "grace")
        airflow.answers[asked.ti("approve")]["responded_at"] += timedelta(hours=2)
        asked.still_waits("approve")
        assert ledger.votes(release.id) == []

    def test_the_wait_ends_without_a_triggerer_too(
        self, release: Release, airflow: Airflow, make_context: Make, ledger: Ledger
    ) -> None:
        asked = Questions(airflow, release, make_context, "approve", response_timeout=timedelta(hours=1))
        long_ago = Asked(
            evidence=asked.tasks["approve"].control.evidence(release.id), at=datetime(2026, 1, 1, tzinfo=UTC)
        )
        ledger.save_state("toy", f"asked/{release.id}/approve", long_ago.model_dump_json(), revision=None)
        approve, context = asked.tasks["approve"], asked.contexts["approve"]
        with pytest.raises(AirflowFailException, match="nobody answered"):
            approve.resume_execution("__fail__", TIMED_OUT, context)  # type: ignore[arg-type]
        assert ledger.release(release.id).phase is Phase.REJECTED

    def test_one_that_came_too_fast_is_not_thrown_away(
        self, release: Release, airflow: Airflow, make_context: Make
    ) -> None:
        """Airflow took the task for killed and starts it again: the trigger finds the answer, if it still is there."""
        asked = Questions(airflow, release, make_context, "approve", again=False)
        asked.start("approve")
        airflow.answer(asked.ti("approve"), "grace", comment="quick")
        asked.start("approve")
        assert asked.wake("approve") == {"approved_by": ["grace"], "required": 1}
        assert len(airflow.asked) == 1

    def test_a_question_that_was_lost_is_asked(self, release: Release, airflow: Airflow, make_context: Make) -> None:
        asked = Questions(airflow, release, make_context, "approve")
        asked.start("approve")
        with pytest.raises(TaskDeferred):
            asked.tasks["approve"].execute_complete(asked.contexts["approve"], {"asked": False})  # type: ignore[arg-type]
        assert len(airflow.asked) == 2

    def test_nobody_is_asked_about_what_is_decided(
        self, champion: Release, control: ReleaseControl, airflow: Airflow, make_context: Make
    ) -> None:
        release = opened(control, "2")
        asked = Questions(airflow, release, make_context, "approve", again=False)
        assert asked.tasks["approve"].execute(asked.contexts["approve"])["approved_by"] == ["ada"]  # type: ignore[arg-type]
        control.abort(release.id, actor="ada", reason="slow")
        with pytest.raises(AirflowFailException, match="is aborted by ada: slow"):
            asked.tasks["approve"].execute(asked.contexts["approve"])  # type: ignore[arg-type]
        assert airflow.asked == []


class TestTwoOfTwo:
    @pytest.fixture
    def asked(self, release: Release, airflow: Airflow, make_context: Make, respec: Respec) -> Questions:
        respec(TWO)
        asked = Questions(airflow, release, make_context, "approve_1", "approve_2")
        asked.start("approve_1")
        asked.start("approve_2")
        return asked

    def test_two_people_let_it_on(self, asked: Questions, airflow: Airflow, release: Release, ledger: Ledger) -> None:
        airflow.answer(asked.ti("approve_1"), "grace")
        assert asked.wake("approve_1") == {"approved_by": ["grace"], "required": 2}
        assert ledger.release(release.id).phase is Phase.OPENED
        airflow.answer(asked.ti("approve_2"), "ada")
        with pytest.raises(DownstreamTasksSkipped) as skipped:
            asked.wake("approve_2")
        assert sorted(skipped.value.tasks) == ["approve_1_again", "approve_2_again"]  # type: ignore[type-var]
        assert ledger.release(release.id).phase is Phase.APPROVED

    def test_nobody_counts_twice(self, asked: Questions, airflow: Airflow, release: Release, ledger: Ledger) -> None:
        airflow.answer(asked.ti("approve_1"), "grace")
        asked.wake("approve_1")
        airflow.answer(asked.ti("approve_2"), "grace")
        asked.still_waits("approve_2")
        assert airflow.answers[asked.ti("approve_2")] == {}, "the question is open again"
        assert "grace has answered approve_1 already" in ledger.timeline("toy")[-1].reason
        assert [vote.actor for vote in ledger.votes(release.id)] == ["grace"]
        assert asked.wake("approve_1")["approved_by"] == ["grace"], "tried again, it stands"

    def test_the_author_does_not_count(
        self, asked: Questions, airflow: Airflow, release: Release, ledger: Ledger
    ) -> None:
        airflow.answer(asked.ti("approve_1"), "mary")
        asked.still_waits("approve_1")
        last = ledger.timeline("toy")[-1]
        assert (last.event, last.actor) == ("vote_refused", "mary")
        assert ledger.votes(release.id) == []
        airflow.answer(asked.ti("approve_1"), "grace")
        assert asked.wake("approve_1")["approved_by"] == ["grace"]

    def test_nobody_does_not_count(self, asked: Questions, airflow: Airflow, release: Release, ledger: Ledger) -> None:
        airflow.answer(asked.ti("approve_1"), "grace")
        airflow.answers[asked.ti("approve_1")]["responded_by_user"] = None
        asked.still_waits("approve_1")
        last = ledger.timeline("toy")[-1]
        assert (last.event, last.actor) == ("vote_refused", "airflow")
        assert ledger.votes(release.id) == []

    def test_the_author_is_told_beforehand(self, asked: Questions, airflow: Airflow) -> None:
        assert "2 different people have to approve" in airflow.asked[0]["body"]
        assert "mary, who started its training, may not." in airflow.asked[0]["body"]

    def test_a_no_to_one_ends_the_other(self, asked: Questions, airflow: Airflow) -> None:
        airflow.answer(asked.ti("approve_2"), "grace", "Reject", "too risky")
        with pytest.raises(AirflowFailException, match="rejected by grace"):
            asked.wake("approve_2")
        with pytest.raises(AirflowFailException, match="is rejected by grace: too risky"):
            asked.wake("approve_1", "the ledger has moved on")


class TestChangedEvidence:
    """The champion was rolled back to nobody, or another came, while people were asked."""

    @pytest.fixture
    def asked(self, release: Release, airflow: Airflow, make_context: Make, control: ReleaseControl) -> Questions:
        asked = Questions(airflow, release, make_context, "approve")
        asked.start("approve")
        promoted(control, "3")
        return asked

    def test_an_answer_to_the_old_one_does_not_count(
        self, asked: Questions, airflow: Airflow, release: Release, ledger: Ledger
    ) -> None:
        airflow.answer(asked.ti("approve"), "grace")
        assert asked.wake("approve") == {"asked_again_in": ["approve_again"]}
        assert ledger.votes(release.id) == []
        asked.start("approve_again")
        assert "**The champion has changed since: it is version 3.**" in airflow.asked[-1]["body"]
        airflow.answer(asked.ti("approve_again"), "grace")
        assert asked.wake("approve_again")["approved_by"] == ["grace"]
        assert ledger.release(release.id).phase is Phase.APPROVED

    def test_it_is_not_asked_a_third_time(
        self, asked: Questions, airflow: Airflow, release: Release, ledger: Ledger, control: ReleaseControl
    ) -> None:
        asked.wake("approve", "the ledger has moved on")
        asked.start("approve_again")
        promoted(control, "4")
        with pytest.raises(AirflowFailException, match="release the version again"):
            asked.wake("approve_again", "the ledger has moved on")
        assert ledger.release(release.id).phase is Phase.REJECTED

    def test_the_trigger_was_told_what_was_shown(self, release: Release, airflow: Airflow, make_context: Make) -> None:
        trigger = Questions(airflow, release, make_context, "approve").start("approve")
        assert trigger.seen["champion"] == "1"
        assert trigger.seen["release"] == release.model_dump(mode="json")


def test_before_the_promotion_it_is_asked_on_the_way(
    champion: Release, control: ReleaseControl, airflow: Airflow, make_context: Make, respec: Respec
) -> None:
    respec("approvals: {required: 1, before: promotion}")
    release = control.approve(waiting(control, "2").id, actor="spec", reason="people are asked later")
    for step in ("warm_up", "shadow", "canary_5", "canary_100"):
        control.enter(release.id, step)
    asked = Questions(airflow, release, make_context, "approve", again=False)
    asked.start("approve")
    assert airflow.asked[0]["subject"] == "May toy version 2 be promoted?"
    airflow.answer(asked.ti("approve"), "grace")
    assert asked.wake("approve")["approved_by"] == ["grace"]
    assert control.ballot(release.id).approved
    control.roll_back(release.id, reason="12 of 60 requests failed")
    with pytest.raises(AirflowFailException, match="rolled back by airlock: 12 of 60"):
        asked.wake("approve", "the ledger has moved on")


def test_a_ledger_that_is_down_is_tried_again(
    release: Release, airflow: Airflow, make_context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> Any:
        raise Unavailable("the ledger does not answer")

    asked = Questions(airflow, release, make_context, "approve")
    monkeypatch.setattr(Ledger, "release", down)
    with pytest.raises(Unavailable):
        asked.tasks["approve"].execute(asked.contexts["approve"])  # type: ignore[arg-type]
