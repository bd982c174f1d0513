"""A small client of Airflow's REST API: start runs, follow them, answer approvals.

Transport failures and server errors become :class:`Unavailable`, a missing thing :class:`NotFound`,
a second answer to an approval :class:`NotPossible`; any other refusal is an :class:`AirlockError` in
Airflow's words.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict

from airlock.core.errors import AirlockError, NotFound, NotPossible, Unavailable
from airlock.tls import trusted

_ATTEMPTS = 4
_PAGE = 100
FINISHED = frozenset({"success", "failed"})


class Run(BaseModel):
    """A DAG run."""

    model_config = ConfigDict(frozen=True)

    dag_id: str
    dag_run_id: str
    state: str
    run_type: str = ""
    conf: dict[str, Any] | None = None
    queued_at: datetime | None = None
    start_date: datetime | None = None
    end_date: datetime | None = None

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


class TaskRun(BaseModel):
    """A task of a DAG run; ``state`` is ``None`` until the scheduler reaches it."""

    model_config = ConfigDict(frozen=True)

    task_id: str
    state: str | None
    try_number: int
    map_index: int = -1
    start_date: datetime | None = None
    end_date: datetime | None = None
    duration: float | None = None


class Approval(BaseModel):
    """A question that waits for a person, or waited for one."""

    model_config = ConfigDict(frozen=True)

    dag_id: str
    dag_run_id: str
    task_id: str
    map_index: int
    subject: str
    body: str | None
    options: tuple[str, ...]
    answered: bool
    answer: tuple[str, ...] = ()


class AssetEvent(BaseModel):
    """An asset event and the runs that it started."""

    model_config = ConfigDict(frozen=True)

    uri: str
    extra: dict[str, Any]
    source_run_id: str | None
    created_runs: tuple[str, ...]
    timestamp: datetime


class AirflowApi:
    """Airflow as one user. Logs in on the first call and again when its token has run out."""

    def __init__(self, url: str, user: str, password: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._user = user
        self._password = password
        self._client = httpx.Client(base_url=url, timeout=20.0, transport=transport, verify=trusted())
        self._url = url
        self._token: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, run_id: str | None = None) -> Run:
        """Start a run. The same ``run_id`` gives the same run, however often it is asked for."""
        chosen = run_id or f"manual__{uuid.uuid4().hex[:12]}"
        body = {"dag_run_id": chosen, "logical_date": None, "conf": dict(conf or {})}
        try:
            return Run.model_validate(self._call("POST", f"/dags/{dag_id}/dagRuns", json=body))
        except NotPossible:
            return self.run(dag_id, chosen)

    def run(self, dag_id: str, run_id: str) -> Run:
        return Run.model_validate(self._call("GET", f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}"))

    def runs(self, dag_id: str, limit: int = 20) -> list[Run]:
        """The newest runs, the newest first."""
        said = self._call("GET", f"/dags/{dag_id}/dagRuns", params={"order_by": "-id", "limit": limit})
        return [Run.model_validate(run) for run in said["dag_runs"]]

    def tasks(self, dag_id: str, run_id: str) -> list[TaskRun]:
        """The run's tasks in the order in which they started; those that have not, last."""
        path = f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances"
        said = self._call("GET", path, params={"limit": _PAGE})
        found = [TaskRun.model_validate(task) for task in said["task_instances"]]
        return sorted(found, key=lambda task: (task.start_date is None, task.start_date or datetime.min))  # noqa: DTZ901

    def task_log(self, dag_id: str, run_id: str, task: TaskRun) -> list[str]:
        """What a task's last try wrote, line by line."""
        path = f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances/{task.task_id}/logs/{max(1, task.try_number)}"
        said = self._call("GET", path, params={"map_index": task.map_index}, headers={"Accept": "application/json"})
        return [_line(entry) for entry in said["content"]]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        path = f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/taskInstances/{task_id}/xcomEntries/{key}"
        return self._call("GET", path, params={"deserialize": False, "stringify": False})["value"]

    def approvals(self, dag_id: str, run_id: str = "~", *, waiting: bool = True) -> list[Approval]:
        """Questions of a DAG's runs, the oldest first; only those that wait for an answer unless told otherwise."""
        params: dict[str, Any] = {"limit": _PAGE, "order_by": "created_at"}
        if waiting:
            # An answer that comes after the question is written but before its task is parked is lost by Airflow.
            params |= {"response_received": False, "state": ["awaiting_input", "deferred"]}
        said = self._call("GET", f"/dags/{dag_id}/dagRuns/{_quoted(run_id)}/hitlDetails", params=params)
        return [
            Approval(
                dag_id=detail["task_instance"]["dag_id"],
                dag_run_id=detail["task_instance"]["dag_run_id"],
                task_id=detail["task_instance"]["task_id"],
                map_index=detail["task_instance"]["map_index"],
                subject=detail["subject"],
                body=detail["body"],
                options=tuple(detail["options"]),
                answered=detail["response_received"],
                answer=tuple(detail["chosen_options"] or ()),
            )
            for detail in said["hitl_details"]
        ]

    def answer(self, approval: Approval, option: str, params: Mapping[str, Any] | None = None) -> None:
        """Answer a question as this client's user.

        Raises:
            NotPossible: it was answered already.
        """
        path = (
            f"/dags/{approval.dag_id}/dagRuns/{_quoted(approval.dag_run_id)}"
            f"/taskInstances/{approval.task_id}/{approval.map_index}/hitlDetails"
        )
        self._call("PATCH", path, json={"chosen_options": [option], "params_input": dict(params or {})})

    def asset_events(self, uri: str, limit: int = 20) -> list[AssetEvent]:
        """The newest events of an asset, the newest first; none if the asset is not known."""
        found = self._call("GET", "/assets", params={"uri_pattern": uri, "limit": _PAGE})["assets"]
        asset = next((asset for asset in found if asset["uri"] == uri), None)
        if asset is None:
            return []
        said = self._call(
            "GET", "/assets/events", params={"asset_id": asset["id"], "order_by": "-timestamp", "limit": limit}
        )
        return [
            AssetEvent(
                uri=uri,
                extra=event["extra"] or {},
                source_run_id=event["source_run_id"],
                created_runs=tuple(run["run_id"] for run in event["created_dagruns"]),
                timestamp=event["timestamp"],
            )
            for event in said["asset_events"]
        ]

    def has_dag(self, dag_id: str) -> bool:
        try:
            self._call("GET", f"/dags/{dag_id}")
        except NotFound:
            return False
        return True

    def import_errors(self) -> dict[str, str]:
        """Why DAG files could not be read, by file."""
        said = self._call("GET", "/importErrors", params={"limit": _PAGE})
        return {error["filename"]: error["stack_trace"] for error in said["import_errors"]}

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        """One call, again after a failure of the transport or the server: all calls here are idempotent."""
        said = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(0.3 * 2**attempt)
            try:
                response = self._send(method, path, arguments)
            except httpx.HTTPError as error:
                said = str(error) or type(error).__name__
                continue
            if response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                return _content(response, method, path)
            said = f"{response.status_code} {response.text[:300]}"
        raise Unavailable(f"Airflow at {self._url} does not answer {method} {path}: {said}; is the stack up?")

    def _send(self, method: str, path: str, arguments: dict[str, Any]) -> httpx.Response:
        response = self._authorised(method, path, arguments)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._token = None
            response = self._authorised(method, path, arguments)
        return response

    def _authorised(self, method: str, path: str, arguments: dict[str, Any]) -> httpx.Response:
        if self._token is None:
            credentials = {"username": self._user, "password": self._password}
            login = self._client.post("/auth/token", json=credentials)
            if login.status_code == httpx.codes.UNAUTHORIZED:
                raise AirlockError(f"Airflow at {self._url} refused the password of {self._user}")
            login.raise_for_status()
            self._token = login.json()["access_token"]
        headers = {"Authorization": f"Bearer {self._token}", **arguments.get("headers", {})}
        return self._client.request(method, f"/api/v2{path}", **{**arguments, "headers": headers})


_RAISED = re.compile(r"^Task failed with exception (AirflowFailException: )?")


def why_failed(api: AirflowApi, run: Run) -> str:
    """The task that a run failed of, and its exception in words."""
    failed = next((task for task in api.tasks(run.dag_id, run.dag_run_id) if task.state == "failed"), None)
    if failed is None:
        return f"{run.dag_id} {run.dag_run_id} ended as {run.state}"
    try:
        lines = api.task_log(run.dag_id, run.dag_run_id, failed)
    except AirlockError:
        lines = []
    said = next((line for line in reversed(lines) if "exception" in line.lower()), "its log tells why")
    return f"{run.dag_id}: task {failed.task_id} failed: {_RAISED.sub('', said)}"


def _content(response: httpx.Response, method: str, path: str) -> Any:
    if response.is_success:
        return response.json()
    try:
        said = response.json().get("detail", response.text)
    except ValueError:
        said = response.text[:300]
    message = f"Airflow refused {method} {path}: {said}"
    if response.status_code == httpx.codes.NOT_FOUND:
        raise NotFound(message)
    if response.status_code == httpx.codes.CONFLICT:
        raise NotPossible(message)
    raise AirlockError(message)


def _line(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    details = entry.get("error_detail") or ()
    # The first is what was raised; the others are what it was raised from, which it has put into words.
    said = [f"{detail.get('exc_type')}: {detail.get('exc_value')}" for detail in details if isinstance(detail, dict)]
    return " ".join([str(entry.get("event", "")), *said[:1]])


def _quoted(run_id: str) -> str:
    """A run id as a path segment: it may hold ``+`` and ``:``."""
    return quote(run_id, safe="~")
