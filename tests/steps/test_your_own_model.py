"""The README's "your own model", exactly as printed there: a YAML file and a recipe, under 40 lines, all the way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from airlock import specs
from airlock.core.verdict import Status, fold
from airlock.settings import Settings
from airlock.steps import evaluation, export, features, packaging, registry, snapshot, training, validation

README = Path(__file__).parents[2] / "README.md"
FILES = re.compile(r"`((?:dags|include)/[\w/]+\.(?:yaml|py))`:\n\n```(?:yaml|python)\n(.*?)```", re.DOTALL)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = dict(FILES.findall(README.read_text()))
    assert sorted(files) == ["dags/models/tumour.yaml", "include/tumour/recipe.py"]
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_it_takes_fewer_than_forty_lines(project: Path) -> None:
    written = [path for path in project.rglob("*") if path.is_file()]
    assert sum(len(path.read_text().splitlines()) for path in written) < 40


def test_the_linter_takes_it(project: Path) -> None:
    command = [Path(sys.executable).with_name("airlock"), "--project", str(project), "spec", "lint"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
def test_it_trains_passes_its_gates_and_is_packaged(project: Path, mlflow_server: str) -> None:
    settings = Settings(
        project=project,
        home=project / ".airlock",
        mlflow_url=mlflow_server,
        gateway_url="http://127.0.0.1:1",
        airflow_url="http://127.0.0.1:1",
        ledger_url=f"sqlite:///{project / 'ledger.db'}",
    )
    spec = specs.find(settings, "tumour")
    frozen = snapshot.freeze(spec, settings, until=None, options={})
    assert validation.validate(spec, settings, frozen).passed
    rows = features.training_set(spec, settings, frozen)
    assert rows.rows == 569
    trained = training.train(spec, settings, rows, run_key="own", params=None, trials=3, origin={"dag_run": "own"})
    exported = export.export(spec, settings, trained)
    judged = evaluation.evaluate(spec, settings, exported, champion=None, champion_version=None)
    assert fold(judged.verdicts) is Status.PASS, [verdict.reason for verdict in judged.verdicts]
    version = registry.Registry(mlflow_server, bundles=project / "bundles").register(spec, judged, key="own")
    bento = packaging.package(spec, settings, version)
    assert Path(bento.path).is_dir()
