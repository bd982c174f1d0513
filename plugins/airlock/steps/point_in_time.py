"""The point-in-time join: to every event what was known at its time, by Feast, looked up again by us."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from airlock.core.errors import DataInvalid, SpecError
from airlock.core.refs import SnapshotRef
from airlock.core.spec import Features, ModelSpec
from airlock.settings import Settings
from airlock.steps.feature_repo import View, open_repo, quiet
from airlock.steps.snapshot import EVENT_TIMESTAMP, read_manifest

if TYPE_CHECKING:
    import pyarrow as pa

_ROW = "airlock_row"
_AUDITED = 1000


def join(spec: ModelSpec, features: Features, settings: Settings, snapshot: SnapshotRef, events: pa.Table) -> pa.Table:
    """Feast's point-in-time join on its duckdb store, rows in the order of ``events``."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    asked = [*features.entities, *features.request]
    if missing := [name for name in asked if name not in events.column_names]:
        raise SpecError(f"{spec.model}: features name {missing}, which {spec.data.table} does not have")
    folder = Path(snapshot.path)
    with tempfile.TemporaryDirectory(prefix="airlock-feast-") as scratch, quiet():
        repo = open_repo(settings, features.service, tables=folder, private=Path(scratch))
        if missing := sorted(set(repo.views) - set(read_manifest(snapshot).tables)):
            raise DataInvalid(
                f"{spec.model}: feature service {features.service} reads the tables {missing}, which the recipe's "
                "load did not return"
            )
        repo.store.apply(repo.objects)
        entities = events.select(asked).append_column(_ROW, pa.array(np.arange(events.num_rows)))
        entities = entities.append_column(EVENT_TIMESTAMP, events[spec.data.event_time])
        job = repo.store.get_historical_features(entities.to_pandas(), repo.service)
        joined = job.to_arrow()
    joined = joined.take(pc.sort_indices(joined[_ROW]))
    if not joined[_ROW].combine_chunks().equals(pa.array(np.arange(events.num_rows))):
        raise DataInvalid(
            f"{spec.model}: the point-in-time join returned {joined.num_rows:,} rows for {events.num_rows:,} events; "
            "Feast lost or doubled some, nothing may be trained on this"
        )
    for view in repo.views.values():
        audit(spec, view, folder / f"{view.name}.parquet", joined)
    return joined


def audit(spec: ModelSpec, view: View, path: Path, joined: pa.Table) -> None:
    """Look a sample of rows up again in another way: the newest row that is not newer than the event.

    Raises:
        DataInvalid: something else was joined.
    """
    import duckdb
    import numpy as np

    step = max(1, joined.num_rows // _AUDITED)
    sample = joined.take(np.arange(0, joined.num_rows, step))
    keys = ", ".join(view.keys)
    on = " AND ".join(f"s.{key} = f.{key}" for key in view.keys)
    alive = f"AND s.{EVENT_TIMESTAMP} <= f.{EVENT_TIMESTAMP} + to_seconds({view.ttl.total_seconds()})"
    differs = " OR ".join(f"s.{name} IS DISTINCT FROM f.{name}" for name in view.features)
    query = (
        f"WITH earlier AS (SELECT s.{_ROW}, f.* FROM sample s JOIN read_parquet(?) f "  # noqa: S608 - Feast's names
        f"ON {on} AND f.{EVENT_TIMESTAMP} <= s.{EVENT_TIMESTAMP} {alive if view.ttl else ''}), "
        f"newest AS (SELECT * EXCLUDE ({keys}) FROM earlier "
        f"QUALIFY rank() OVER (PARTITION BY {_ROW} ORDER BY {EVENT_TIMESTAMP} DESC) = 1) "
        f"SELECT count(DISTINCT {_ROW}) FROM sample s LEFT JOIN newest f USING ({_ROW}) WHERE {differs}"
    )
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.register("sample", sample)
        row = connection.execute(query, [str(path)]).fetchone()
    wrong = row[0] if row else 0
    if wrong:
        raise DataInvalid(
            f"{spec.model}: {wrong:,} of {sample.num_rows:,} audited rows got values of feature view {view.name} that "
            f"are not those of the newest row at their {spec.data.event_time}; look for two rows of one entity with "
            f"the same {EVENT_TIMESTAMP} in the recipe's table {view.name}"
        )
