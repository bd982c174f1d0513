"""The data plane stands alone: of Airlock it imports the core, and no Airflow at all."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway_process import REPOSITORY

MODULES = sorted((REPOSITORY / "bentos").rglob("*.py"))
FOREIGN = ("airflow", "mlflow", "evidently", "great_expectations", "sklearn", "sqlalchemy", "airlock.settings")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_only_the_core_is_imported(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {name for name in names if name.split(".")[0] == "airlock"}
    assert all(name.startswith("airlock.core.") for name in ours), ours
    assert not names & set(FOREIGN)


def test_a_gateway_s_process_has_neither_airflow_nor_mlflow() -> None:
    code = "import sys, json, gateway.__main__, gateway.app, gateway.online; print(json.dumps(sorted(sys.modules)))"
    env = os.environ | {"PYTHONPATH": str(REPOSITORY / "bentos")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {*FOREIGN, "bentoml", "feast", "pandas"}
