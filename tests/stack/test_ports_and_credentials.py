"""Ports that are taken, and passwords that nobody chose."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from airlock import settings
from airlock.core.errors import Conflict, NotFound, Unavailable
from airlock.stack import Ports, PortTaken, exclusive, password_of, passwords_file, settings_of
from airlock.stack.credentials import ROLES, credentials
from airlock.stack.parts import PARTS, environment, parts
from airlock.stack.state import StackState, write_state
from tests.support.ports import free_base


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
    for name in ("MLFLOW", "GATEWAY", "AIRFLOW", "LEDGER"):
        monkeypatch.delenv(f"AIRLOCK_{name}_URL", raising=False)
    monkeypatch.setenv("AIRLOCK_HOME", str(tmp_path))
    (tmp_path / "stack").mkdir()
    return settings.load()


def test_a_taken_port_is_told_with_its_process_and_another_base() -> None:
    base = free_base()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 1))
        taken.listen()
        with pytest.raises(PortTaken) as told:
            Ports(base).require_free()
    assert f"port {base + 1} (mlflow)" in str(told.value)
    assert f"pid {os.getpid()}" in str(told.value)
    assert f"--port-base {base + 100}" in str(told.value)


def test_free_ports_are_free() -> None:
    Ports(free_base()).require_free()


def test_credentials_are_random_private_and_kept(home: settings.Settings, tmp_path: Path) -> None:
    first = credentials(home)
    assert credentials(home) == first
    assert len(set(first.passwords.values())) == len(ROLES)
    assert min(map(len, first.passwords.values())) >= 16
    for file in (passwords_file(home), home.stack / "airflow-keys.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = dataclasses.replace(home, home=tmp_path / "other")
    other.stack.mkdir(parents=True)
    assert set(credentials(other).passwords.values()).isdisjoint(first.passwords.values())
    for secret in (*first.passwords.values(), first.jwt_secret, first.fernet_key):
        assert secret not in repr(first)


def test_an_unknown_user_is_told_who_there_is(home: settings.Settings) -> None:
    credentials(home)
    with pytest.raises(NotFound, match="no user 'ann'; users: admin, approver, reviewer"):
        password_of(home, "ann")


def test_without_a_stack_there_is_no_password(home: settings.Settings) -> None:
    with pytest.raises(Unavailable, match="airlock up"):
        password_of(home, "admin")


def test_every_part_listens_on_loopback_and_reports_to_nobody(home: settings.Settings) -> None:
    env = environment(home, Ports(9100), "the-id")
    assert env["AIRLOCK_STACK_ID"] == "the-id"
    assert env["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert env["AIRFLOW__USAGE_DATA_COLLECTION__ENABLED"] == "False"
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert env["BENTOML_DO_NOT_TRACK"] == "True"
    assert json.loads(env["AIRFLOW_CONN_AIRLOCK_GATEWAY"])["host"] == home.gateway_url
    found = parts(home, Ports(9100), env)
    assert tuple(found) == PARTS
    assert all("0.0.0.0" not in part.command for part in found.values())  # noqa: S104 - what must not be there
    assert "127.0.0.1" in found["mlflow"].command
    assert "127.0.0.1" in found["gateway"].command


def test_settings_of_another_installation_do_not_leak_in(
    home: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://elsewhere")
    env = environment(home, Ports(9100), "id")
    assert env["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert "MLFLOW_BACKEND_STORE_URI" not in env


def test_urls_follow_the_running_stack_unless_given(home: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(home) == home
    write_state(home, StackState(stack_id="x", port_base=9100))
    assert settings_of(home).mlflow_url == "http://127.0.0.1:9101"
    monkeypatch.setenv("AIRLOCK_MLFLOW_URL", "http://mlflow.example")
    assert settings_of(settings.load()).mlflow_url == "http://mlflow.example"
    assert settings_of(settings.load()).gateway_url == "http://127.0.0.1:9102"


def test_only_one_process_starts_or_stops_a_stack(home: settings.Settings) -> None:
    with (
        exclusive(home),
        pytest.raises(Conflict, match=f"process {os.getpid()} is starting or stopping"),
        exclusive(home),
    ):
        pass
    with exclusive(home):
        pass
