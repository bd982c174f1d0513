"""The API's document is typed from what is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airlock.core.spec import Features, Input
from tests.support.gateway_in_process import Running, in_gateway
from tests.support.tiny_models import INPUTS, bundle, publish, route

FEATURES = Features(service="flights", entities=("carrier", "tailnum"), request={"distance": Input(type="float")})


def documented(home: Path) -> dict[str, Any]:
    got: dict[str, Any] = {}

    async def body(gateway: Running) -> None:
        response = await gateway.client.get("/openapi.json")
        assert response.status_code == 200
        got.update(response.json())
        assert (await gateway.client.get("/docs.json")).json() == got

    in_gateway(home, body)
    return got


def references(part: object) -> set[str]:
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own.union(*(references(value) for value in part.values()), set())
    if isinstance(part, list):
        return set().union(*(references(value) for value in part), set())
    return set()


def test_a_model_s_inputs_and_limits_are_in_it(tmp_path: Path) -> None:
    publish(tmp_path, route(bundle(tmp_path / "b", features=FEATURES, key="flight_id", event_time="sched_dep")))
    document = documented(tmp_path)
    schemas = document["components"]["schemas"]
    row = schemas["late.Row"]
    assert row["required"] == list(INPUTS)
    assert row["additionalProperties"] is False
    assert row["properties"]["weekday"] == {"type": "integer", "minimum": 0, "maximum": 6}
    assert row["properties"]["delay"] == {"type": ["number", "null"]}
    assert set(row["properties"]) - set(INPUTS) == {"flight_id", "sched_dep"}
    assert schemas["late.Entity"]["required"] == ["carrier", "tailnum", "distance"]
    assert schemas["late.Question"]["properties"]["rows"]["maxItems"] == 1000
    attributes = schemas["late.Question"]["properties"]["attributes"]
    assert attributes["additionalProperties"] == {"type": ["string", "number", "boolean"]}
    answer = schemas["late.Answer"]["properties"]
    assert answer["fallback"]["enum"] == [None, "champion", "cache", "rule", "default"]
    assert answer["variant"]["enum"] == ["champion", "candidate", "pinned", None]
    assert set(document["paths"]["/v1/models/late/predict"]["post"]["responses"]) >= {"200", "413", "415", "422", "503"}
    known = {f"#/components/schemas/{name}" for name in schemas}
    assert references(document) <= known


def test_a_gateway_without_models_has_a_document(tmp_path: Path) -> None:
    assert "/v1/models" in documented(tmp_path)["paths"]


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    async def body(gateway: Running) -> None:
        for path in ("/", "/docs"):
            page = await gateway.client.get(path)
            assert "/openapi.json" in page.text
            assert "http" not in page.text.replace("text/html", "")

    in_gateway(tmp_path, body)
