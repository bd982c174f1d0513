"""What answers when no version can: an earlier answer, a rule, the default."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airlock.core.route import Bundle
from airlock.core.segment import Condition
from airlock.core.spec import Fallback, Features, Input, Rule, Serving, Task
from airlock.prediction_log import read
from airlock.settings import Settings
from gateway.stand_ins import StandIns
from tests.support.gateway_in_process import PREDICT, Running, in_gateway
from tests.support.gateway_process import REPOSITORY
from tests.support.tiny_models import GOOD_ROW, INPUTS, bundle, publish, route

BAD_ROW = GOOD_ROW | {"carrier": "EV"}
FAR = Rule(when=(Condition(attribute="distance", min=5000),), answer=0.9)
STAFF = Rule(when=(Condition(attribute="group", values=("staff",)),), answer=0.2)
CHAIN = Fallback(cache=timedelta(hours=1), rules=(FAR, STAFF), default=0.5)


def picky(folder: Path, fallback: Fallback, **options: Any) -> Bundle:
    """A version that raises on any carrier but UA."""
    return bundle(folder, carriers=("UA",), serving=Serving(fallback=fallback), **options)


def logged(home: Path) -> list[tuple[Any, ...]]:
    """Served rows of the log: version, variant, fallback, probability and whether there is an error."""
    unused = "http://127.0.0.1:9"
    frame = read(Settings(REPOSITORY, home, unused, unused, unused, "sqlite://"), "late")
    frame = frame.astype(object).where(frame.notna(), None)
    columns = ("version", "variant", "fallback", "probability", "error")
    return [(*values[:4], values[4] is not None) for values in zip(*(frame[name] for name in columns), strict=True)]


async def post(gateway: Running, *rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = await gateway.client.post(PREDICT, json={"rows": rows} | more)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_rule_answers_and_then_the_default(tmp_path: Path) -> None:
    publish(tmp_path, route(picky(tmp_path / "b", CHAIN)))

    async def body(gateway: Running) -> None:
        answer = await post(gateway, BAD_ROW | {"distance": 6000.0})
        assert (answer["version"], answer["variant"], answer["fallback"]) == (None, None, "rule")
        assert answer["predictions"] == [{"prediction": 1, "probability": 0.9}]
        answer = await post(gateway, BAD_ROW, attributes={"group": "staff"})
        assert (answer["fallback"], answer["predictions"][0]["probability"]) == ("rule", 0.2)
        answer = await post(gateway, BAD_ROW)
        assert (answer["version"], answer["fallback"]) == (None, "default")
        assert answer["predictions"] == [{"prediction": 1, "probability": 0.5}]
        answer = await post(gateway, BAD_ROW | {"distance": 6000.0}, BAD_ROW)
        assert [row["probability"] for row in answer["predictions"]] == [0.9, 0.5], "row by row"
        assert answer["fallback"] == "default", "as far as the chain had to go for any of them"
        tally = (await gateway.status()).total["1"]["served"]
        assert (tally.requests, tally.errors, tally.fallbacks) == (4, 4, 4)
        text = (await gateway.client.get("/metrics")).text
        assert 'airlock_requests_total{model="late",outcome="fallback_rule",variant="",version=""} 2.0' in text
        assert 'airlock_requests_total{model="late",outcome="fallback_default",variant="",version=""} 2.0' in text

    in_gateway(tmp_path, body)
    rows = logged(tmp_path)
    stood_in = [(None, None, means, answer, False) for means, answer in
                (("rule", 0.9), ("rule", 0.2), ("default", 0.5), ("default", 0.9), ("default", 0.5))]  # fmt: skip
    assert sorted((row for row in rows if row[2]), key=str) == sorted(stood_in, key=str)
    assert [row for row in rows if not row[2]] == [("1", "champion", None, None, True)] * 5


def test_an_earlier_answer_of_the_champion_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, route(picky(tmp_path / "b", CHAIN)))
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("gateway.stand_ins.time", clock)

    async def body(gateway: Running) -> None:
        usual = await post(gateway, GOOD_ROW, GOOD_ROW | {"distance": 1.0})
        assert usual["fallback"] is None
        champion = gateway.gateway.routes.models["late"].effect.champion
        monkeypatch.setattr(champion, "_answers", _broken)
        answer = await post(gateway, GOOD_ROW)
        assert (answer["version"], answer["variant"], answer["fallback"]) == ("1", "champion", "cache")
        assert answer["predictions"] == usual["predictions"][:1]
        answer = await post(gateway, GOOD_ROW, GOOD_ROW | {"distance": 2.0})
        assert answer["fallback"] == "default", "not every row was asked before"
        clock.now += 3600
        assert (await post(gateway, GOOD_ROW))["fallback"] == "default", "too old"

    in_gateway(tmp_path, body)
    assert ("1", "champion", "cache") in {row[:3] for row in logged(tmp_path)}


def _broken(*_: object) -> list[float]:
    raise RuntimeError("the session died")


def test_what_a_candidate_said_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, route(picky(tmp_path / "b", CHAIN), candidate=bundle(tmp_path / "c", bias=1.0), share=100))

    async def body(gateway: Running) -> None:
        effect = gateway.gateway.routes.models["late"].effect
        assert effect.candidate is not None
        monkeypatch.setattr(effect.champion, "_answers", _broken)
        assert (await post(gateway, GOOD_ROW))["version"] == "2"
        monkeypatch.setattr(effect.candidate, "_answers", _broken)
        assert (await post(gateway, GOOD_ROW))["fallback"] == "default"

    in_gateway(tmp_path, body)


def test_what_the_champion_said_in_the_candidate_s_shadow_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = picky(tmp_path / "b", CHAIN)
    publish(tmp_path, route(champion, candidate=bundle(tmp_path / "c", bias=1.0), share=100))

    async def body(gateway: Running) -> None:
        said = await post(gateway, GOOD_ROW)
        assert said["version"] == "2"
        await gateway.until(lambda s: s.total.get("2", {}).get("served") is not None
                            and s.total["2"]["served"].difference.n == 1)  # fmt: skip
        effect = gateway.gateway.routes.models["late"].effect
        assert effect.candidate is not None
        for version in (effect.champion, effect.candidate):
            monkeypatch.setattr(version, "_answers", _broken)
        answer = await post(gateway, GOOD_ROW)
        assert (answer["version"], answer["fallback"]) == ("1", "cache")
        assert answer["predictions"][0]["probability"] < said["predictions"][0]["probability"]
        total = (await gateway.status()).total
        assert total["2"]["served"].fallbacks == 1
        assert total["1"]["served"].fallbacks == 0, "the request was not meant for it"

    in_gateway(tmp_path, body)


def test_another_champion_s_answers_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = picky(tmp_path / "b", CHAIN)
    publish(tmp_path, route(first))

    async def body(gateway: Running) -> None:
        await post(gateway, GOOD_ROW)
        publish(tmp_path, route(first, generation=2, candidate=bundle(tmp_path / "c")))
        await gateway.until(lambda s: s.generation == 2)
        monkeypatch.setattr(gateway.gateway.routes.models["late"].effect.champion, "_answers", _broken)
        assert (await post(gateway, GOOD_ROW))["fallback"] == "cache", "the same champion under another route"
        publish(tmp_path, route(picky(tmp_path / "d", CHAIN), generation=3))
        await gateway.until(lambda s: s.generation == 3)
        monkeypatch.setattr(gateway.gateway.routes.models["late"].effect.champion, "_answers", _broken)
        assert (await post(gateway, GOOD_ROW))["fallback"] == "default"

    in_gateway(tmp_path, body)


def test_where_nothing_can_stand_in_it_is_a_503(tmp_path: Path) -> None:
    publish(tmp_path, route(picky(tmp_path / "b", Fallback(cache=timedelta(hours=1), rules=(FAR,)))))

    async def body(gateway: Running) -> None:
        response = await gateway.client.post(PREDICT, json={"rows": [BAD_ROW | {"distance": 6000.0}, BAD_ROW]})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_answer")
        tally = (await gateway.status()).total["1"]["served"]
        assert (tally.errors, tally.fallbacks) == (1, 0)

    in_gateway(tmp_path, body)


def test_a_regression_s_default_is_a_value(tmp_path: Path) -> None:
    made = picky(tmp_path / "b", Fallback(default=12.5), task=Task.REGRESSION)
    publish(tmp_path, route(made))

    async def body(gateway: Running) -> None:
        assert (await post(gateway, BAD_ROW))["predictions"] == [{"prediction": 12.5}]

    in_gateway(tmp_path, body)


def test_without_the_online_store_rules_and_default_answer_from_what_was_sent(tmp_path: Path) -> None:
    features = Features(service="flights", entities=("carrier",), request={"distance": Input(type="float")})
    publish(tmp_path, route(bundle(tmp_path / "b", features=features, serving=Serving(fallback=CHAIN))))

    async def body(gateway: Running) -> None:
        for distance, means in ((6000.0, "rule"), (10.0, "default")):
            question = {"entities": [{"carrier": "UA", "distance": distance}]}
            response = await gateway.client.post(PREDICT, json=question)
            assert response.status_code == 200, response.text
            assert (response.json()["version"], response.json()["fallback"]) == (None, means)
        assert (await gateway.status()).total == {}, "no version was asked"

    in_gateway(tmp_path, body)
    assert {row[2] for row in logged(tmp_path)} == {"rule", "default"}


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.stand_ins.CACHED_ROWS", 2)
    kept = StandIns(Fallback(cache=timedelta(seconds=60)), len(INPUTS))
    kept.remember([[1.0, 0], [2.0, 0]], [0.1, 0.2])
    assert kept.answer([[1.0, 0]], [{}]) == ("cache", [0.1])
    kept.remember([[3.0, 0]], [0.3])
    assert kept.answer([[2.0, 0]], [{}]) is None, "the one that was not used for longest"
    assert kept.answer([[1.0, 0], [3.0, 0]], [{}, {}]) == ("cache", [0.1, 0.3])


def test_only_the_champion_s_own_inputs_tell_rows_apart() -> None:
    kept = StandIns(Fallback(cache=timedelta(seconds=60)), 1)
    kept.remember([[1.0, "only the candidate takes this"]], [0.1])
    assert kept.answer([[1.0, None]], [{}]) == ("cache", [0.1])
    unset = StandIns(Fallback(), 1)
    unset.remember([[1.0]], [0.1])
    assert unset.answer([[1.0]], [{}]) is None
