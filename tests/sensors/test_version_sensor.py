"""A sensor looks once, and defers only if it has to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferred

from airlock.core.errors import NotFound, Unavailable
from airlock.core.tally import GatewayStatus
from airlock.hooks.gateway import GatewayHook
from airlock.sensors.version import VersionServedSensor
from airlock.triggers.version import VersionServedTrigger


class Gateway:
    def __init__(self, champion: str | Exception) -> None:
        self.champion = champion

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def status(self, model: str) -> GatewayStatus:
        if isinstance(self.champion, Exception):
            raise self.champion
        return GatewayStatus(
            model=model,
            generation=1,
            checksum="",
            release=None,
            champion=self.champion,
            candidate=None,
            share=0,
            loaded=(self.champion,),
            since=datetime.now(UTC),
        )


def sensor(monkeypatch: pytest.MonkeyPatch, champion: str | Exception, version: str | None) -> VersionServedSensor:
    monkeypatch.setenv("AIRFLOW_CONN_AIRLOCK_GATEWAY", "http://127.0.0.1:9")
    monkeypatch.setattr(GatewayHook, "get_conn", lambda _: Gateway(champion))
    dag = DAG("d", schedule=None)
    return VersionServedSensor(task_id="served", dag=dag, model="toy", version=version, timeout=60)


@pytest.mark.parametrize("version", ["2", None])
def test_a_served_version_is_seen_at_once(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    sensor(monkeypatch, "2", version).execute({})


@pytest.mark.parametrize("champion", ["1", NotFound("no such model"), Unavailable("down")])
def test_anything_else_is_waited_for_by_a_trigger(monkeypatch: pytest.MonkeyPatch, champion: Any) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        sensor(monkeypatch, champion, "2").execute({})
    assert isinstance(deferred.value.trigger, VersionServedTrigger)
    assert deferred.value.trigger.version == "2"
    assert deferred.value.timeout == timedelta(minutes=1)
