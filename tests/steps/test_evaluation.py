"""The gates see candidate and champion on the same held-out rows, and nothing that breaks lets a candidate through."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airlock.core.errors import ArtifactCorrupt, GateRefused, NotFound
from airlock.core.refs import EvaluatedRef, OnnxRef, Ref, VersionRef
from airlock.core.spec import FeatureParityGate, ModelSpec
from airlock.core.verdict import Status, fold
from airlock.settings import Settings
from airlock.steps import evaluation, export, snapshot, tracking, training
from airlock.steps.recipes import definition_digest, load_recipe
from airlock.steps.registry import Registry
from tests.support.toy_model import UNTIL, toy_rows, toy_settings, toy_spec, toy_training_set

pytestmark = pytest.mark.integration
SPEC = toy_spec()


@dataclass
class House:
    """A project with MLflow, and what it takes to get a candidate."""

    settings: Settings
    folder: Path

    def exported(self, run_key: str, spec: ModelSpec = SPEC, frame: Any = None, **params: Any) -> OnnxRef:
        rows = toy_training_set(self.folder, frame)
        fixed = {"leaves": 8, **params}
        trained = training.train(spec, self.settings, rows, run_key=run_key, params=fixed, trials=0, origin={})
        return export.export(spec, self.settings, trained)

    def judged(self, candidate: OnnxRef, champion: OnnxRef | None = None, spec: ModelSpec = SPEC) -> EvaluatedRef:
        ref = Ref(path=champion.path, digest=champion.digest) if champion else None
        return evaluation.evaluate(
            spec, self.settings, candidate, champion=ref, champion_version="4" if champion else None
        )

    def registry(self) -> Registry:
        return Registry(self.settings.mlflow_url, bundles=self.folder / "bundles")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> House:
    folder = tmp_path_factory.mktemp("house")
    return House(toy_settings(folder, mlflow_server), folder)


@pytest.fixture(scope="module")
def candidate(house: House) -> OnnxRef:
    return house.exported("candidate")


def _failed(judged: EvaluatedRef) -> dict[str, Status]:
    return {verdict.name: verdict.status for verdict in judged.verdicts if not verdict.passed}


def test_without_a_champion_the_reference_is_the_mean(house: House, candidate: OnnxRef) -> None:
    judged = house.judged(candidate)
    assert fold(judged.verdicts) is Status.PASS, _failed(judged)
    assert len(judged.verdicts) == len(SPEC.gates)
    (gain,) = (verdict for verdict in judged.verdicts if verdict.name.startswith("non_inferiority"))
    assert gain.details["reference"] == 0.5
    assert json.loads(Path(judged.path).read_text())["bundle"] == candidate.digest
    run = tracking.client(house.settings.mlflow_url).get_run(candidate.trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["airlock.gates"] == "pass"
    assert run.data.metrics["gate_threshold_roc_auc"] > 0.6


def test_judging_again_gives_the_same_evidence_but_for_the_clock(house: House, candidate: OnnxRef) -> None:
    spec = toy_spec(gates=[gate.model_dump() for gate in SPEC.gates if gate.kind != "latency"])
    assert house.judged(candidate, spec=spec).digest == house.judged(candidate, spec=spec).digest


def test_a_worse_candidate_is_told_so_against_the_champion(house: House, candidate: OnnxRef) -> None:
    poor = house.exported("poor", frame=toy_rows().assign(age=40.0, price=8.0))
    assert _failed(house.judged(candidate, poor)) == {}
    mixed = poor.model_copy(update={"trained": candidate.trained})
    assert _failed(house.judged(mixed, candidate))["non_inferiority_roc_auc"] is Status.FAIL


def test_a_champion_that_cannot_answer_is_an_error_and_other_inputs_are_refused(
    house: House, candidate: OnnxRef
) -> None:
    fewer = {name: declared for name, declared in SPEC.inputs.items() if name != "minute"}
    spec = toy_spec(inputs=fewer)
    recipe = house.settings.project / "include" / "toy" / "recipe.py"
    other = house.settings.project / "include" / "toy_fewer" / "recipe.py"
    other.parent.mkdir(exist_ok=True)
    other.write_text(recipe.read_text().replace('("hour", Cyclical(1440), ["minute"]),', ""))
    spec = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"module": "include.toy_fewer.recipe"})})
    narrower = house.exported("fewer", spec)
    assert _failed(house.judged(narrower, candidate, spec))["schema"] is Status.FAIL
    gone = candidate.model_copy(update={"digest": "sha256:" + "0" * 64})
    failed = _failed(house.judged(candidate, gone))
    assert failed["champion_answers"] is Status.ERROR
    assert failed["non_inferiority_roc_auc"] is not Status.PASS


def test_a_candidate_that_raises_on_held_out_rows_fails(house: House) -> None:
    strict = house.exported("strict", unknown="error")
    rows = toy_rows()
    rows.loc[rows.index[-50:], "shop"] = "west"
    trained = strict.trained.model_copy(update={"training_set": toy_training_set(house.folder, rows)})
    judged = house.judged(strict.model_copy(update={"trained": trained}))
    assert _failed(judged) == {"answers": Status.FAIL}
    with pytest.raises(GateRefused, match="Unknown Category"):
        house.registry().register(SPEC, judged, key="raises")


def test_a_changed_candidate_marks_its_run_failed(house: House) -> None:
    changed = house.exported("changed")
    (Path(changed.path) / "model.onnx").write_bytes(b"other")
    with pytest.raises(ArtifactCorrupt):
        house.judged(changed)
    run = tracking.client(house.settings.mlflow_url).get_run(changed.trained.run_id)
    assert run.info.status == "FAILED"


def test_exporting_again_gives_the_same_bundle_and_logs_it_once(house: House, candidate: OnnxRef) -> None:
    again = export.export(SPEC, house.settings, candidate.trained)
    assert again == candidate
    client = tracking.client(house.settings.mlflow_url)
    run = client.get_run(candidate.trained.run_id)
    assert len(run.outputs.model_outputs) == 1


def test_the_mlflow_model_holds_no_pickle_and_answers(house: House, candidate: OnnxRef) -> None:
    import mlflow

    client = tracking.client(house.settings.mlflow_url)
    tags = client.get_run(candidate.trained.run_id).data.tags
    mlflow.set_tracking_uri(house.settings.mlflow_url)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{tags['airlock.model_id']}"))
    assert not [path for path in folder.rglob("*") if path.suffix in {".pkl", ".joblib", ".cloudpickle"}]
    model = mlflow.pyfunc.load_model(str(folder))
    assert [given.name for given in model.metadata.signature.inputs] == list(SPEC.inputs)
    example = model.metadata.load_input_example(str(folder))
    assert model.predict(example)["probability"].shape == (5, 1)


def test_one_key_is_one_version_and_its_bundle_comes_from_mlflow(house: House, candidate: OnnxRef) -> None:
    judged, registry = house.judged(candidate), house.registry()
    first = registry.register(SPEC, judged, key="one")
    assert registry.register(SPEC, judged, key="one") == first
    second = registry.register(SPEC, judged, key="two")
    assert int(second.version) == int(first.version) + 1
    assert first.bundle.digest == candidate.digest
    assert Path(first.bundle.path).is_relative_to(house.folder / "bundles")
    assert registry.version("toy", first.version) == first
    assert registry.latest("toy") == second
    registry.set_alias("toy", "candidate", first.version)
    assert registry.alias("toy", "candidate") == first.version
    assert registry.alias("toy", "champion") is None
    client = tracking.client(house.settings.mlflow_url)
    older, newer = (client.get_model_version("toy", each.version).tags for each in (first, second))
    assert older["airlock.semantic_version"] == first.semantic
    assert newer["airlock.data_digest"] == candidate.trained.training_set.digest
    assert newer["airlock.evidence_digest"] == judged.digest


def test_a_run_that_was_cleared_and_trained_on_changed_data_registers_another_version(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """Under the same key as the run's first training; and that one is found again, not made again."""
    registry = house.registry()
    first = registry.register(SPEC, house.judged(house.exported("cleared")), key="cleared")
    assert "this is a new version" not in caplog.text
    changed = house.exported("cleared", frame=toy_rows(seed=5))
    second = registry.register(SPEC, house.judged(changed), key="cleared")
    assert f"cleared registered version {first.version} before" in caplog.text
    assert int(second.version) == int(first.version) + 1
    assert (second.bundle.digest, second.run_id) == (changed.digest, changed.trained.run_id)
    assert first.bundle.digest != second.bundle.digest
    assert registry.register(SPEC, house.judged(changed), key="cleared") == second
    runs = [tracking.client(house.settings.mlflow_url).get_run(each.run_id) for each in (first, second)]
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"], "what a version was made of stays"


def test_a_version_says_what_it_was_judged_against(house: House, candidate: OnnxRef) -> None:
    version = house.registry().register(SPEC, house.judged(candidate), key="judged")
    assert version.judged_against == "baseline"


class TestSemanticVersions:
    """Each test has a model of its own, so that the numbers start at the beginning."""

    def register(self, house: House, judged: EvaluatedRef, model: str, key: str, **tags: str) -> VersionRef:
        client = tracking.client(house.settings.mlflow_url)
        for tag, value in tags.items():
            client.set_tag(judged.onnx.trained.run_id, f"airlock.{tag}", value)
        spec = SPEC.model_copy(update={"model": model})
        return house.registry().register(spec, judged, key=key, author="ada")

    def test_what_changed_makes_the_number(self, house: House, candidate: OnnxRef) -> None:
        spec = toy_spec(label={"name": "bought", "time": "known_at", "positive": "buys"})
        same, other = house.judged(candidate), house.judged(house.exported("other answer", spec), spec=spec)
        definition = definition_digest(SPEC, house.settings)
        assert definition_digest(spec, house.settings) == definition
        steps = [
            (same, definition, "1.0.0"),
            (same, definition, "1.0.1"),
            (same, "other", "1.1.0"),
            (same, "other", "1.1.1"),
            (other, "other", "2.0.0"),
            (same, definition, "3.0.0"),
        ]
        for number, (judged, changed, expected) in enumerate(steps):
            version = self.register(house, judged, "numbered", str(number), definition_digest=changed)
            assert version.semantic == expected

    def test_training_keeps_the_definition(self, house: House) -> None:
        judged = house.judged(house.exported("defined"))
        version = self.register(house, judged, "defined", "a")
        tags = tracking.client(house.settings.mlflow_url).get_model_version("defined", version.version).tags
        assert tags["airlock.definition_digest"] == definition_digest(SPEC, house.settings)
        assert len(tags["airlock.schema"]) == 64

    def test_a_number_that_was_not_given_is_given_when_the_key_comes_again(
        self, house: House, candidate: OnnxRef
    ) -> None:
        """The registration stopped between the version and its number; another one came in between."""
        client, judged = tracking.client(house.settings.mlflow_url), house.judged(candidate)
        first = self.register(house, judged, "resumed", "first", definition_digest="d")
        client.delete_model_version_tag("resumed", first.version, "airlock.semantic_version")
        assert house.registry().version("resumed", first.version).semantic is None
        assert self.register(house, judged, "resumed", "second").semantic == "1.0.1"
        again = self.register(house, judged, "resumed", "first")
        assert (again.version, again.semantic) == (first.version, "1.0.0")

    def test_the_author_is_kept(self, house: House, candidate: OnnxRef) -> None:
        version = self.register(house, house.judged(candidate), "authored", "a")
        assert version.author == "ada"
        assert house.registry().version("authored", version.version).author == "ada"


def test_a_gate_in_dry_run_lets_the_candidate_through(house: House, candidate: OnnxRef) -> None:
    tried = {"kind": "threshold", "metric": "roc_auc", "min": 0.999, "mode": "dry_run"}
    spec = toy_spec(gates=[*(gate.model_dump() for gate in SPEC.gates), tried])
    judged = house.judged(candidate, spec=spec)
    assert _failed(judged) == {"threshold_roc_auc_2": Status.FAIL}
    run = tracking.client(house.settings.mlflow_url).get_run(candidate.trained.run_id)
    assert run.data.tags["airlock.gates"] == "pass"
    assert run.data.tags["airlock.refused"] == ""
    assert house.registry().register(spec, judged, key="dry").version
    # No spec may hold gates in dry run alone; were it so, they would be no evidence.
    only_tried = tuple(gate.model_copy(update={"mode": "dry_run"}) for gate in SPEC.gates)
    alone = house.judged(candidate, spec=SPEC.model_copy(update={"gates": only_tried}))
    with pytest.raises(GateRefused, match="no gate gave a verdict"):
        house.registry().register(spec, alone, key="alone")


def test_groups_that_no_model_may_learn_from_come_from_the_events(house: House) -> None:
    """The column is no input: it is looked up in the snapshot's events by the row's key."""
    rows = toy_rows()
    groups = np.where(np.arange(len(rows)) % 2 == 0, "even", "odd")
    events = rows.assign(group=groups).sample(frac=1, random_state=1)
    recipe: Any = load_recipe(SPEC, house.settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "load", lambda until: {"events": events})
        frozen = snapshot.freeze(SPEC, house.settings, until=UNTIL + timedelta(hours=1))
    kind = {"kind": "fairness", "criterion": "demographic_parity", "column": "group", "max_difference": 0.5}
    spec = toy_spec(gates=[*(gate.model_dump() for gate in SPEC.gates), {**kind, "min_rows": 50}])
    candidate = house.exported("fair", spec)
    trained = candidate.trained
    (open_,) = (each for each in house.judged(candidate, spec=spec).verdicts if each.name.startswith("fairness"))
    assert open_.status is Status.INCONCLUSIVE
    linked = trained.training_set.model_copy(update={"snapshot": frozen.digest})
    linked_candidate = candidate.model_copy(update={"trained": trained.model_copy(update={"training_set": linked})})
    (found,) = (each for each in house.judged(linked_candidate, spec=spec).verdicts if each.name.startswith("fairness"))
    assert found.passed, found
    shares = found.details["rates"]["positive answers"]
    assert {name: share["rows"] for name, share in shares.items()} == {"even": 240, "odd": 241}


def test_a_feature_parity_gate_without_features_is_told_what_to_do(house: House, candidate: OnnxRef) -> None:
    spec = SPEC.model_copy(update={"gates": (FeatureParityGate(kind="feature_parity"),)})
    (verdict, *_) = house.judged(candidate, spec=spec).verdicts
    assert verdict.status is Status.ERROR
    assert "toy has no features" in verdict.reason
    assert "remove the gate" in verdict.reason


def test_poor_parity_is_refused_though_no_gate_asks_for_it(house: House, candidate: OnnxRef) -> None:
    asked_for = [gate for gate in SPEC.gates if gate.kind != "onnx_parity"]
    poor = candidate.parity.model_copy(update={"status": Status.FAIL, "reason": "9 decisions flipped"})
    changed = candidate.model_copy(update={"parity": poor})
    spec = SPEC.model_copy(update={"gates": tuple(asked_for)})
    judged = house.judged(changed, spec=spec)
    assert fold(judged.verdicts) is Status.FAIL


def test_poor_parity_is_refused_though_the_gate_is_in_dry_run(house: House, candidate: OnnxRef) -> None:
    """A spec cannot say so; a gate that was made otherwise does not get round it either."""
    found = {**candidate.parity.details, "flips": 9}
    poor = candidate.parity.model_copy(update={"status": Status.FAIL, "reason": "9 flipped", "details": found})
    dry = tuple(
        gate.model_copy(update={"mode": "dry_run"}) if gate.kind == "onnx_parity" else gate for gate in SPEC.gates
    )
    assert dry != SPEC.gates
    judged = house.judged(candidate.model_copy(update={"parity": poor}), spec=SPEC.model_copy(update={"gates": dry}))
    assert fold(judged.verdicts) is Status.FAIL
    with pytest.raises(GateRefused, match="flips 9 decisions"):
        house.registry().register(SPEC, judged, key="dry parity")


def test_versions_that_do_not_exist_name_the_newest(house: House) -> None:
    with pytest.raises(NotFound, match="train it first"):
        house.registry().latest("nobody")
    with pytest.raises(NotFound, match="the newest is"):
        house.registry().version("toy", "999")


def test_a_bundle_that_changed_in_the_store_is_refused(house: House, candidate: OnnxRef) -> None:
    client = tracking.client(house.settings.mlflow_url)
    version = house.registry().register(SPEC, house.judged(candidate), key="stored")
    client.log_text(version.run_id, "other", "bundle/model.onnx")
    fresh = Registry(house.settings.mlflow_url, bundles=house.folder / "elsewhere")
    with pytest.raises(ArtifactCorrupt, match=r"model\.onnx"):
        fresh.version("toy", version.version)
    assert not list((house.folder / "elsewhere").rglob("model.onnx"))


def test_a_key_cannot_reach_into_the_query(house: House, candidate: OnnxRef) -> None:
    with pytest.raises(ValueError, match="single quote"):
        house.registry().register(SPEC, house.judged(candidate), key="x' OR '1'='1")


def test_a_busy_machine_makes_no_model_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seventh run is interrupted for 36 ms; one row in fifty is slow by itself."""
    clock = SimpleNamespace(now=0.0, runs=0, perf_counter=lambda: clock.now)

    def run(row: int) -> None:
        clock.runs += 1
        clock.now += 0.036 if clock.runs % 7 == 0 else 0.012 if row % 50 == 0 else 0.0001

    monkeypatch.setattr(evaluation, "time", clock)
    model: Any = SimpleNamespace(feeds=lambda rows: int(rows["n"].iloc[0]), run=run)
    taken = evaluation.latencies(model, pd.DataFrame({"n": range(600)}))
    assert len(taken) == 500
    assert taken.max() == pytest.approx(12)
    assert np.count_nonzero(taken > 1) == 10
