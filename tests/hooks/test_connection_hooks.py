"""From an Airflow connection to a URL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airlock.hooks.gateway import GatewayHook
from airlock.hooks.ledger import LedgerHook
from airlock.hooks.registry import RegistryHook

URLS = [
    ('{"conn_type": "airlock_gateway", "host": "http://127.0.0.1:8502/"}', "http://127.0.0.1:8502"),
    ('{"conn_type": "airlock_gateway", "host": "gateway", "port": 80}', "http://gateway:80"),
    ("http://127.0.0.1:8502", "http://127.0.0.1:8502"),
    ("https://models.example:443", "https://models.example:443"),
    ('{"conn_type": "airlock_gateway", "host": "gateway"}', "http://gateway"),
]


@pytest.mark.parametrize(("connection", "url"), URLS)
def test_a_connection_is_one_url(connection: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MINE", connection)
    assert GatewayHook("mine").url == url
    assert RegistryHook("mine").run_url("r1") == f"{url}/#/runs/r1"
    assert GatewayHook("mine").get_conn().url == url


def test_a_connection_without_a_host_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MINE", '{"conn_type": "airlock_gateway"}')
    with pytest.raises(ValueError, match=r"'mine' has no host: write the URL there"):
        _ = GatewayHook("mine").url


def test_the_ledgers_password_is_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {"conn_type": "airlock_ledger", "host": "postgresql+psycopg://db/airlock", "login": "u", "password": "p@"}
    monkeypatch.setenv("AIRFLOW_CONN_MINE", json.dumps(secret))
    assert LedgerHook("mine").url == "postgresql+psycopg://u:p%40@db/airlock"


def test_the_ledger_needs_an_sqlalchemy_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MINE", '{"conn_type": "airlock_ledger", "host": "db"}')
    with pytest.raises(ValueError, match="no SQLAlchemy URL"):
        _ = LedgerHook("mine").url


def test_the_test_button_opens_the_ledger(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MINE", json.dumps({"conn_type": "airlock_ledger", "host": ledger_url}))
    assert LedgerHook("mine").test_connection() == (True, "the ledger answers")


def test_the_test_button_tells_why_the_ledger_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    down = f"postgresql+psycopg:///airlock?host={tmp_path}"
    secret = {"conn_type": "airlock_ledger", "host": down, "login": "u", "password": "hidden"}
    monkeypatch.setenv("AIRFLOW_CONN_MINE", json.dumps(secret))
    ready, said = LedgerHook("mine").test_connection()
    assert not ready
    assert "does not answer" in said
    assert "hidden" not in said


def test_the_test_button_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MINE", "http://127.0.0.1:9")
    ready, said = GatewayHook("mine").test_connection()
    assert not ready
    assert "127.0.0.1:9" in said
