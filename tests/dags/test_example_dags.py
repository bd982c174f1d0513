"""The hand-written examples: they parse, and stand on their own."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest
from airflow.sdk import DAG

EXAMPLES = sorted(Path("dags/examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_whole_dag(path: Path) -> None:
    (dag,) = {value for value in runpy.run_path(str(path)).values() if isinstance(value, DAG)}
    dag.validate()
    dag.check_cycle()
    assert len(dag.roots) == 1
    assert dag.is_paused_upon_creation


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_needs_no_builder(path: Path) -> None:
    imported = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    assert not any(str(module).startswith("airlock.dag_builder") for module in imported)
