"""The owner's code for ``disease_progression``: scikit-learn's diabetes patients, in real units.

The data set carries no dates. Each patient is given one, a day after the patient before, in the
order of the file, so that held-out patients are later than those that were learned from.
"""

from __future__ import annotations

from datetime import datetime

import pandas as pd
from sklearn.datasets import load_diabetes

__all__ = ["load"]

COLUMNS = {"s1": "tc", "s2": "ldl", "s3": "hdl", "s4": "tch", "s5": "ltg", "s6": "glu", "target": "progression"}


def load(until: datetime | None) -> dict[str, pd.DataFrame]:
    """The patients seen by ``until`` (aware; ``None``: all 442), as ``events``."""
    patients = load_diabetes(as_frame=True, scaled=False).frame.rename(columns=COLUMNS)
    patients.insert(0, "patient_id", [f"patient-{number:03d}" for number in range(len(patients))])
    patients.insert(1, "seen_at", pd.date_range("2012-01-01", periods=len(patients), freq="D", tz="UTC"))
    patients = patients.astype({"sex": "int64"})
    return {"events": patients if until is None else patients[patients["seen_at"] <= until]}
