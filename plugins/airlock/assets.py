"""The assets that connect a model's DAGs. Nothing else knows their names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from airflow.sdk import Asset, AssetAlias

log = logging.getLogger(__name__)

SCHEME = "airlock"


def candidate(model: str) -> Asset:
    """A version passed its gates. Event: ``{"version": "3", "skip_shadow": false}``."""
    return _asset(model, "candidate")


def champion(model: str) -> Asset:
    """Another version holds production. Event: ``{"version": "3", "release": <id>, "generation": <of the route>}``."""
    return _asset(model, "champion")


def newest_generation(model: str, extras: Iterable[Mapping[str, Any]], *, route: int) -> int:
    """The newest generation of the route that events of ``champion`` name by their extras; 0 if none does.

    An event that anybody may have sent names what it likes: what is no generation, or a later one than the ledger's
    ``route`` has, is told and counts as no receipt.
    """
    newest = 0
    for extra in extras:
        named = extra.get("generation", 0)
        if type(named) is int and named <= route:
            newest = max(newest, named)
        else:
            log.warning(
                "An event of %s names generation %r; expected a whole number up to %s, the ledger's newest. It is no "
                "receipt of the champion's event: look in Airflow who else sends events of that asset",
                *(champion(model).uri, named, route),
            )
    return newest


def champion_changes(model: str) -> AssetAlias:
    """Outlet of a task that changes the champion now and then: it sends the event of ``champion`` only when it did."""
    return AssetAlias(name=f"{model}_champion_changes", group=SCHEME)


def repairs() -> AssetAlias:
    """Outlet of the task that sends lost events of any model again."""
    return AssetAlias(name="airlock_repairs", group=SCHEME)


def data(model: str) -> Asset:
    """There is new data to train on; whoever brings it sends the event, ``{"until": <ISO time>}``."""
    return _asset(model, "data")


def drift(model: str) -> Asset:
    """The data drifted. Event: ``{"until": <ISO time>, "reason": <in words>}``."""
    return _asset(model, "drift")


def scores(model: str) -> Asset:
    """A partition was scored. Event: ``{"partition": ..., "path": ...}``."""
    return _asset(model, "scores")


def _asset(model: str, what: str) -> Asset:
    return Asset(name=f"{model}_{what}", uri=f"{SCHEME}://{model}/{what}", group=SCHEME)
