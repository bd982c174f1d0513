"""What the gateway counts of a version, and what it reports to the control plane.

A tally is a handful of sums, so that a guard's look costs the same after a thousand requests
as after a million. Latencies go into buckets that grow by 2^(1/4): a quantile is known to 19 %.
"""

from __future__ import annotations

import math
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

_FIRST_MS = 0.05
_PER_OCTAVE = 4
BUCKETS = 72  # the last one holds everything above 10.9 s


def bucket(latency_ms: float) -> int:
    """The bucket that holds a latency in milliseconds."""
    if latency_ms <= _FIRST_MS:
        return 0
    return min(BUCKETS - 1, math.ceil(_PER_OCTAVE * math.log2(latency_ms / _FIRST_MS)))


def upper_ms(index: int) -> float:
    """A bucket's upper edge in milliseconds."""
    return math.inf if index == BUCKETS - 1 else _FIRST_MS * 2 ** (index / _PER_OCTAVE)


class Tally(BaseModel):
    """Sums over one version's requests.

    ``errors`` includes ``timeouts``. ``paired`` counts requests that both versions answered;
    the sums are of (candidate - champion) in the answer's units.
    """

    model_config = ConfigDict(extra="forbid")

    requests: int = 0
    errors: int = 0
    timeouts: int = 0
    latency: list[int] = Field(default_factory=lambda: [0] * BUCKETS)
    paired: int = 0
    difference: float = 0.0
    difference_squared: float = 0.0
    absolute: float = 0.0

    def answered(self, latency_ms: float) -> None:
        self.requests += 1
        self.latency[bucket(latency_ms)] += 1

    def failed(self, latency_ms: float, *, timeout: bool = False) -> None:
        self.answered(latency_ms)
        self.errors += 1
        self.timeouts += timeout

    def compared(self, candidate: float, champion: float) -> None:
        """Add one paired answer. The sum of squares serves both differences: ``|d|^2 = d^2``."""
        difference = candidate - champion
        self.paired += 1
        self.difference += difference
        self.difference_squared += difference * difference
        self.absolute += abs(difference)

    def quantile_ms(self, q: float) -> float | None:
        """Upper edge of the bucket that holds the ``q`` quantile, in ms; ``None`` without requests."""
        rank = math.ceil(q * sum(self.latency))
        seen = 0
        for index, count in enumerate(self.latency):
            seen += count
            if rank and seen >= rank:
                return upper_ms(index)
        return None

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            timeouts=self.timeouts + other.timeouts,
            latency=[a + b for a, b in zip(self.latency, other.latency, strict=True)],
            paired=self.paired + other.paired,
            difference=self.difference + other.difference,
            difference_squared=self.difference_squared + other.difference_squared,
            absolute=self.absolute + other.absolute,
        )


class Ejection(BaseModel):
    """A candidate that the gateway took off traffic by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    version: str
    release: str | None
    generation: int
    at: datetime
    reason: str
    requests: int = Field(description="requests the candidate had been asked in this release")
    seconds: float = Field(description="since the candidate's first request in this release")


class GatewayStatus(BaseModel):
    """What a gateway says about one model: the route it observes, and what it counted.

    ``step`` holds the tallies since the observed generation began, ``total`` those of the whole
    release; both by version, and by role: ``served`` or ``shadow``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    generation: int
    checksum: str
    release: str | None
    champion: str
    candidate: str | None
    share: float
    loaded: tuple[str, ...]
    since: datetime
    ejection: Ejection | None = None
    step: dict[str, dict[str, Tally]] = {}
    total: dict[str, dict[str, Tally]] = {}
    error: str | None = Field(None, description="why the newest route document was not taken, if it was not")
