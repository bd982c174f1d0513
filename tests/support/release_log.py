"""A release's prediction log, labels and outcomes, row by row, and the release that they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from airlock.core.errors import Conflict
from airlock.core.release import Phase, Release
from airlock.core.route import Bundle, Route
from airlock.settings import Settings

START = datetime(2026, 2, 1, 6, tzinfo=UTC)
RELEASE = Release(
    id="rel",
    model="toy",
    version="2",
    champion="1",
    bundle=Bundle(path="2", digest="sha256:" + "2" * 64),
    phase=Phase.CANARY,
    step="canary_5",
    generation=4,
    entered_at=START,
)
_EMPTY: dict[str, Any] = {
    "event_time": None,
    "key": None,
    "row": 0,
    "generation": 4,
    "release": "rel",
    "pin": None,
    "routing_key": None,
    "version": None,
    "variant": None,
    "role": "served",
    "fallback": None,
    "error": None,
    "prediction": None,
    "probability": None,
    "latency_ms": 5.0,
}
_TEXT = ("key", "request_id", "release", "pin", "routing_key", "version", "variant", "role", "fallback", "error")


class Memory:
    """What of the ledger the evidence needs, without a database."""

    def __init__(self, routes: Sequence[Route] = ()) -> None:
        self.states: dict[tuple[str, str], tuple[str, int]] = {}
        self._routes = list(routes)

    def save_state(self, model: str, name: str, document: str, *, revision: int | None) -> int:
        known = self.states.get((model, name))
        if (known[1] if known else None) != revision:
            raise Conflict(f"{name} is at another revision")
        self.states[model, name] = (document, (revision or 0) + 1)
        return (revision or 0) + 1

    def load_state(self, model: str, name: str) -> tuple[str, int] | None:
        return self.states.get((model, name))

    def routes(self, model: str) -> list[Route]:
        return self._routes


def entry(number: int, version: str | None, role: str, score: float | None, **facts: Any) -> dict[str, Any]:
    """One row of the log of an older gateway: request ``number`` was asked so many seconds after :data:`START`."""
    variant = {"1": "champion", "2": "candidate"}.get(version or "")
    return {
        **_EMPTY,
        "at": START + timedelta(seconds=number),
        "request_id": f"q{number}",
        "key": f"k{number}",
        "version": version,
        "variant": variant,
        "role": role,
        "probability": score,
        "prediction": None if score is None else float(score >= 0.5),
        "error": "broken" if score is None else None,
        **facts,
    }


def write_part(
    settings: Settings, sequence: int, rows: Sequence[Mapping[str, Any]], *, day: str = "2026-02-01"
) -> None:
    """One file of the log, named as the gateway names the ``sequence``-th it writes."""
    frame = pd.DataFrame(list(rows))
    for name in {"at", "event_time", "counted_at"} & set(frame):
        frame[name] = pd.to_datetime(frame[name], utc=True).dt.as_unit("us")
    for name in ("prediction", "probability", "latency_ms"):
        frame[name] = frame[name].astype("float64")
    for name in {*_TEXT, "step"} & set(frame):
        frame[name] = frame[name].astype("object").where(frame[name].notna(), None).astype("string")
    frame["row"] = frame["row"].astype("int32")
    folder = settings.predictions / "toy" / f"day={day}"
    folder.mkdir(parents=True, exist_ok=True)
    nanoseconds = int(START.timestamp() * 1e9) + sequence * 900_000_000
    frame.to_parquet(folder / f"part-{nanoseconds}-7-{sequence:06d}.parquet", index=False)
