"""Airflow's own view of the loader: parsing, import errors, weight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.exceptions import SerializationError
from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
from airflow.serialization.serialized_objects import DagSerialization

from airlock.dag_builder import build_dags
from airlock.dag_builder.refused import RefusedSpec

GOOD = """\
model: {model}
task: regression
data: {{key: id, event_time: t}}
label: {{name: y}}
inputs: {{x: float}}
gates: [{{kind: finite}}]
"""
HEAVY = (
    "mlflow feast evidently great_expectations bentoml sklearn onnx onnxruntime optuna pandas matplotlib duckdb scipy"
)

PARSE = """
import json, logging, sys
from pathlib import Path
from airflow.dag_processing.processor import DagFileParseRequest, _parse_file
import structlog
folder = Path(sys.argv[1])
request = DagFileParseRequest(file=str(folder / "model_releases.py"), bundle_path=folder, bundle_name="b")
result = _parse_file(request, structlog.get_logger())
heavy = [name for name in sys.argv[2:] if name in sys.modules]
dags = {dag.dag_id: dag.data for dag in result.serialized_dags}
said = {"dags": dags, "errors": result.import_errors, "heavy": heavy}
print("RESULT" + json.dumps(said, sort_keys=True, default=str))
"""


def parse(folder: Path, home: Path) -> dict[str, object]:
    """What Airflow's DAG processor makes of the loader in ``folder``, in a fresh process."""
    env = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(folder), *HEAVY.split()],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    assert line, done.stderr[-3000:] + done.stdout[-3000:]
    return dict(json.loads(line.removeprefix("RESULT")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dags = tmp_path / "dags"
    (dags / "models").mkdir(parents=True)
    loader = Path(__file__).parents[2] / "dags" / "model_releases.py"
    (dags / "model_releases.py").write_text(loader.read_text())
    (dags / "models" / "toy.yaml").write_text(GOOD.format(model="toy"))
    return dags


KINDS = ("train", "release", "control", "monitor", "rollback", "score")
REPAIRS = "airlock__reconcile"


def test_parsing_is_light_and_deterministic(folder: Path, tmp_path: Path) -> None:
    first = parse(folder, tmp_path / "home")
    second = parse(folder, tmp_path / "home")
    assert set(first["dags"]) == {*(f"toy__{kind}" for kind in KINDS), REPAIRS}  # type: ignore[call-overload]
    assert first["errors"] == {}
    assert first["heavy"] == []
    assert first == second


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("cron", GOOD.format(model="cron") + "monitoring: {schedule: every now and then}\n", "Airflow refuses"),
        ("a name with spaces", GOOD.format(model="other"), "to other.yaml"),
        ("empty", "", "file is empty"),
    ],
)
def test_every_kind_of_refusal_is_told_under_the_specs_name(folder: Path, name: str, text: str, said: str) -> None:
    (folder / "models" / f"{name}.yaml").write_text(text)
    dags = build_dags(folder / "models")
    assert {f"toy__{kind}" for kind in KINDS} < set(dags)
    (refused,) = [dag for dag in dags.values() if isinstance(dag, RefusedSpec)]
    refused.validate()
    assert refused.relative_fileloc == f"models/{name}.yaml"
    with pytest.raises(SerializationError, match=said):
        DagSerialization.to_dict(refused)


def test_without_a_file_what_the_ledger_knows_is_reconciled_all_the_same(tmp_path: Path) -> None:
    assert list(build_dags(tmp_path)) == [REPAIRS]


def test_a_broken_spec_takes_no_other_model_down(folder: Path, tmp_path: Path) -> None:
    broken = GOOD.format(model="broken").replace("gates", "gate")
    (folder / "models" / "broken.yaml").write_text(broken)
    result = parse(folder, tmp_path / "home")
    assert set(result["dags"]) == {*(f"toy__{kind}" for kind in KINDS), REPAIRS}  # type: ignore[call-overload]
    errors = result["errors"]
    assert isinstance(errors, dict)
    assert list(errors) == ["models/broken.yaml"]
    message = errors["models/broken.yaml"]
    assert "broken.yaml:6" in message
    assert "did you mean 'gates'?" in message


@pytest.mark.parametrize(
    ("asked", "built"),
    [
        (None, {"toy", "other", "airlock"}),
        ("other__train", {"other", "airlock"}),
        ("airlock__reconcile", {"airlock"}),
        ("elsewhere__train", {"toy", "other", "airlock"}),
    ],
)
def test_a_task_builds_its_own_model_alone(folder: Path, asked: str | None, built: set[str]) -> None:
    (folder / "models" / "other.yaml").write_text(GOOD.format(model="other"))
    with _airflow_parsing_context_manager(dag_id=asked, task_id="a task"):
        dags = build_dags(folder / "models")
    assert {name.partition("__")[0] for name in dags} == built
    assert asked in (None, "elsewhere__train") or asked in dags
