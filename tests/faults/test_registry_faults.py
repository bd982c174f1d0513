"""F3 and F15 of the fault table: a registration that is killed anywhere, and a rollback while MLflow is dead.

MLflow is a real server, the gateway too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from airlock.control.reconcile import reconcile
from airlock.core.bundle import MANIFEST, sha256
from airlock.core.errors import Unavailable
from airlock.core.refs import EvaluatedRef, OnnxRef, TrainedRef
from airlock.core.release import Event
from airlock.core.verdict import Status, Verdict
from airlock.steps import tracking
from airlock.steps.registry import Registry
from tests.faults.conftest import ON_SQLITE_FIRST, Injected
from tests.support import mlflow_server
from tests.support.clients import Client
from tests.support.fault_worker import Points, Worker
from tests.support.fault_world import World
from tests.support.mlflow_server import MlflowServer
from tests.support.tiny_models import bundle
from tests.support.toy_model import toy_spec, toy_training_set

pytestmark = pytest.mark.integration

CALLS = ("create_registered_model", "create_model_version", "set_model_version_tag")
CREATED = "after create_model_version"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server that may be killed."""
    with mlflow_server.running(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


def judged(folder: Path, url: str, model: str) -> EvaluatedRef:
    """A candidate that passed its gates, its bundle in a run of MLflow."""
    client = tracking.client(url)
    run = client.create_run(client.create_experiment(model)).info.run_id
    bundle(folder / "bundle", model=model)
    client.log_artifacts(run, str(folder / "bundle"), "bundle")
    digest = sha256((folder / "bundle" / MANIFEST).read_bytes())
    rows = toy_training_set(folder)
    trained = TrainedRef(
        path=str(folder),
        digest=digest,
        run_id=run,
        training_set=rows,
        evaluation_from=rows.until,
        metrics={},
        params={},
    )
    passed = Verdict(name="finite", status=Status.PASS, reason="all are numbers")
    onnx = OnnxRef(path=str(folder / "bundle"), digest=digest, trained=trained, parity=passed)
    return EvaluatedRef(path=str(folder), digest=digest, onnx=onnx, verdicts=(passed,), champion=None)


def register(points: Points, url: str, folder: Path, evaluated: EvaluatedRef, model: str) -> list[str]:
    """Register it under the same key as before; the version, and the points passed on the way."""
    registry = Registry(url, bundles=folder / "bundles")
    client: Any = registry._client
    for name in CALLS:
        setattr(client, name, _watched(points, name, getattr(client, name)))
    version = registry.register(toy_spec(model=model), evaluated, key="run-1", author="ada")
    return [version.version, str(version.semantic), *points.passed]


def _watched(points: Points, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*arguments: Any, **keywords: Any) -> Any:
        points.here(f"before {name}")
        returned = call(*arguments, **keywords)
        points.here(f"after {name}")
        return returned

    return watched


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_f3_a_registration_is_killed_at_every_point(
    tmp_path: Path, server: MlflowServer, start: Callable[..., Worker], injected: Injected
) -> None:
    """The version is found again by its tag: one version, however often and wherever it was cut off."""
    evaluated = judged(tmp_path, server.url, "undisturbed")
    version, semantic, *points = start(register, server.url, tmp_path, evaluated, "undisturbed").result()
    assert (version, semantic) == ("1", "1.0.0")
    assert points == [f"{when} {call}" for call in CALLS for when in ("before", "after")]
    for number, name in enumerate(points):
        model, folder = f"killed{number}", tmp_path / str(number)
        folder.mkdir()
        evaluated = judged(folder, server.url, model)
        worker = start(register, server.url, folder, evaluated, model, stop_at=number)
        assert worker.stopped() == name
        worker.kill()
        again = start(register, server.url, folder, evaluated, model).result()
        assert again[:2] == ["1", "1.0.0"]
        found = tracking.client(server.url).search_model_versions(f"name = '{model}'")
        assert [(str(each.version), each.tags["airlock.register_key"]) for each in found] == [("1", "run-1")]
        if name == CREATED:
            assert "before create_model_version" not in again
        injected("F3", f"killed {name}")


class Counted:
    """The registry's aliases; where it ``dies``, the server is killed right before the first of them moves."""

    def __init__(self, registry: Registry, server: MlflowServer, *, dies: bool) -> None:
        self._registry = registry
        self._server = server
        self._dies = dies

    def set_alias(self, model: str, alias: str, version: str) -> None:
        if self._dies:
            self._server.kill()
        self._registry.set_alias(model, alias, version)

    def clear_alias(self, model: str, alias: str, version: str) -> None:
        self._registry.clear_alias(model, alias, version)

    def alias(self, model: str, alias: str) -> str | None:
        return self._registry.alias(model, alias)


@ON_SQLITE_FIRST
@pytest.mark.parametrize("dies", [False, True], ids=["before the rollback", "as the alias is to move"])
def test_f15_mlflow_is_killed_and_a_rollback_goes_through(
    world: World, server: MlflowServer, injected: Injected, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """From copies on this disk, in effect at the gateway within a second; the alias follows when MLflow is back."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    registry = Registry(server.url, bundles=world.folder / "bundles")
    client: MlflowClient = registry._client
    client.create_registered_model(world.model)
    run = client.create_run(client.create_experiment(world.model)).info.run_id
    for _ in range(2):
        client.create_model_version(world.model, f"runs:/{run}/bundle", run, await_creation_for=0)
    world.promoted("1", "2")
    world.followed()
    registry.set_alias(world.model, "champion", "2")
    control = world.control(aliases=Counted(registry, server, dies=dies))
    with Client(world.settings.gateway_url, world.model, pause_s=0.005) as client_of_gateway:
        if not dies:
            server.kill()
        client_of_gateway.more(5)
        seen, began = len(client_of_gateway.answers), time.monotonic()
        control.roll_back_model("1", actor="ann", reason="complaints")
        world.followed()
        client_of_gateway.more(5)
    assert client_of_gateway.errors == []
    in_effect = next(a["asked_at"] for a in client_of_gateway.answers[seen:] if a["version"] == "1") - began
    assert client_of_gateway.answers[-1]["version"] == "1"
    assert [effect.kind for effect in world.ledger.pending_effects(world.model) if effect.kind == "aliases"]
    with pytest.raises(Unavailable, match="does not answer"):
        registry.alias(world.model, "champion")
    server.start()
    assert registry.alias(world.model, "champion") == "2", "behind the ledger"
    control = world.control(aliases=registry)
    repairs = reconcile(control, status=world.status, run_state=lambda _: "running", now=control.clock())
    assert ("aliases", True) in [(repair.kind, repair.done) for repair in repairs]
    assert registry.alias(world.model, "champion") == "1"
    champion = world.ledger.champion(world.model)
    assert champion is not None
    assert champion.version == "1"
    assert world.happened(Event.ROLL_BACK) != []
    injected("F15", f"MLflow killed {'as the alias moves' if dies else 'before the rollback'}")
    _tell(f"F15 in effect after {in_effect:.3f} s")


def _tell(line: str) -> None:
    if path := os.environ.get("AIRLOCK_FAULTS_TABLE"):
        with Path(path).with_suffix(".times").open("a") as file:
            file.write(line + "\n")
