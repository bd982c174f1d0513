"""A gateway over HTTP, in this process: who answers, what is counted, when a candidate goes."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path

import pytest

from airlock.core.route import Bundle, Limit, place
from airlock.core.spec import Input, Serving, Task
from airlock.core.tally import Ejection, GatewayStatus
from gateway import shadow
from tests.support.gateway_in_process import PREDICT, Running, in_gateway
from tests.support.tiny_models import GOOD_ROW, INPUTS, bundle, publish, route

ROWS = {"rows": [GOOD_ROW]}


def keys(share: float, count: int = 1) -> list[str]:
    """Keys that a candidate with this share answers."""
    found = (key for key in map(str, range(100_000)) if place("salt", key) < share)
    return [next(found) for _ in range(count)]


@pytest.fixture
def champion(tmp_path: Path) -> Bundle:
    return bundle(tmp_path / "bundles" / "1")


@pytest.fixture
def better(tmp_path: Path) -> Bundle:
    return bundle(tmp_path / "bundles" / "2", bias=0.1)


@pytest.fixture
def raising(tmp_path: Path) -> Bundle:
    """Raises on any carrier but UA."""
    return bundle(tmp_path / "bundles" / "raising", carriers=("UA",))


def test_an_answer_carries_version_variant_and_request_id(tmp_path: Path, champion: Bundle) -> None:
    publish(tmp_path, route(champion))

    async def body(gateway: Running) -> None:
        response = await gateway.client.post(PREDICT, json=ROWS, headers={"x-request-id": "abc"})
        answer = response.json()
        probability = answer["predictions"][0].pop("probability")
        assert answer == {
            "model": "late",
            "version": "1",
            "variant": "champion",
            "request_id": "abc",
            "fallback": None,
            "predictions": [{"prediction": 1}],
        }
        assert probability == pytest.approx(0.52506, abs=1e-4)
        first, second = await gateway.ask(), await gateway.ask()
        assert first["request_id"] != second["request_id"]

    in_gateway(tmp_path, body)


def test_a_regression_answers_with_its_value(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", task=Task.REGRESSION, inputs={"distance": Input(type="float")}, bias=2.0)
    publish(tmp_path, route(made))

    async def body(gateway: Running) -> None:
        answer = await gateway.ask(row={"distance": 10_000})
        assert answer["predictions"] == [{"prediction": pytest.approx(3.0)}]

    in_gateway(tmp_path, body)


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b'{"rows": [{"distance": 1', {}, 400, "malformed_json"),
        (b"\xff\xfe", {}, 400, "malformed_json"),
        (b"[" * 3000 + b"]" * 3000, {}, 400, "too_deep"),
        (b"[]", {}, 422, "not_an_object"),
        (b"{}", {}, 422, "rows_or_entities"),
        (b'{"rows": [], "entities": []}', {}, 422, "rows_or_entities"),
        (b'{"rows": []}', {}, 422, "empty_batch"),
        (b'{"rows": {}}', {}, 422, "wrong_type"),
        (b'{"rows": [1], "verbose": true}', {}, 422, "unknown_field"),
        (b'{"rows": [1], "key": 7}', {}, 422, "wrong_type"),
        (b'{"rows": [1], "key": ""}', {}, 422, "wrong_type"),
        (b'{"rows": [' + b"1," * 10 + b"1]}", {}, 413, "too_many_rows"),
        (b'{"rows": ["' + b"x" * 5000 + b'"]}', {}, 413, "body_too_large"),
        (json.dumps(ROWS).replace("1000.0", "NaN").encode(), {}, 422, "not_finite"),
        (json.dumps(ROWS).replace("1000.0", "1e999").encode(), {}, 422, "not_finite"),
        (b"cposix\nsystem\n.", {"content-type": "application/x-pickle"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "application/vnd.bentoml+pickle"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": ""}, 415, "unsupported_media_type"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(
    tmp_path: Path, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    publish(tmp_path, route(bundle(tmp_path / "b", serving=Serving(max_rows=10, max_body_bytes=4096 + 2000))))
    if code == "body_too_large":
        content += b" " * 2000

    async def body(gateway: Running) -> None:
        given = {"content-type": "application/json; charset=utf-8"} | headers
        response = await gateway.client.post(PREDICT, content=content, headers=given)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
        assert response.json()["error"]["message"]
        assert (await gateway.ask())["version"] == "1"

    in_gateway(tmp_path, body)


@pytest.mark.parametrize("levels", [400, 980, *range(985, 1030, 3), 5000])
def test_a_value_in_any_depth_of_lists_is_refused(tmp_path: Path, champion: Bundle, levels: int) -> None:
    publish(tmp_path, route(champion))
    deep = "[" * levels + "]" * levels

    async def body(gateway: Running) -> None:
        for field, content in (("distance", json.dumps(ROWS)), ("x", '{"rows": [{"x": 1000.0}]}'), ("", "1000.0")):
            response = await gateway.client.post(
                PREDICT, content=content.replace("1000.0", deep), headers={"content-type": "application/json"}
            )
            assert response.status_code in {400, 422}, response.text
            assert len(response.content) < 1_000, field
        assert (await gateway.ask())["version"] == "1"

    in_gateway(tmp_path, body)


@pytest.mark.parametrize(
    ("time", "status"),
    [
        ("2013-04-01T06:00:00Z", 200),
        ("1678-01-01T00:00:00Z", 200),
        ("2261-12-31T23:59:59.999999Z", 200),
        ("9999-12-31T23:59:59.999999Z", 422),
        ("9999-12-31T23:59:59.999999-23:59", 422),
        ("0001-01-01T00:00:00Z", 422),
        ("0001-01-01T00:00:00+23:59", 422),
    ],
)
def test_times_at_the_ends_of_the_calendar(tmp_path: Path, time: str, status: int) -> None:
    publish(tmp_path, route(bundle(tmp_path / "1", event_time="asked_at")))

    async def body(gateway: Running) -> None:
        response = await gateway.client.post(PREDICT, json={"rows": [GOOD_ROW | {"asked_at": time}]})
        assert response.status_code == status, response.text

    in_gateway(tmp_path, body)


def test_malformed_json_tells_the_offset(tmp_path: Path, champion: Bundle) -> None:
    publish(tmp_path, route(champion))

    async def body(gateway: Running) -> None:
        response = await gateway.client.post(
            PREDICT, content='{"é": 1,}'.encode(), headers={"content-type": "application/json"}
        )
        assert response.json()["error"]["got"] == "offset 8"

    in_gateway(tmp_path, body)


def test_an_unknown_model_is_told_the_known_ones(tmp_path: Path, champion: Bundle) -> None:
    publish(tmp_path, route(champion))

    async def body(gateway: Running) -> None:
        for path in ("/v1/models/early/predict", "/v1/models/early/status"):
            method = "POST" if path.endswith("predict") else "GET"
            response = await gateway.client.request(method, path, json=ROWS)
            assert response.status_code == 404
            assert "late" in response.json()["error"]["message"]
        assert (await gateway.client.get("/v1/models")).json() == {"models": ["late"]}
        assert (await gateway.client.get(PREDICT)).status_code == 405
        nowhere = await gateway.client.get("/somewhere")
        assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_path")

    in_gateway(tmp_path, body)


def test_ready_only_with_something_to_serve(tmp_path: Path, champion: Bundle) -> None:
    async def body(gateway: Running) -> None:
        assert (await gateway.client.get("/healthz")).status_code == 200
        assert (await gateway.client.get("/readyz")).status_code == 503
        publish(tmp_path, route(champion))
        await gateway.ready()
        assert (await gateway.ask())["version"] == "1"

    in_gateway(tmp_path, body)


def test_a_key_chooses_the_version_and_stays_with_it(tmp_path: Path, champion: Bundle, better: Bundle) -> None:
    publish(tmp_path, route(champion, candidate=better, share=30))

    async def body(gateway: Running) -> None:
        versions = {str(n): (await gateway.ask(str(n)))["version"] for n in range(300)}
        assert versions == {key: "2" if place("salt", key) < 30 else "1" for key in versions}
        for key in list(versions)[:20]:
            assert (await gateway.ask(key))["version"] == versions[key]

    in_gateway(tmp_path, body)


def test_the_champion_answers_for_a_version_that_raises(tmp_path: Path, champion: Bundle, raising: Bundle) -> None:
    publish(tmp_path, route(champion, candidate=raising, share=100))

    async def body(gateway: Running) -> None:
        answer = await gateway.ask(row=GOOD_ROW | {"carrier": "EV"})
        assert (answer["version"], answer["variant"], answer["fallback"]) == ("1", "champion", "champion")
        answer = await gateway.ask()
        assert (answer["version"], answer["variant"], answer["fallback"]) == ("2", "candidate", None)
        status = await gateway.status()
        tally = status.total["2"]["served"]
        assert (tally.requests, tally.errors, tally.timeouts, tally.fallbacks) == (2, 1, 0, 1)
        text = (await gateway.client.get("/metrics")).text
        assert 'airlock_requests_total{model="late",outcome="error",variant="candidate",version="2"} 1.0' in text
        assert (
            'airlock_requests_total{model="late",outcome="fallback_champion",variant="champion",version="1"} 1.0'
            in text
        )

    in_gateway(tmp_path, body)


def test_the_champion_answers_for_a_version_that_takes_too_long(tmp_path: Path, champion: Bundle) -> None:
    slow = bundle(tmp_path / "slow", work=2000)
    publish(tmp_path, route(champion, candidate=slow, share=100, timeout_ms=20))

    async def body(gateway: Running) -> None:
        answers = await asyncio.gather(*(gateway.ask(str(n)) for n in range(8)))
        assert all(answer["fallback"] == "champion" and answer["version"] == "1" for answer in answers)
        tally = (await gateway.status()).total["2"]["served"]
        assert (tally.requests, tally.errors, tally.timeouts) == (8, 8, 8)

    in_gateway(tmp_path, body)


def test_a_run_that_was_cheap_until_now_is_held_to_its_time_as_well(tmp_path: Path, champion: Bundle) -> None:
    slow = bundle(tmp_path / "slow", work=1000)
    publish(tmp_path, route(champion, candidate=slow, share=100, timeout_ms=1))

    async def body(gateway: Running) -> None:
        version = gateway.gateway.routes.models["late"].effect.candidate
        assert version is not None
        version.ms_per_row = 0.0
        assert (await gateway.ask())["fallback"]
        assert (await gateway.status()).total["2"]["served"].timeouts == 1

    in_gateway(tmp_path, body)


def test_a_version_that_was_quick_and_then_hangs_is_ended(tmp_path: Path, champion: Bundle) -> None:
    hanging = bundle(tmp_path / "hanging", hangs_above=("distance", 9000.0))
    publish(tmp_path, route(champion, candidate=hanging, share=100, timeout_ms=1_000))

    async def body(gateway: Running) -> None:
        assert (await gateway.ask())["version"] == "2"
        version = gateway.gateway.routes.models["late"].effect.candidate
        assert version is not None
        assert version.is_cheap(1), "it is asked on the event loop"
        answer = await gateway.ask(row=GOOD_ROW | {"distance": 9500.0})
        assert (answer["version"], answer["fallback"]) == ("1", "champion")
        assert not version.is_cheap(1)
        assert (await gateway.ask())["version"] == "2"
        assert (await gateway.status()).total["2"]["served"].timeouts == 1

    in_gateway(tmp_path, body)


def test_a_shadow_that_hangs_is_ended_and_counted(tmp_path: Path, champion: Bundle) -> None:
    hanging = bundle(tmp_path / "hanging", hangs_above=("distance", 9000.0))
    publish(tmp_path, route(champion, candidate=hanging, shadow=True, timeout_ms=1_000))

    async def body(gateway: Running) -> None:
        for distance in (9500.0, 1.0):
            assert (await gateway.ask(row=GOOD_ROW | {"distance": distance}))["version"] == "1"
        status = await gateway.until(lambda s: "2" in s.total and s.total["2"]["shadow"].requests == 2)
        assert status.total["2"]["shadow"].timeouts == 1
        assert status.total["2"]["shadow"].difference.n == 1

    in_gateway(tmp_path, body)


def test_a_version_that_failed_a_request_is_not_asked_it_again(
    tmp_path: Path, champion: Bundle, raising: Bundle
) -> None:
    publish(tmp_path, route(champion, candidate=raising, share=100))

    async def body(gateway: Running) -> None:
        assert (await gateway.ask(row=GOOD_ROW | {"carrier": "EV"}))["fallback"]
        await gateway.shadow_settled()
        assert set((await gateway.status()).total["2"]) == {"served"}

    in_gateway(tmp_path, body)


def test_no_answer_at_all_is_an_explicit_503(tmp_path: Path) -> None:
    publish(tmp_path, route(bundle(tmp_path / "b", carriers=("UA",))))

    async def body(gateway: Running) -> None:
        response = await gateway.client.post(PREDICT, json={"rows": [GOOD_ROW | {"carrier": "EV"}]})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "no_answer"
        assert (await gateway.ask())["version"] == "1"

    in_gateway(tmp_path, body)


def test_an_answer_that_is_no_number_is_none(tmp_path: Path, champion: Bundle) -> None:
    broken = bundle(tmp_path / "broken", bias=float("nan"))
    publish(tmp_path, route(champion, candidate=broken, share=100))

    async def body(gateway: Running) -> None:
        assert (await gateway.ask())["fallback"]
        assert (await gateway.status()).total["2"]["served"].errors == 1

    in_gateway(tmp_path, body)


def test_answers_are_paired_with_the_other_version_s(tmp_path: Path, champion: Bundle, better: Bundle) -> None:
    publish(tmp_path, route(champion, candidate=better, share=50))

    async def body(gateway: Running) -> None:
        served = sum([(await gateway.ask(str(n)))["version"] == "2" for n in range(40)])
        assert 0 < served < 40

        def paired(status: GatewayStatus) -> bool:
            tallies = status.total.get("2", {})
            return sum(tally.difference.n for tally in tallies.values()) == 40

        tallies = (await gateway.until(paired)).total
        assert tallies["2"]["served"].difference.n == served
        assert tallies["2"]["shadow"].difference.n == tallies["2"]["shadow"].requests == 40 - served
        for tally in tallies["2"].values():
            assert tally.difference.mean == pytest.approx(0.0248, abs=1e-3)
            assert tally.absolute == tally.difference
            assert (tally.flips.n, tally.flips.total, tally.flips.squares) == (tally.difference.n, 0.0, 0.0)

    in_gateway(tmp_path, body)


def test_a_shadow_is_scored_and_never_answers(tmp_path: Path, champion: Bundle, better: Bundle) -> None:
    publish(tmp_path, route(champion, candidate=better, shadow=True))

    async def body(gateway: Running) -> None:
        answers = [await gateway.ask(str(n)) for n in range(20)]
        assert {answer["version"] for answer in answers} == {"1"}
        status = await gateway.until(lambda s: s.total.get("2", {}).get("shadow") is not None
                                     and s.total["2"]["shadow"].difference.n == 20)  # fmt: skip
        assert "served" not in status.total["2"]

    in_gateway(tmp_path, body)


def test_a_warm_version_is_not_asked(tmp_path: Path, champion: Bundle, better: Bundle) -> None:
    publish(tmp_path, route(champion, candidate=better))

    async def body(gateway: Running) -> None:
        assert {(await gateway.ask(str(n)))["version"] for n in range(50)} == {"1"}
        await gateway.shadow_settled()
        status = await gateway.status()
        assert status.loaded == ("1", "2")
        assert "2" not in status.total

    in_gateway(tmp_path, body)


STRICT = (Limit(name="error_rate", signal="errors", bound=0.05, alpha=0.01),)


def test_a_candidate_that_fails_too_often_is_ejected_and_stays_out(
    tmp_path: Path, champion: Bundle, raising: Bundle, better: Bundle
) -> None:
    document = route(champion, candidate=raising, share=50, limits=STRICT)
    publish(tmp_path, document)
    (key,) = keys(50)

    async def until_ejected(gateway: Running) -> None:
        for _ in range(100):
            await gateway.ask(key, GOOD_ROW | {"carrier": "EV"})
        status = await gateway.status()
        assert status.ejection is not None
        assert (status.ejection.version, status.ejection.release) == ("2", "r1")
        assert "failed" in status.ejection.reason
        assert status.ejection.requests < 30, "ejected as soon as the limit is surely passed"
        assert status.share == 0
        assert (await gateway.ask(key))["version"] == "1"

    in_gateway(tmp_path, until_ejected)
    written = Ejection.model_validate_json((tmp_path / "ejections" / "late.json").read_bytes())
    assert written.version == "2"

    async def after_a_restart(gateway: Running) -> None:
        status = await gateway.status()
        assert status.ejection == written
        assert (await gateway.ask(key))["version"] == "1"
        publish(tmp_path, route(champion, candidate=raising, share=100, generation=2, limits=STRICT))
        await gateway.until(lambda s: s.generation == 2)
        assert (await gateway.ask(key))["version"] == "1", "the same release may not bring it back"
        publish(tmp_path, route(champion, candidate=better, share=100, generation=3, release="r2"))
        assert (await gateway.until(lambda s: s.generation == 3)).ejection is None
        assert (await gateway.ask(key))["version"] == "2"

    in_gateway(tmp_path, after_a_restart)


def test_answers_that_shift_eject_even_in_shadow(tmp_path: Path, champion: Bundle) -> None:
    shifted = bundle(tmp_path / "shifted", bias=2.0)
    limits = (Limit(name="prediction_shift", signal="difference", bound=0.05, alpha=0.01, reach=2.0),)
    publish(tmp_path, route(champion, candidate=shifted, shadow=True, limits=limits))

    async def body(gateway: Running) -> None:
        for n in range(120):
            await gateway.ask(str(n), GOOD_ROW | {"distance": float(n)})
        status = await gateway.until(lambda s: s.ejection is not None)
        assert status.ejection is not None
        assert "above the champion" in status.ejection.reason
        await gateway.shadow_settled()
        before = (await gateway.status()).total["2"]["shadow"].requests
        await gateway.ask()
        await gateway.shadow_settled()
        assert (await gateway.status()).total["2"]["shadow"].requests == before

    in_gateway(tmp_path, body)


def test_a_candidate_may_take_an_input_that_the_champion_does_not(tmp_path: Path, champion: Bundle) -> None:
    wider = bundle(tmp_path / "wider", inputs=INPUTS | {"seats": Input(type="float")})
    publish(tmp_path, route(champion, candidate=wider, share=100))

    async def body(gateway: Running) -> None:
        assert (await gateway.ask())["fallback"]
        answer = await gateway.ask(row=GOOD_ROW | {"seats": 100})
        assert (answer["version"], answer["fallback"]) == ("2", None)

    in_gateway(tmp_path, body)


def test_a_slow_shadow_holds_nobody_up_and_what_is_left_out_is_counted(
    tmp_path: Path, champion: Bundle, better: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, score = threading.Event(), shadow._score
    monkeypatch.setattr("gateway.shadow.QUEUE", 3)
    monkeypatch.setattr("gateway.shadow._score", lambda task: (stuck.wait(), score(task))[1])
    publish(tmp_path, route(champion, candidate=better, shadow=True))

    async def body(gateway: Running) -> None:
        try:
            for n in range(40):
                assert (await gateway.ask(str(n)))["version"] == "1", "answered while shadow scoring stands still"
            metrics = (await gateway.client.get("/metrics")).text
        finally:
            stuck.set()
        dropped = re.search(r'airlock_shadow_dropped_total\{model="late"\} (\S+)', metrics)
        assert dropped is not None
        assert float(dropped[1]) in (36, 37), "three wait, and one may be in work"
        scored = 40 - float(dropped[1])
        await gateway.until(lambda s: "2" in s.total and s.total["2"]["shadow"].requests == scored)

    in_gateway(tmp_path, body)


def test_a_large_batch_leaves_the_event_loop_free(tmp_path: Path) -> None:
    publish(tmp_path, route(bundle(tmp_path / "b", work=700)))

    async def body(gateway: Running) -> None:
        version = gateway.gateway.routes.models["late"].effect.champion
        assert not version.is_cheap(1000)
        rows = [GOOD_ROW | {"distance": float(n)} for n in range(1000)]
        response = await gateway.client.post(PREDICT, json={"rows": rows})
        answers = [row["probability"] for row in response.json()["predictions"]]
        assert len(answers) == 1000
        assert answers == sorted(answers), "in the order of the rows"

    in_gateway(tmp_path, body)


def test_a_route_that_moves_on_meanwhile_does_not_disturb_a_request(tmp_path: Path, champion: Bundle) -> None:
    slow = bundle(tmp_path / "slow", work=1500)
    publish(tmp_path, route(champion, candidate=slow, share=100, timeout_ms=5_000))

    async def body(gateway: Running) -> None:
        version = gateway.gateway.routes.models["late"].effect.candidate
        assert version is not None
        version.ms_per_row = 100.0
        question = asyncio.create_task(gateway.ask())
        await asyncio.sleep(0)
        publish(tmp_path, route(champion, generation=2))
        answer = await question
        await gateway.until(lambda status: status.generation == 2)
        assert (answer["version"], answer["fallback"]) == ("2", None)
        assert (await gateway.ask())["version"] == "1"

    in_gateway(tmp_path, body)


def test_two_models_do_not_mix(tmp_path: Path, champion: Bundle) -> None:
    other = bundle(tmp_path / "other", model="early", bias=-2.0)
    publish(tmp_path, route(champion))
    publish(tmp_path, route(other, model="early", generation=9))

    async def body(gateway: Running) -> None:
        late = await gateway.ask()
        early = (await gateway.client.post("/v1/models/early/predict", json=ROWS)).json()
        assert (late["model"], early["model"]) == ("late", "early")
        assert early["predictions"][0]["probability"] < 0.2 < late["predictions"][0]["probability"]
        assert (await gateway.status()).generation == 1

    in_gateway(tmp_path, body)


def test_a_route_of_another_model_s_bundle_is_refused(tmp_path: Path, champion: Bundle) -> None:
    publish(tmp_path, route(champion))

    async def body(gateway: Running) -> None:
        publish(tmp_path, route(bundle(tmp_path / "other", model="early"), generation=2))
        status = await gateway.until(lambda status: status.error is not None)
        assert status.generation == 1
        assert "another model" in (status.error or "")

    in_gateway(tmp_path, body)
