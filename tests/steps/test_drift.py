"""Drift is told by Evidently with a pinned method; what cannot be measured is never a pass."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from airlock.core.errors import DataInvalid, NotFound
from airlock.core.route import Bundle
from airlock.core.verdict import Status, Verdict
from airlock.ledger import VersionRecord
from airlock.settings import Settings
from airlock.steps import drift, evaluation, export, labels, tracking, training
from airlock.steps.registry import Registry
from tests.support.prediction_files import write_log
from tests.support.toy_model import UNTIL, toy_rows, toy_settings, toy_spec, toy_training_set

pytestmark = pytest.mark.integration
SPEC = toy_spec()
AFTER = UNTIL + timedelta(days=7)


@dataclass
class House:
    settings: Settings
    champion: VersionRecord

    def serve(self, **changes: Any) -> pd.DataFrame:
        """A week of visits after the training, with ``changes`` to what is asked."""
        rows = toy_rows(7 * 96, seed=9).assign(**changes)
        rows[["at", "known_at"]] += pd.Timedelta(days=7)
        random = np.random.default_rng(1)
        write_log(SPEC, self.settings, rows, random.uniform(0.2, 0.8, len(rows)))
        return rows

    def report(self, run_key: str, spec: Any = SPEC, until: datetime = AFTER) -> tuple[Verdict, str]:
        return drift.drift_report(spec, self.settings, until=until, run_key=run_key)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> tuple[str, Bundle, str]:
    """A registered version: its number, its bundle and MLflow's URL."""
    folder = tmp_path_factory.mktemp("champion")
    settings = toy_settings(folder, mlflow_server)
    ref = training.train(
        SPEC, settings, toy_training_set(folder), run_key="drift", params={"leaves": 8}, trials=0, origin={}
    )
    judged = evaluation.evaluate(
        SPEC, settings, export.export(SPEC, settings, ref), champion=None, champion_version=None
    )
    version = Registry(mlflow_server, bundles=folder / "bundles").register(SPEC, judged, key="drift")
    return version.version, Bundle(path=version.bundle.path, digest=version.bundle.digest), mlflow_server


@pytest.fixture
def house(tmp_path: Path, trained: tuple[str, Bundle, str], monkeypatch: pytest.MonkeyPatch) -> House:
    version, bundle, url = trained
    champion = VersionRecord(model="toy", version=version, bundle=bundle, release="r", since=datetime.now(UTC))
    monkeypatch.setattr("airlock.ledger.Ledger.champion", lambda self, model: champion)
    return House(toy_settings(tmp_path, url), champion)


def test_the_same_world_has_not_drifted(house: House) -> None:
    rows = house.serve()
    labels.deliver(SPEC, house.settings, rows)
    verdict, address = house.report("calm")
    assert verdict.status is Status.PASS, verdict.reason
    assert verdict.estimate == 0
    assert set(verdict.details["columns"]) == {"age", "price", "shop", "prediction"}
    assert verdict.details["performance"]["roc_auc"] == pytest.approx(0.5, abs=0.1)
    assert verdict.details["performance"]["labelled"] > 600
    folder = house.settings.reports / "toy" / "calm"
    assert Verdict.model_validate_json((folder / "verdict.json").read_text()) == verdict
    assert "<html" in (folder / "report.html").read_text()[:2000].lower()
    run_id = address.split("/runs/")[1].split("/")[0]
    client = tracking.client(house.settings.mlflow_url)
    assert {found.path for found in client.list_artifacts(run_id, "drift")} == {
        "drift/report.html",
        "drift/verdict.json",
    }
    assert client.get_run(run_id).info.status == "FINISHED"
    assert house.report("calm") == (verdict, address)


def test_a_changed_world_has(house: House) -> None:
    house.serve(age=70.0 + np.arange(7 * 96) % 10, price=50.0 + np.arange(7 * 96) % 7, shop="west")
    verdict, _ = house.report("changed")
    assert verdict.status is Status.FAIL
    assert verdict.estimate == 1
    assert "price" in verdict.reason


def test_one_column_of_three_is_within_the_share(house: House) -> None:
    house.serve(price=50.0 + np.arange(7 * 96) % 7)
    spec = toy_spec(monitoring={"drift": {"min_rows": 100, "columns": ["age", "price", "shop"], "share": 0.4}})
    verdict, _ = house.report("one", spec)
    assert (verdict.status, verdict.estimate) == (Status.PASS, pytest.approx(1 / 3))


@pytest.mark.parametrize("method", ["psi", "ks", "wasserstein", "jensenshannon"])
def test_every_method_tells_calm_from_change_by_its_own_bound(house: House, method: str) -> None:
    policy = {"min_rows": 100, "columns": ["age", "price", "shop"], "method": method}
    spec = toy_spec(monitoring={"drift": policy})
    house.serve()
    calm, _ = house.report("calm", spec)
    assert (calm.status, calm.estimate) == (Status.PASS, 0), calm.reason
    assert "0 of 3 inputs drifted" in calm.reason
    assert "which would take 1 more" in calm.reason
    assert "; nearest to it" in calm.reason
    for file in house.settings.predictions.rglob("*.parquet"):
        file.unlink()
    house.serve(age=70.0 + np.arange(7 * 96) % 10, price=50.0 + np.arange(7 * 96) % 7, shop="west")
    verdict, _ = house.report("changed", spec)
    assert (verdict.status, verdict.estimate) == (Status.FAIL, 1)
    assert "which is 3 more than the 0 that may" in verdict.reason
    for name, column in verdict.details["columns"].items():
        if name != "prediction":
            smaller = column["score"] < calm.details["columns"][name]["score"]
            assert smaller is (method == "ks"), "a p-value shrinks with drift, a distance grows"
            assert name in verdict.reason


def test_what_cannot_be_measured_is_inconclusive(house: House) -> None:
    verdict, _ = house.report("silent")
    assert verdict.status is Status.INCONCLUSIVE
    assert "0 answers" in verdict.reason
    house.serve(age=np.nan, price=np.nan)
    verdict, _ = house.report("empty columns")
    assert verdict.status is Status.INCONCLUSIVE
    assert "age, price" in verdict.reason
    assert verdict.details["columns"]["age"]["missing_current"] == 1


def test_constants_are_compared_without_statistics(tmp_path: Path) -> None:
    rows = pd.DataFrame({"age": [1.0] * 200, "price": np.arange(200.0), "shop": ["north"] * 200})
    spec = toy_spec(monitoring={"drift": {"min_rows": 100, "columns": ["age", "shop"]}})
    found = drift._scores(spec, rows, rows.assign(shop="south"), ["age", "shop"], tmp_path / "report.html")
    assert (found["age"]["drifted"], found["shop"]["drifted"]) == (False, True)


def test_without_champion_or_time_zone_it_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataInvalid, match="time zone"):
        house.report("naive", until=datetime(2026, 2, 8))  # noqa: DTZ001 - what is refused
    monkeypatch.setattr("airlock.ledger.Ledger.champion", lambda self, model: None)
    with pytest.raises(NotFound, match="release a version first"):
        house.report("nobody")


@pytest.mark.parametrize("method", ["psi", "jensenshannon", "wasserstein", "ks"])
@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_each_kind_of_column_is_measured_in_the_right_direction(method: str, moved: float, tmp_path: Path) -> None:
    """1,000 rows against 2,000, by Evidently: moved by a standard deviation, or not."""
    rng = np.random.default_rng(4)

    def rows(size: int, by: float) -> pd.DataFrame:
        shops = rng.choice(["north", "south", "east"], size, p=[0.6 - by * 0.4, 0.2, 0.2 + by * 0.4])
        return pd.DataFrame({"age": rng.normal(by, 1, size), "shop": shops})

    spec = toy_spec(monitoring={"drift": {"method": method, "columns": ["age", "shop"]}})
    found = drift._scores(spec, rows(2000, 0), rows(1000, moved), ["age", "shop"], tmp_path / "report.html")
    assert {name: column["drifted"] for name, column in found.items()} == {"age": moved > 0, "shop": moved > 0}
    verdict = drift._decide(spec, ["age", "shop"], {**found, "prediction": {}}, 1000, "a to b", {})
    assert verdict.status is (Status.FAIL if moved else Status.PASS)


def test_how_far_beyond_the_bound_is_said() -> None:
    spec = toy_spec(monitoring={"drift": {"columns": ["age", "price", "shop"], "share": 0.3}})
    scores = {"age": 0.32, "price": 0.15, "shop": 0.9}
    found = {name: {"score": score, "drifted": score >= 0.2} for name, score in scores.items()} | {"prediction": {}}
    verdict = drift._decide(spec, list(scores), found, 700, "Monday to Sunday", {})
    assert verdict.status is Status.FAIL
    assert verdict.reason == (
        "2 of 3 inputs drifted by psi in 700 answers from Monday to Sunday; more than 30% count as drift, which is 2 "
        "more than the 0 that may: shop 0.9, 0.7 above 0.2; age 0.32, 0.12 above 0.2"
    )
    calm = {name: {**column, "drifted": False, "score": 0.15} for name, column in found.items() if column}
    quiet = drift._decide(spec, list(scores), calm | {"prediction": {}}, 700, "Monday to Sunday", {})
    assert quiet.passed
    assert quiet.reason.endswith("which would take 1 more; nearest to it age 0.15, 0.05 below 0.2")
