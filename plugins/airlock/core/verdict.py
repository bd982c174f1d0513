"""A verdict: what a gate or a guard found, with its evidence and its reason in words."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Status(StrEnum):
    """How a judgement ended. Only ``PASS`` lets a version through."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"
    FAIL = "fail"


_WORST_FIRST = (Status.FAIL, Status.ERROR, Status.INCONCLUSIVE, Status.PASS)


class Verdict(BaseModel):
    """One judgement of one policy.

    ``estimate`` and the interval ``low``..``high`` are in the units of ``metric``;
    ``threshold`` is the bound they were held against; ``n`` counts the observations.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    status: Status
    reason: str
    metric: str | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    n: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.status is Status.PASS


def fold(verdicts: Iterable[Verdict]) -> Status:
    """The worst of them. No verdict at all is ``INCONCLUSIVE``: no evidence is never a pass."""
    seen = {verdict.status for verdict in verdicts}
    return next((status for status in _WORST_FIRST if status in seen), Status.INCONCLUSIVE)
