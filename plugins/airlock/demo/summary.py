"""What a demo leaves behind: ``--summary FILE``. Nothing in it that was not observed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Act(_Part):
    """One act of the story. ``detail`` says in words what was seen, or why it failed."""

    name: str
    ok: bool
    seconds: float
    detail: str


class Client(_Part):
    """The replay as the gateway's client. A request failed if it was not answered with 200."""

    requests: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None


class RouteChange(_Part):
    """A route of the ledger. ``weights`` are percent by version."""

    at: datetime
    generation: int
    weights: dict[str, float]
    reason: str


class Champion(_Part):
    version: str
    digest: str


class Rollback(_Part):
    """The first bad candidate: what it took the gateway to eject it, and what its clients lost meanwhile."""

    requests_to_detect: int
    seconds_to_detect: float
    failed_requests: int


class Summary(_Part):
    """The whole story. ``ok``: every act is, and no request failed."""

    ok: bool
    seconds: float
    peak_memory_mb: float
    acts: tuple[Act, ...]
    client: Client
    routes: tuple[RouteChange, ...]
    champion: Champion | None
    rollback: Rollback | None
    urls: dict[str, str]

    def write(self, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(self.model_dump_json(indent=2) + "\n")
        temporary.replace(path)


def quantile_ms(sorted_seconds: Sequence[float], q: float) -> float | None:
    """The ``q`` quantile (nearest rank) of ascending seconds, in ms; ``None`` of none."""
    if not sorted_seconds:
        return None
    rank = min(len(sorted_seconds) - 1, round(q * (len(sorted_seconds) - 1)))
    return round(sorted_seconds[rank] * 1000, 2)
