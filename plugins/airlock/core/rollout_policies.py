"""How a version comes onto traffic: who must say yes, which steps, and experiments."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from airlock.core.policy import Duration, Name, Policy, Positive, written


class Approvals(Policy):
    """Who must say yes in the Airflow UI: ``required`` distinct people, before traffic or before the promotion."""

    required: Annotated[int, Field(ge=0, le=5, description="0: nobody is asked")] = 1
    approvers: tuple[str, ...] = Field(
        (), description="Airflow user names that may answer; empty: whoever may edit the DAG"
    )
    forbid_author: bool = Field(False, description="whoever started the training may not approve its version")
    expires: Duration = timedelta(hours=24)
    before: Literal["traffic", "promotion"] = "traffic"

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.approvers and len(set(self.approvers)) < self.required:
            raise ValueError(
                f"{self.required} people must approve, but only {len(set(self.approvers))} are named as approvers"
            )
        return self


class Shadow(Policy):
    """Score a candidate on live requests without answering with it."""

    bake: Duration = timedelta(minutes=10)
    min_requests: Annotated[int, Field(ge=1)] = 100


class Step(Policy):
    """One canary step: ``weight`` percent for at least ``bake`` and ``min_requests`` answers."""

    weight: Annotated[float, Field(gt=0, le=100)]
    bake: Duration = timedelta(minutes=10)
    min_requests: Annotated[int, Field(ge=1)]


class Rollout(Policy):
    """The way onto live traffic.

    ``canary`` goes through ``steps``; ``blue_green`` goes from nothing to everything at once and bakes as the last
    step says; ``shadow_only`` ends after the shadow and promotes nothing; ``experiment`` splits the traffic as the
    spec's experiment says until it is concluded. ``deadline`` ends a step whose evidence does not come, counted in
    observed time; ``on_deadline`` says how. ``provisional``: a version may be promoted before its labels have
    matured; guards on labels go on and may roll back late.
    """

    plan: Literal["canary", "blue_green", "shadow_only", "experiment"] = "canary"
    shadow: Shadow | None = Shadow()
    steps: tuple[Step, ...] = tuple(
        Step(weight=weight, min_requests=minimum) for weight, minimum in ((5, 50), (25, 200), (50, 400), (100, 800))
    )
    deadline: Duration = timedelta(hours=2)
    on_deadline: Literal["rollback", "hold"] = "rollback"
    provisional: bool = True

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if self.plan == "shadow_only" and self.shadow is None:
            raise ValueError("a shadow_only rollout needs a shadow")
        weights = [step.weight for step in self.steps]
        if not weights:
            raise ValueError("a rollout needs at least one step")
        if any(later <= earlier for earlier, later in itertools.pairwise(weights)):
            raise ValueError(f"canary steps must increase, got {weights}")
        if weights[-1] != 100:
            raise ValueError(f"the last canary step must be 100, got {weights}")
        bakes = [step.bake for step in self.steps] + ([self.shadow.bake] if self.shadow else [])
        if (longest := max(bakes)) >= self.deadline:
            raise ValueError(
                f"a step that bakes for {written(longest)} is rolled back at the deadline of {written(self.deadline)}, "
                "whatever it shows: bake for less or move the deadline"
            )
        return self


class Outcome(Policy):
    """A measured outcome of an experiment: ``name`` is that of delivered outcomes, or ``label`` for the label."""

    name: Name
    better: Literal["higher", "lower"] = "higher"


class OutcomeGuard(Outcome):
    """An outcome that may be worse in the candidate's group by at most ``margin``, in its own units."""

    margin: Annotated[float, Field(ge=0)]


class Experiment(Policy):
    """An A/B test of candidate against champion, planned beforehand and analysed as it goes.

    ``minimum_effect`` is the smallest difference of the primary outcome's means worth finding, in its units.
    ``covariate`` names an outcome known before the experiment by which the variance is reduced (CUPED).
    """

    primary: Outcome
    minimum_effect: Positive
    guards: tuple[OutcomeGuard, ...] = ()
    weight: Annotated[float, Field(gt=0, lt=100)] = 50.0
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    power: Annotated[float, Field(gt=0.5, lt=1)] = 0.8
    covariate: Name | None = None
    duration: Duration = Field(timedelta(days=14), description="at most")
