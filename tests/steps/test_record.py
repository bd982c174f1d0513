"""The release record against a real MLflow server: whole, signed, kept with the model, and made again at will."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from airlock.core.errors import ArtifactCorrupt, NotFound, Unavailable
from airlock.core.release import Event
from airlock.core.verdict import Status, Verdict
from airlock.ledger import Ledger
from airlock.settings import Settings
from airlock.steps import model_card, record, signing
from airlock.steps.registry import Registry
from tests.support.releases import NOW, release, route
from tests.support.toy_model import toy_settings, toy_spec

pytestmark = pytest.mark.integration

GATE = Verdict(
    name="slices_group_accuracy",
    status=Status.PASS,
    reason="accuracy is at least 0.7 in each of the 2 groups",
    metric="accuracy",
    estimate=0.81,
    low=0.78,
    high=0.84,
    threshold=0.7,
    n=900,
    details={
        "column": "group",
        "groups": {"a|b": {"status": "pass", "rows": 450, "estimate": 0.81, "low": 0.78, "high": 0.84}},
    },
)
GUARD = Verdict(name="error_rate", status=Status.FAIL, reason="21 of 60 requests failed", estimate=0.35, n=60)


@dataclass
class Ended:
    """A release that was rolled back in its first step, and what it takes to write its record."""

    settings: Settings
    ledger: Ledger
    registry: Registry
    run_id: str

    def write(self) -> Path:
        return Path(record.write(toy_spec(), self.settings, self.ledger, self.registry, "r1").path)


@pytest.fixture
def ended(tmp_path: Path, mlflow_server: str, request: pytest.FixtureRequest) -> Ended:
    settings = replace(toy_settings(tmp_path, mlflow_server), ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}")
    model = toy_spec().model
    run_id = _registered(MlflowClient(mlflow_server, mlflow_server), model, tmp_path)
    ledger = Ledger(settings.ledger_url)
    registry = Registry(mlflow_server, bundles=settings.bundles)
    version = str(max(int(each.version) for each in registry._search(f"name = '{model}'")))
    first = ledger.open(release("r0", model=model), key="first", actor="ann")
    for event in (Event.APPROVE, Event.WARM_UP):
        first = ledger.transition(first, event, actor="ann", reason="the first", now=NOW)
    ledger.transition(first, Event.PROMOTE, actor="ann", reason="the first", now=NOW, route=route(1, model=model))
    opened = release(model=model).model_copy(update={"version": version, "author": "ann"})
    opened = ledger.open(opened, key="k", actor="ann", verdicts=[GATE])
    ledger.vote("r1", actor="bob", yes=True, reason="looks | good", evidence="sha256:1", now=NOW)
    moved = ledger.transition(opened, Event.APPROVE, actor="bob", reason="looks good", now=NOW)
    moved = ledger.transition(moved, Event.WARM_UP, actor="airlock", reason="warm", now=NOW, step="warm_up")
    canary = route(2, release="r1", step="canary_5", model=model)
    moved = ledger.transition(moved, Event.STEP, actor="airlock", reason="5 %", now=NOW, step="canary_5", route=canary)
    ledger.record(moved, [GUARD], step="canary_5", now=NOW)
    ledger.transition(moved, Event.ROLL_BACK, actor="airlock", reason=GUARD.reason, now=NOW)
    return Ended(settings, ledger, registry, run_id)


def _registered(client: MlflowClient, model: str, folder: Path) -> str:
    experiment = client.get_experiment_by_name("records")
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment("records"))
    facts = {
        "run_id": run.info.run_id,
        "seed": 7,
        "train": {"rows": 1000, "from": "2013-01-01T00:00:00+00:00", "to": "2013-03-01T00:00:00+00:00"},
        "evaluation": {"rows": 900, "from": "2013-03-01T00:00:00+00:00"},
        "params": {"C": 1.0},
        "metrics": {"accuracy": 0.81},
    }
    for name, text in (("facts.json", json.dumps(facts)), ("environment.txt", "numpy==2.4.0\nscipy==1.17.0\n")):
        (folder / name).write_text(text)
        client.log_artifact(run.info.run_id, str(folder / name))
    if not client.search_registered_models(f"name = '{model}'"):
        client.create_registered_model(model)
        client.create_model_version(model, f"runs:/{run.info.run_id}/bundle", run.info.run_id)  # 1, the champion
    tags = {"airlock.semantic_version": "1.2.0", "airlock.git_commit": "abc", "airlock.snapshot_digest": "sha256:s"}
    client.create_model_version(model, f"runs:/{run.info.run_id}/bundle", run.info.run_id, tags=tags)
    return str(run.info.run_id)


def test_a_record_says_everything_and_verifies(ended: Ended) -> None:
    found = record.verify(ended.write(), ended.settings)
    assert (found.outcome, found.reason, found.semantic_version, found.author) == (
        *("rolled_back", GUARD.reason, "1.2.0", "ann"),
    )
    assert found.data["train"]["rows"] == 1000
    assert found.environment == ("numpy==2.4.0", "scipy==1.17.0")
    assert found.gates == (GATE,)
    assert [(each.step, each.verdict) for each in found.guards] == [("canary_5", GUARD)]
    assert [(answer.actor, answer.yes) for answer in found.answers] == [("bob", True)]
    assert [entry.generation for entry in found.traffic] == [2]
    assert [entry.event for entry in found.journal][-1] == "roll_back"


def test_writing_twice_gives_the_same_bytes(ended: Ended) -> None:
    first = ended.write().read_bytes()
    assert ended.write().read_bytes() == first


def test_it_is_kept_with_the_model(ended: Ended) -> None:
    path = ended.write()
    kept = ended.registry.artifact(ended.run_id, "releases/r1", path.parent.parent)
    assert (kept / record.RECORD).read_bytes() == path.read_bytes()
    assert {entry.name for entry in kept.iterdir()} >= {record.SIGNATURE, model_card.MARKDOWN, model_card.HTML}
    tags = ended.registry.tags(toy_spec().model, record.verify(path, ended.settings).version)
    assert tags["airlock.release"] == "r1"
    assert tags["airlock.outcome"] == "rolled_back"
    assert tags["airlock.state"] == "archived", "old versions are told apart from those that answer"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text(path.read_text().replace("rolled_back", "promoted")),
        lambda path: path.with_name(record.SIGNATURE).write_text("{}"),
    ],
)
def test_a_changed_record_is_refused(ended: Ended, spoil: Callable[[Path], object]) -> None:
    path = ended.write()
    spoil(path)
    with pytest.raises(ArtifactCorrupt):
        record.verify(path, ended.settings)


def test_a_missing_record_or_key_is_told(ended: Ended, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"record\.json"):
        record.verify(tmp_path / "record.json", ended.settings)
    with pytest.raises(NotFound, match=r"is a folder; name the record in it, such as .*record\.json"):
        record.verify(tmp_path, ended.settings)
    path = ended.write()
    with pytest.raises(ArtifactCorrupt, match="no public key"):
        record.verify(path, ended.settings, public_key=tmp_path / "other.pub")
    assert record.verify(path, ended.settings, public_key=signing.public_key(ended.settings)).release == "r1"


def test_with_mlflow_down_nothing_is_claimed(ended: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Registry("http://127.0.0.1:1", bundles=ended.settings.bundles)
    with pytest.raises(Unavailable):
        record.write(toy_spec(), ended.settings, ended.ledger, away, "r1")


def test_the_card_is_readable_and_stands_alone(ended: Ended) -> None:
    folder = ended.write().parent
    text = (folder / model_card.MARKDOWN).read_text()
    for part in ("## Purpose", "Not stated by the owner.", "0.81 (0.78 to 0.84)", "a\\|b", "21 of 60 requests failed"):
        assert part in text
    assert "looks \\| good" in text
    page = (folder / model_card.HTML).read_text()
    assert "data:image/png;base64," in page
    assert "<table>" in page
    assert "<script" not in page
