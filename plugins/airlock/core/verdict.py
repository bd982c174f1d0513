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
    ``threshold`` is the bound they were held against; ``n`` counts the observations. ``dry_run``: what was
    found is told and decides nothing.
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
    dry_run: bool = False
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.status is Status.PASS

    @property
    def holds_back(self) -> bool:
        """Whether it keeps a version from going on: it counts, and it is not a pass."""
        return not self.passed and not self.dry_run


def fold(verdicts: Iterable[Verdict]) -> Status:
    """The worst of those that count. Without one it is ``INCONCLUSIVE``: no evidence is never a pass."""
    seen = {verdict.status for verdict in verdicts if not verdict.dry_run}
    return next((status for status in _WORST_FIRST if status in seen), Status.INCONCLUSIVE)
