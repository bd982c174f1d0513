"""Entities: features come from Feast's online store, as of the question's own time."""

from __future__ import annotations

import asyncio
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from airlock.core.spec import Features, Input
from tests.support.gateway_in_process import PREDICT, Running, in_gateway
from tests.support.tiny_models import bundle, publish, route

pytestmark = pytest.mark.integration

NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
MAYBE = Input(type="float", nullable=True)
INPUTS = {
    "carrier": Input(type="string"),
    "distance": Input(type="float", min=0),
    "delay": MAYBE,
    "delay_rate": MAYBE,
    "age": MAYBE,
}
FEATURES = Features(
    service="flights", entities=("carrier", "tailnum"), request={"distance": Input(type="float", min=0)}
)
ENTITY = {"carrier": "UA", "tailnum": "N1", "distance": 1000.0}

STORE = """
project: tiny
provider: local
registry: {path: "${AIRLOCK_HOME}/feast/registry.db"}
online_store: {type: sqlite, path: "${AIRLOCK_HOME}/feast/online.db"}
entity_key_serialization_version: 3
"""


def apply(home: Path, project: Path) -> None:
    """A repository with two views and an on-demand one, and one row of each online, both as of noon."""
    import yaml
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, RequestSource
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float32, Float64, String
    from feast.value_type import ValueType

    (project / "feature_repo").mkdir(parents=True)
    (project / "feature_repo" / "feature_store.yaml").write_text(STORE)
    config = yaml.safe_load(STORE.replace("${AIRLOCK_HOME}", str(home)))
    store = FeatureStore(config=RepoConfig(**config, repo_path=project / "feature_repo"))

    def view(name: str, key: str, field: str, ttl: timedelta) -> tuple[Entity, FeatureView]:
        entity = Entity(name=key, join_keys=[key], value_type=ValueType.STRING)
        source = FileSource(name=name, path=str(home / f"{name}.parquet"), timestamp_field="event_timestamp")
        schema = [Field(name=key, dtype=String), Field(name=field, dtype=Float32)]
        return entity, FeatureView(name=name, entities=[entity], ttl=ttl, schema=schema, source=source)

    carrier, delays = view("delays", "carrier", "delay", timedelta(hours=2))
    tailnum, planes = view("planes", "tailnum", "age", timedelta(0))
    asked = RequestSource(name="asked", schema=[Field(name="distance", dtype=Float32)])

    @on_demand_feature_view(sources=[delays, asked], schema=[Field(name="delay_rate", dtype=Float64)], mode="python")
    def rates(inputs: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(inputs["delay"], inputs["distance"], strict=True)
        return {"delay_rate": [None if d is None else d / miles for d, miles in pairs]}

    service = FeatureService(name="flights", features=[delays, planes, rates])
    with warnings.catch_warnings():
        # pyproject.toml's filter comes too late: Feast puts its own before it while it is imported, see
        # warnings.simplefilter in https://github.com/feast-dev/feast/blob/master/sdk/python/feast/repo_config.py
        warnings.filterwarnings("ignore", "On demand feature view is an experimental feature", RuntimeWarning)
        store.apply([carrier, tailnum, delays, planes, rates, service])
    put(store, "delays", carrier="UA", delay=30.0)
    put(store, "planes", tailnum="N1", age=7.0)


def put(store: Any, view: str, **values: Any) -> None:
    store.write_to_online_store(view, pd.DataFrame([values | {"event_timestamp": NOON}]))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home, project = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("project")
    apply(home, project)
    made = bundle(home / "b", inputs=INPUTS, features=FEATURES, key="flight_id", event_time="sched_dep")
    publish(home, route(made))
    return home, project


async def ask(gateway: Running, *entities: dict[str, Any]) -> Any:
    return await gateway.client.post(PREDICT, json={"entities": entities})


def logged(home: Path) -> list[dict[str, Any]]:
    table = pq.ParquetDataset(str(home / "predictions" / "late")).read()
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_features_are_read_checked_and_logged(stored: tuple[Path, Path]) -> None:
    home, project = stored
    at = NOON + timedelta(hours=1)

    async def body(gateway: Running) -> None:
        await gateway.ready()
        answer = await ask(
            gateway,
            ENTITY | {"flight_id": "fresh", "sched_dep": at.isoformat()},
            ENTITY | {"flight_id": "stale", "sched_dep": (at + timedelta(hours=3)).isoformat()},
            ENTITY | {"flight_id": "other", "carrier": "AA", "tailnum": None, "sched_dep": at.isoformat()},
        )
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["predictions"]) == 3

    in_gateway(home, body, project=project)
    rows = {row["key"]: row for row in logged(home)}
    assert {name: rows["fresh"][f"x_{name}"] for name in INPUTS} == {
        "carrier": "UA",
        "distance": 1000.0,
        "delay": 30.0,
        "delay_rate": 0.03,
        "age": 7.0,
    }
    assert rows["fresh"]["event_time"] == at
    stale = [rows["stale"][f"x_{name}"] for name in ("delay", "delay_rate", "age")]
    assert stale == [None, None, 7.0], "past its TTL, for the on-demand view too; without TTL for ever"
    assert [rows["other"][f"x_{name}"] for name in ("delay", "delay_rate", "age")] == [None, None, None]


def test_an_entity_row_is_as_strict_as_a_row(stored: tuple[Path, Path]) -> None:
    home, project = stored

    async def body(gateway: Running) -> None:
        await gateway.ready()
        for change, field in (
            ({"distance": -1.0}, "distance"),
            ({"carrier": 7}, "carrier"),
            ({"delay": 3.0}, "delay"),
            ({"flight_id": 1.5}, "flight_id"),
            ({"sched_dep": "2013-04-01T12:00:00"}, "sched_dep"),
            ({"sched_dep": 1364817600}, "sched_dep"),
        ):
            response = await ask(gateway, ENTITY, ENTITY | change)
            error = response.json()["error"]
            assert (response.status_code, error["row"], error["field"]) == (422, 1, field), response.text
        response = await ask(gateway, {"carrier": "UA", "distance": 1.0})
        assert response.json()["error"]["field"] == "tailnum"

    in_gateway(home, body, project=project)


def test_an_input_that_must_not_be_missing_is_a_424(stored: tuple[Path, Path], tmp_path: Path) -> None:
    home, project = stored
    (tmp_path / "feast").symlink_to(home / "feast")
    strict = INPUTS | {"age": Input(type="float")}
    publish(tmp_path, route(bundle(tmp_path / "b", inputs=strict, features=FEATURES)))

    async def body(gateway: Running) -> None:
        await gateway.ready()
        response = await ask(gateway, ENTITY, ENTITY | {"tailnum": "N2"})
        error = response.json()["error"]
        assert (response.status_code, error["row"], error["field"]) == (424, 1, "age"), response.text
        assert "N2" in error["message"]
        assert (await ask(gateway, ENTITY)).status_code == 200

    in_gateway(tmp_path, body, project=project)


def test_a_lost_or_torn_registry_is_an_explicit_503_and_the_last_good_one_stays(
    stored: tuple[Path, Path], tmp_path: Path
) -> None:
    home, project = stored
    registry = tmp_path / "feast" / "registry.db"
    made = bundle(tmp_path / "b", inputs=INPUTS, features=FEATURES)
    publish(tmp_path, route(made))

    async def body(gateway: Running) -> None:
        await gateway.readiness(lambda response: "cannot be loaded" in response.text)
        assert (await gateway.client.get("/readyz")).status_code == 503
        assert (await ask(gateway, ENTITY)).status_code == 503
        registry.parent.mkdir()
        registry.write_bytes((home / "feast" / "registry.db").read_bytes())
        (tmp_path / "feast" / "online.db").symlink_to(home / "feast" / "online.db")
        await gateway.ready()
        registry.write_bytes(b"\xff" * 100)
        publish(tmp_path, route(made, generation=2))
        await gateway.until(lambda status: status.generation == 2)
        assert (await ask(gateway, ENTITY)).status_code == 200

    in_gateway(tmp_path, body, project=project)


def test_a_question_that_comes_a_moment_too_early_is_answered(
    stored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.online.READ_SECONDS", 60.0)
    home, project = stored
    publish(tmp_path, route(bundle(tmp_path / "b", inputs=INPUTS, features=FEATURES)))

    async def body(gateway: Running) -> None:
        question = asyncio.create_task(ask(gateway, ENTITY))
        await gateway.readiness(lambda response: "cannot be loaded" in response.text)
        assert not question.done()
        (tmp_path / "feast").symlink_to(home / "feast")
        assert (await question).status_code == 200

    in_gateway(tmp_path, body, project=project)


def test_rows_need_no_store(stored: tuple[Path, Path], tmp_path: Path) -> None:
    publish(tmp_path, route(bundle(tmp_path / "b")))

    async def body(gateway: Running) -> None:
        response = await ask(gateway, ENTITY)
        assert (response.status_code, response.json()["error"]["code"]) == (422, "no_features")
        assert (await gateway.ask())["version"] == "1"

    in_gateway(tmp_path, body)
