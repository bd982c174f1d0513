"""What the ledger hands out: frozen copies of its rows, times in UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airlock.core.route import Bundle

EffectKind = Literal["route", "aliases", "record", "champion_asset"]
"""What may have to follow a transition outside the ledger."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VersionRecord(_Record):
    """A version that has held production."""

    model: str
    version: str
    bundle: Bundle
    release: str
    since: datetime


class TimelineEntry(_Record):
    """One line of a model's history. ``evidence`` is the digest of what it was decided on."""

    at: datetime
    release: str | None
    version: str | None
    actor: str
    event: str
    phase: str | None
    step: str | None
    generation: int | None
    reason: str
    evidence: str | None = None


class Lease(_Record):
    """Leave to write about a model until ``expires_at``. A higher ``token`` fences every lower one off."""

    model: str
    holder: str
    token: int
    expires_at: datetime


class Effect(_Record):
    """Something outside the ledger that has to follow what was written in it.

    ``asked`` counts how often the same effect was asked for; only the newest asking can be marked as done.
    """

    id: int
    model: str
    release: str | None
    step: str | None
    generation: int
    kind: EffectKind
    at: datetime
    asked: int


class Vote(_Record):
    """One person's answer to one piece of evidence."""

    release: str
    evidence: str
    actor: str
    yes: bool
    reason: str
    at: datetime
