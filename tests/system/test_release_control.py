"""Release control through the doors that people have: a real Airflow, MLflow and gateway, with traffic all the while.

Airflow's own API as the UI uses it, as three users; the command line; the gateway over HTTP. The tests share one stack,
and each has a model of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from airlock import specs
from airlock.airflow_api import Run
from airlock.core.release import TERMINAL, Phase
from airlock.core.tally import GatewayStatus
from airlock.stack import password_of
from airlock.stack.parts import API_SERVER, MLFLOW, SCHEDULER, TRIGGERER
from airlock.steps import labels
from tests.support.live_project import CONSTANT, RAISING, Live, bought

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
GONE = "elsewhere"
"""A shop that no version has seen in training."""


@pytest.fixture(autouse=True)
def nobody_is_turned_away(live: Live) -> Iterator[None]:
    """Whatever happened in a test, the client got an answer to every request; it asks for none of its models after."""
    yield
    live.client.rest()
    assert live.client.failures == []


@pytest.fixture(scope="module")
def unanswered(live: Live) -> Run:
    """A release whose question nobody answers; it has all the time that the other tests take."""
    return live.release("unanswered", live.train("unanswered", {"C": 1.0}))


@pytest.fixture(scope="module")
def candidate(live: Live) -> str:
    """A version of ``steered`` beside its champion: as good, but it raises on a shop that it has not seen."""
    live.first("steered")
    return live.train("steered", RAISING)


@pytest.mark.usefixtures("unanswered")
def test_a_candidate_is_trained_and_rejected(live: Live) -> None:
    live.first("two_of_two")
    live.airlock("train", "two_of_two", "--param", "C=0.9")
    with live.api() as api:
        run = live.until("an asset to start the release", lambda: next(iter(api.runs("two_of_two__release")), None))
    live.answer(run, "approve_1", "approver", "Reject", "the numbers look odd")

    assert live.ended(run).state == "failed"
    release = live.of(run)
    assert (release.phase, release.reason, release.author) == (Phase.REJECTED, "the numbers look odd", "admin")
    assert live.champion("two_of_two") == "1"
    assert "rejected by approver" in live.log(run, "approve_1")


def test_two_of_two_approve_and_the_candidate_is_promoted(live: Live) -> None:
    live.client.ask("two_of_two")
    run = live.release("two_of_two", "2")
    live.answer(run, "approve_1", "admin", "Approve", "it is mine, and it is good")
    live.until("the author to be refused", lambda: "admin started the training" in _history(live, "two_of_two"))
    live.answer(run, "approve_1", "approver", "Approve", "read the gates")
    live.until("the first yes", lambda: live.states(run)["approve_1"] == "success")
    live.answer(run, "approve_2", "approver", "Approve", "and once more")
    live.until(
        "the second answer to be refused", lambda: "has answered approve_1 already" in _history(live, "two_of_two")
    )
    release = live.of(run)
    assert release.phase is Phase.OPENED
    assert live.champion("two_of_two") == "1"
    live.answer(run, "approve_2", "reviewer", "Approve", "me too")

    assert live.ended(run).state == "success", live.story(run)
    release = live.of(run)
    assert release.phase is Phase.PROMOTED
    yes = {vote.actor for vote in live.ledger.votes(release.id) if vote.yes}
    assert yes == {"approver", "reviewer"}
    shares = [route.share for route in live.ledger.routes("two_of_two") if route.release == release.id]
    assert shares == [0, 0, 50, 100]
    live.until("version 2 to answer alone", lambda: live.champion("two_of_two") == "2")


def test_the_release_record_is_signed_and_kept_in_mlflow(live: Live, tmp_path: Path) -> None:
    release = live.ledger.releases("two_of_two")[0]
    record = live.settings.records / "two_of_two" / release.id / "record.json"
    assert live.told("record", "verify", str(record)) == {
        "release": release.id, "model": "two_of_two", "version": "2", "valid": True,
    }  # fmt: skip
    said = json.loads(record.read_text())
    assert said["outcome"] == "promoted"
    assert "two_of_two" in live.airlock("record", "card", "two_of_two")

    run = live.registry.run_of("two_of_two", "2")
    kept = live.registry.artifact(run, f"releases/{release.id}", tmp_path)
    assert (kept / "record.json").read_bytes() == record.read_bytes()
    assert {"record.json", "record.json.sig"} < {path.name for path in kept.iterdir()}
    assert any(path.suffix == ".html" for path in kept.iterdir())

    forged = tmp_path / "record.json"
    forged.write_text(record.read_text().replace('"promoted"', '"rolled_back"'))
    forged.with_name("record.json.sig").write_bytes(record.with_name("record.json.sig").read_bytes())
    live.airlock("record", "verify", str(forged), code=1)


def test_a_guard_breaches_while_people_are_asked(live: Live) -> None:
    live.first("asked_late")
    run = live.release("asked_late", live.train("asked_late", RAISING))
    live.question(run, "approve")
    assert live.on_its_way("asked_late").step == "canary_100"
    live.client.ask("asked_late", "north", GONE)

    assert live.ended(run).state == "failed"
    release = live.of(run)
    assert release.phase is Phase.ROLLED_BACK
    assert "failed" in release.reason
    assert live.champion("asked_late") == "1"
    states = live.states(run)
    assert (states["watch"], states["approve"], states["restore_traffic"]) == ("failed", "failed", "success")
    assert release.reason in live.log(run, "watch")
    with live.api("approver") as api:
        assert api.approvals(run.dag_id, run.dag_run_id) == []


def test_a_release_is_paused_resumed_and_aborted_on_the_command_line(live: Live, candidate: str) -> None:
    run = live.release("steered", candidate)
    live.in_step("steered", "canary_30")
    live.airlock("pause", "steered", "--reason", "everybody is at lunch", "--actor", "ada")
    assert live.shares("steered", 6) == {30.0}, "a paused release moved on, though its step was long over"
    live.client.rest("steered")
    live.airlock("resume", "steered", "--reason", "lunch is over", "--actor", "ada")
    live.in_step("steered", "canary_100")
    live.airlock("abort", "steered", "--reason", "the menu was bad", "--actor", "ada")
    live.until("the champion to answer alone", lambda: live.champion("steered") == "1")
    live.client.ask("steered")

    assert live.ended(run).state == "failed"
    release = live.of(run)
    assert (release.phase, release.reason) == (Phase.ABORTED, "the menu was bad")
    assert "aborted by ada: the menu was bad" in live.log(run, "canary_100")
    assert _events(live, release.id, "ada") == ["pause", "resume", "abort"]


def test_a_release_is_paused_resumed_and_aborted_in_the_ui(live: Live, candidate: str) -> None:
    live.client.rest("steered")
    run = live.release("steered", candidate)
    live.in_step("steered", "canary_30")
    live.control_form("steered", "pause", "waiting for the auditor")
    assert live.on_its_way("steered").paused
    live.client.ask("steered")
    assert live.shares("steered", 6) == {30.0}
    live.client.rest("steered")
    live.control_form("steered", "resume", "the auditor has left")
    live.in_step("steered", "canary_100")
    live.control_form("steered", "abort", "the auditor came back")
    live.client.ask("steered")

    assert live.ended(run).state == "failed"
    release = live.of(run)
    assert (release.phase, release.reason) == (Phase.ABORTED, "the auditor came back")
    assert live.champion("steered") == "1"
    assert _events(live, release.id, "admin")[-3:] == ["pause", "resume", "abort"]


def test_labels_that_come_late_take_a_provisional_champion_back(live: Live, tmp_path: Path) -> None:
    live.first("late_labels")
    run = live.release("late_labels", live.train("late_labels", CONSTANT))
    assert live.ended(run).state == "success", live.story(run)
    release = live.of(run)
    assert release.phase is Phase.PROVISIONAL
    assert live.champion("late_labels") == "2"

    began, spec = time.monotonic(), specs.find(live.settings, "late_labels")
    live.until("300 answers", lambda: len(live.client.since("late_labels", began)) >= 300)
    live.client.rest("late_labels")
    answers = live.client.answers["late_labels"]
    known = pd.DataFrame([{"visit": each.row["visit"], "bought": bought(each.row)} for each in answers])
    known.sample(frac=0.6, random_state=3).to_csv(tmp_path / "labels.csv", index=False)
    live.airlock("deliver", "labels", "late_labels", str(tmp_path / "labels.csv"))

    def logged() -> bool:
        now = datetime.now(UTC)
        found = labels.coverage(spec, live.settings, now - timedelta(days=1), now)
        return sum(each.answers for each in found) == len(answers)

    live.until("every answer to be logged", logged)
    with live.api() as api:
        monitor = api.trigger("late_labels__monitor")
        live.ended(monitor)
        judged = api.xcom(monitor.dag_id, monitor.dag_run_id, "judge_labels")["judged"]
    assert [(each["version"], each["action"]) for each in judged] == [("2", "roll_back")]
    assert judged[0]["share"] == pytest.approx(0.6, abs=0.1)
    release = live.ledger.release(release.id)
    assert release.phase is Phase.ROLLED_BACK
    assert "Brier" in release.reason
    assert "labels have come for" in release.reason
    live.until("the last good version to answer", lambda: live.champion("late_labels") == "1")


def test_an_ab_test_is_planned_watched_and_concluded(live: Live, tmp_path: Path) -> None:
    plan = live.told(
        "experiment", "plan", "ab_test", "--baseline-mean", "10", "--baseline-sd", "1", "--units-per-day", "1000"
    )
    assert plan["outcomes"][0]["units"] > 50
    live.first("ab_test")
    run = live.release("ab_test", live.train("ab_test", {"C": 0.8}))
    release = live.in_step("ab_test", "experiment")
    early = live.told("experiment", "status", "ab_test")
    assert early["conclusion"]["action"] == "go_on"
    live.airlock("experiment", "conclude", "ab_test", code=1)

    began = time.monotonic()
    live.until("500 visits", lambda: len(live.client.since("ab_test", began)) >= 500)
    answers, random = live.client.since("ab_test", began), np.random.default_rng(17)
    spent = pd.DataFrame({"key": [each.row["visit"] for each in answers], "name": "spent"})
    gain = np.array([3.0 * (each.version == release.version) for each in answers])
    spent["value"] = random.normal(10, 1, len(answers)) + gain
    spent["time"] = datetime.now(UTC).isoformat()
    spent.to_csv(tmp_path / "spent.csv", index=False)
    live.airlock("deliver", "outcomes", "ab_test", str(tmp_path / "spent.csv"))

    def decided() -> bool:
        return bool(live.told("experiment", "status", "ab_test")["conclusion"]["action"] == "promote")

    live.until("the experiment to be decided", decided, tell=lambda: live.airlock("experiment", "status", "ab_test"))
    assert live.shares("ab_test", 1) == {50.0}
    concluded = live.told("experiment", "conclude", "ab_test", "--actor", "ada")
    assert concluded["concluded"] == "promote"
    assert live.ended(run).state == "success", live.story(run)
    assert live.of(run).phase is Phase.PROMOTED
    live.until("the candidate to answer alone", lambda: live.champion("ab_test") == release.version)


def test_a_question_that_nobody_answers_expires(live: Live, unanswered: Run) -> None:
    assert live.ended(unanswered).state == "failed"
    release = live.of(unanswered)
    assert release.phase is Phase.REJECTED
    assert "nobody answered approve within 0:00:15" in release.reason
    assert release.reason in live.log(unanswered, "approve")


@pytest.mark.slow
def test_a_bad_candidate_is_ejected_while_nobody_controls(live: Live, candidate: str) -> None:
    """F7: scheduler and triggerer killed in a bake."""
    live.client.rest("steered")
    run = live.release("steered", candidate)
    live.in_step("steered", "canary_30")
    live.kill(SCHEDULER, TRIGGERER)
    live.client.ask("steered")
    assert live.shares("steered", 4) == {30.0}
    live.client.ask("steered", "north", GONE)
    live.until("the gateway to eject it", lambda: live.shares("steered", 0.2) == {0.0})
    live.restart(SCHEDULER, TRIGGERER)

    assert live.ended(run).state == "failed"
    release = live.of(run)
    assert release.phase is Phase.ROLLED_BACK
    assert "ejected" in release.reason or "failed" in release.reason
    assert live.champion("steered") == "1"
    live.client.ask("steered")


@pytest.mark.slow
def test_a_cleared_task_and_a_killed_api_server_change_nothing(live: Live, candidate: str) -> None:
    """F6 and F9: the same step goes on, the weight never jumps, and the release ends as it would have."""
    live.client.rest("steered")
    run = live.release("steered", candidate)
    release = live.in_step("steered", "canary_30")
    before = live.watched("steered")
    _clear(live, run, "canary_30")
    live.until(
        "the task to run again",
        lambda: _tries(live, run, "canary_30") > 1 and live.states(run)["canary_30"] == "deferred",
    )
    assert live.on_its_way("steered") == release
    assert live.shares("steered", 1) == {30.0}
    assert live.watched("steered") > before, "the step began anew"

    live.kill(API_SERVER)
    live.client.ask("steered")
    assert live.shares("steered", 8) <= {30.0, 100.0}
    live.restart(API_SERVER)
    assert live.ended(run).state == "success", live.story(run)
    assert live.of(run).phase is Phase.PROMOTED
    shares = [route.share for route in live.ledger.routes("steered") if route.release == release.id]
    assert shares == [0, 30, 100]
    live.until("the candidate to answer alone", lambda: live.champion("steered") == candidate)


def test_going_back_takes_a_second_and_needs_no_mlflow(live: Live) -> None:
    live.kill(MLFLOW)
    live.airlock("rollback", "two_of_two", "--reason", "complaints", "--actor", "ada")
    route = live.ledger.route("two_of_two")
    assert route is not None
    status = live.until("the gateway to follow", lambda: _at(live, "two_of_two", route.generation))
    assert status.champion == "1", "in effect while MLflow is down"
    live.restart(MLFLOW)

    def agrees() -> bool:
        """The command line repairs what it can; asset events go out from the sweep alone."""
        with live.api() as api:
            live.ended(api.trigger("airlock__reconcile"))
        return not any(live.told("reconcile", code=None).values())

    live.until("nothing to be left to repair", agrees, patience=300)
    assert live.registry.alias("two_of_two", "champion") == "1"
    for model in ("two_of_two", "asked_late", "late_labels", "ab_test"):
        for release in live.ledger.releases(model, phases={*TERMINAL, Phase.PROMOTED}):
            assert (live.settings.records / model / release.id / "record.json").exists(), release


def _history(live: Live, model: str) -> str:
    return live.airlock("history", model)


def _events(live: Live, release: str, actor: str) -> list[str]:
    found = live.ledger.timeline(live.ledger.release(release).model)
    return [str(entry.event) for entry in found if (entry.release, entry.actor) == (release, actor)]


def _at(live: Live, model: str, generation: int) -> GatewayStatus | None:
    status = live.status(model)
    return status if status is not None and status.generation >= generation else None


def _clear(live: Live, run: Run, task: str) -> None:
    """The UI's Clear on one task."""
    with httpx.Client(base_url=live.settings.airflow_url, timeout=20, trust_env=False) as http:
        login = {"username": "admin", "password": password_of(live.settings, "admin")}
        token = http.post("/auth/token", json=login).raise_for_status().json()["access_token"]
        body = {"dry_run": False, "dag_run_id": run.dag_run_id, "task_ids": [task], "only_failed": False}
        head = {"Authorization": f"Bearer {token}"}
        http.post(f"/api/v2/dags/{run.dag_id}/clearTaskInstances", json=body, headers=head).raise_for_status()


def _tries(live: Live, run: Run, task: str) -> int:
    with live.api() as api:
        return next(each.try_number for each in api.tasks(run.dag_id, run.dag_run_id) if each.task_id == task)
