"""Segments of the traffic that a pin gives to one version, by the request's attributes or its only row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airlock.core.route import Bundle, Limit
from airlock.core.segment import Condition, Pin
from airlock.prediction_log import read
from airlock.settings import Settings
from tests.support.gateway_in_process import PREDICT, Running, in_gateway
from tests.support.gateway_process import REPOSITORY
from tests.support.tiny_models import GOOD_ROW, bundle, publish, route

STAFF = Condition(attribute="group", values=("staff", 7, True))
FAR = Condition(attribute="distance", min=5000)


def pin(name: str, version: str, *when: Condition) -> Pin:
    return Pin(name=name, when=when, version=version)


@pytest.fixture
def champion(tmp_path: Path) -> Bundle:
    return bundle(tmp_path / "bundles" / "1")


@pytest.fixture
def better(tmp_path: Path) -> Bundle:
    return bundle(tmp_path / "bundles" / "2", bias=0.1)


async def ask(gateway: Running, attributes: dict[str, Any] | None = None, **row: Any) -> tuple[str, str]:
    question = {"rows": [GOOD_ROW | row], "key": "k"} | ({"attributes": attributes} if attributes is not None else {})
    response = await gateway.client.post(PREDICT, json=question)
    assert response.status_code == 200, response.text
    return response.json()["version"], response.json()["variant"]


def test_the_first_pin_that_holds_decides(tmp_path: Path, champion: Bundle, better: Bundle) -> None:
    earlier = bundle(tmp_path / "bundles" / "0", bias=-0.3)
    pins = (pin("staff", "2", STAFF), pin("far", "0", FAR), pin("near", "1", Condition(attribute="distance", max=10)))
    publish(tmp_path, route(champion, candidate=better, pins=pins, others={"0": earlier}))

    async def body(gateway: Running) -> None:
        assert await ask(gateway) == ("1", "champion"), "the shares, where no pin holds"
        assert await ask(gateway, {}) == ("1", "champion")
        assert await ask(gateway, {"group": "staff"}) == ("2", "candidate")
        assert await ask(gateway, {"group": 7}) == ("2", "candidate")
        assert await ask(gateway, {"group": True}) == ("2", "candidate")
        assert await ask(gateway, {"group": "guests"}) == ("1", "champion")
        assert await ask(gateway, distance=6000.0) == ("0", "pinned")
        assert await ask(gateway, {"group": "staff"}, distance=6000.0) == ("2", "candidate")
        assert await ask(gateway, {"distance": 6000}, distance=1.0) == ("0", "pinned"), "attributes come before inputs"

    in_gateway(tmp_path, body)


def test_rows_that_may_lie_in_several_segments_are_in_none(tmp_path: Path, champion: Bundle, better: Bundle) -> None:
    publish(tmp_path, route(champion, candidate=better, pins=(pin("far", "2", FAR), pin("staff", "2", STAFF))))
    far = GOOD_ROW | {"distance": 6000.0}

    async def body(gateway: Running) -> None:
        for attributes, version in (({}, "1"), ({"group": "staff"}, "2")):
            question = {"rows": [far, far], "attributes": attributes}
            assert (await gateway.client.post(PREDICT, json=question)).json()["version"] == version

    in_gateway(tmp_path, body)


def test_the_log_names_the_pin_and_the_comparison_leaves_out_who_is_neither(
    tmp_path: Path, champion: Bundle, better: Bundle
) -> None:
    earlier = bundle(tmp_path / "bundles" / "0", bias=-0.3)
    pins = (pin("staff", "2", STAFF), pin("far", "0", FAR))
    publish(tmp_path, route(champion, candidate=better, shadow=True, pins=pins, others={"0": earlier}))

    async def body(gateway: Running) -> None:
        await ask(gateway, {"group": "staff"})
        await ask(gateway, distance=6000.0)
        await ask(gateway)
        await gateway.until(lambda s: sum(t.difference.n for t in s.total.get("2", {}).values()) == 2)
        await gateway.shadow_settled()
        total = (await gateway.status()).total
        assert {(version, role) for version, roles in total.items() for role in roles} == {
            *(("1", "served"), ("1", "shadow"), ("2", "served"), ("2", "shadow"), ("0", "served"))
        }
        assert total["2"]["served"].difference.n == total["2"]["shadow"].difference.n == 1
        assert total["0"]["served"].difference.n == 0

    in_gateway(tmp_path, body)
    unused = "http://127.0.0.1:9"
    frame = read(Settings(REPOSITORY, tmp_path, unused, unused, unused, "sqlite://"), "late", roles=("served",))
    found = frame.astype({"pin": object}).where(frame.notna(), None)
    assert set(zip(found["version"], found["variant"], found["pin"], strict=True)) == {
        *(("1", "champion", None), ("2", "candidate", "staff"), ("0", "pinned", "far"))
    }


def test_a_pin_to_the_ejected_candidate_is_as_good_as_none(tmp_path: Path, champion: Bundle) -> None:
    raising = bundle(tmp_path / "bundles" / "raising", carriers=("UA",))
    limits = (Limit(name="error_rate", signal="errors", bound=0.05, alpha=0.01),)
    publish(tmp_path, route(champion, candidate=raising, pins=(pin("staff", "2", STAFF),), limits=limits))

    async def body(gateway: Running) -> None:
        assert await ask(gateway, {"group": "staff"}) == ("2", "candidate")
        for _ in range(20):
            assert await ask(gateway, {"group": "staff"}, carrier="EV") == ("1", "champion")
        assert (await gateway.status()).ejection is not None
        assert await ask(gateway, {"group": "staff"}) == ("1", "champion")

    in_gateway(tmp_path, body)


def test_the_champion_answers_for_a_pinned_version_that_fails(tmp_path: Path, champion: Bundle) -> None:
    raising = bundle(tmp_path / "bundles" / "raising", carriers=("UA",))
    publish(tmp_path, route(champion, pins=(pin("staff", "0", STAFF),), others={"0": raising}))

    async def body(gateway: Running) -> None:
        question = {"rows": [GOOD_ROW | {"carrier": "EV"}], "attributes": {"group": "staff"}}
        answer = (await gateway.client.post(PREDICT, json=question)).json()
        assert (answer["version"], answer["fallback"]) == ("1", "champion")
        tally = (await gateway.status()).total["0"]["served"]
        assert (tally.requests, tally.errors, tally.fallbacks) == (1, 1, 1)

    in_gateway(tmp_path, body)


@pytest.mark.parametrize(
    ("attributes", "field"),
    [
        ('["staff"]', "attributes"),
        ('"staff"', "attributes"),
        ('{"group": null}', "attributes.group"),
        ('{"group": ["staff"]}', "attributes.group"),
        ('{"age": 3, "group": {"a": 1}}', "attributes.group"),
        ('{"group": NaN}', "attributes.group"),
        ('{"group": Infinity}', "attributes.group"),
    ],
)
def test_an_attribute_that_is_no_plain_value_is_refused_by_name(
    tmp_path: Path, champion: Bundle, attributes: str, field: str
) -> None:
    publish(tmp_path, route(champion))

    async def body(gateway: Running) -> None:
        content = (
            f'{{"rows": [{{"distance": 1, "weekday": 1, "delay": 1, "carrier": "UA"}}], "attributes": {attributes}}}'
        )
        response = await gateway.client.post(PREDICT, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 422
        assert response.json()["error"]["field"] == field

    in_gateway(tmp_path, body)
