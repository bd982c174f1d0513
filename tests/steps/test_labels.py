"""Labels arrive late, more than once and corrected."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from airlock.core.errors import DataInvalid
from airlock.settings import Settings
from airlock.steps import labels
from tests.support.prediction_files import write_log
from tests.support.toy_model import UNTIL, toy_rows, toy_settings, toy_spec

SPEC = toy_spec()
SINCE = UNTIL - timedelta(days=2)


@pytest.fixture
def served(tmp_path: Path) -> tuple[Settings, pd.DataFrame]:
    settings, rows = toy_settings(tmp_path), toy_rows(200)
    write_log(SPEC, settings, rows, np.linspace(0, 1, len(rows)))
    return settings, rows


def _files(settings: Settings) -> list[Path]:
    return sorted(settings.labels.rglob("*"))


def test_only_labels_known_by_then_are_joined(served: tuple[Settings, pd.DataFrame]) -> None:
    settings, rows = served
    assert labels.joined(SPEC, settings, SINCE, UNTIL).empty
    assert labels.deliver(SPEC, settings, rows) == 200
    joined = labels.joined(SPEC, settings, SINCE, UNTIL)
    known = rows[(rows["at"] >= SINCE) & (rows["known_at"] < UNTIL)]
    assert joined["key"].tolist() == known["visit"].tolist()
    assert joined["label"].tolist() == known["bought"].tolist()
    assert len(joined) < len(rows[rows["at"] >= SINCE])


def test_the_same_labels_again_change_nothing(served: tuple[Settings, pd.DataFrame]) -> None:
    settings, rows = served
    labels.deliver(SPEC, settings, rows)
    before = _files(settings)
    labels.deliver(SPEC, settings, rows.sample(frac=1, random_state=1))
    assert _files(settings) == before
    assert len(labels.joined(SPEC, settings, SINCE, UNTIL)) == len(set(labels.joined(SPEC, settings, SINCE, UNTIL).key))


def test_the_later_label_of_a_key_holds(served: tuple[Settings, pd.DataFrame]) -> None:
    settings, rows = served
    labels.deliver(SPEC, settings, rows)
    corrected = rows.iloc[[100]].assign(bought=1 - rows["bought"].iloc[100])
    corrected["known_at"] += pd.Timedelta(minutes=1)
    labels.deliver(SPEC, settings, corrected)
    joined = labels.joined(SPEC, settings, SINCE, UNTIL).set_index("key")["label"]
    assert joined[rows["visit"].iloc[100]] == 1 - rows["bought"].iloc[100]
    assert joined.index.is_unique


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rows: rows.drop(columns="bought"), "bought"),
        (lambda rows: rows.assign(known_at=rows["known_at"].dt.tz_localize(None)), "time zone"),
        (lambda rows: rows.assign(bought=rows["bought"].where(rows.index != 3)), "1 of 200"),
    ],
)
def test_spoilt_labels_are_refused_whole(tmp_path: Path, spoil: object, said: str) -> None:
    settings = toy_settings(tmp_path)
    with pytest.raises(DataInvalid, match=said):
        labels.deliver(SPEC, settings, spoil(toy_rows(200)))  # type: ignore[operator]
    assert not _files(settings)


def test_a_model_whose_labels_have_no_time(served: tuple[Settings, pd.DataFrame]) -> None:
    settings, rows = served
    spec = toy_spec(label={"name": "bought"})
    labels.deliver(spec, settings, rows)
    assert len(labels.joined(spec, settings, SINCE, UNTIL)) == int(((rows["at"] >= SINCE) & (rows["at"] < UNTIL)).sum())


def test_the_share_of_labels_that_has_come_by_version(tmp_path: Path) -> None:
    settings, rows = toy_settings(tmp_path), toy_rows(200)
    spec = toy_spec(label={"name": "bought", "time": "known_at", "maturity": "5h"})
    write_log(spec, settings, rows.iloc[:120], np.linspace(0, 1, 120), version="1")
    write_log(spec, settings, rows.iloc[120:], np.linspace(0, 1, 80), version="2")
    assert labels.coverage(spec, settings, SINCE, SINCE) == ()
    bare = labels.coverage(spec, settings, SINCE, UNTIL)
    assert [(found.version, found.labelled, found.share) for found in bare] == [("1", 0, 0.0), ("2", 0, 0.0)]
    labels.deliver(spec, settings, rows.iloc[::2])
    labels.deliver(spec, settings, rows.iloc[[0]].assign(known_at=rows["known_at"].iloc[0] + pd.Timedelta(minutes=1)))
    for found, part in zip(
        labels.coverage(spec, settings, SINCE, UNTIL), (rows.iloc[:120], rows.iloc[120:]), strict=True
    ):
        asked = part[(part["at"] >= SINCE) & (part["at"] < UNTIL)]
        due = asked[asked["at"] <= UNTIL - timedelta(hours=5)]
        labelled = due[(due.index % 2 == 0) & (due["known_at"] < UNTIL)]
        assert found[1:] == (len(asked), len(due), len(labelled))
        assert found.share == len(labelled) / len(due)


def test_nothing_due_has_no_share(served: tuple[Settings, pd.DataFrame]) -> None:
    settings, _ = served
    spec = toy_spec(label={"name": "bought", "time": "known_at", "maturity": "30d"})
    (found,) = labels.coverage(spec, settings, SINCE, UNTIL)
    assert (found.due, found.share) == (0, None)
