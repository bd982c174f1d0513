"""What the gateway counts of a version, and what it reports to the control plane.

A tally is a handful of sums, so that a guard's look costs the same after a thousand requests
as after a million. Latencies go into buckets that grow by 2^(1/4): a quantile is known to 19 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["served", "shadow"]
Scope = Literal["all", "served"]
"""Over both roles together, or served requests alone."""
SCOPES: tuple[Scope, ...] = ("all", "served")

_FIRST_MS = 0.05
_PER_OCTAVE = 4
BUCKETS = 72  # the last one holds everything above 10.9 s
_NO_LIMITS: Mapping[str, float] = {}


def bucket(latency_ms: float) -> int:
    """The bucket that holds a latency in milliseconds."""
    if latency_ms <= _FIRST_MS:
        return 0
    return min(BUCKETS - 1, math.ceil(_PER_OCTAVE * math.log2(latency_ms / _FIRST_MS)))


def upper_ms(index: int) -> float:
    """A bucket's upper edge in milliseconds."""
    return math.inf if index == BUCKETS - 1 else _FIRST_MS * 2 ** (index / _PER_OCTAVE)


def within(differences: Sequence[float], apart: float) -> Sequence[float]:
    """Differences of more than ``apart`` as just that; what is not finite stays, so that it is found."""
    if apart == math.inf:
        return differences
    return [min(max(each, -apart), apart) if math.isfinite(each) else each for each in differences]


class Sums(BaseModel):
    """A stream of observations, kept as sums: a judgement costs the same after ten of them as after a million.

    No observation lies outside ``smallest``..``largest``; where part of the stream was summed without them they are
    ``None``. Further apart than the observations really lie they are true all the same, and only less sharp: so the
    stream of a window, which is one of these less another, may keep those of the whole.
    """

    # Sums that are not finite are a finding, which must come back as it was from whatever is valid JSON.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    smallest: float | None = None
    largest: float | None = None

    def add(self, value: float) -> None:
        # Past pydantic's own way of setting a field, which costs four times as much: this is done for every answer.
        sums = self.__dict__
        if not sums["n"]:
            sums["smallest"] = sums["largest"] = value
        elif sums["smallest"] is not None:
            sums["smallest"] = min(sums["smallest"], value)
            sums["largest"] = max(sums["largest"], value)
        sums["n"] += 1
        sums["total"] += value
        sums["squares"] += value * value

    def __add__(self, other: Sums) -> Sums:
        filled = [part for part in (self, other) if part.n]
        known = bool(filled) and all(part.smallest is not None and part.largest is not None for part in filled)
        return Sums(
            n=self.n + other.n,
            total=self.total + other.total,
            squares=self.squares + other.squares,
            smallest=min(part.smallest for part in filled if part.smallest is not None) if known else None,
            largest=max(part.largest for part in filled if part.largest is not None) if known else None,
        )

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None


class Tally(BaseModel):
    """Sums over one version's requests.

    ``errors`` includes ``timeouts``. ``fallbacks`` counts those of the ``requests`` that something else answered in
    this version's place. ``slow`` counts, by the name of a limit on latency, those that took longer than it allows;
    a limit whose name is not there was not watched.
    ``difference``, ``absolute`` and ``flips`` have one observation for each request that both versions answered: the
    mean over its rows of (candidate - champion) in the answer's units, of its absolute value, and the share of
    rows that were decided differently. ``units`` holds the observations of the limits that have another unit than the
    request, by their names; core/units.py counts them, over a whole scope alone.
    """

    model_config = ConfigDict(extra="forbid")

    requests: int = 0
    errors: int = 0
    timeouts: int = 0
    fallbacks: int = 0
    latency: list[int] = Field(default_factory=lambda: [0] * BUCKETS)
    slow: dict[str, int] = Field(default_factory=dict)
    difference: Sums = Field(default_factory=Sums)
    absolute: Sums = Field(default_factory=Sums)
    flips: Sums = Field(default_factory=Sums)
    units: dict[str, Sums] = Field(default_factory=dict)

    def answered(self, latency_ms: float, slow: Mapping[str, float] = _NO_LIMITS) -> None:
        """Count a request. ``slow`` holds the route's limits on latency: milliseconds by name."""
        self.requests += 1
        self.latency[bucket(latency_ms)] += 1
        for name, allowed in slow.items():
            # Also where nothing is slow: a counter that is not there was not counted, which is not the same as 0.
            self.slow[name] = self.slow.get(name, 0) + (latency_ms > allowed)

    def failed(self, latency_ms: float, slow: Mapping[str, float] = _NO_LIMITS, *, timeout: bool = False) -> None:
        self.answered(latency_ms, slow)
        self.errors += 1
        self.timeouts += timeout

    def compared(self, differences: Sequence[float], flips: int) -> None:
        """Add one request that both versions answered; ``differences`` has one entry a row."""
        rows = len(differences)
        self.difference.add(sum(differences) / rows)
        self.absolute.add(sum(map(abs, differences)) / rows)
        self.flips.add(flips / rows)

    def include(self, other: Tally) -> None:
        """Add what another tally counted to this one."""
        self.__dict__.update((self + other).__dict__)

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
            fallbacks=self.fallbacks + other.fallbacks,
            latency=[a + b for a, b in zip(self.latency, other.latency, strict=True)],
            slow=_together(self, other),
            difference=self.difference + other.difference,
            absolute=self.absolute + other.absolute,
            flips=self.flips + other.flips,
            units={
                name: self.units.get(name, Sums()) + other.units.get(name, Sums())
                for name in {*self.units, *other.units}
            },
        )


def _together(one: Tally, other: Tally) -> dict[str, int]:
    """What was slow in both; by a limit that either did not watch for its requests, nobody knows."""
    watched = [set(tally.slow) for tally in (one, other) if tally.requests]
    names = set.intersection(*watched) if watched else {*one.slow, *other.slow}
    return {name: one.slow.get(name, 0) + other.slow.get(name, 0) for name in sorted(names)}


class Checkpoint(BaseModel):
    """The sums of a stream up to a moment at which its judgement starts anew.

    ``number`` counts the ``kind``: steps in the order in which they began (the one that begins with the stream is
    number 1 and has no checkpoint), restarts by the spacings of requests before them. What a checkpoint may
    spend of a limit's alpha follows from it, so that no number is given twice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["step", "restart"]
    number: int
    requests: int = 0
    errors: int = 0
    timeouts: int = 0
    fallbacks: int = 0
    slow: dict[str, int] = {}
    difference: Sums = Sums()
    absolute: Sums = Sums()
    flips: Sums = Sums()
    units: dict[str, Sums] = {}


class LateEvidence(BaseModel):
    """What came in after the answers: labels and outcomes, as the control plane joined them to the log.

    ``observations`` has one stream for each late limit, by its name. ``due`` counts the candidate's answers that are
    older than the model's maturity, ``labelled`` those of them whose label has come. ``of_pairs`` holds both numbers,
    by limit, for those limits that compare with the champion: of the answers that the champion gave too or failed on,
    and of these such as have their label and the champion's answer. ``partners`` says of how many due answers the
    champion should have given its own, and of how many it did or failed: the rest is in no pair.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    until: datetime
    answers: int = 0
    due: int = 0
    labelled: int = 0
    of_pairs: dict[str, tuple[int, int]] = {}
    partners: tuple[int, int] = (0, 0)
    observations: dict[str, Sums] = {}

    def coverage(self, limit: str) -> tuple[int, int]:
        """How many answers are due that the limit is about, and how many of these it could use."""
        return self.of_pairs.get(limit, (self.due, self.labelled))

    @property
    def share(self) -> float | None:
        """The share of the due answers whose label has come; ``None`` while none is due."""
        return self.labelled / self.due if self.due else None


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

    ``step`` holds the tallies since the route's step began, ``total`` those of the whole release; both by version,
    and by role: ``served`` or ``shadow``. ``checkpoints`` are those of the candidate's counters, and ``units`` their
    sums of limits that are not by request.
    ``observed_s`` is how many seconds of the step it has watched, by a clock that only runs while it runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    generation: int
    checksum: str
    release: str | None
    rollout_step: str | None = None
    champion: str
    candidate: str | None
    share: float
    loaded: tuple[str, ...]
    since: datetime
    observed_s: float = 0.0
    ejection: Ejection | None = None
    step: dict[str, dict[str, Tally]] = {}
    total: dict[str, dict[str, Tally]] = {}
    checkpoints: dict[Scope, tuple[Checkpoint, ...]] | None = None
    units: dict[Scope, dict[str, Sums]] = {}
    error: str | None = Field(None, description="why the newest route document was not taken, if it was not")
    lost: str | None = Field(
        None, description="why something that was counted of this release is not known any more, or may soon not be"
    )
