"""Snapshots: the data of one training run, frozen under the hash of its content.

A snapshot is a folder with one parquet file a table and ``manifest.json``, which names every table's
digest, schema and row count. It is written beside its place and renamed into it, so that there is
either a whole one or none. It may be trained on once it has a passing verdict (see ``validation``).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from airlock.core.bundle import sha256
from airlock.core.errors import ArtifactCorrupt, DataInvalid
from airlock.core.refs import SnapshotRef, TrainingSetRef
from airlock.core.spec import ModelSpec
from airlock.settings import Settings
from airlock.steps.recipes import load_recipe

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MANIFEST = "manifest.json"
VERDICT = "verdict.json"
EVENT_TIMESTAMP = "event_timestamp"
"""The column of a feature table that says since when its row was known."""


class FrozenTable(BaseModel):
    """One table: the digest of its parquet file, its columns' types in order, its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    rows: int
    columns: dict[str, str]
    notes: dict[str, Any] = {}


class SnapshotManifest(BaseModel):
    """What a snapshot holds. Its bytes are what the snapshot's digest is of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    until: datetime
    options: dict[str, Any]
    tables: dict[str, FrozenTable]


def freeze(
    spec: ModelSpec, settings: Settings, *, until: datetime | None, options: Mapping[str, Any] | None = None
) -> SnapshotRef:
    """Freeze what the recipe loads as of ``until`` (aware; ``None``: everything there is).

    ``options`` go to the recipe's ``load`` and into the manifest. Rows of the events table older
    than ``data.history`` are left out.

    Raises:
        DataInvalid: a table cannot be frozen: no events, a column of mixed types, a naive or
            missing timestamp, or a row newer than ``until``. Nothing is left behind.
    """
    if until is not None and until.tzinfo is None:
        raise DataInvalid(f"{spec.model}: until {until.isoformat()} has no time zone; give one, such as {until}+00:00")
    options = dict(options or {})
    frames = load_recipe(spec, settings).load(until, **options)
    tables = {name: to_arrow(spec, name, frame) for name, frame in frames.items()}
    until = (until or _newest(spec, tables)).astimezone(UTC)
    tables[spec.data.table] = _events(spec, tables, until)
    for name, table in tables.items():
        _refuse_future(spec, name, table, until)
    notes = {name: {str(key): value for key, value in frame.attrs.items()} for name, frame in frames.items()}
    return _write(spec, settings, tables, until=until, options=options, notes=notes)


def read_manifest(snapshot: SnapshotRef | Path) -> SnapshotManifest:
    """The manifest of a snapshot.

    Raises:
        ArtifactCorrupt: it is missing, or not the one that the ref names.
    """
    folder = snapshot if isinstance(snapshot, Path) else Path(snapshot.path)
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise ArtifactCorrupt(f"snapshot {folder}: no readable {MANIFEST}; freeze the data again") from error
    if isinstance(snapshot, SnapshotRef) and sha256(raw) != snapshot.digest:
        raise ArtifactCorrupt(
            f"snapshot {folder}: {MANIFEST} is {sha256(raw)}, expected {snapshot.digest}; freeze the data again"
        )
    return SnapshotManifest.model_validate_json(raw)


def verify_snapshot(snapshot: SnapshotRef) -> SnapshotManifest:
    """Check every table's bytes against the manifest.

    Raises:
        ArtifactCorrupt: a file is missing or was changed.
    """
    manifest = read_manifest(snapshot)
    for name, frozen in manifest.tables.items():
        path = table_path(snapshot, name)
        got = sha256(path.read_bytes()) if path.is_file() else "missing"
        if got != frozen.digest:
            raise ArtifactCorrupt(f"snapshot table {path} is {got}, expected {frozen.digest}; freeze the data again")
    return manifest


def snapshot_of(spec: ModelSpec, settings: Settings, training_set: TrainingSetRef) -> SnapshotRef:
    """The snapshot that a training set was made from, verified.

    Raises:
        ArtifactCorrupt: it is gone or was changed.
    """
    folder = _place(settings, spec.model, training_set.snapshot)
    ref = SnapshotRef(path=str(folder), digest=training_set.snapshot, until=training_set.until, tables={})
    manifest = verify_snapshot(ref)
    return ref.model_copy(update={"tables": {name: table.rows for name, table in manifest.tables.items()}})


def _place(settings: Settings, model: str, digest: str) -> Path:
    return settings.snapshots / model / digest.removeprefix("sha256:")[:16]


def table_path(snapshot: SnapshotRef, table: str) -> Path:
    return Path(snapshot.path) / f"{table}.parquet"


def read_table(snapshot: SnapshotRef, table: str) -> pd.DataFrame:
    """One table of a snapshot."""
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(table_path(snapshot, table)).to_pandas()
    return frame


def to_arrow(spec: ModelSpec, name: str, frame: pd.DataFrame) -> pa.Table:
    """A table with its timestamps in UTC microseconds, as every tool of the chain can read them.

    Raises:
        DataInvalid: a column mixes types or holds naive timestamps.
    """
    import pyarrow as pa

    arrays: dict[str, pa.ChunkedArray] = {}
    for column in frame.columns:
        where = f"{spec.model}: {name}.{column}"
        try:
            array = pa.chunked_array([pa.Array.from_pandas(frame[column])])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataInvalid(f"{where} mixes types ({error}); make it one type in the recipe's load") from error
        if pa.types.is_timestamp(array.type):
            if array.type.tz is None:
                raise DataInvalid(
                    f"{where} holds naive timestamps ({len(array):,} rows); localise them to their time zone in the "
                    "recipe's load"
                )
            array = array.cast(pa.timestamp("us", tz="UTC"), safe=False)
        elif pa.types.is_large_string(array.type):
            array = array.cast(pa.string())
        arrays[str(column)] = array
    return pa.table(arrays)


def changes(old: SnapshotManifest, new: SnapshotManifest) -> list[str]:
    """What differs between two snapshots, in words; empty if their content is the same."""
    said = []
    if old.options != new.options:
        said.append(f"loaded with options {new.options} instead of {old.options}")
    said += [f"table {name} is gone" for name in sorted(old.tables.keys() - new.tables.keys())]
    added = sorted(new.tables.keys() - old.tables.keys())
    said += [f"table {name} is new ({new.tables[name].rows:,} rows)" for name in added]
    for name in sorted(old.tables.keys() & new.tables.keys()):
        said += _table_changes(name, old.tables[name], new.tables[name])
    return said


def _table_changes(name: str, old: FrozenTable, new: FrozenTable) -> list[str]:
    said = [f"{name}.{column} is gone" for column in old.columns if column not in new.columns]
    for column, kind in new.columns.items():
        if column not in old.columns:
            said.append(f"{name}.{column} is new ({kind})")
        elif old.columns[column] != kind:
            said.append(f"{name}.{column} is {kind}, was {old.columns[column]}")
    if old.rows != new.rows:
        said.append(f"{name} has {new.rows:,} rows, had {old.rows:,} ({new.rows - old.rows:+,})")
    elif old.digest != new.digest and not said:
        said.append(f"{name} has other values in the same {new.rows:,} rows")
    return said


def _newest(spec: ModelSpec, tables: Mapping[str, pa.Table]) -> datetime:
    import pyarrow.compute as pc

    events = _required(spec, tables)
    newest = [pc.max(events[name]).as_py() for name in (spec.data.event_time, spec.label.time) if name]
    stamps = [value for value in newest if isinstance(value, datetime)]
    if len(stamps) < len(newest):
        raise DataInvalid(
            f"{spec.model}: {spec.data.table} has {events.num_rows:,} rows but no newest {spec.data.event_time}; "
            "expected timestamps with a time zone"
        )
    return max(stamps)


def _required(spec: ModelSpec, tables: Mapping[str, pa.Table]) -> pa.Table:
    name = spec.data.table
    if name not in tables:
        raise DataInvalid(f"{spec.model}: the recipe's load returned {sorted(tables)}, expected a table {name!r}")
    wanted = [spec.data.key, spec.data.event_time, spec.label.name, *([spec.label.time] if spec.label.time else [])]
    if missing := [column for column in wanted if column not in tables[name].column_names]:
        raise DataInvalid(f"{spec.model}: {name} lacks the columns {missing}; it has {tables[name].column_names}")
    return tables[name]


def _events(spec: ModelSpec, tables: Mapping[str, pa.Table], until: datetime) -> pa.Table:
    """The events with complete timestamps, no older than the spec's history."""
    import pyarrow as pa
    import pyarrow.compute as pc

    events = _required(spec, tables)
    for column in filter(None, (spec.data.event_time, spec.label.time)):
        array = events[column]
        where = f"{spec.model}: {spec.data.table}.{column}"
        if not pa.types.is_timestamp(array.type):
            raise DataInvalid(f"{where} is {array.type}, expected timestamps with a time zone")
        if array.null_count:
            raise DataInvalid(f"{where} is missing in {array.null_count:,} of {len(array):,} rows; drop or repair them")
    if spec.data.history is not None:
        oldest = pa.scalar(until - spec.data.history, pa.timestamp("us", tz="UTC"))
        events = events.filter(pc.greater_equal(events[spec.data.event_time], oldest))
    return events


def _refuse_future(spec: ModelSpec, name: str, table: pa.Table, until: datetime) -> None:
    """Nothing may be known before its time: the label's for an event, ``event_timestamp`` elsewhere."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = (spec.data.event_time, spec.label.time) if name == spec.data.table else (EVENT_TIMESTAMP,)
    for column in columns:
        if column is None or column not in table.column_names:
            continue
        if not pa.types.is_timestamp(table[column].type):
            raise DataInvalid(f"{spec.model}: {name}.{column} is {table[column].type}, expected timestamps")
        newer = pc.sum(pc.greater(table[column], pa.scalar(until, pa.timestamp("us", tz="UTC")))).as_py() or 0
        if newer:
            raise DataInvalid(
                f"{spec.model}: {newer:,} of {table.num_rows:,} rows of {name} have a {column} after until "
                f"{until.isoformat()}: the future leaks in; let the recipe's load leave them out"
            )


def _write(
    spec: ModelSpec,
    settings: Settings,
    tables: Mapping[str, pa.Table],
    *,
    until: datetime,
    options: dict[str, Any],
    notes: Mapping[str, dict[str, Any]],
) -> SnapshotRef:
    import pyarrow.parquet as pq

    parent = settings.snapshots / spec.model
    parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(dir=parent, prefix=".making-"))
    try:
        frozen = {}
        for name, table in tables.items():
            path = making / f"{name}.parquet"
            pq.write_table(table, path, compression="zstd", coerce_timestamps="us")
            columns = {field.name: str(field.type) for field in table.schema}
            frozen[name] = FrozenTable(
                digest=sha256(path.read_bytes()), rows=table.num_rows, columns=columns, notes=notes[name]
            )
        manifest = SnapshotManifest(model=spec.model, until=until, options=options, tables=frozen)
        content = json.dumps(manifest.model_dump(mode="json"), indent=1).encode()
        (making / MANIFEST).write_bytes(content)
        digest = sha256(content)
        final = _place(settings, spec.model, digest)
        ref = SnapshotRef(
            path=str(final), digest=digest, until=until, tables={name: table.rows for name, table in frozen.items()}
        )
        try:
            making.rename(final)
        except OSError:
            verify_snapshot(ref)  # the same content was frozen before
        return ref
    finally:
        shutil.rmtree(making, ignore_errors=True)
