"""Release control on a real ledger and real route files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airlock.control import ReleaseControl
from airlock.ledger import Ledger
from airlock.settings import Settings
from tests.support.control import Clock, FakeAliases, spec_of


@pytest.fixture
def settings(tmp_path: Path, empty_ledger: Path) -> Settings:
    shutil.copy(empty_ledger, tmp_path / "ledger.db")
    return Settings(
        project=tmp_path,
        home=tmp_path,
        mlflow_url="http://127.0.0.1:1",
        gateway_url="http://127.0.0.1:1",
        airflow_url="http://127.0.0.1:1",
        ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}",
    )


@pytest.fixture
def aliases() -> FakeAliases:
    return FakeAliases()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_control(settings: Settings, aliases: FakeAliases, clock: Clock) -> Callable[..., ReleaseControl]:
    """Controllers of one model on one ledger; the spec's parts that differ from the usual are given by name."""

    def make(**changes: Any) -> ReleaseControl:
        return ReleaseControl(
            spec_of(**changes),
            settings,
            Ledger(settings.ledger_url),
            aliases=aliases,
            clock=clock,
            patience=Clock.patience,
        )

    return make


@pytest.fixture
def control(make_control: Callable[..., ReleaseControl]) -> ReleaseControl:
    return make_control()
