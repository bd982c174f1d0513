"""Whole runs of a toy model's DAGs under Airflow's own scheduling rules: what runs, what is skipped, what fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port

pytestmark = pytest.mark.integration

SPEC = """\
model: {model}
task: regression
data: {{key: id, event_time: t}}
label: {{name: y}}
inputs: {{x: float}}
gates: [{{kind: finite}}]
guards: [{{kind: error_rate, max: 0.2, min_requests: 5}}]
approvals: {{required: 0}}
rollout:
  plan: {plan}
  shadow: {{bake: 0s, min_requests: 5}}
  steps: [{{weight: 5, bake: 0s, min_requests: 5}}, {{weight: 100, bake: 0s, min_requests: 5}}]
"""
PLANS = {"toy": "canary", "green": "blue_green", "watched": "shadow_only"}
LOADER = Path(__file__).parents[2] / "dags" / "model_releases.py"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    project = tmp_path_factory.mktemp("project")
    (project / "dags" / "models").mkdir(parents=True)
    for model, plan in PLANS.items():
        (project / "dags" / "models" / f"{model}.yaml").write_text(SPEC.format(model=model, plan=plan))
    (project / "dags" / "model_releases.py").write_text(LOADER.read_text())
    home = project / "home"
    home.mkdir()
    gateway, ledger = f"http://127.0.0.1:{free_port()}", f"sqlite:///{home / 'ledger.db'}"
    urls = {"gateway": gateway, "ledger": ledger, "mlflow": "http://127.0.0.1:9"}
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "AIRLOCK"))},
        **{
            f"AIRFLOW_CONN_AIRLOCK_{part.upper()}": json.dumps({"conn_type": f"airlock_{part}", "host": url})
            for part, url in urls.items()
        },
        "AIRFLOW_HOME": str(project / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRLOCK_PROJECT": str(project),
        "AIRLOCK_HOME": str(home),
        "AIRLOCK_GATEWAY_URL": gateway,
        "AIRLOCK_LEDGER_URL": ledger,
    }
    airflow = [sys.executable, "-m", "airflow"]
    subprocess.run([*airflow, "db", "migrate"], env=env, capture_output=True, check=True, timeout=300)
    script = Path(__file__).with_name("run_dags.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=400, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    assert line, done.stdout[-4000:] + done.stderr[-4000:]
    return dict(json.loads(line.removeprefix("RESULT")))


def test_a_train_hands_each_result_on_and_announces_the_candidate(said: dict[str, Any]) -> None:
    assert said["train"]["run"] == "success"
    assert set(said["train"]["tasks"].values()) == {"success"}
    assert said["events"] == [["airlock://toy/candidate", {"version": "1", "skip_shadow": True}]]


def test_a_failed_gate_fails_the_run_and_registers_nothing(said: dict[str, Any]) -> None:
    assert said["refused"]["run"] == "failed"
    assert said["refused"]["tasks"]["evaluate_gates"] == "failed"
    assert said["refused"]["tasks"]["register_version"] == "upstream_failed"


def test_the_first_version_goes_straight_to_promotion(said: dict[str, Any]) -> None:
    assert said["first"]["run"] == "success"
    assert said["first"]["weights"] == {"1": 100}
    assert said["first"]["tasks"] == {
        "package": "success",
        "warm_up": "success",
        "shadow": "skipped",
        "canary_5": "skipped",
        "canary_100": "skipped",
        "promote": "success",
        "restore_traffic": "success",
        "write_record": "success",
    }


def test_a_good_version_takes_every_step(said: dict[str, Any]) -> None:
    assert said["good"]["run"] == "success"
    assert set(said["good"]["tasks"].values()) == {"success"}
    assert said["good"]["weights"] == {"2": 100}


def test_a_bad_version_fails_the_run_and_leaves_safe_traffic(said: dict[str, Any]) -> None:
    assert said["bad"]["run"] == "failed"
    assert said["bad"]["weights"] == {"2": 100}
    assert said["bad"]["tasks"] == {
        "package": "success",
        "warm_up": "success",
        "shadow": "success",
        "canary_5": "failed",
        "canary_100": "upstream_failed",
        "promote": "upstream_failed",
        "restore_traffic": "success",
        "write_record": "success",
    }


def test_without_a_shadow_the_canary_follows_the_warm_up(said: dict[str, Any]) -> None:
    assert said["no_shadow"]["run"] == "success"
    skipped = [task for task, state in said["no_shadow"]["tasks"].items() if state == "skipped"]
    assert skipped == ["shadow"]
    assert said["no_shadow"]["weights"] == {"4": 100}


def test_a_rollback_is_one_task(said: dict[str, Any]) -> None:
    assert said["rollback"] == {"run": "success", "tasks": {"roll_back": "success"}, "weights": {"1": 100}}


def test_blue_green_goes_from_nothing_to_everything(said: dict[str, Any]) -> None:
    assert said["green"]["run"] == "success"
    assert set(said["green"]["tasks"]) == {
        *("package", "warm_up", "shadow", "green", "promote", "restore_traffic", "write_record")
    }
    assert set(said["green"]["tasks"].values()) == {"success"}
    assert said["green"]["weights"] == {"2": 100}


def test_a_shadow_promotes_nothing(said: dict[str, Any]) -> None:
    assert said["watched"]["run"] == "success"
    assert said["watched"]["tasks"] == dict.fromkeys(
        ("package", "warm_up", "shadow", "complete", "restore_traffic", "write_record"), "success"
    )
    assert said["watched"]["weights"] == {"1": 100}


def test_an_orphan_is_ended_by_the_sweep(said: dict[str, Any]) -> None:
    assert set(said["reconcile"]["tasks"].values()) == {"success"}
    assert len(said["reconcile"]["tasks"]) == 1 + len(PLANS), "the list of models, and each of them"
    assert said["orphan"] == "rolled_back"


def test_a_release_is_aborted_from_its_form(said: dict[str, Any]) -> None:
    assert said["abort"]["tasks"] == {"steer": "success"}
    assert said["aborted"] == ["aborted", "not today"]


def test_scoring_maps_a_task_to_a_file(said: dict[str, Any]) -> None:
    assert said["score"]["tasks"] == {
        "list_partitions": "success",
        "score_partition[0]": "success",
        "score_partition[1]": "success",
    }
