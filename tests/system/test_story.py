"""The whole story, as a person plays it: ``airlock demo`` on a real Airflow, MLflow, Feast, Evidently and BentoML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.ports import free_base
from tests.support.waiting import wait_until

PROJECT = Path(__file__).parents[2]
LIMIT = 1800  # seconds; it takes 280 on a quiet machine, and a stall ends it by itself


@pytest.mark.system
@pytest.mark.timeout(LIMIT + 60)
def test_the_whole_story(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRLOCK_", "AIRFLOW_"))}
    command = [
        *(sys.executable, "-c", "from airlock.cli import main; main()", "demo", "--exit", "--summary", str(out)),
        *("--home", str(tmp_path / "home"), "--port-base", str(free_base())),
    ]
    played = subprocess.run(command, cwd=PROJECT, env=env, timeout=LIMIT, capture_output=True, text=True, check=False)
    assert out.exists(), f"{played.stdout}\n{played.stderr}"
    summary = json.loads(out.read_text())
    assert played.returncode == 0, f"{json.dumps(summary, indent=1)}\n{played.stdout}\n{played.stderr}"

    assert summary["ok"]
    assert [act["name"] for act in summary["acts"]] == [
        *("train", "first_release", "canary_promoted", "bad_candidate_rolled_back", "drift_retrained"),
    ]
    assert all(act["ok"] for act in summary["acts"])
    assert summary["client"]["requests"] > 1_000
    assert summary["client"]["failed"] == 0
    assert summary["peak_memory_mb"] < 4_000
    assert summary["champion"]["version"] == "2"
    assert summary["champion"]["digest"].startswith("sha256:")
    assert summary["rollback"]["failed_requests"] == 0
    assert summary["rollback"]["requests_to_detect"] > 0

    weights = [route["weights"] for route in summary["routes"]]
    assert all(sum(shares.values()) == pytest.approx(100) for shares in weights)
    assert [route["generation"] for route in summary["routes"]] == list(range(1, len(weights) + 1))
    taken = [shares["2"] for shares in weights if shares.get("2")]
    assert taken[:4] == [5, 25, 50, 100]
    assert max(shares.get("3", 0) for shares in weights) < 100
    assert max(shares.get("4", 0) for shares in weights) < 100
    assert weights[-1] == {"2": 100.0}

    # Python's own helper of the replay's process ends a moment after its parent.
    home = tmp_path / "home"
    wait_until(lambda: not _left_over(home), "the demo's last process to end", seen=lambda: _left_over(home))


def _left_over(home: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AIRLOCK_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.name()}")
        except psutil.Error:
            continue
    return found
