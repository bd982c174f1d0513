"""Asking a person: what is shown, who may answer, and what becomes of the answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput

from airlock import settings
from airlock.control import ReleaseControl
from airlock.core.refs import BentoRef, Ref, VersionRef
from airlock.core.release import Phase, Release
from airlock.core.verdict import Status, Verdict
from airlock.hooks.registry import RegistryHook
from airlock.ledger import Ledger
from airlock.operators.approval import ApproveReleaseOperator
from airlock.specs import find

Make = Callable[..., dict[str, Any]]

DIGEST = "sha256:" + "a" * 64
GATE = Verdict(
    name="threshold_rmse",
    status=Status.PASS,
    reason="rmse is 2.5 | at most 3",
    estimate=2.5,
    low=2.25,
    high=2.75,
    threshold=3.0,
)


class Registry:
    """A registry whose run holds judgements of two bundles."""

    bundle = DIGEST

    def version(self, model: str, version: str) -> VersionRef:
        return VersionRef(model=model, version=version, run_id="r1", bundle=Ref(path="/b", digest=self.bundle))

    def artifact(self, run_id: str, path: str, folder: Path) -> Path:
        assert (run_id, path) == ("r1", "gates")
        (folder / "gates").mkdir()
        for name, digest, verdicts in (("a", "sha256:other", []), ("b", DIGEST, [GATE.model_dump(mode="json")])):
            judged = {"bundle": digest, "verdicts": verdicts}
            (folder / "gates" / f"{name}.json").write_text(json.dumps(judged))
        return folder / "gates"


@pytest.fixture
def registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setattr(RegistryHook, "get_conn", lambda _: registry)
    return registry


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The requests for input that were written for the UI."""
    asked: list[dict[str, Any]] = []
    hitl = "airflow.providers.standard.operators.hitl.upsert_hitl_detail"
    monkeypatch.setattr(hitl, lambda **request: asked.append(request))
    return asked


@pytest.fixture
def release(home: Path, ledger: Ledger) -> Release:
    where = settings.load()
    control = ReleaseControl(find(where, "toy"), where, ledger)
    bento = BentoRef(path="/bento", digest=DIGEST, model="toy", version="2", tag="toy:v2-aa")
    return control.open("2", bento, actor="test", key="test")


@pytest.fixture
def context(make_context: Make) -> dict[str, Any]:
    context = make_context()
    context["task_instance"] = context["ti"]
    context["ti"].xcom_pull = lambda **_: "http://mlflow/#/runs/r1"
    return context


def approve(dag: DAG, release: Release, **kwargs: Any) -> ApproveReleaseOperator:
    return ApproveReleaseOperator(
        task_id="approve", dag=dag, model="toy", release=release.id, response_timeout=timedelta(hours=1), **kwargs
    )


def answer(choice: str, comment: str = "") -> dict[str, Any]:
    return {
        "chosen_options": [choice],
        "params_input": {"comment": comment},
        "responded_at": datetime(2026, 1, 1, tzinfo=UTC),
        "responded_by_user": {"id": "grace", "name": "grace"},
        "timedout": False,
    }


def test_the_verdicts_are_in_the_question(
    dag: DAG, release: Release, registry: Registry, asked: list[dict[str, Any]], context: dict[str, Any]
) -> None:
    with pytest.raises(TaskAwaitingInput) as waiting:
        approve(dag, release, approvers=["grace"]).execute(context)  # type: ignore[arg-type]
    assert waiting.value.timeout == timedelta(hours=1)
    (request,) = asked
    assert request["subject"] == "May toy version 2 see traffic?"
    row = r"| threshold_rmse | pass | 2.5 | 2.25 to 2.75 | 3 | rmse is 2.5 \| at most 3 |"
    assert row in request["body"].splitlines()
    assert "[MLflow run](http://127.0.0.1:9/#/runs/r1)" in request["body"]
    assert request["assigned_users"] == [{"id": "grace", "name": "grace"}]
    assert request["defaults"] is None


def test_a_version_without_verdicts_is_not_put_to_anybody(
    dag: DAG, release: Release, registry: Registry, asked: list[dict[str, Any]], context: dict[str, Any]
) -> None:
    registry.bundle = "sha256:" + "b" * 64
    with pytest.raises(AirflowFailException, match="no gate verdicts for its bundle"):
        approve(dag, release).execute(context)  # type: ignore[arg-type]
    assert asked == []


GIVEN = SimpleNamespace(
    response_received=True,
    chosen_options=["Approve"],
    params_input={"comment": "quick"},
    responded_at=datetime(2026, 1, 1, tzinfo=UTC),
    responded_by_user=SimpleNamespace(id="grace", name="grace"),
)


def test_an_answer_given_too_fast_is_not_thrown_away(
    dag: DAG,
    release: Release,
    registry: Registry,
    ledger: Ledger,
    asked: list[dict[str, Any]],
    context: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airlock.operators.approval.get_hitl_detail_content_detail", lambda **_: GIVEN)
    context["ti"].try_number = 2
    approve(dag, release).execute(context)  # type: ignore[arg-type]
    assert asked == []
    last = ledger.timeline("toy")[-1]
    assert (last.event, last.actor, last.reason) == ("approve", "grace", "quick")


def test_a_second_try_asks_again_when_nobody_has_answered(
    dag: DAG,
    release: Release,
    registry: Registry,
    asked: list[dict[str, Any]],
    context: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = SimpleNamespace(response_received=False, chosen_options=None)
    monkeypatch.setattr("airlock.operators.approval.get_hitl_detail_content_detail", lambda **_: silent)
    context["ti"].try_number = 2
    with pytest.raises(TaskAwaitingInput):
        approve(dag, release).execute(context)  # type: ignore[arg-type]
    assert len(asked) == 1


def test_nobody_is_asked_about_what_is_decided(
    dag: DAG, release: Release, ledger: Ledger, asked: list[dict[str, Any]], context: dict[str, Any]
) -> None:
    ask = approve(dag, release)
    ask.execute_complete(context, answer("Approve"))  # type: ignore[arg-type]
    assert ask.execute(context) is None  # type: ignore[arg-type]
    ask.control.roll_back(release.id, reason="slow")
    with pytest.raises(AirflowFailException, match="rolled_back: slow"):
        ask.execute(context)  # type: ignore[arg-type]
    assert asked == []


def test_an_approval_is_kept_with_its_name(dag: DAG, release: Release, ledger: Ledger, context: dict[str, Any]) -> None:
    approve(dag, release).execute_complete(context, answer("Approve", "read it"))  # type: ignore[arg-type]
    last = ledger.timeline("toy")[-1]
    assert (last.event, last.actor, last.reason) == ("approve", "grace", "read it")
    assert ledger.release(release.id).phase is Phase.APPROVED


def test_a_rejection_ends_the_release(dag: DAG, release: Release, ledger: Ledger, context: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match="rejected by grace: too risky"):
        approve(dag, release).execute_complete(context, answer("Reject", "too risky"))  # type: ignore[arg-type]
    assert ledger.release(release.id).phase is Phase.REJECTED
    assert ledger.timeline("toy")[-1].actor == "grace"


def test_no_answer_ends_the_release(dag: DAG, release: Release, ledger: Ledger, context: dict[str, Any]) -> None:
    late = {"error": "The response timeout has passed.", "error_type": "timeout"}
    with pytest.raises(AirflowFailException, match="no answer within 1:00:00"):
        approve(dag, release).execute_complete(context, late)  # type: ignore[arg-type]
    assert ledger.release(release.id).phase is Phase.REJECTED


def test_whoever_answered_may_come_as_an_object(
    dag: DAG, release: Release, ledger: Ledger, context: dict[str, Any]
) -> None:
    said = {**answer("Approve"), "responded_by_user": SimpleNamespace(id="1", name="ada")}
    approve(dag, release).execute_complete(context, said)  # type: ignore[arg-type]
    last = ledger.timeline("toy")[-1]
    assert (last.actor, last.reason) == ("ada", "no comment")
