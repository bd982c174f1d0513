"""What Airflow has sent: read from within a task, which may not ask Airflow's database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.execution_time.context import InletEventsAccessors

from airlock import assets
from airlock.core.errors import Unavailable

_NEWEST = 20


def announced_generation(model: str, route: int) -> int:
    """The newest generation of the route whose champion an asset event has named; 0 if none has.

    ``route`` is the ledger's newest.

    Raises:
        Unavailable: Airflow does not say.
    """
    return assets.newest_generation(model, _extras(assets.champion(model)), route=route)


def is_candidate_announced(model: str, version: str, *, after: datetime) -> bool:
    """Whether an asset event has named the version as the candidate since ``after``.

    Raises:
        Unavailable: Airflow does not say.
    """
    return any(extra.get("version") == version for extra in _extras(assets.candidate(model), after))


def _extras(asset: Asset, after: datetime | None = None) -> list[Mapping[str, Any]]:
    """What the newest events of an asset say."""
    events = InletEventsAccessors([asset])[asset].ascending(False).limit(_NEWEST)
    if after is not None:
        events = events.after(after.isoformat())
    try:
        return [event.extra or {} for event in events]
    except AirflowRuntimeError as error:
        raise Unavailable(f"Airflow does not tell the events of {asset.uri}: {error}") from error
