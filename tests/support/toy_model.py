"""A model that trains in a second: a project with a recipe, a spec and a training set."""

from __future__ import annotations

import hashlib
import io
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from airlock.core.refs import TrainingSetRef
from airlock.core.spec import ModelSpec
from airlock.settings import Settings

UNTIL = datetime(2026, 2, 1, tzinfo=UTC)
RECIPE = '''
    """A toy's recipe, with every transformer that converts."""

    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder

    from airlock.transformers import Cyclical, Interaction, OutlierCapper


    def load(until):
        raise NotImplementedError


    def pipeline(params):
        numbers = Pipeline([("impute", SimpleImputer()), ("cap", OutlierCapper(0.01, 0.99))])
        columns = ColumnTransformer([
            ("number", numbers, ["age", "price"]),
            ("hour", Cyclical(1440), ["minute"]),
            ("product", Pipeline([("impute", SimpleImputer()), ("multiply", Interaction())]), ["age", "price"]),
            ("shop", OneHotEncoder(handle_unknown=params.get("unknown", "ignore"), sparse_output=False), ["shop"]),
        ])
        kind = HistGradientBoostingRegressor if params.get("regression") else HistGradientBoostingClassifier
        trees = kind(max_iter=20, max_leaf_nodes=params["leaves"], early_stopping=False, random_state=7)
        return Pipeline([("columns", columns), ("trees", params.get("estimator", trees))])


    def search_space(trial):
        return {"leaves": trial.suggest_int("leaves", 4, 12)}


    def baseline(frame):
        return frame["shop"]
'''


def toy_settings(folder: Path, mlflow_url: str = "http://127.0.0.1:1") -> Settings:
    """A project with the recipe ``include.toy.recipe`` and a home of its own."""
    recipe = folder / "include" / "toy" / "recipe.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(textwrap.dedent(RECIPE).lstrip())
    url = "http://127.0.0.1:1"
    return Settings(folder, folder / "home", mlflow_url, url, url, f"sqlite:///{folder / 'ledger.db'}")


def toy_spec(**changes: Any) -> ModelSpec:
    """Will a visitor buy? ``changes`` replace whole sections."""
    return ModelSpec.model_validate(
        {
            "model": "toy",
            "task": "classification",
            "data": {"key": "visit", "event_time": "at", "evaluation": "5d"},
            "label": {"name": "bought", "time": "known_at"},
            "recipe": {"trials": 2},
            "inputs": {
                "age": {"type": "float", "nullable": True},
                "price": {"type": "float"},
                "minute": {"type": "int", "min": 0, "max": 1439},
                "shop": {"type": "string"},
            },
            "gates": [
                {"kind": "finite"},
                {"kind": "onnx_parity", "max_difference": 1e-5},
                {"kind": "threshold", "metric": "roc_auc", "min": 0.6},
                {"kind": "non_inferiority", "metric": "roc_auc", "margin": 0.05},
                {"kind": "slices", "column": "shop", "metric": "roc_auc", "min": 0.5, "min_rows": 50},
                {"kind": "latency", "max_p99_ms": 1000},
                {"kind": "size", "max_mb": 5},
                {"kind": "schema"},
            ],
            "monitoring": {"drift": {"min_rows": 100, "columns": ["age", "price", "shop"]}},
            **changes,
        }
    )


def toy_rows(rows: int = 1500, *, seed: int = 3) -> pd.DataFrame:
    """Visits at even distances up to :data:`UNTIL`, whose labels are known an hour later."""
    random = np.random.default_rng(seed)
    age, price = random.normal(40, 12, rows), random.lognormal(2, 0.5, rows)
    minute, shop = random.integers(0, 1440, rows), random.choice(["north", "south", "east"], rows)
    score = (age - 40) / 12 - (price - 8) / 5 + np.sin(2 * np.pi * minute / 1440) + 0.5 * (shop == "south")
    at = pd.Series(pd.date_range(end=pd.Timestamp(UNTIL), periods=rows, freq="15min").as_unit("us"))
    return pd.DataFrame(
        {
            "visit": [f"v{number:05d}" for number in range(rows)],
            "at": at,
            "known_at": at + pd.Timedelta(hours=1),
            "bought": (score + random.logistic(0, 0.7, rows) > 0).astype("int64"),
            "age": np.where(random.random(rows) < 0.1, np.nan, age),
            "price": price,
            "minute": minute,
            "shop": shop,
        }
    )


def toy_training_set(folder: Path, frame: pd.DataFrame | None = None) -> TrainingSetRef:
    """The rows as a training set's file."""
    frame = toy_rows() if frame is None else frame
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    digest = "sha256:" + hashlib.sha256(buffer.getvalue()).hexdigest()
    path = folder / f"training_set-{digest[7:23]}.parquet"
    path.write_bytes(buffer.getvalue())
    return TrainingSetRef(path=str(path), digest=digest, snapshot=digest, until=UNTIL, rows=len(frame))
