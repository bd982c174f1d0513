"""The owner's code for ``flight_delay``: where its data comes from and how it is learned.

Everything that a raw row needs is inside the pipeline, so that serving runs the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_selection import SelectPercentile, VarianceThreshold, f_classif
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from airlock.transformers import Cyclical, Interaction, OutlierCapper
from include.flight_delay.data import load, online_frames

if TYPE_CHECKING:
    import optuna
    import pandas as pd

__all__ = ["baseline", "load", "online_frames", "pipeline", "search_space"]


def pipeline(params: Mapping[str, Any]) -> Pipeline:
    """Imputation, capping, encoding, one interaction and a selection in front of boosted trees.

    Trees need no scaling; they would not answer differently.
    """
    trees = {
        name: params[name]
        for name in ("learning_rate", "max_iter", "max_leaf_nodes", "min_samples_leaf", "l2_regularization")
        if name in params
    }
    numbers = Pipeline([("impute", SimpleImputer(strategy="median")), ("cap", OutlierCapper())])
    delays = Pipeline([("impute", SimpleImputer(strategy="median")), ("multiply", Interaction())])
    unknown = params.get("unknown_category", "ignore")
    categories = OneHotEncoder(handle_unknown=unknown, sparse_output=False, dtype=np.float32)
    columns = ColumnTransformer(
        [
            ("number", numbers, make_column_selector(dtype_include="number")),
            ("hour", Cyclical(1440), ["minute"]),
            ("day", Cyclical(7), ["weekday"]),
            ("queue", delays, ["origin_dep_delay_2h", "hub_waiting"]),
            ("category", categories, ["carrier", "origin"]),
        ]
    )
    return Pipeline(
        [
            ("columns", columns),
            ("vary", VarianceThreshold()),
            ("select", SelectPercentile(f_classif, percentile=params.get("percentile", 90))),
            ("trees", HistGradientBoostingClassifier(**trees, early_stopping=False, random_state=7)),
        ]
    )


def search_space(trial: optuna.Trial) -> dict[str, Any]:
    """Tuning sees a part of the rows and would like smaller models than all of them deserve: none of those here."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.06, 0.12, log=True),
        "max_iter": trial.suggest_int("max_iter", 100, 180, step=20),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 15, 31),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 50, 300, log=True),
        "l2_regularization": trial.suggest_float("l2_regularization", 0.1, 30.0, log=True),
        "percentile": trial.suggest_int("percentile", 85, 100, step=5),
    }


def baseline(frame: pd.DataFrame) -> pd.Series[str]:
    """The group whose delay rate a timetable would quote: carrier and scheduled hour."""
    return frame["carrier"] + "-" + (frame["minute"] // 60).astype(int).astype(str)
