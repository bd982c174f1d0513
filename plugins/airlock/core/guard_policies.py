"""The guards that a spec may declare; ``core/limits`` says what they come down to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from airlock.core.policy import Name, Policy, Positive, Task, Unit


class GuardPolicy(Policy):
    """A policy judged all the time. ``min_requests`` is what a pass needs; a breach is told as soon as it is sure."""

    min_requests: Annotated[
        int,
        Field(
            ge=1,
            description="how many observations a pass needs: requests, customers or minutes as `by` says; labelled "
            "answers or outcomes of a guard that waits for them",
        ),
    ] = 50


class LiveGuard(GuardPolicy):
    """A policy judged on requests as they are answered.

    ``by`` is the unit of evidence. The error budget holds for observations whose mean, given those before, keeps the
    bound; where requests hang together choose the unit that does not: the customer where clients try again or send
    alike requests, the minute where trouble comes in bursts.
    """

    by: Annotated[
        Unit,
        Field(
            description="what makes one observation: each request, the first request of each routing key in the "
            "release (one without a key stands for itself), or the mean over the requests of each minute; "
            "min_requests counts these"
        ),
    ] = "request"


class ErrorRateGuard(LiveGuard):
    """The share of the candidate's requests that it failed to answer."""

    kind: Literal["error_rate"]
    max: Annotated[float, Field(gt=0, lt=1)]


class LatencyGuard(LiveGuard):
    """Quantiles of the candidate's latency, in milliseconds."""

    kind: Literal["latency"]
    max_p50_ms: Positive | None = None
    max_p95_ms: Positive | None = None
    max_p99_ms: Positive | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if not self.bounds:
            raise ValueError("a latency guard takes max_p50_ms, max_p95_ms, max_p99_ms or several of them")
        return self

    @property
    def bounds(self) -> dict[float, float]:
        """Milliseconds by quantile."""
        named = {0.5: self.max_p50_ms, 0.95: self.max_p95_ms, 0.99: self.max_p99_ms}
        return {quantile: ms for quantile, ms in named.items() if ms is not None}


class FallbackRateGuard(LiveGuard):
    """The share of the requests meant for the candidate that something else answered in its place."""

    kind: Literal["fallback_rate"]
    max: Annotated[float, Field(gt=0, lt=1)]


class PredictionShiftGuard(LiveGuard):
    """How far the candidate's answers lie from the champion's on the same requests.

    ``max_mean`` bounds the mean difference, ``max_absolute`` the mean absolute difference, in
    the answer's units (a probability, or the regression's target). ``range`` holds every value that a regression may
    answer; further apart than its ends answers count as just so far. With it the guard's promise is exact.
    """

    kind: Literal["prediction_shift"]
    max_mean: Positive | None = None
    max_absolute: Positive | None = None
    range: tuple[float, float] | None = Field(None, description="of a regression: every value that it may answer")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        bounds = [bound for bound in (self.max_mean, self.max_absolute) if bound is not None]
        if not bounds:
            raise ValueError("a prediction_shift guard takes max_mean, max_absolute or both")
        if self.range is not None:
            if self.range[0] >= self.range[1]:
                raise ValueError(f"range must be ordered, got {list(self.range)}")
            if max(bounds) >= self.range[1] - self.range[0]:
                raise ValueError(f"a bound of {max(bounds):g} is never broken by answers within {list(self.range)}")
        return self


class DisagreementGuard(LiveGuard):
    """The share of the requests on which candidate and champion decide differently. Classification only."""

    kind: Literal["disagreement"]
    max: Annotated[float, Field(gt=0, lt=1)]


Loss = Literal["brier", "log_loss", "zero_one", "absolute_error", "squared_error"]


class PairedLossGuard(GuardPolicy):
    """The mean of the candidate's loss minus the champion's on requests that both answered, as their labels come.

    ``margin`` is in the loss's units; ``min_requests`` counts labelled pairs.
    """

    kind: Literal["paired_loss"]
    metric: Loss
    margin: Annotated[float, Field(ge=0)]


class LabelMetricGuard(GuardPolicy):
    """A metric of what the candidate answered, as labels come: an absolute bound, or a margin to the champion.

    ``margin`` is how much worse than the champion's on the same rows it may be, in the metric's units.
    ``min_requests`` counts labelled answers.
    """

    kind: Literal["label_metric"]
    metric: Literal["roc_auc", "brier", "log_loss", "accuracy", "mae", "rmse"]
    min: float | None = None
    max: float | None = None
    margin: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if sum(bound is not None for bound in (self.min, self.max, self.margin)) != 1:
            raise ValueError("a label_metric guard takes exactly one of min, max and margin")
        gain = self.metric in {"roc_auc", "accuracy"}
        if (self.max if gain else self.min) is not None:
            good, bad = ("max", "min") if gain else ("min", "max")
            raise ValueError(f"a {good} of {self.metric} bounds nothing bad: use {bad} or margin")
        return self


class BusinessMetricGuard(GuardPolicy):
    """The mean of an outcome that is joined to what was answered, such as revenue.

    ``min`` or ``max`` bound the candidate's mean; ``max_drop`` bounds how far it may lie below the champion's on
    concurrent traffic. ``range`` holds every value that an outcome can have; ``min_requests`` counts outcomes.
    """

    kind: Literal["business_metric"]
    name: Name
    range: tuple[float, float]
    min: float | None = None
    max: float | None = None
    max_drop: Positive | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if sum(bound is not None for bound in (self.min, self.max, self.max_drop)) != 1:
            raise ValueError("a business_metric guard takes exactly one of min, max and max_drop")
        if self.range[0] >= self.range[1]:
            raise ValueError(f"range must be ordered, got {list(self.range)}")
        bound = self.min if self.min is not None else self.max
        if bound is not None and not self.range[0] < bound < self.range[1]:
            raise ValueError(f"a bound of {bound:g} is not inside the range {list(self.range)}")
        return self


Guard = Annotated[
    ErrorRateGuard
    | LatencyGuard
    | FallbackRateGuard
    | PredictionShiftGuard
    | DisagreementGuard
    | PairedLossGuard
    | LabelMetricGuard
    | BusinessMetricGuard,
    Field(discriminator="kind"),
]
LATE_GUARDS = (PairedLossGuard, LabelMetricGuard, BusinessMetricGuard)
"""Guards whose evidence comes after the answer."""
_CLASSIFICATION_LOSSES = frozenset({"brier", "log_loss", "zero_one", "roc_auc", "accuracy"})
_REGRESSION_LOSSES = frozenset({"absolute_error", "squared_error", "mae", "rmse"})


def unlike_ranges(guards: Sequence[Guard]) -> tuple[int, str] | None:
    """The place of a prediction_shift guard whose range is not that of the one before it, and what to do about it.

    The gateway keeps one sum of the differences for all of them, in which none is larger than the range allows.
    """
    shifts = [(index, guard) for index, guard in enumerate(guards) if isinstance(guard, PredictionShiftGuard)]
    for (first, one), (second, other) in pairwise(shifts):
        if one.range != other.range:
            said = " and ".join(
                f"guards.{index} has {'no range' if guard.range is None else f'range {list(guard.range)}'}"
                for index, guard in ((first, one), (second, other))
            )
            return second, f"the prediction_shift guards of a spec share one range, but {said}: give both the wider one"
    return None


def misfit(guard: Guard, task: Task) -> str | None:
    """Why a guard cannot be judged for a task, or ``None``."""
    if isinstance(guard, PredictionShiftGuard) and guard.range is not None and task is Task.CLASSIFICATION:
        return "a classification answers with probabilities, whose range is known: leave range out"
    if isinstance(guard, DisagreementGuard) and task is not Task.CLASSIFICATION:
        return "disagreement counts decisions, which a regression does not make; use prediction_shift"
    if isinstance(guard, PairedLossGuard | LabelMetricGuard):
        fitting = _CLASSIFICATION_LOSSES if task is Task.CLASSIFICATION else _REGRESSION_LOSSES
        if guard.metric not in fitting:
            return f"{guard.metric} does not fit a {task}; choose from {', '.join(sorted(fitting))}"
    return None
