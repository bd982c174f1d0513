"""Evidence for the feature parity gate: the same entities' features online and by the point-in-time join.

Both sides start from the tables of the candidate's snapshot and are asked at the same moment, the newest event
of the compared rows. The online side is filled by Feast's materialisation into a store of its own and read as
the gateway reads: join keys that are missing match nothing, and a row past its view's TTL counts as missing. What
is compared are the inputs as the model takes them.

They are kept in a file beside the training set: the task that makes it has Feast at hand, which the task that
judges would take seconds to import.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from airlock.core.errors import AirlockError
from airlock.core.gates import FeatureValues
from airlock.core.refs import SnapshotRef, TrainingSetRef
from airlock.core.spec import FeatureParityGate, Features, ModelSpec
from airlock.settings import Settings
from airlock.steps import point_in_time
from airlock.steps.feature_repo import Repo, open_repo, quiet
from airlock.steps.snapshot import read_table, snapshot_of, table_path

_ROW = "row"
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def feature_values(spec: ModelSpec, settings: Settings, training_set: TrainingSetRef) -> FeatureValues | None:
    """What the spec's feature parity gates compare: as many of the newest entity rows as they ask for.

    It is gathered once a training set, with the definitions of that time. What keeps it from being had is
    told, not raised. ``None`` without such a gate.
    """
    rows = max((gate.rows for gate in spec.gates if isinstance(gate, FeatureParityGate)), default=0)
    if not rows:
        return None
    if spec.features is None:
        return FeatureValues(
            problem=f"{spec.model} has no features: its inputs come with the request, so there is no online store to "
            "compare with; remove the gate, or declare the features"
        )
    path = Path(training_set.path)
    kept = path.with_name(f"{path.stem}-features-{rows}.parquet")
    try:
        if not kept.is_file():
            _write(_both(spec, spec.features, settings, training_set, rows), kept)
        return _read(kept)
    except AirlockError as error:
        return FeatureValues(problem=str(error))
    except Exception as error:  # noqa: BLE001 - Feast and its stores raise whatever their drivers do
        return FeatureValues(problem=f"Feast did not give the features: {type(error).__name__}: {error}")


def _write(values: FeatureValues, path: Path) -> None:
    sides = {"online": values.online, "offline": values.offline}
    columns = {f"{side} {name}": array for side, arrays in sides.items() for name, array in arrays.items()}
    making = path.with_suffix(f".{os.getpid()}")
    pd.DataFrame({_ROW: values.rows, **columns}).to_parquet(making, index=False)
    making.replace(path)


def _read(path: Path) -> FeatureValues:
    frame = pd.read_parquet(path)
    online, offline = (
        {name.removeprefix(side): frame[name].to_numpy() for name in frame.columns if name.startswith(side)}
        for side in ("online ", "offline ")
    )
    return FeatureValues(online=online, offline=offline, rows=tuple(frame[_ROW]))


def _both(
    spec: ModelSpec, features: Features, settings: Settings, training_set: TrainingSetRef, count: int
) -> FeatureValues:
    import pyarrow as pa

    snapshot = snapshot_of(spec, settings, training_set)
    events = _newest(spec, features, snapshot, count)
    at: datetime = events[spec.data.event_time].iloc[-1].to_pydatetime()
    together = pa.Table.from_pandas(events.assign(**{spec.data.event_time: at}), preserve_index=False)
    made = [name for name in spec.inputs if name not in _columns(spec, snapshot)]
    offline = point_in_time.join(spec, features, settings, snapshot, together)
    online = _read_online(features, settings, snapshot, events, at)
    return FeatureValues(
        online={name: _as_input(spec, name, online[name]) for name in made},
        offline={name: _as_input(spec, name, offline[name].to_pylist()) for name in made},
        rows=tuple(_named(features, row, at) for row in events.to_dict("records")),
    )


def _columns(spec: ModelSpec, snapshot: SnapshotRef) -> list[str]:
    """Columns of the events table: inputs of these names come with the event, not from a feature view."""
    import pyarrow.parquet as pq

    names: list[str] = pq.read_schema(table_path(snapshot, spec.data.table)).names
    return names


def _newest(spec: ModelSpec, features: Features, snapshot: SnapshotRef, count: int) -> pd.DataFrame:
    """The newest events, one for each combination of entities, the newest last."""
    wanted = [*dict.fromkeys([spec.data.event_time, *features.entities, *features.request])]
    events = read_table(snapshot, spec.data.table)[wanted].sort_values(spec.data.event_time, kind="stable")
    return events.drop_duplicates(list(features.entities), keep="last").tail(count)


def _read_online(
    features: Features, settings: Settings, snapshot: SnapshotRef, events: pd.DataFrame, at: datetime
) -> dict[str, list[Any]]:
    """Every feature of the service as the gateway would get it at ``at``."""
    rows = {name: [None if pd.isna(value) else value for value in events[name].tolist()] for name in features.request}
    rows |= {name: ["" if pd.isna(value) else value for value in events[name].tolist()] for name in features.entities}
    with tempfile.TemporaryDirectory(prefix="airlock-parity-") as scratch, quiet():
        repo = open_repo(settings, features.service, tables=Path(snapshot.path), private=Path(scratch))
        repo.store.apply(repo.objects)
        for view in repo.views:
            # All of its history, so that rows past their TTL are there, as in a store that has been fed for long.
            repo.store.materialize(_BEGINNING, at, feature_views=[view])
        _forget_expired(repo, at)
        answer: dict[str, list[Any]] = repo.store.get_online_features(
            features=repo.store.get_feature_service(repo.service.name), entity_rows=rows
        ).to_dict()
    return answer


def _forget_expired(repo: Repo, at: datetime) -> None:
    """Read as the gateway does, which sees to the TTL that Feast's own online reads leave alone."""
    online = repo.store.provider.online_store
    stored_read = online.online_read

    def fresh_read(config: Any, table: Any, *args: Any, **kwargs: Any) -> Any:
        rows = stored_read(config, table, *args, **kwargs)
        if not table.ttl:
            return rows
        return [
            (None, None) if stamp is not None and stamp < at - table.ttl else (stamp, values) for stamp, values in rows
        ]

    online.online_read = fresh_read


def _as_input(spec: ModelSpec, name: str, values: list[Any]) -> np.ndarray[Any, Any]:
    """Values as the model takes them: 32-bit numbers, or strings."""
    if spec.inputs[name].type == "string":
        return np.array(values, dtype=object)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


def _named(features: Features, row: Mapping[Any, Any], at: datetime) -> str:
    return ", ".join(f"{name} {row[name]}" for name in features.entities) + f" at {at:%Y-%m-%d %H:%M}"
