"""Triggers: read-only, JSON in and out, one event, patient with a gateway that is down."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airlock.core.errors import Unavailable
from airlock.core.polls import Polls
from airlock.core.release import Phase, Release
from airlock.core.route import Bundle, Limit
from airlock.core.spec import ModelSpec
from airlock.core.tally import Ejection, GatewayStatus, Tally
from airlock.hooks.ledger import LedgerHook
from airlock.triggers import release as release_trigger
from airlock.triggers.approval import ApprovalTrigger
from airlock.triggers.ledger import LedgerTrigger
from airlock.triggers.release import ReleaseStepTrigger
from airlock.triggers.version import VersionServedTrigger

SPEC = ModelSpec.model_validate(
    {
        "model": "toy",
        "task": "regression",
        "data": {"key": "id", "event_time": "t"},
        "label": {"name": "y"},
        "inputs": {"x": "float"},
        "gates": [{"kind": "finite"}],
        "guards": [{"kind": "error_rate", "max": 0.2, "min_requests": 5}],
        "rollout": {"deadline": "1h", "steps": [{"weight": 100, "bake": "0s", "min_requests": 5}]},
    }
)


def release(**changes: Any) -> Release:
    return Release(
        **{
            "id": "r1",
            "model": "toy",
            "version": "2",
            "champion": "1",
            "bundle": Bundle(path="/b", digest="sha256:" + "0" * 64),
            "phase": Phase.CANARY,
            "step": "canary_100",
            "generation": 4,
            "entered_at": datetime.now(UTC),
            **changes,
        }
    )


SINCE = datetime(2013, 4, 1, tzinfo=UTC)


def status(**changes: Any) -> GatewayStatus:
    return GatewayStatus(
        **{
            "model": "toy",
            "generation": 4,
            "checksum": "sha256:0",
            "release": "r1",
            "rollout_step": "canary_100",
            "observed_s": 1.0,
            "champion": "1",
            "candidate": "2",
            "share": 100.0,
            "loaded": ("1", "2"),
            "since": SINCE,
            **changes,
        }
    )


def counted(requests: int) -> dict[str, Any]:
    tally = Tally(requests=requests, latency=[requests] + [0] * 71)
    return {"step": {"2": {"served": tally}}, "total": {"2": {"served": tally}, "1": {"served": tally}}}


Answer = GatewayStatus | int | Exception


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Answer]], list[str]]:
    """A gateway that gives these answers in turn, the last one for ever; returns the requests it got."""

    def serve(answers: list[Answer]) -> list[str]:
        asked: list[str] = []
        coming: Iterator[Answer] = iter(answers)
        last = answers[-1]

        def handle(request: httpx.Request) -> httpx.Response:
            asked.append(f"{request.method} {request.url.path}")
            answer = next(coming, last)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, int):
                return httpx.Response(answer, text="no")
            return httpx.Response(200, content=answer.model_dump_json())

        real = httpx.AsyncClient
        transport = httpx.MockTransport(handle)
        monkeypatch.setattr(httpx, "AsyncClient", lambda **kwargs: real(**{**kwargs, "transport": transport}))
        return asked

    return serve


def events(trigger: BaseTrigger, seconds: float = 5.0) -> list[TriggerEvent]:
    async def collect() -> list[TriggerEvent]:
        async with asyncio.timeout(seconds):
            return [event async for event in trigger.run()]

    return asyncio.run(collect())


@pytest.fixture(autouse=True)
def no_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ledger says is for another file: here it cannot be read."""

    def down(_: LedgerHook) -> Any:
        raise Unavailable("the ledger does not answer")

    monkeypatch.setattr(LedgerHook, "get_conn", down)


def step_trigger(*, guards_only: bool = False, polls: Any = None, **changes: Any) -> ReleaseStepTrigger:
    return ReleaseStepTrigger(
        spec=SPEC.model_dump(mode="json"),
        release=release(**changes).model_dump(mode="json"),
        gateway_url="http://gateway",
        ledger_conn_id="airlock_ledger",
        guards_only=guards_only,
        interval=0.01,
        polls=polls,
    )


@pytest.mark.parametrize(
    "trigger",
    [
        step_trigger(),
        VersionServedTrigger(model="toy", version=None, gateway_url="http://gateway"),
        LedgerTrigger(ledger_conn_id="l", release="r1", seen={"in_the_way": "r0"}),
        ApprovalTrigger(ledger_conn_id="l", release="r1", seen={"champion": None}, ti_id="t", expires_at="2026-01-01"),
    ],
)
def test_survives_a_trip_through_the_database(trigger: BaseTrigger) -> None:
    path, kwargs = trigger.serialize()
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(kwargs)))
    assert again.serialize() == (path, kwargs)


def test_waits_until_the_evidence_is_there(gateway: Callable[[list[Answer]], list[str]]) -> None:
    asked = gateway([httpx.ConnectError("down"), 503, status(generation=3), status(), status(**counted(50))])
    (event,) = events(step_trigger())
    assert event.payload["action"] == "advance"
    assert asked == ["GET /v1/models/toy/status"] * 5


def test_with_guards_only_neither_evidence_nor_a_deadline_wakes_it_up(
    gateway: Callable[[list[Answer]], list[str]],
) -> None:
    gateway([status(**counted(50)), status(observed_s=1e6), status(generation=9, observed_s=1e6)])
    with pytest.raises(TimeoutError):
        events(step_trigger(guards_only=True), seconds=0.5)


def test_with_guards_only_a_breach_wakes_it_up(gateway: Callable[[list[Answer]], list[str]]) -> None:
    bad = Tally(requests=500, errors=400, latency=[500] + [0] * 71)
    gateway([status(**counted(50)), status(step={"2": {"served": bad}}, total={"2": {"served": bad}})])
    (event,) = events(step_trigger(guards_only=True))
    assert event.payload["action"] == "roll_back"


def test_wakes_up_when_the_gateway_shows_that_the_ledger_moved_on(
    gateway: Callable[[list[Answer]], list[str]],
) -> None:
    gateway([status(), status(generation=5)])
    (event,) = events(step_trigger())
    assert event.payload["action"] == "wake"


def test_wakes_up_for_an_ejection(gateway: Callable[[list[Answer]], list[str]]) -> None:
    ejection = Ejection(
        model="toy",
        version="2",
        release="r1",
        generation=4,
        at=datetime.now(UTC),
        reason="raised too often",
        requests=60,
        seconds=1.0,
    )
    gateway([status(ejection=ejection)])
    (event,) = events(step_trigger())
    assert event.payload["action"] == "roll_back"
    assert "raised too often" in event.payload["reason"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The clock that runs while the triggerer does: so many seconds pass with each look at it."""

    def passes(seconds: float) -> None:
        now = iter(range(1_000_000))
        monkeypatch.setattr(release_trigger, "time", SimpleNamespace(monotonic=lambda: next(now) * seconds))

    return passes


HOURS_AGO = timedelta(hours=5)


def test_wakes_up_at_the_deadline_of_a_silent_gateway(
    gateway: Callable[[list[Answer]], list[str]], clock: Callable[[float], None]
) -> None:
    clock(900)
    asked = gateway([httpx.ConnectError("down")])
    (event,) = events(step_trigger(entered_at=datetime.now(UTC) - HOURS_AGO))
    assert event.payload["action"] == "roll_back"
    assert "the gateway does not answer" in event.payload["reason"]
    assert Polls.model_validate(event.payload["polls"]) == Polls(unanswered_s=3600.0)
    assert len(asked) == 4


def test_one_poll_in_vain_after_hours_of_downtime_wakes_nobody_up(
    gateway: Callable[[list[Answer]], list[str]], clock: Callable[[float], None]
) -> None:
    clock(1)
    asked = gateway([httpx.ConnectError("starting"), status(observed_s=21.0), status(observed_s=22.0, **counted(50))])
    before = {"observed_s": 20.0, "unanswered_s": 0.0}
    (event,) = events(step_trigger(entered_at=datetime.now(UTC) - HOURS_AGO, polls=before))
    assert event.payload["action"] == "advance"
    assert Polls.model_validate(event.payload["polls"]) == Polls(observed_s=22.0, unanswered_s=1.0, since=SINCE)
    assert len(asked) == 3


def test_goes_on_counting_where_the_operator_was(
    gateway: Callable[[list[Answer]], list[str]], clock: Callable[[float], None]
) -> None:
    clock(10)
    asked = gateway([httpx.ConnectError("down")])
    before = {"observed_s": 600.0, "unanswered_s": 2980.0}
    (event,) = events(step_trigger(entered_at=datetime.now(UTC) - HOURS_AGO, polls=before))
    assert event.payload["action"] == "roll_back"
    assert len(asked) == 2


def test_judges_by_the_limits_of_the_release_s_route(gateway: Callable[[list[Answer]], list[str]]) -> None:
    gateway([status(**counted(50))])
    trigger = step_trigger()
    assert events(trigger)[0].payload["action"] == "advance"
    unwatched = Limit(name="latency_p99", signal="slow", bound=0.01, alpha=0.01, minimum=5, over_ms=20)
    trigger = step_trigger()
    trigger.limits = [unwatched.model_dump(mode="json")]
    with pytest.raises(TimeoutError):
        events(trigger, seconds=0.3)


def test_what_is_no_status_is_no_evidence(gateway: Callable[[list[Answer]], list[str]]) -> None:
    gateway([404])
    with pytest.raises(TimeoutError):
        events(step_trigger(), seconds=0.2)


@pytest.mark.parametrize(("wanted", "served"), [("2", "2"), (None, "1")])
def test_a_version_is_served(gateway: Callable[[list[Answer]], list[str]], wanted: str | None, served: str) -> None:
    gateway([404, status(champion="2", loaded=()), status(champion=served)])
    (event,) = events(VersionServedTrigger(model="toy", version=wanted, gateway_url="http://gateway", interval=0.01))
    assert event.payload == {"version": served}
