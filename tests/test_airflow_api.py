"""The client of Airflow's REST API, against a transport that plays Airflow."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from airlock import airflow_api
from airlock.airflow_api import AirflowApi
from airlock.core.errors import AirlockError, NotFound, NotPossible, Unavailable

Answer = Callable[[httpx.Request], httpx.Response]
PASSWORD = "open sesame"
RUN = {"dag_id": "m__train", "dag_run_id": "r1", "state": "queued", "run_type": "manual", "conf": {}}


class Airflow:
    """Logs in anybody who knows the password; other calls go to ``answer``."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.tokens = 0
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            if json.loads(request.content)["password"] != PASSWORD:
                return httpx.Response(401)
            self.tokens += 1
            return httpx.Response(201, json={"access_token": f"token-{self.tokens}"})
        self.requests.append(request)
        return self.answer(request)


def client(answer: Answer, password: str = PASSWORD) -> tuple[AirflowApi, Airflow]:
    airflow = Airflow(answer)
    return AirflowApi("http://airflow", "admin", password, transport=httpx.MockTransport(airflow)), airflow


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(airflow_api.time, "sleep", lambda _seconds: None)


def test_a_run_is_started_with_its_conf_and_no_logical_date() -> None:
    api, airflow = client(lambda _request: httpx.Response(200, json=RUN))
    run = api.trigger("m__train", {"until": "2013-04-01T00:00:00+00:00"}, run_id="r1")
    assert run.dag_run_id == "r1"
    assert not run.finished
    sent = json.loads(airflow.requests[0].content)
    assert sent == {"dag_run_id": "r1", "logical_date": None, "conf": {"until": "2013-04-01T00:00:00+00:00"}}
    assert airflow.requests[0].headers["Authorization"] == "Bearer token-1"


def test_starting_a_run_twice_gives_the_first() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return (
            httpx.Response(409, json={"detail": "exists"})
            if request.method == "POST"
            else httpx.Response(200, json=RUN)
        )

    api, _ = client(answer)
    assert api.trigger("m__train", {}, run_id="r1").dag_run_id == "r1"


def test_it_logs_in_again_when_its_token_has_run_out() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        old = request.headers["Authorization"] == "Bearer token-1"
        return httpx.Response(401) if old else httpx.Response(200, json=RUN)

    api, airflow = client(answer)
    assert api.run("m__train", "r1").state == "queued"
    assert airflow.tokens == 2


def test_a_wrong_password_is_told_and_not_tried_again() -> None:
    api, airflow = client(lambda _request: httpx.Response(200), password="guess")
    with pytest.raises(AirlockError, match="refused the password of admin"):
        api.run("m__train", "r1")
    assert airflow.requests == []


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (409, NotPossible), (422, AirlockError), (403, AirlockError), (503, Unavailable)],
)
def test_refusals_are_told_apart(status: int, error: type[AirlockError]) -> None:
    api, _ = client(lambda _request: httpx.Response(status, json={"detail": "because"}))
    with pytest.raises(error, match="because") as told:
        api.run("m__train", "r1")
    assert type(told.value) is error


def test_a_server_that_recovers_is_asked_again() -> None:
    answers = iter([httpx.Response(500), httpx.Response(502), httpx.Response(200, json=RUN)])
    api, airflow = client(lambda _request: next(answers))
    assert api.run("m__train", "r1").dag_run_id == "r1"
    assert len(airflow.requests) == 3


def test_no_server_is_unavailable() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    api, _ = client(refuse)
    with pytest.raises(Unavailable, match=r"connection refused; is the stack up\?"):
        api.run("m__train", "r1")


def test_only_parked_questions_are_offered_and_answered_by_name() -> None:
    detail = {
        "task_instance": {"dag_id": "m__release", "dag_run_id": "a+b", "task_id": "approve", "map_index": -1},
        "subject": "May it?",
        "body": None,
        "options": ["Approve", "Reject"],
        "response_received": False,
        "chosen_options": None,
    }
    api, airflow = client(lambda _request: httpx.Response(200, json={"hitl_details": [detail]}))
    (question,) = api.approvals("m__release", "a+b")
    asked = airflow.requests[0].url
    assert asked.params.get_list("state") == ["awaiting_input", "deferred"]
    assert b"a%2Bb" in asked.raw_path
    api.answer(question, "Approve", {"comment": "yes"})
    sent = airflow.requests[1]
    assert sent.method == "PATCH"
    assert json.loads(sent.content) == {"chosen_options": ["Approve"], "params_input": {"comment": "yes"}}
