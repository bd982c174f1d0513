"""Traffic of an experiment, as the gateway and the people who measure outcomes would have left it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from airlock.core.release import Phase, Release
from airlock.core.route import Bundle, Route
from airlock.core.spec import ModelSpec
from airlock.settings import Settings
from airlock.steps import outcomes
from tests.support.toy_model import toy_spec

MODEL = "toy"
BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
NOW = datetime(2026, 3, 5, tzinfo=UTC)
LATER = datetime(2026, 12, 1, tzinfo=UTC)
BUNDLE = Bundle(path="/nowhere", digest="sha256:" + "0" * 64)
RELEASE = Release(
    id="r1", model=MODEL, version="2", champion="1", bundle=BUNDLE, phase=Phase.CANARY, step="experiment",
    generation=7, entered_at=BEGAN,
)  # fmt: skip


def experiment_spec(**changes: Any) -> ModelSpec:
    return toy_spec(
        rollout={"plan": "experiment", "deadline": "2h"},
        experiment={"primary": {"name": "spent"}, "minimum_effect": 0.5} | changes,
    )


def route(generation: int = 7, *, step: str | None = "experiment", share: float = 50.0, release: str = "r1") -> Route:
    return Route(
        model=MODEL, generation=generation, release=release, step=step, champion="1", candidate="2",
        weights={"1": 100 - share, "2": share}, versions={"1": BUNDLE, "2": BUNDLE}, salt=release, reason="testing",
        written_at=BEGAN,
    )  # fmt: skip


def log_rows(units: int, *, candidate: Any = None, began: datetime = BEGAN, **columns: Any) -> pd.DataFrame:
    """One request a unit, one a minute: unit ``u3`` asks for row ``k3``. ``candidate``: who is the candidate's."""
    chosen = np.arange(units) % 2 == 1 if candidate is None else np.asarray(candidate)
    times = pd.Series(pd.to_datetime([began + timedelta(minutes=place) for place in range(units)], utc=True))
    nothing = pd.Series([None] * units, dtype="string")
    values = {
        "at": times.dt.as_unit("us"),
        "event_time": times.dt.as_unit("us"),
        "key": [f"k{place}" for place in range(units)],
        "routing_key": [f"u{place}" for place in range(units)],
        "request_id": [f"q{place}" for place in range(units)],
        "row": 0,
        "generation": 7,
        "release": "r1",
        "pin": nothing,
        "version": np.where(chosen, "2", "1"),
        "variant": np.where(chosen, "candidate", "champion"),
        "role": "served",
        "fallback": nothing,
        "error": nothing,
        "prediction": 1.0,
        "probability": 0.6,
        "latency_ms": 1.0,
    }
    return pd.DataFrame(values | columns)


def write_rows(settings: Settings, rows: pd.DataFrame) -> None:
    folder = settings.predictions / MODEL / "day=2026-03-01"
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / f"part-{len(list(folder.iterdir())):04d}.parquet", index=False)


def deliver(settings: Settings, name: str, values: dict[str, float], time: datetime = LATER) -> None:
    frame = pd.DataFrame({"key": list(values), "name": name, "value": list(values.values())})
    frame["time"] = pd.Series([time] * len(frame), dtype="datetime64[us, UTC]")
    outcomes.deliver(experiment_spec(), settings, frame)


def values_of(rows: pd.DataFrame, *, gain: float = 0.0, key: str = "key", seed: int = 5) -> dict[str, float]:
    """A normal outcome with a standard deviation of 1 for each row; the candidate's is ``gain`` higher."""
    noise = np.random.default_rng(seed).normal(10.0, 1.0, len(rows))
    return dict(zip(rows[key], noise + gain * (rows["version"] == "2"), strict=True))
