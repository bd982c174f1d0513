"""Features through Feast: point-in-time training sets, and the online store that the gateway reads.

A training set has a registry of its own, whose sources are the snapshot's files; it never touches
the online one. The online registry is written beside its place and renamed into it, because Feast
writes it in place and a reader could see half of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airlock.core.bundle import sha256
from airlock.core.errors import DataInvalid, SpecError
from airlock.core.refs import SnapshotRef, TrainingSetRef
from airlock.core.spec import Features, ModelSpec
from airlock.settings import Settings
from airlock.steps import leaks, point_in_time
from airlock.steps.feature_parity import feature_values
from airlock.steps.feature_repo import Repo, open_repo, quiet, repo_digest
from airlock.steps.recipes import load_recipe
from airlock.steps.snapshot import EVENT_TIMESTAMP, table_path, to_arrow, verify_snapshot
from airlock.steps.validation import recorded, require_valid

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def training_set(spec: ModelSpec, settings: Settings, snapshot: SnapshotRef) -> TrainingSetRef:
    """The rows to learn from: one a labelled event, with every input as it was at the event's time.

    Columns: key, event time, label, label time, the entities, then the inputs in the spec's order
    (``float`` inputs as float32). Without ``features`` the inputs are columns of the events table.
    Rows are in event order. What the spec's feature parity gates compare is gathered along with it.

    Raises:
        DataInvalid: the snapshot was not validated, a row was lost, or something leaks.
        SpecError: an input that neither the events nor the feature service have.
    """
    verdict = recorded(spec, snapshot)
    if verdict is None:
        raise DataInvalid(
            f"{spec.model}: snapshot {snapshot.path} was not validated by the rules that the spec has now; nothing may "
            "be trained on it yet"
        )
    require_valid(verdict)
    manifest = verify_snapshot(snapshot)
    identity = [snapshot.digest, spec.model_dump_json(include={"data", "label", "inputs", "features", "task"})]
    identity += [] if spec.features is None else [repo_digest(settings)]
    folder = settings.runs / spec.model / Path(snapshot.path).name
    path = folder / f"training_set-{hashlib.sha256('|'.join(identity).encode()).hexdigest()[:16]}.parquet"
    if not path.is_file():
        frame = _assemble(spec, settings, snapshot)
        leaks.check_leaks(spec, frame)
        folder.mkdir(parents=True, exist_ok=True)
        making = path.with_suffix(f".{os.getpid()}")
        frame.to_parquet(making, index=False, compression="zstd", coerce_timestamps="us")
        making.replace(path)
    ref = TrainingSetRef(
        path=str(path),
        digest=sha256(path.read_bytes()),
        snapshot=snapshot.digest,
        until=snapshot.until,
        rows=manifest.tables[spec.data.table].rows,
    )
    feature_values(spec, settings, ref)
    return ref


def _assemble(spec: ModelSpec, settings: Settings, snapshot: SnapshotRef) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    events = pq.read_table(table_path(snapshot, spec.data.table))
    times = events[spec.data.event_time]
    if getattr(times.type, "tz", None) is None or times.null_count:
        raise DataInvalid(
            f"{spec.model}: {spec.data.table}.{spec.data.event_time} is {times.type} with {times.null_count:,} missing "
            "of {len(times):,}; expected timestamps with a time zone in every row"
        )
    events = events.take(pc.sort_indices(events, [(spec.data.event_time, "ascending"), (spec.data.key, "ascending")]))
    known = [spec.data.key, spec.data.event_time, spec.label.name]
    known += [spec.label.time] if spec.label.time else []
    joined = events
    if spec.features is not None:
        known += spec.features.entities
        joined = point_in_time.join(spec, spec.features, settings, snapshot, events)
    columns = {name: events[name] for name in known}
    for name in spec.inputs:
        source = events if name in events.column_names else joined
        if name not in source.column_names:
            where = f"nor in feature service {spec.features.service}" if spec.features else "and there are no features"
            raise SpecError(f"{spec.model}: input {name!r} is not a column of {spec.data.table} {where}")
        columns[name] = source[name]
    if joined.num_rows != events.num_rows:
        raise DataInvalid(f"{spec.model}: {events.num_rows:,} events became {joined.num_rows:,} rows")
    frame: pd.DataFrame = pa.table(columns).to_pandas()
    floats = {name: "float32" for name, kind in spec.inputs.items() if kind.type == "float"}
    return frame.astype(floats)


def apply_online(spec: ModelSpec, settings: Settings) -> bool:
    """Bring the online registry and the online store's tables up to the definitions.

    Returns:
        Whether there was anything to do.
    """
    features = _features(spec)
    marker = settings.feast_home / "applied" / spec.model
    wanted = hashlib.sha256(f"{repo_digest(settings)} {features.service} {_offline(settings)}".encode()).hexdigest()
    settings.feast_home.mkdir(parents=True, exist_ok=True)
    with _exclusive(settings):
        if marker.is_file() and marker.read_text() == wanted and _registry(settings).is_file():
            return False
        with _changed_registry(settings, features.service) as repo:
            repo.store.apply(repo.objects)
        with contextlib.closing(sqlite3.connect(_online(settings))) as connection:
            # Readers go on while a push writes; the mode stays with the file.
            connection.execute("PRAGMA journal_mode=WAL")
        marker.parent.mkdir(exist_ok=True)
        making = marker.with_suffix(".making")
        making.write_text(wanted)
        making.replace(marker)
    return True


def materialize(
    spec: ModelSpec,
    settings: Settings,
    until: datetime,
    *,
    now: datetime | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Fill the online store with the newest feature rows as of ``until``.

    The recipe's tables as of ``until`` become Feast's offline tables, and Feast materialises each
    view from them. ``now`` is what counts as the present (default: the clock). A view that was
    pushed newer rows keeps them: Feast would overwrite them without looking at their time.

    Returns:
        Rows of the offline tables by view that was materialised.

    Raises:
        DataInvalid: ``until`` is naive, or lies in the future: a row from there would hide newer ones.
    """
    features = _features(spec)
    now = now or datetime.now(UTC)
    if until.tzinfo is None:
        raise DataInvalid(f"{spec.model}: until {until.isoformat()} has no time zone")
    if until > now:
        raise DataInvalid(
            f"{spec.model}: materialising up to {until.isoformat()} is refused, it is {now.isoformat()} now: later "
            "runs would skip what arrives before then; give a time that has passed"
        )
    apply_online(spec, settings)
    frames = load_recipe(spec, settings).load(until, **(options or {}))
    rows = {}
    with _exclusive(settings), _changed_registry(settings, features.service) as repo, quiet():
        for name, view in repo.views.items():
            if (held := _newest_pushed(settings, name)) is not None and held > until:
                log.info("%s: %s online is of %s already, newer than %s", spec.model, name, held, until)
                continue
            rows[name] = _publish(spec, settings, name, frames[name])
            start = until - view.ttl if view.ttl else datetime(1970, 1, 1, tzinfo=UTC)
            repo.store.materialize(start, until, feature_views=[name])
    return rows


def push(spec: ModelSpec, settings: Settings, view: str, frame: pd.DataFrame) -> int:
    """Write rows of one view to the online store, while the gateway goes on reading it.

    Args:
        frame: the view's join keys, its features and ``event_timestamp`` (aware). A missing value
            overwrites what was there.

    Returns:
        How many rows were written.

    Raises:
        DataInvalid: a column is missing, or a timestamp is naive or missing.
        SpecError: the spec's feature service has no such view.
    """
    if frame.empty:
        return 0
    online = _online_views(spec, settings)
    if view not in online.views:
        raise SpecError(f"{spec.model}: no feature view {view!r} in {online.service.name}; it has {list(online.views)}")
    known = online.views[view]
    wanted = [*known.keys, EVENT_TIMESTAMP, *known.features]
    if missing := [name for name in wanted if name not in frame.columns]:
        raise DataInvalid(f"{spec.model}: rows for {view} lack {missing}")
    stamps = frame[EVENT_TIMESTAMP]
    if getattr(stamps.dt, "tz", None) is None or stamps.isna().any():
        raise DataInvalid(
            f"{spec.model}: {view}.{EVENT_TIMESTAMP} is {stamps.dtype} with {int(stamps.isna().sum()):,} missing of "
            f"{len(frame):,}; expected timestamps with a time zone in every row"
        )
    # Not write_to_online_store: it skips a frame whose features are all missing, and old values would stay.
    online.provider.ingest_df(online.stored[view], frame[wanted])
    _note_pushed(settings, view, stamps.max().to_pydatetime())
    return len(frame)


@contextlib.contextmanager
def _exclusive(settings: Settings) -> Iterator[None]:
    """One writer of the online registry at a time, in any process."""
    with (settings.feast_home / "registry.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _changed_registry(settings: Settings, service: str) -> Iterator[Repo]:
    """A copy of the online registry to work on; it takes the registry's place if all went well."""
    registry = _registry(settings)
    copy = registry.with_suffix(".making")
    copy.unlink(missing_ok=True)
    if registry.is_file():
        shutil.copyfile(registry, copy)
    try:
        with quiet():
            yield open_repo(settings, service, tables=_offline(settings), registry=copy)
        copy.replace(registry)
    finally:
        copy.unlink(missing_ok=True)


_opened: dict[tuple[Path, str, str], Repo] = {}


def _online_views(spec: ModelSpec, settings: Settings) -> Repo:
    """The online repository, opened once a process and definition."""
    service = _features(spec).service
    key = (settings.feast_home, service, repo_digest(settings))
    if key not in _opened:
        apply_online(spec, settings)
        with quiet():
            _opened[key] = open_repo(settings, service, tables=_offline(settings))
    return _opened[key]


def _publish(spec: ModelSpec, settings: Settings, name: str, frame: pd.DataFrame) -> int:
    """Put one table where the online views' sources are."""
    import pyarrow.parquet as pq

    folder = _offline(settings)
    folder.mkdir(parents=True, exist_ok=True)
    making = folder / f"{name}.making"
    pq.write_table(to_arrow(spec, name, frame), making, compression="zstd", coerce_timestamps="us")
    making.replace(folder / f"{name}.parquet")
    return len(frame)


def _newest_pushed(settings: Settings, view: str) -> datetime | None:
    """The newest event time of the last push to a view."""
    note = settings.feast_home / "pushed" / view
    return datetime.fromisoformat(note.read_text()) if note.is_file() else None


def _note_pushed(settings: Settings, view: str, newest: datetime) -> None:
    note = settings.feast_home / "pushed" / view
    note.parent.mkdir(exist_ok=True)
    making = note.with_suffix(".making")
    making.write_text(newest.isoformat())
    making.replace(note)


def _features(spec: ModelSpec) -> Features:
    if spec.features is None:
        raise SpecError(f"{spec.model} has no features: there is nothing to keep online")
    return spec.features


def _registry(settings: Settings) -> Path:
    return settings.feast_home / "registry.db"


def _online(settings: Settings) -> Path:
    return settings.feast_home / "online.db"


def _offline(settings: Settings) -> Path:
    return settings.feast_home / "offline"
