"""A prediction log as the gateway would have written it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from airlock.core.spec import ModelSpec, Task
from airlock.settings import Settings


def write_log(
    spec: ModelSpec, settings: Settings, frame: pd.DataFrame, scores: npt.NDArray[np.float64], *, version: str = "1"
) -> Path:
    """One file that says that ``frame``'s rows were served with ``scores``, each at its event time."""
    times = frame[spec.data.event_time].dt.as_unit("us").reset_index(drop=True)
    classified = spec.task is Task.CLASSIFICATION
    log = pd.DataFrame(
        {
            "at": times,
            "event_time": times,
            "key": frame[spec.data.key].to_numpy(),
            "request_id": frame[spec.data.key].to_numpy(),
            "row": np.zeros(len(frame), np.int32),
            "generation": 1,
            "release": "r",
            "pin": pd.Series([None] * len(frame), dtype=object),
            "routing_key": frame[spec.data.key].to_numpy(),
            "version": version,
            "variant": "champion",
            "role": "served",
            "fallback": pd.Series([None] * len(frame), dtype=object),
            "error": pd.Series([None] * len(frame), dtype=object),
            "prediction": (scores >= spec.label.threshold).astype(float) if classified else scores,
            "probability": scores if classified else np.nan,
            "latency_ms": 1.0,
            **{f"x_{name}": frame[name].to_numpy() for name in spec.inputs},
        }
    )
    folder = settings.predictions / spec.model / "day=2026-02-01"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"part-{len(list(folder.iterdir())):04d}.parquet"
    log.to_parquet(path, index=False)
    return path
