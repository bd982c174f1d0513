"""What a demo writes down, and what it may remove."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from airlock.core.errors import NotPossible
from airlock.demo.home import fresh_home
from airlock.demo.progress import Progress, shares
from airlock.demo.summary import Act, Champion, Client, Rollback, RouteChange, Summary, quantile_ms


def summary() -> Summary:
    return Summary(
        ok=True,
        seconds=300.0,
        peak_memory_mb=2900.5,
        acts=(Act(name="train", ok=True, seconds=40.0, detail="version 1"),),
        client=Client(requests=10, failed=0, p50_ms=9.5, p99_ms=30.0),
        routes=(RouteChange(at=datetime(2026, 1, 1, tzinfo=UTC), generation=1, weights={"1": 100.0}, reason="first"),),
        champion=Champion(version="1", digest="sha256:00"),
        rollback=Rollback(requests_to_detect=80, seconds_to_detect=1.5, failed_requests=0),
        urls={"airflow": "http://127.0.0.1:8500"},
    )


def test_the_file_has_the_agreed_keys(tmp_path: Path) -> None:
    summary().write(tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found) == {
        *("ok", "seconds", "peak_memory_mb", "acts", "client", "routes", "champion", "rollback", "urls"),
    }
    assert set(found["acts"][0]) == {"name", "ok", "seconds", "detail"}
    assert set(found["client"]) == {"requests", "failed", "p50_ms", "p99_ms"}
    assert set(found["routes"][0]) == {"at", "generation", "weights", "reason"}
    assert set(found["champion"]) == {"version", "digest"}
    assert set(found["rollback"]) == {"requests_to_detect", "seconds_to_detect", "failed_requests"}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_quantiles_of_none_and_of_many() -> None:
    assert quantile_ms([], 0.5) is None
    assert quantile_ms([0.004], 0.99) == 4.0
    hundred = [i / 1000 for i in range(101)]
    assert quantile_ms(hundred, 0.5) == 50.0
    assert quantile_ms(hundred, 0.99) == 99.0


def test_a_demo_empties_its_own_folder_only(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    assert not fresh_home(home)
    (home / "ledger.db").write_text("old")
    (home / "mlflow").mkdir()
    (home / "mlflow" / "x").write_text("old")
    (home / "link").symlink_to(tmp_path)
    assert fresh_home(home)
    assert sorted(path.name for path in home.iterdir()) == [".made-by-airlock-demo"]
    assert tmp_path.exists()
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(NotPossible, match="--home"):
        fresh_home(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_shares_are_told_champion_first() -> None:
    assert shares({"2": 5.0, "1": 95.0}, "1", ()) == "v1 95 %, v2 5 %"
    assert shares({"1": 100.0, "2": 0.0}, "1", ("2",)) == "v1 100 %, v2 in shadow"


def test_without_a_terminal_there_are_lines_only() -> None:
    file = io.StringIO()
    progress = Progress(Console(file=file, width=200))
    with progress.shown():
        progress.act(1, "train", "the first training")
        progress.task("m__train", "freeze_snapshot", "running", None)
        progress.task("m__train", "freeze_snapshot", "success", 1.25)
        progress.route({"1": 100.0}, "1", (), "promoted")
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert "act 1  train: the first training" in lines[0]
    assert "train.freeze_snapshot success 1.2 s" in lines[1]
    assert "traffic v1 100 %  (promoted)" in lines[2]
    assert progress.now.task == "train.freeze_snapshot"
    assert "\x1b" not in file.getvalue()
