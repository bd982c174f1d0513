"""The command line through its own door: exit codes, JSON, and what it does without Airflow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from typer.testing import CliRunner

from airlock import airflow_api
from airlock.airflow_api import Approval, Run, TaskRun
from airlock.cli.app import app
from airlock.stack.credentials import credentials
from airlock.stack.state import StackState, write_state

PROJECT = Path(__file__).parents[2]
VERBS = (
    *("up", "down", "status", "demo", "train", "release", "approve", "reject", "monitor", "history"),
    *("pause", "resume", "extend", "promote", "abort", "rollback", "pin", "unpin", "reconcile"),
    *("spec lint", "spec schema", "spec show"),
)
BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"airflow", "mlflow", "feast", "sklearn", "bentoml"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
from airlock.cli import main
main()
"""


class FakeAirflow:
    """Remembers what was asked; every run ends as ``state`` at once."""

    asked: ClassVar[list[tuple[str, dict[str, Any]]]]
    answered: ClassVar[list[str]]
    state = "success"
    waiting: tuple[Approval, ...] = ()

    def __init__(self, _url: str, user: str, _password: str) -> None:
        self.user = user

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> Run:
        type(self).asked.append((dag_id, conf))
        return Run(dag_id=dag_id, dag_run_id="r1", state="queued")

    def run(self, dag_id: str, run_id: str) -> Run:
        return Run(dag_id=dag_id, dag_run_id=run_id, state=self.state)

    def tasks(self, _dag_id: str, _run_id: str) -> list[TaskRun]:
        return [TaskRun(task_id="train", state=self.state, try_number=1, start_date=datetime(2026, 1, 1, tzinfo=UTC))]

    def task_log(self, *_: object) -> list[str]:
        return ["preparing", "Task failed with exception DataInvalid: table events has 3 duplicated keys"]

    def approvals(self, _dag_id: str, _run_id: str = "~") -> Sequence[Approval]:
        return self.waiting

    def answer(self, approval: Approval, option: str, _params: object = None) -> None:
        type(self).answered.append(f"{self.user}: {option} to {approval.subject}")


@pytest.fixture
def airflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeAirflow]:
    """A home with a stack that was started, and an Airflow that remembers."""
    monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path))
    monkeypatch.setenv("AIRLOCK_PROJECT", str(PROJECT))
    (tmp_path / "stack").mkdir()
    from airlock import settings

    credentials(settings.load())
    write_state(settings.load(), StackState(stack_id="x", port_base=9300))

    class Fake(FakeAirflow):
        asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
        answered: ClassVar[list[str]] = []

    monkeypatch.setattr(airflow_api, "AirflowApi", Fake)
    return Fake


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps_with_an_example(verb: str) -> None:
    result = run(*verb.split(), "--help")
    assert result.exit_code == 0
    assert f"Example: airlock {verb}" in " ".join(result.output.split())


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; sys.argv = ['airlock', '--help']\n"
        "from airlock.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(said.split())
    assert loaded.isdisjoint({"airflow", "mlflow", "feast", "pandas", "numpy", "sqlalchemy", "httpx", "bentoml"})


def test_specs_are_checked_where_there_is_no_airflow(tmp_path: Path) -> None:
    broken = tmp_path / "dags" / "models"
    broken.mkdir(parents=True)
    text = (PROJECT / "dags" / "models" / "flight_delay.yaml").read_text()
    (broken / "flight_delay.yaml").write_text(text.replace("owner:", "ownr:"))

    def lint(project: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BLOCKED, "--project", str(project), "spec", "lint"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert lint(PROJECT).returncode == 0
    refused = lint(tmp_path)
    assert refused.returncode == 1
    assert "flight_delay.yaml:" in refused.stderr
    assert "owner" in refused.stderr


def test_a_project_without_specs_is_not_told_that_they_are_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRLOCK_PROJECT", str(tmp_path))
    nothing = run("spec", "lint")
    assert nothing.exit_code == 1
    assert "nothing was checked" in nothing.stderr
    folder = tmp_path / "dags" / "models"
    folder.mkdir(parents=True)
    (folder / "flight_delay.yml").write_text((PROJECT / "dags" / "models" / "flight_delay.yaml").read_text())
    misnamed = run("spec", "lint")
    assert misnamed.exit_code == 1
    assert "rename flight_delay.yml to flight_delay.yaml" in misnamed.stderr


def test_the_schema_is_written_as_editors_get_it(tmp_path: Path) -> None:
    assert run("spec", "schema", "--out", str(tmp_path / "schema.json")).exit_code == 0
    assert (tmp_path / "schema.json").read_text() == (PROJECT / "docs" / "spec.schema.json").read_text()


def test_schema_and_show_speak_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRLOCK_PROJECT", str(PROJECT))
    assert json.loads(run("spec", "schema").stdout)["additionalProperties"] is False
    shown = json.loads(run("spec", "show", "flight_delay", "--json").stdout)
    assert shown["model"] == "flight_delay"
    assert shown["rollout"]["steps"][0]["weight"] == 5


def test_train_starts_the_run_that_a_user_would(airflow: type[FakeAirflow]) -> None:
    result = run(
        *("train", "flight_delay", "--until", "2013-03-31", "--trials", "3", "--skip-shadow", "--json"),
        *("--option", "weather_units=metric", "--option", "exclude_carriers=[EV, 9E]", "--param", "max_iter=50"),
    )
    assert result.exit_code == 0, result.output
    assert airflow.asked == [
        (
            "flight_delay__train",
            {
                "until": "2013-03-31T00:00:00+00:00",
                "options": {"weather_units": "metric", "exclude_carriers": ["EV", "9E"]},
                "params": {"max_iter": 50},
                "trials": 3,
                "skip_shadow": True,
            },
        )
    ]
    assert json.loads(result.stdout)["state"] == "success"


def test_verbs_leave_out_what_was_not_said(airflow: type[FakeAirflow]) -> None:
    assert run("release", "flight_delay", "--version", "3", "--no-wait").exit_code == 0
    assert run("monitor", "flight_delay").exit_code == 0
    assert airflow.asked == [
        ("flight_delay__release", {"version": "3"}),
        ("flight_delay__monitor", {}),
    ]


def test_a_failed_run_exits_with_1_and_tells_why(airflow: type[FakeAirflow]) -> None:
    airflow.state = "failed"
    result = run("train", "flight_delay", "--json")
    assert result.exit_code == 1
    assert "3 duplicated keys" in json.loads(result.stdout)["reason"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "flight_delay", "--until", "yesterday"), "expected a time"),
        (("train", "flight_delay", "--option", "metric"), "expected KEY=VALUE"),
        (("train", "flight_delay", "--trials", "0"), "trials"),
        (("train",), "MODEL"),
        (("nonsense",), "nonsense"),
    ],
)
def test_wrong_usage_exits_with_2(airflow: type[FakeAirflow], arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert airflow.asked == []


def test_an_unknown_model_exits_with_1_and_names_the_closest(airflow: type[FakeAirflow]) -> None:
    result = run("train", "flight_dely")
    assert result.exit_code == 1
    assert "flight_delay" in result.output


def test_without_a_stack_verbs_exit_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path))
    monkeypatch.setenv("AIRLOCK_PROJECT", str(PROJECT))
    for arguments in (("train", "flight_delay"), ("status",)):
        result = run(*arguments)
        assert result.exit_code == 3, result.output
        assert "airlock up" in result.output
    assert json.loads(run("status", "--json").stdout)["up"] is False
    assert run("down").exit_code == 0


def test_questions_are_answered_as_the_approver(airflow: type[FakeAirflow]) -> None:
    assert run("approve", "flight_delay").exit_code == 1
    airflow.waiting = (
        Approval(
            dag_id="flight_delay__release",
            dag_run_id="r1",
            task_id="approve",
            map_index=-1,
            subject="May it?",
            body=None,
            options=("Approve", "Reject"),
            answered=False,
        ),
    )
    assert run("approve", "flight_delay", "--comment", "fine").exit_code == 0
    assert run("reject", "flight_delay").exit_code == 0
    assert airflow.answered == ["approver: Approve to May it?", "approver: Reject to May it?"]


def test_history_of_nothing_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path))
    monkeypatch.setenv("AIRLOCK_PROJECT", str(PROJECT))
    assert json.loads(run("history", "flight_delay", "--json").stdout) == []
