"""What a replay found: the decisions of one run, or how often many runs were wrong."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from airlock.core.stats import wilson
from airlock.core.verdict import Status, Verdict

_LEVEL = 0.975  # of each bound of an interval of 95 %

By = Literal["gateway", "control", "log"]
"""Who decided; ``log``: the recorded release went on although the policy would not have."""
Ending = Literal["promoted", "confirmed", "completed", "rolled_back", "held", "unfinished"]


class Decided(BaseModel):
    """A decision that changed something, after ``request`` requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: int
    at: datetime
    step: str
    action: str
    by: By
    reason: str
    verdicts: tuple[Verdict, ...] = ()


class ReplayReport(BaseModel):
    """How a release would have gone.

    ``promoted`` may still have waited for labels (see the decisions); ``confirmed`` had them; ``held`` waited for a
    person; ``unfinished`` ran out of traffic. ``hindsight`` holds each limit against all of the traffic, whatever was
    decided on the way. ``looks`` counts how often the gateway's limits were looked at, and ``unknown`` says what the
    replay could not know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ending: Ending
    reason: str
    decisions: tuple[Decided, ...]
    requests: int
    looks: int
    hindsight: tuple[Verdict, ...]
    unknown: tuple[str, ...] = ()

    @property
    def taken_back_after(self) -> int | None:
        """Requests until it was rolled back."""
        return self.decisions[-1].request if self.ending == "rolled_back" else None

    @property
    def over(self) -> tuple[str, ...]:
        """Limits whose estimate over all of the traffic lies beyond their bound, surely or not."""
        return tuple(
            verdict.name
            for verdict in self.hindsight
            if verdict.status in (Status.FAIL, Status.ERROR) or _beyond(verdict)
        )

    @property
    def wrong(self) -> str | None:
        """Why all of the traffic says that the decision was wrong; ``None`` if it does not say so."""
        if self.ending == "rolled_back" and not self.over:
            return "it was rolled back, but over all of the traffic every limit's estimate keeps its bound"
        failed = [verdict.name for verdict in self.hindsight if verdict.status is Status.FAIL]
        if self.ending in ("promoted", "confirmed", "completed") and failed:
            return f"it was let through, but over all of the traffic {', '.join(failed)} surely broke its bound"
        return None


def _beyond(verdict: Verdict) -> bool:
    if verdict.estimate is None or verdict.threshold is None:
        return False
    estimate = abs(verdict.estimate) if verdict.metric == "difference" else verdict.estimate
    return estimate > verdict.threshold


class Repeated(BaseModel):
    """Many runs over traffic whose truth is known.

    ``bad`` says which limits the truth breaks. ``false_rollbacks`` counts runs that took back a version that breaks
    none, ``missed`` those that did not take back one that breaks some; both with a Wilson interval of 95 %.
    ``to_detection`` holds requests until it was taken back: median and 90th percentile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: int
    bad: tuple[str, ...]
    endings: dict[str, int]
    false_rollbacks: int
    missed: int
    rate: float
    low: float
    high: float
    to_detection: dict[str, float] = {}


def repeated(reports: Sequence[ReplayReport], bad: Sequence[str]) -> Repeated:
    """Count how often the decision was wrong, given what is true.

    Raises:
        TooFew: there are no reports.
    """
    endings: dict[str, int] = {}
    for report in reports:
        endings[report.ending] = endings.get(report.ending, 0) + 1
    taken_back = sorted(report.taken_back_after for report in reports if report.taken_back_after is not None)
    wrong = len(reports) - len(taken_back) if bad else len(taken_back)
    share = wilson(wrong, len(reports), _LEVEL)
    quantiles = {
        name: float(taken_back[min(len(taken_back) - 1, int(q * len(taken_back)))])
        for name, q in (("median", 0.5), ("p90", 0.9))
        if taken_back
    }
    return Repeated(
        runs=len(reports),
        bad=tuple(bad),
        endings=endings,
        false_rollbacks=0 if bad else wrong,
        missed=wrong if bad else 0,
        rate=share.estimate,
        low=share.low,
        high=share.high,
        to_detection=quantiles,
    )
