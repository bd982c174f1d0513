"""One embedded stack for all tests of release control through the door."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import live_project
from tests.support.live_project import Live, rollout, small_spec

TWO = {"required": 2, "forbid_author": True, "expires": "10m"}
LABELS = [
    {"kind": "error_rate", "max": 0.05, "min_requests": 10},
    {"kind": "label_metric", "metric": "brier", "max": 0.15, "min_requests": 50},
]
SHADOW = {"bake": "2s", "min_requests": 10}
TEST = {"primary": {"name": "spent"}, "minimum_effect": 1.0}
PROJECTS = {
    "two_of_two": small_spec("two_of_two", approvals=TWO, rollout=rollout(50, 100, shadow=SHADOW)),
    "unanswered": small_spec("unanswered", approvals={"required": 1, "expires": "15s"}),
    "asked_late": small_spec("asked_late", approvals={"required": 1, "expires": "10m", "before": "promotion"}),
    "steered": small_spec("steered", rollout=rollout(30, 100, bake="4s")),
    "late_labels": small_spec("late_labels", guards=LABELS),
    "ab_test": small_spec("ab_test", rollout=rollout(100, plan="experiment"), experiment=TEST),
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch:
        for part in ("AIRFLOW", "MLFLOW", "GATEWAY", "LEDGER"):
            patch.delenv(f"AIRLOCK_{part}_URL", raising=False)
        patch.setenv("AIRLOCK_PROJECT", str(folder / "project"))
        patch.setenv("AIRLOCK_HOME", str(folder / "home"))
        with live_project.running(PROJECTS) as found:
            yield found
