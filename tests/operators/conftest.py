"""A project with one spec, its connections, and a context as Airflow hands it to a task."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk import DAG
from airflow.sdk.execution_time.context import OutletEventAccessors, TriggeringAssetEventsAccessor

from airlock import settings, steps
from airlock.control import ReleaseControl
from airlock.core.release import Release
from airlock.hooks.gateway import GatewayHook
from airlock.hooks.registry import RegistryHook
from airlock.ledger import Ledger
from airlock.operators import receipts
from airlock.specs import find
from tests.support.operator_world import Gateway, Versions, bento, promoted

SPEC = """\
model: toy
task: regression
owner: toys
data: {key: id, event_time: t}
label: {name: y}
inputs: {x: float}
gates: [{kind: finite}]
guards: [{kind: error_rate, max: 0.2, min_requests: 5}]
rollout:
  shadow: {bake: 0s, min_requests: 5}
  steps: [{weight: 5, bake: 0s, min_requests: 5}, {weight: 100, bake: 0s, min_requests: 5}]
"""


@pytest.fixture
def home(tmp_path: Path, empty_ledger: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``AIRLOCK_HOME`` of a project whose only spec is ``toy``."""
    models = tmp_path / "project" / "dags" / "models"
    models.mkdir(parents=True)
    (models / "toy.yaml").write_text(SPEC)
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(empty_ledger, home / "ledger.db")
    monkeypatch.setenv("AIRLOCK_PROJECT", str(tmp_path / "project"))
    monkeypatch.setenv("AIRLOCK_HOME", str(home))
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    urls = {
        "gateway": "http://127.0.0.1:9",
        "mlflow": "http://127.0.0.1:9",
        "ledger": f"sqlite:///{home / 'ledger.db'}",
    }
    for part, url in urls.items():
        connection = json.dumps({"conn_type": f"airlock_{part}", "host": url})
        monkeypatch.setenv(f"AIRFLOW_CONN_AIRLOCK_{part.upper()}", connection)
    return home


@pytest.fixture
def respec(home: Path, control: ReleaseControl) -> Callable[[str], None]:
    """Give the spec other top-level keys, as if releases that are there had been opened with them."""

    def change(text: str) -> None:
        said = {**yaml.safe_load(SPEC), **yaml.safe_load(text)}
        (home.parent / "project" / "dags" / "models" / "toy.yaml").write_text(yaml.safe_dump(said))
        control.spec = find(settings.load(), "toy")
        with sqlite3.connect(home / "ledger.db") as database:
            document = control.spec.model_dump_json()
            database.execute("INSERT OR IGNORE INTO specs VALUES (?, ?, '2013-04-01')", (control.spec.digest, document))
            database.execute("UPDATE releases SET spec = ?", (control.spec.digest,))

    return change


@pytest.fixture
def ledger(home: Path) -> Ledger:
    return Ledger(f"sqlite:///{home / 'ledger.db'}")


@pytest.fixture
def gateway(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    gateway = Gateway(ledger)
    monkeypatch.setattr(GatewayHook, "get_conn", lambda _: gateway)
    return gateway


@pytest.fixture
def versions(home: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    """The registry, and packing without BentoML."""
    versions = Versions(home)
    monkeypatch.setattr(RegistryHook, "get_conn", lambda _: versions)
    packaging = SimpleNamespace(package=lambda _spec, _settings, version: bento(version.version))
    monkeypatch.setattr(steps, "packaging", packaging, raising=False)
    return versions


@pytest.fixture(autouse=True)
def announced(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Airflow says that it has sent of champions: nothing, unless a test puts it here."""
    events: list[dict[str, Any]] = []
    newest = lambda *_: max((event["generation"] for event in events), default=0)  # noqa: E731
    monkeypatch.setattr(receipts, "announced_generation", newest)
    candidates = lambda _, version, **__: version in [event["version"] for event in events]  # noqa: E731
    monkeypatch.setattr(receipts, "is_candidate_announced", candidates)
    return events


@pytest.fixture
def control(home: Path, ledger: Ledger) -> ReleaseControl:
    where = settings.load()
    return ReleaseControl(find(where, "toy"), where, ledger)


@pytest.fixture
def champion(control: ReleaseControl) -> Release:
    """Version 1 holds production."""
    return promoted(control, "1")


@pytest.fixture
def dag() -> DAG:
    return DAG("toy__test", schedule=None)


Context = dict[str, Any]


@pytest.fixture
def make_context(dag: DAG) -> Callable[..., Context]:
    """A task's context; ``events`` are the extras of triggering asset events, by asset."""

    def make(run_id: str = "manual__1", user: str | None = "ada", events: Mapping[Any, Any] | None = None) -> Context:
        pushed: dict[str, Any] = {}

        def xcom_push(key: str, value: Any) -> None:
            pushed[key] = value

        return {
            "dag": dag,
            "run_id": run_id,
            "dag_run": SimpleNamespace(dag_id=dag.dag_id, run_id=run_id, triggering_user_name=user, conf=None),
            "triggering_asset_events": TriggeringAssetEventsAccessor.build(
                SimpleNamespace(asset=asset, source_aliases=(), timestamp=datetime(2026, 1, 1, tzinfo=UTC), extra=extra)
                for asset, extra in (events or {}).items()
            ),
            "outlet_events": OutletEventAccessors(),
            "ti": SimpleNamespace(
                id="0",
                try_number=1,
                map_index=-1,
                xcom_push=xcom_push,
                xcom_pull=lambda **_: "",
                pushed=pushed,
                get_dr_count=lambda *_, **__: 1,
                get_dagrun_state=lambda *_: "running",
            ),
        }

    return make
