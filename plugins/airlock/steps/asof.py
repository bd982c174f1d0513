"""Feast's duckdb offline store with the point-in-time join left to duckdb's ASOF join.

Feast's own join pairs every event with every earlier row of its entity and then keeps the newest, so
its time grows with events times history. ASOF sorts both sides once. What the view's source may be
and the answer are the same; a source that this does not cover goes to Feast's own join.
"""
# ruff: noqa: TID253 - Feast imports this module itself, by the name in the store's configuration

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import pyarrow as pa
from feast import FileSource
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView

if TYPE_CHECKING:
    from feast import FeatureView

EVENT_TIMESTAMP = "event_timestamp"


class AsofOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """Feast finds it by its name."""

    type: str = "airlock.steps.asof.AsofOfflineStore"


class AsofOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """The duckdb store, with a faster way to a training set."""

    @staticmethod
    def get_historical_features(
        config: Any,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **options: Any,
    ) -> RetrievalJob:
        plain = isinstance(entity_df, pd.DataFrame) and EVENT_TIMESTAMP in entity_df
        if full_feature_names or not plain or not all(_covered(view) for view in feature_views):
            return DuckDBOfflineStore.get_historical_features(
                config, feature_views, feature_refs, entity_df, registry, project, full_feature_names, **options
            )
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        return _Job(entity_df, feature_views, feature_refs, on_demand)


def _covered(view: FeatureView) -> bool:
    """One parquet file, join keys under their own names, and one time a row."""
    source = view.batch_source
    return (
        isinstance(source, FileSource)
        and source.path.endswith(".parquet")
        and "://" not in source.path
        and not source.field_mapping
        and not source.created_timestamp_column
        and not view.projection.join_key_map
    )


class _Job(RetrievalJob):  # type: ignore[misc]
    """One query: the rows, and beside each the newest row of every view that is neither newer nor expired."""

    def __init__(
        self,
        rows: pd.DataFrame,
        views: list[FeatureView],
        refs: list[str],
        on_demand: list[OnDemandFeatureView],
    ) -> None:
        super().__init__()
        self._rows = rows.assign(**{EVENT_TIMESTAMP: rows[EVENT_TIMESTAMP].dt.as_unit("us")})
        self._views = views
        self._on_demand = on_demand
        times = rows[EVENT_TIMESTAMP]
        self._metadata = RetrievalMetadata(refs, [str(name) for name in rows.columns], times.min(), times.max())

    @property
    def full_feature_names(self) -> bool:
        return False

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata:
        return self._metadata

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's signature
        columns = ["r.*"]
        joins = []
        for number, view in enumerate(self._views):
            side, time = f"v{number}", f"v{number}.{view.batch_source.timestamp_field}"
            alive = f"r.{EVENT_TIMESTAMP} <= {time} + to_seconds({view.ttl.total_seconds()})" if view.ttl else "TRUE"
            wanted = [
                ref.split(":")[1]
                for ref in self._metadata.features
                if ref.startswith(f"{view.projection.name_to_use()}:")
            ]
            columns += [f'CASE WHEN {alive} THEN {side}."{name}" END AS "{name}"' for name in wanted]
            keys = " AND ".join(f'r."{field.name}" = {side}."{field.name}"' for field in view.entity_columns)
            path = view.batch_source.path.replace("'", "''")
            joins.append(f"ASOF LEFT JOIN read_parquet('{path}') {side} ON {keys} AND r.{EVENT_TIMESTAMP} >= {time}")
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
            connection.register("rows", pa.Table.from_pandas(self._rows, preserve_index=False))
            query = f"SELECT {', '.join(columns)} FROM rows r {' '.join(joins)}"  # noqa: S608 - names of the registry
            return connection.execute(query).to_arrow_table()
