"""The model spec: everything that Airlock knows about a model, as frozen typed values.
It is as long as a spec has parts: one class for each, to be read beside the YAML.

A spec is one YAML file, ``dags/models/<model>.yaml``. Unknown keys are refused, durations are
written ``90s``, ``15m``, ``6h`` or ``14d``, and every default is in a policy and nowhere else. Gates, guards and the
rollout have modules of their own; all names of a spec can be imported from here.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from airlock.core.drift_policy import Drift
from airlock.core.gate_policies import (
    CalibrationGate,
    ComparisonGate,
    Confidence,
    FairnessGate,
    FeatureParityGate,
    FiniteGate,
    Gate,
    GatePolicy,
    LatencyGate,
    MetricBound,
    NonInferiorityGate,
    ParityGate,
    RelativeGate,
    SchemaGate,
    SizeGate,
    SliceGate,
    SuperiorityGate,
    ThresholdGate,
    inapplicable,
)
from airlock.core.guard_policies import (
    LATE_GUARDS,
    BusinessMetricGuard,
    DisagreementGuard,
    ErrorRateGuard,
    FallbackRateGuard,
    Guard,
    GuardPolicy,
    LabelMetricGuard,
    LatencyGuard,
    LiveGuard,
    Loss,
    PairedLossGuard,
    PredictionShiftGuard,
    misfit,
    unlike_ranges,
)
from airlock.core.policy import (
    METRICS,
    Duration,
    Metric,
    Name,
    Policy,
    Positive,
    Share,
    Task,
    refused,
    written,
)
from airlock.core.rollout_policies import (
    Approvals,
    Experiment,
    Outcome,
    OutcomeGuard,
    Rollout,
    Shadow,
    Step,
)
from airlock.core.segment import Condition

__all__ = [
    "KEPT",
    "LATE_GUARDS",
    "METRICS",
    "Approvals",
    "BusinessMetricGuard",
    "CalibrationGate",
    "Card",
    "Column",
    "ColumnType",
    "ComparisonGate",
    "Confidence",
    "Data",
    "DisagreementGuard",
    "Drift",
    "Duration",
    "ErrorRateGuard",
    "Experiment",
    "FairnessGate",
    "Fallback",
    "FallbackRateGuard",
    "FeatureParityGate",
    "Features",
    "FiniteGate",
    "Gate",
    "GatePolicy",
    "Guard",
    "GuardPolicy",
    "Input",
    "InputType",
    "Label",
    "LabelMetricGuard",
    "LatencyGate",
    "LatencyGuard",
    "LiveGuard",
    "Loss",
    "Metric",
    "MetricBound",
    "ModelSpec",
    "Monitoring",
    "Name",
    "NonInferiorityGate",
    "Outcome",
    "OutcomeGuard",
    "PairedLossGuard",
    "ParityGate",
    "Policy",
    "Positive",
    "PredictionShiftGuard",
    "Range",
    "Recipe",
    "RelativeGate",
    "Retrain",
    "Rollout",
    "Rule",
    "SchemaGate",
    "Serving",
    "Shadow",
    "Share",
    "ShortInput",
    "SizeGate",
    "SliceGate",
    "Step",
    "SuperiorityGate",
    "Table",
    "Task",
    "ThresholdGate",
    "refused",
    "written",
]


class Range(Policy):
    """Values between ``min`` and ``max``, both allowed."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class ColumnType(StrEnum):
    FLOAT = "float"
    INT = "int"
    STRING = "string"
    BOOL = "bool"
    TIMESTAMP = "timestamp"


class Column(Range):
    """What one column of a table must look like. ``max_missing`` is a share of the rows."""

    type: ColumnType
    values: tuple[str, ...] | None = None
    max_missing: Share = 0.0
    unique: bool = False


class Table(Policy):
    """A table of the snapshot: its columns' rules, its key and how few rows are too few."""

    columns: dict[str, Column] = Field(default_factory=dict)
    key: tuple[str, ...] = ()
    min_rows: Annotated[int, Field(ge=1)] = 1


class Data(Policy):
    """Where the rows are. ``table`` holds the labelled events; other tables feed features."""

    key: str
    event_time: str
    table: str = "events"
    tables: dict[str, Table] = Field(default_factory=dict)
    evaluation: Duration = Field(timedelta(days=14), description="the last part of the data, held out for the gates")
    history: Duration | None = Field(None, description="train on no more than this much; unset: on everything")


class Label(Policy):
    """What is predicted. ``time`` names the column that says when the label became known."""

    name: str
    time: str | None = None
    delay: Duration = Field(timedelta(0), description="how long a label usually takes to arrive")
    maturity: Duration | None = Field(None, description="how long a label is waited for at most; unset: the delay")
    max_missing: Share = Field(
        0.0,
        description="the share of the mature labels that may be missing for good and are taken for like the rest; with "
        "more of them missing each counts as the worst that it could be, and a version is confirmed only if it would "
        "keep its bounds then",
    )
    positive: str = Field("yes", description="the positive class in words")
    threshold: Share = Field(0.5, description="a probability at or above this is answered as the positive class")


class Recipe(Policy):
    """The user's Python. ``module`` defines ``load``, ``pipeline`` and ``search_space``."""

    module: str | None = Field(None, description="default: include.<model>.recipe")
    trials: Annotated[int, Field(ge=1)] = 10
    seed: int = 7
    params: dict[str, Any] = Field(default_factory=dict)


InputType = Literal["float", "int", "string"]


class Input(Range):
    """One input of the model, by name. Bounds and ``values`` are what a request may carry."""

    type: InputType
    nullable: bool = False
    values: tuple[str, ...] | None = Field(None, description="the categories that a request may name; unset: any")


def _written_out(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


ShortInput = Annotated[Input, BeforeValidator(_written_out, json_schema_input_type=InputType | Input)]
"""``price: float`` is short for ``price: {type: float}``."""


class Features(Policy):
    """The Feast feature service that makes a model's inputs from an entity row.

    ``entities`` are join keys and ``request`` are the values that come with a question; both
    are columns of the events table.
    """

    service: str
    entities: tuple[str, ...]
    request: dict[str, ShortInput]


class Monitoring(Policy):
    drift: Drift = Drift()
    schedule: str | None = Field(None, description="cron; unset: when triggered")


class Retrain(Policy):
    """What starts a training. ``cool_down`` keeps doubled drift events to one training."""

    schedule: str | None = Field(None, description="cron; unset: none")
    on_data: bool = True
    on_drift: bool = True
    cool_down: Duration = timedelta(hours=6)


class Rule(Policy):
    """An answer for requests that meet every condition of ``when``: a probability, or the regression's value."""

    when: Annotated[tuple[Condition, ...], Field(min_length=1)]
    answer: float


class Fallback(Policy):
    """What answers when no version can, in this order: a cached answer, the first rule that fits, the default."""

    cache: Duration | None = Field(None, description="how old an answer to the same inputs may be; unset: not kept")
    rules: tuple[Rule, ...] = ()
    default: float | None = Field(None, description="a probability, or the regression's value; unset: 503")

    @property
    def answers(self) -> tuple[float, ...]:
        """What it may answer, a cached answer aside."""
        return tuple(rule.answer for rule in self.rules) + (() if self.default is None else (self.default,))


class Serving(Policy):
    """Limits of the served model. ``timeout`` is how long a version may take before the champion answers."""

    fallback: Fallback = Fallback()
    timeout: Duration = timedelta(milliseconds=250)
    max_rows: Annotated[int, Field(ge=1)] = 1000
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1_000_000


class Card(Policy):
    """What a model card says that no measurement can: what the model is for, what it is not for, and its limits."""

    intended: tuple[str, ...] = ()
    not_intended: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


KEPT: Final = {"kept": True}
"""The context in which a spec is validated that the ledger keeps: a release was opened with it, and goes by it also
where its parts would be refused side by side by now."""


class ModelSpec(Policy):
    """One model's whole life. See README.md for a worked example."""

    model: Name
    task: Task
    description: str = ""
    owner: str = ""
    card: Card = Card()
    data: Data
    label: Label
    recipe: Recipe = Recipe()
    inputs: dict[str, ShortInput]
    features: Features | None = None
    gates: tuple[Gate, ...]
    approvals: Approvals = Approvals()
    rollout: Rollout = Rollout()
    experiment: Experiment | None = None
    false_rollback_budget: Annotated[
        float,
        Field(gt=0, le=0.2, description="chance that a release of a version that keeps every bound is taken back"),
    ] = 0.01
    guards: tuple[Guard, ...] = (ErrorRateGuard(kind="error_rate", max=0.02),)
    monitoring: Monitoring = Monitoring()
    retrain: Retrain = Retrain()
    serving: Serving = Serving()

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        if info.context is KEPT:
            return self
        if not self.inputs:
            raise refused("inputs", "a model needs at least one input")
        if all(gate.mode == "dry_run" for gate in self.gates):
            raise refused("gates", "a model without a gate that is enforced cannot be judged: declare at least one")
        if not self.guards:
            raise refused("guards", "no alarm configured: a rollout needs at least one guard with a minimum sample")
        if not self.serving.timeout:
            raise refused("serving.timeout", "expected more than 0s, such as 250ms: nothing answers in no time")
        if self.rollout.plan == "experiment" and self.experiment is None:
            raise refused("experiment", "a rollout by experiment needs an experiment: its primary outcome and effect")
        if self.label.name in self.inputs:
            message = f"label {self.label.name!r} is among the inputs: the model would be told the answer"
            raise refused(f"inputs.{self.label.name}", message)
        if unknown := sorted(set(self.monitoring.drift.columns) - set(self.inputs)):
            raise refused("monitoring.drift.columns", f"{unknown} are not inputs")
        return self

    @model_validator(mode="after")
    def _fitting(self, info: ValidationInfo) -> Self:
        """Gates and guards are such as the task has."""
        if info.context is KEPT:
            return self
        metrics = METRICS[self.task]
        for index, gate in enumerate(self.gates):
            if isinstance(gate, MetricBound | ComparisonGate | RelativeGate) and gate.metric not in metrics:
                message = f"{gate.metric} does not fit a {self.task}; choose from {', '.join(metrics)}"
                raise refused(f"gates.{index}.metric", message)
            if reason := inapplicable(gate, self.task, has_features=self.features is not None):
                raise refused(f"gates.{index}", reason)
        wrong = [answer for answer in self.serving.fallback.answers if not 0 <= answer <= 1]
        if wrong and self.task is Task.CLASSIFICATION:
            raise refused("serving.fallback", f"a classification answers with probabilities, not with {wrong}")
        for index, guard in enumerate(self.guards):
            if reason := misfit(guard, self.task):
                raise refused(f"guards.{index}", reason)
        if unlike := unlike_ranges(self.guards):
            raise refused(f"guards.{unlike[0]}", unlike[1])
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the spec as JSON. Layout and comments of the file do not count; every default does."""
        return "sha256:" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def maturity(self) -> timedelta:
        """How long after its event a prediction's label is waited for."""
        return self.label.maturity if self.label.maturity is not None else self.label.delay

    @property
    def late_guards(self) -> tuple[Guard, ...]:
        """Guards whose evidence comes after the answer: labels and outcomes."""
        return tuple(guard for guard in self.guards if isinstance(guard, LATE_GUARDS))

    @property
    def recipe_module(self) -> str:
        return self.recipe.module or f"include.{self.model}.recipe"
