"""A project in a folder: a model on a few hundred rows, whose data a test can spoil."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from airlock.core.spec import ModelSpec
from airlock.settings import Settings

RECIPE = '''
    """A tiny model's recipe: what a test put into ``tables`` is what it loads."""

    import pandas as pd

    tables = {}


    def load(until, **options):
        known = {}
        for name, table in tables.items():
            time = "known_at" if name == "events" else "event_timestamp"
            late = until is not None and time in table and str(table[time].dtype).endswith("UTC]")
            known[name] = table[table[time] <= until] if late else table
        return known


    def pipeline(params):
        raise NotImplementedError


    def search_space(trial):
        return {}
'''

DEFINITIONS = """
    import os
    from datetime import timedelta
    from pathlib import Path

    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32, String

    TABLES = Path(os.environ["AIRLOCK_FEATURE_TABLES"])
    shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
    sales = FeatureView(
        name="sales",
        entities=[shop],
        ttl=timedelta(hours=6),
        schema=[Field(name="shop", dtype=String), Field(name="sold", dtype=Float32)],
        source=FileSource(name="sales", path=str(TABLES / "sales.parquet"), timestamp_field="event_timestamp"),
    )
    tiny = FeatureService(name="tiny", features=[sales])
"""

STORE = """
    project: tiny
    provider: local
    registry: {path: "${AIRLOCK_HOME}/feast/registry.db", cache_ttl_seconds: 0}
    offline_store: {type: duckdb}
    online_store: {type: sqlite, path: "${AIRLOCK_HOME}/feast/online.db"}
    entity_key_serialization_version: 3
"""


def tiny_project(folder: Path) -> Settings:
    """A project with the recipe ``include.tiny.recipe`` and a feature repository, nothing loaded yet."""
    files = {
        "include/tiny/recipe.py": RECIPE,
        "feature_repo/definitions.py": DEFINITIONS,
        "feature_repo/feature_store.yaml": STORE,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    url = "http://127.0.0.1:1"
    return Settings(folder, folder / "home", url, url, url, f"sqlite:///{folder / 'ledger.db'}")


def tiny_spec(**changes: Any) -> ModelSpec:
    """The tiny model: is a visitor of a shop going to buy? ``changes`` replace whole sections."""
    return ModelSpec.model_validate(
        {
            "model": "tiny",
            "task": "classification",
            "data": {
                "key": "visit",
                "event_time": "at",
                "tables": {
                    "events": {
                        "key": ["visit"],
                        "min_rows": 100,
                        "columns": {
                            "age": {"type": "float", "min": 0, "max": 120, "max_missing": 0.1},
                            "shop": {"type": "string", "values": ["north", "south"]},
                        },
                    },
                    "sales": {"key": ["shop", "event_timestamp"]},
                },
            },
            "label": {"name": "bought", "time": "known_at"},
            "inputs": {"age": {"type": "float", "nullable": True}, "sold": {"type": "float", "nullable": True}},
            "features": {"service": "tiny", "entities": ["shop"], "request": {"age": {"type": "float"}}},
            "gates": [{"kind": "finite"}],
            **changes,
        }
    )


def tiny_tables(rows: int = 400) -> dict[str, pd.DataFrame]:
    """Visits every half hour, and sales by shop on the hour. Sound: every rule of ``tiny_spec`` holds."""
    random = np.random.default_rng(5)
    at = pd.Series(pd.date_range("2026-01-01", periods=rows, freq="30min", tz="UTC").as_unit("us"))
    hours = pd.date_range("2025-12-31 20:00", periods=rows // 2 + 4, freq="h", tz="UTC").as_unit("us")
    shops = [(shop, hour) for hour in hours for shop in ("north", "south")]
    events = pd.DataFrame(
        {
            "visit": [f"v{number:04d}" for number in range(rows)],
            "at": at,
            "known_at": at + pd.Timedelta(hours=1),
            "bought": random.integers(0, 2, rows),
            "shop": random.choice(["north", "south"], rows),
            "age": random.integers(18, 90, rows).astype("float64"),
        }
    )
    sales = pd.DataFrame(shops, columns=["shop", "event_timestamp"])
    sales["sold"] = random.integers(0, 1000, len(sales)).astype("float32")
    return {"events": events, "sales": sales}
