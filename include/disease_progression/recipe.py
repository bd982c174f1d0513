"""The owner's code for ``disease_progression``: scikit-learn's diabetes patients, in real units.

The data set carries no dates. Each patient is given one, a day after the patient before, in the
order of the file, so that held-out patients are later than those that were learned from.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.feature_selection import SelectPercentile, f_regression
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from airlock.transformers import OutlierCapper

if TYPE_CHECKING:
    import optuna

__all__ = ["load", "pipeline", "search_space"]

COLUMNS = {"s1": "tc", "s2": "ldl", "s3": "hdl", "s4": "tch", "s5": "ltg", "s6": "glu", "target": "progression"}


def load(until: datetime | None) -> dict[str, pd.DataFrame]:
    """The patients seen by ``until`` (aware; ``None``: all 442), as ``events``."""
    patients = load_diabetes(as_frame=True, scaled=False).frame.rename(columns=COLUMNS)
    patients.insert(0, "patient_id", [f"patient-{number:03d}" for number in range(len(patients))])
    patients.insert(1, "seen_at", pd.date_range("2012-01-01", periods=len(patients), freq="D", tz="UTC"))
    patients = patients.astype({"sex": "int64"})
    return {"events": patients if until is None else patients[patients["seen_at"] <= until]}


def pipeline(params: Mapping[str, Any]) -> Pipeline:
    """Imputation, capping, scaling and a selection in front of a ridge regression."""
    return Pipeline(
        [
            ("impute", SimpleImputer(strategy="median")),
            ("cap", OutlierCapper(0.01, 0.99)),
            ("scale", StandardScaler()),
            ("select", SelectPercentile(f_regression, percentile=params["percentile"])),
            ("ridge", Ridge(params["alpha"])),
        ]
    )


def search_space(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "alpha": trial.suggest_float("alpha", 0.1, 100.0, log=True),
        "percentile": trial.suggest_int("percentile", 50, 100, step=10),
    }
