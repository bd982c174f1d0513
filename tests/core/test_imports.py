"""The core stands alone: importing any of it brings in no tool that it decides about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "plugins" / "airlock" / "core"
MODULES = sorted(
    ".".join(("airlock", "core", *path.relative_to(CORE).with_suffix("").parts)).removesuffix(".__init__")
    for path in CORE.rglob("*.py")
)
TOOLS = {
    "airflow",
    "bentoml",
    "evidently",
    "feast",
    "great_expectations",
    "httpx",
    "mlflow",
    "onnxruntime",
    "optuna",
    "pandas",
    "pyarrow",
    "sklearn",
    "sqlalchemy",
    "yaml",
}


def loaded_by(*modules: str) -> set[str]:
    """Top-level modules in a fresh process after importing these."""
    script = (
        f"import json, sys, {', '.join(modules)}; print(json.dumps([name for name in sys.modules if '.' not in name]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_whole_core_loads_no_tool() -> None:
    assert {"airlock.core.gates", "airlock.core.guards", "airlock.core.spec", "airlock.core.route"} <= set(MODULES)
    assert not loaded_by(*MODULES) & TOOLS


@pytest.mark.parametrize(
    "module", ["airlock.core.guards", "airlock.core.route", "airlock.core.bundle", "airlock.core.tally"]
)
def test_what_the_gateway_asks_between_requests_needs_no_numpy(module: str) -> None:
    assert not loaded_by(module) & {"numpy", "scipy"}
