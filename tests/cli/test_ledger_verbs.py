"""``airlock ledger``: where the tables stand, and bringing them up to date."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airlock.cli.app import app
from airlock.ledger import Ledger, schema

OLD = Path(__file__).parents[1] / "ledger" / "version_0_1_0" / "sqlite.sql"


@pytest.fixture
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "ledger.db"
    monkeypatch.setenv("AIRLOCK_LEDGER_URL", f"sqlite:///{file}")
    return file


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["ledger", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("verb", ["current", "upgrade"])
def test_help_has_an_example(verb: str) -> None:
    assert f"Example: airlock ledger {verb}" in " ".join(_run(verb, "--help").split())


def test_looking_makes_nothing(ledger_file: Path) -> None:
    said = json.loads(_run("current", "--json"))
    assert said == {
        "ledger": f"sqlite:///{ledger_file}",
        "revision": None,
        "newest": schema.HEAD,
        "current": False,
    }
    assert "airlock ledger upgrade" in _run("current")
    assert not ledger_file.exists()


def test_an_old_ledger_is_brought_up_to_date(ledger_file: Path) -> None:
    connection = sqlite3.connect(ledger_file)
    connection.executescript(OLD.read_text())
    connection.close()
    assert json.loads(_run("current", "--json"))["revision"] is None
    said = json.loads(_run("upgrade", "--json"))
    assert (said["before"], said["revision"]) == (None, schema.HEAD)
    assert "was up to date" in _run("upgrade")
    assert f"up to date, at revision {schema.HEAD}" in _run("current")
    assert Ledger(f"sqlite:///{ledger_file}").models() == ["flights"]


def test_a_ledger_that_does_not_answer(ledger_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql+psycopg://ann:secret@/airlock?host={ledger_file.parent}"
    monkeypatch.setenv("AIRLOCK_LEDGER_URL", url)
    result = CliRunner().invoke(app, ["ledger", "upgrade"])
    assert result.exit_code == 3
    assert "does not answer" in result.output
    assert "secret" not in result.output


def test_a_url_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRLOCK_LEDGER_URL", "ledger.db")
    result = CliRunner().invoke(app, ["ledger", "current"])
    assert result.exit_code == 3
    assert "sqlite:////var/lib/airlock/ledger.db" in " ".join(result.output.split())
