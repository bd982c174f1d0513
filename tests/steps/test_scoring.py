"""A batch is scored by the champion, whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from airlock.core.errors import AirlockError, DataInvalid, NotFound
from airlock.core.route import Bundle
from airlock.core.spec import Input, ModelSpec
from airlock.ledger import Ledger
from airlock.settings import Settings
from airlock.steps import scoring
from tests.support.tiny_models import bundle
from tests.support.toy_model import toy_rows, toy_settings, toy_spec

NUMBERS = {"price": Input(type="float"), "minute": Input(type="int")}


@dataclass
class Record:
    version: str
    bundle: Bundle


class Champion:
    """A ledger that knows one champion."""

    def __init__(self, record: Record | None) -> None:
        self.record = record

    def champion(self, model: str) -> Record | None:
        return self.record


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return cast("Any", Champion(Record("3", bundle(tmp_path / "bundle", model="toy", inputs=NUMBERS))))


@pytest.fixture
def partition(tmp_path: Path) -> Path:
    path = tmp_path / "part-1.parquet"
    toy_rows(120).to_parquet(path)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return toy_settings(tmp_path / "project")


SPEC: ModelSpec = toy_spec()


def test_scores_lie_beside_their_keys(settings: Settings, ledger: Ledger, partition: Path) -> None:
    told = scoring.score(SPEC, settings, ledger, str(partition))
    assert (told["rows"], told["version"], told["partition"]) == (120, "3", str(partition))
    scored = pd.read_parquet(told["path"])
    assert list(scored.columns) == ["visit", "at", "prediction", "probability", "version"]
    assert scored["visit"].tolist() == toy_rows(120)["visit"].tolist()
    assert np.array_equal(scored["prediction"], scored["probability"] >= 0.5)
    assert scoring.score(SPEC, settings, ledger, str(partition)) == told
    assert len([path for path in settings.scores.rglob("*") if path.is_file()]) == 1


def test_files_of_one_name_do_not_overwrite_each_other(settings: Settings, ledger: Ledger, partition: Path) -> None:
    other = partition.parent / "other" / partition.name
    other.parent.mkdir()
    toy_rows(10).to_parquet(other)
    assert len({scoring.score(SPEC, settings, ledger, str(path))["path"] for path in (partition, other)}) == 2


def test_what_cannot_be_scored_leaves_nothing(settings: Settings, ledger: Ledger, partition: Path) -> None:
    cases: list[tuple[Any, str, type[AirlockError], str]] = [
        (Champion(None), str(partition), NotFound, "no champion"),
        (ledger, str(partition.with_name("none.parquet")), NotFound, "not a file"),
    ]
    junk = partition.with_name("junk.parquet")
    junk.write_text("junk")
    cases.append((ledger, str(junk), DataInvalid, "no parquet file"))
    toy_rows(10).drop(columns="price").to_parquet(partition)
    cases.append((ledger, str(partition), DataInvalid, "price"))
    for who, path, error, said in cases:
        with pytest.raises(error, match=said):
            scoring.score(SPEC, settings, who, path)
    assert not settings.scores.exists()
