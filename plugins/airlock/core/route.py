"""The route: one versioned document that says which versions get which share.

A document is whole or it is refused. Its checksum covers every other field, its shares add up
to 100, and the gateway keeps the last good one. A request's place in [0, 100) comes from a
stable hash, and the candidate's share starts at 0: raising a share never moves a key back.
"""

from __future__ import annotations

import hashlib
import json
import math
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from airlock.core.errors import RouteError
from airlock.core.policy import Unit
from airlock.core.segment import Pin

_SCALE = 100.0 / 2**53


class Bundle(BaseModel):
    """Where a version's verified files lie, and the digest of their manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


MISSING = 0.1
"""The share of due labels that may be missing, of a route that does not say."""
Signal = Literal["errors", "slow", "fallbacks", "difference", "absolute", "flips", "late"]


class Limit(BaseModel):
    """One bound that a candidate must keep, with the share of the error budget that its test may spend.

    It is what a spec's guard comes down to, and the one form in which the gateway, the control plane and a replay
    judge it. ``bound`` is a share of requests for ``errors``, ``slow``, ``fallbacks`` and ``flips``, and a mean in
    the observation's units otherwise; ``difference`` is bounded on both sides. ``alpha`` is the chance of ever
    breaking it while the truth keeps it; ``steps`` is over how many steps the part of a step's fresh evidence is
    split. ``reach`` is the width of the range of one observation, which begins at ``least`` (for ``difference`` the
    range lies evenly around 0); unset: unbounded, judged asymptotically. ``batch`` is how many answers make up one
    late observation, and ``observed`` says what that is.

    ``by`` is what makes one observation; all but requests are counted by core/units.py.

    ``minimum`` counts observations: a pass needs so many. Of a late limit ``min_answers`` counts answers, which are
    not the same where a batch makes one observation: so many must be old enough for their label to be due.
    ``max_missing`` is the share of the due labels that may be missing and are taken for like the rest; beyond it every
    missing one counts as the worst. Unset: nothing is due for each answer, as of outcomes. ``ceiling`` is what the
    upper end of the estimate's 80 % interval must lie below for a pass; unset: the estimates alone decide.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    signal: Signal
    bound: float
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    steps: Annotated[int, Field(ge=1)] = 1
    minimum: Annotated[int, Field(ge=1)] = 50
    by: Unit = "request"
    min_answers: Annotated[int, Field(ge=0)] = 0
    max_missing: Annotated[float, Field(ge=0, le=1)] | None = None
    over_ms: float | None = Field(None, description="of slow: what takes longer counts")
    reach: Annotated[float, Field(gt=0)] | None = None
    least: float = 0.0
    batch: Annotated[int, Field(ge=1)] = 1
    observed: str = ""
    ceiling: float | None = Field(None, description="a pass needs the estimate's 80 % interval to end below it")

    @model_validator(mode="before")
    @classmethod
    def _asks_for_due_labels(cls, data: Any) -> Any:
        """A route that states no ``min_answers`` would let a version be confirmed before any label is due."""
        if not isinstance(data, dict) or data.get("signal") != "late" or "min_answers" in data:
            return data
        minimum, batch, name = data.get("minimum", 50), data.get("batch", 1), data.get("name")
        if not (isinstance(minimum, int) and isinstance(batch, int) and isinstance(name, str)):
            return data
        # Of outcomes nothing is due for each answer.
        missing = {} if name.startswith("business_") else {"max_missing": MISSING}
        return {**missing, **data, "min_answers": minimum * batch}

    @property
    def late(self) -> bool:
        """Whether its evidence comes after the answer, so that the gateway cannot judge it."""
        return self.signal == "late"


class Route(BaseModel):
    """Who answers for ``model`` in ``generation``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    generation: Annotated[int, Field(ge=1)]
    release: str | None = None
    step: str | None = None
    champion: str
    candidate: str | None = None
    weights: dict[str, float]
    shadow: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    versions: dict[str, Bundle]
    limits: tuple[Limit, ...] = ()
    timeout_ms: Annotated[float, Field(gt=0)] = 250.0
    salt: str
    reason: str
    written_at: datetime
    checksum: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        bad = {name: share for name, share in self.weights.items() if not math.isfinite(share) or share < 0}
        if bad:
            raise ValueError(f"weights must be finite and at least 0, got {bad}")
        total = sum(self.weights.values())
        if not math.isclose(total, 100.0, abs_tol=1e-6):
            raise ValueError(f"weights must add up to 100, they add up to {total:g}: {self.weights}")
        named = {self.champion, *self.weights, *self.shadow, *(pin.version for pin in self.pins)}
        named |= {self.candidate} if self.candidate else set()
        if missing := sorted(named - set(self.versions)):
            raise ValueError(f"versions {missing} have traffic but no bundle; bundles: {sorted(self.versions)}")
        if len(names := [pin.name for pin in self.pins]) != len(set(names)):
            raise ValueError(f"every pin has a name of its own, got {names}")
        if self.champion == self.candidate:
            raise ValueError(f"version {self.champion} cannot be champion and candidate at once")
        if stray := sorted(set(self.weights) - {self.champion, self.candidate}):
            raise ValueError(f"only champion and candidate may have a share, not {stray}")
        return self

    def sealed(self) -> Route:
        """The same document with its checksum."""
        return self.model_copy(update={"checksum": _checksum(self.model_dump(mode="json"))})

    def to_json(self) -> str:
        return self.sealed().model_dump_json(indent=2)

    @property
    def share(self) -> float:
        """The candidate's share in [0, 100]."""
        return self.weights.get(self.candidate, 0.0) if self.candidate else 0.0


def _checksum(document: dict[str, Any]) -> str:
    content = {name: value for name, value in document.items() if name != "checksum"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def parse_route(text: str | bytes) -> Route:
    """Read a document back. Its checksum is that of what was written: fields that came later have their defaults.

    Raises:
        RouteError: it is torn, was changed, or breaks a rule.
    """
    try:
        route = Route.model_validate_json(text)
    except ValidationError as error:
        raise RouteError(f"not a route document: {error}") from error
    if route.checksum != (found := _checksum(json.loads(text))):
        raise RouteError(
            f"route {route.model} generation {route.generation}: checksum {route.checksum or 'missing'} does not "
            f"match its content ({found}); it was changed by hand or torn, write it again from the ledger"
        )
    return route


def place(salt: str, key: str) -> float:
    """A key's place in [0, 100): BLAKE2b of salt and key, the same in every process for ever."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    # 53 bits are what a float holds: with all 64 the last places would be rounded up to 100.
    return (int.from_bytes(digest, "big") >> 11) * _SCALE


def choose(route: Route, key: str) -> str:
    """The version that answers ``key``."""
    if route.candidate is not None and place(route.salt, key) < route.share:
        return route.candidate
    return route.champion
