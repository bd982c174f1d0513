from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from airlock.core.errors import ArtifactCorrupt, DataInvalid
from airlock.core.refs import SnapshotRef
from airlock.settings import Settings
from airlock.steps import snapshot
from airlock.steps.recipes import load_recipe
from tests.support.tiny_data import tiny_project, tiny_spec, tiny_tables

UNTIL = datetime(2026, 1, 6, tzinfo=UTC)


class Project:
    """A tiny project; ``tables`` is what its recipe loads."""

    def __init__(self, folder: Path) -> None:
        self.settings: Settings = tiny_project(folder)
        self.tables = tiny_tables()

    def freeze(self, until: datetime | None = UNTIL, **changes: Any) -> SnapshotRef:
        spec = tiny_spec(**changes)
        recipe: Any = load_recipe(spec, self.settings)
        recipe.tables = self.tables
        return snapshot.freeze(spec, self.settings, until=until, options={})

    def left_behind(self) -> list[str]:
        folder = self.settings.snapshots / "tiny"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_snapshot_holds_what_was_known_and_says_what_it_holds(project: Project) -> None:
    ref = project.freeze()
    manifest = snapshot.verify_snapshot(ref)
    known = project.tables["events"][project.tables["events"]["known_at"] <= UNTIL]
    assert ref.tables["events"] == manifest.tables["events"].rows == len(known)
    assert manifest.until == ref.until == UNTIL
    assert list(manifest.tables["events"].columns) == list(known.columns)
    assert manifest.tables["events"].columns["at"] == "timestamp[us, tz=UTC]"
    pd.testing.assert_frame_equal(snapshot.read_table(ref, "events"), known, check_dtype=False)


def test_parquet_timestamps_are_microseconds_in_utc(project: Project) -> None:
    events = project.tables["events"]
    events["at"] = events["at"].dt.tz_convert("America/New_York").dt.as_unit("ns")
    ref = project.freeze()
    written = pq.read_schema(snapshot.table_path(ref, "events")).field("at").type
    assert (written.unit, written.tz) == ("us", "UTC")
    assert snapshot.read_table(ref, "events")["at"].iloc[0] == events["at"].iloc[0]


def test_the_same_content_is_one_snapshot(project: Project) -> None:
    assert project.freeze() == project.freeze()
    assert len(project.left_behind()) == 1


def test_one_changed_value_is_another_snapshot_and_is_said(project: Project) -> None:
    before = project.freeze()
    project.tables["sales"].loc[3, "sold"] += 1
    after = project.freeze()
    assert after.digest != before.digest
    said = snapshot.changes(snapshot.read_manifest(before), snapshot.read_manifest(after))
    assert said == [f"sales has other values in the same {after.tables['sales']} rows"]


def test_changes_are_said_in_words(project: Project) -> None:
    before = snapshot.read_manifest(project.freeze())
    project.tables["events"] = project.tables["events"].iloc[:-300].drop(columns="age").assign(colour="red")
    project.tables["events"]["bought"] = project.tables["events"]["bought"].astype("float64")
    project.tables["weather"] = pd.DataFrame({"rain": [1.0]})
    del project.tables["sales"]
    after = snapshot.read_manifest(project.freeze())
    said = snapshot.changes(before, after)
    assert "table sales is gone" in said
    assert "table weather is new (1 rows)" in said
    assert "events.age is gone" in said
    assert "events.colour is new (string)" in said
    assert "events.bought is double, was int64" in said
    assert any(line.startswith("events has 100 rows, had ") for line in said)
    assert snapshot.changes(before, before) == []


def test_a_changed_byte_is_noticed(project: Project) -> None:
    ref = project.freeze()
    path = snapshot.table_path(ref, "sales")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactCorrupt, match=r"sales\.parquet is sha256:.*freeze the data again"):
        snapshot.verify_snapshot(ref)


def test_a_changed_manifest_is_noticed(project: Project) -> None:
    ref = project.freeze()
    path = Path(ref.path) / snapshot.MANIFEST
    path.write_text(path.read_text().replace('"tiny"', '"tony"'))
    with pytest.raises(ArtifactCorrupt, match="expected sha256"):
        snapshot.read_manifest(ref)


def test_history_leaves_old_events_out(project: Project) -> None:
    spec = tiny_spec()
    short = spec.data.model_dump(mode="json", exclude_none=True) | {"history": "2d"}
    ref = project.freeze(data=short)
    assert snapshot.read_table(ref, "events")["at"].min() == UNTIL - timedelta(days=2)


def test_without_until_everything_is_known_by_the_newest_label(project: Project) -> None:
    ref = project.freeze(until=None)
    assert ref.until == project.tables["events"]["known_at"].max()
    assert ref.tables["events"] == len(project.tables["events"])


def _naive(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"]["at"] = tables["events"]["at"].dt.tz_localize(None)


def _missing_time(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"].loc[:6, "at"] = pd.NaT


def _mixed(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"]["age"] = tables["events"]["age"].astype(object)
    tables["events"].loc[4, "age"] = "forty"


def _text_time(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"]["at"] = tables["events"]["at"].astype(str)


def _no_label(tables: dict[str, pd.DataFrame]) -> None:
    tables["events"] = tables["events"].drop(columns="bought")


def _no_events(tables: dict[str, pd.DataFrame]) -> None:
    del tables["events"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_naive, r"events\.at holds naive timestamps \(\d+ rows\)"),
        (_missing_time, r"events\.at is missing in 7 of \d+ rows"),
        (_mixed, r"events\.age mixes types"),
        (_text_time, r"events\.at is string, expected timestamps with a time zone"),
        (_no_label, r"events lacks the columns \['bought'\]"),
        (_no_events, r"expected a table 'events'"),
    ],
)
def test_what_cannot_be_frozen_is_refused_and_leaves_nothing(project: Project, spoil: Any, said: str) -> None:
    spoil(project.tables)
    with pytest.raises(DataInvalid, match=said):
        project.freeze()
    assert project.left_behind() == []


def test_rows_from_the_future_are_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec()
    recipe: Any = load_recipe(spec, project.settings)
    monkeypatch.setattr(recipe, "load", lambda until: project.tables)
    with pytest.raises(DataInvalid, match=r"\d+ of 400 rows of events have a at after until .*the future leaks in"):
        snapshot.freeze(spec, project.settings, until=UNTIL)
    events = project.tables["events"]
    project.tables["events"] = events[events["known_at"] <= UNTIL]
    with pytest.raises(DataInvalid, match=r"rows of sales have a event_timestamp after until"):
        snapshot.freeze(spec, project.settings, until=UNTIL)
    assert project.left_behind() == []


def test_a_naive_until_is_refused(project: Project) -> None:
    with pytest.raises(DataInvalid, match="has no time zone"):
        project.freeze(until=datetime(2026, 1, 6))  # noqa: DTZ001 - the point
