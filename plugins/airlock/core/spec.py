"""The model spec: everything that Airlock knows about a model, as frozen typed values.

A spec is one YAML file, ``dags/models/<model>.yaml``. Unknown keys are refused, durations are
written ``90s``, ``15m``, ``6h`` or ``14d``, and every default is here and nowhere else.
"""

from __future__ import annotations

import itertools
import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = r"^(\d+(?:\.\d+)?)([smhd])$"


def _duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(_DURATION, value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected a duration such as 90s, 15m, 6h or 14d, got {value!r}")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})


def written(value: timedelta) -> str:
    """A duration as a spec writes it: exact, in the largest unit that fits."""
    for unit, name in reversed(_UNITS.items()):
        count, rest = divmod(value, timedelta(**{name: 1}))
        if not rest and (count or unit == "s"):
            return f"{count}{unit}"
    return f"{value.total_seconds():.6f}".rstrip("0") + "s"


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(written, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION, "examples": ["90s", "6h", "14d"]}),
]


def refused(at: str, message: str) -> PydanticCustomError:
    """An error of a whole document that says which part of it is to blame: a dotted path."""
    return PydanticCustomError("refused", "{message}", {"message": message, "at": at})


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Metric = Literal["roc_auc", "pr_auc", "log_loss", "brier", "accuracy", "rmse", "mae", "r2"]


class Policy(BaseModel):
    """Base of every part of a spec."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Range(Policy):
    """Values between ``min`` and ``max``, both allowed."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Task(StrEnum):
    CLASSIFICATION = "classification"
    REGRESSION = "regression"


METRICS: dict[Task, tuple[Metric, ...]] = {
    Task.CLASSIFICATION: ("roc_auc", "pr_auc", "log_loss", "brier", "accuracy"),
    Task.REGRESSION: ("rmse", "mae", "r2"),
}


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

    columns: dict[str, Column] = {}
    key: tuple[str, ...] = ()
    min_rows: Annotated[int, Field(ge=1)] = 1


class Data(Policy):
    """Where the rows are. ``table`` holds the labelled events; other tables feed features."""

    key: str
    event_time: str
    table: str = "events"
    tables: dict[str, Table] = {}
    evaluation: Duration = Field(timedelta(days=14), description="the last part of the data, held out for the gates")
    history: Duration | None = Field(None, description="train on no more than this much; unset: on everything")


class Label(Policy):
    """What is predicted. ``time`` names the column that says when the label became known."""

    name: str
    time: str | None = None
    delay: Duration = Field(timedelta(0), description="how long a label usually takes to arrive")
    positive: str = Field("yes", description="the positive class in words")
    threshold: Share = Field(0.5, description="a probability at or above this is answered as the positive class")


class Recipe(Policy):
    """The user's Python. ``module`` defines ``load``, ``pipeline`` and ``search_space``."""

    module: str | None = Field(None, description="default: include.<model>.recipe")
    trials: Annotated[int, Field(ge=1)] = 10
    seed: int = 7
    params: dict[str, Any] = {}


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


class MetricBound(Policy):
    """A metric that must reach ``min`` or stay within ``max``."""

    metric: Metric
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.min is None) == (self.max is None):
            raise ValueError("a gate on a metric takes exactly one of min and max")
        return self


class ThresholdGate(MetricBound):
    """The candidate's metric on the evaluation rows must reach a bound; its interval is reported."""

    kind: Literal["threshold"]


class NonInferiorityGate(Policy):
    """The candidate may be worse than the champion by less than ``margin``, on the same rows.

    While there is no champion the reference is the constant prediction of the training data.
    """

    kind: Literal["non_inferiority"]
    metric: Metric
    margin: Annotated[float, Field(ge=0)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class SliceGate(MetricBound):
    """The metric must reach a bound in every group of ``column`` that has ``min_rows``."""

    kind: Literal["slices"]
    column: str
    min_rows: Annotated[int, Field(ge=1)] = 200


class ParityGate(Policy):
    """ONNX must answer as scikit-learn does: largest difference, and flipped decisions."""

    kind: Literal["onnx_parity"]
    max_difference: Positive = 1e-3
    max_flips: Annotated[int, Field(ge=0)] = 0


class LatencyGate(Policy):
    """The ONNX model's p99 for one row, in milliseconds."""

    kind: Literal["latency"]
    max_p99_ms: Positive


class SizeGate(Policy):
    """The ONNX file, in MB (10^6 bytes)."""

    kind: Literal["size"]
    max_mb: Positive


class FiniteGate(Policy):
    """Every answer is a finite number."""

    kind: Literal["finite"]


class SchemaGate(Policy):
    """The inputs are those of the champion, unless ``allow_changes``."""

    kind: Literal["schema"]
    allow_changes: bool = False


Gate = Annotated[
    ThresholdGate | NonInferiorityGate | SliceGate | ParityGate | LatencyGate | SizeGate | FiniteGate | SchemaGate,
    Field(discriminator="kind"),
]


class ErrorRateGuard(Policy):
    """The share of the candidate's requests that it failed to answer."""

    kind: Literal["error_rate"]
    max: Annotated[float, Field(gt=0, lt=1)]
    min_requests: Annotated[int, Field(ge=1)] = 50


class LatencyGuard(Policy):
    """The candidate's p99, in milliseconds."""

    kind: Literal["latency"]
    max_p99_ms: Positive
    min_requests: Annotated[int, Field(ge=1)] = 50


class PredictionShiftGuard(Policy):
    """How far the candidate's answers lie from the champion's on the same requests.

    ``max_mean`` bounds the mean difference, ``max_absolute`` the mean absolute difference, in
    the answer's units (a probability, or the regression's target).
    """

    kind: Literal["prediction_shift"]
    max_mean: Positive | None = None
    max_absolute: Positive | None = None
    min_requests: Annotated[int, Field(ge=1)] = 50

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.max_mean is None and self.max_absolute is None:
            raise ValueError("a prediction_shift guard takes max_mean, max_absolute or both")
        return self


Guard = Annotated[ErrorRateGuard | LatencyGuard | PredictionShiftGuard, Field(discriminator="kind")]


class Approval(Policy):
    """Who must say yes in the Airflow UI before a candidate sees traffic."""

    required: bool = True
    approvers: tuple[str, ...] = Field(
        (), description="Airflow user names that may answer; empty: whoever may edit the DAG"
    )
    expires: Duration = timedelta(hours=24)


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
    """The way onto live traffic. ``deadline`` ends a step whose evidence does not come: rolled back."""

    shadow: Shadow | None = Shadow()
    steps: tuple[Step, ...] = tuple(
        Step(weight=weight, min_requests=minimum) for weight, minimum in ((5, 50), (25, 200), (50, 400), (100, 800))
    )
    deadline: Duration = timedelta(hours=2)

    @model_validator(mode="after")
    def _increasing(self) -> Self:
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


class Drift(Policy):
    """How drift is measured: one method and one threshold for every column, and how many may drift.

    ``share`` is the share of the watched columns above which the data counts as drifted.
    ``reference`` and ``current`` are the lengths of the two windows.
    """

    method: Literal["psi", "jensenshannon", "wasserstein", "ks"] = "psi"
    threshold: Positive = 0.2
    share: Annotated[float, Field(gt=0, le=1)] = 0.3
    columns: tuple[str, ...] = Field((), description="the inputs to watch; empty: all of them")
    min_rows: Annotated[int, Field(ge=2)] = 500
    current: Duration = timedelta(days=7)


class Monitoring(Policy):
    drift: Drift = Drift()
    schedule: str | None = Field(None, description="cron; unset: when triggered")


class Retrain(Policy):
    """What starts a training. ``cool_down`` keeps doubled drift events to one training."""

    schedule: str | None = Field(None, description="cron; unset: none")
    on_data: bool = True
    on_drift: bool = True
    cool_down: Duration = timedelta(hours=6)


class Serving(Policy):
    """Limits of the served model. ``timeout`` is how long a version may take before the champion answers."""

    timeout: Duration = timedelta(milliseconds=250)
    max_rows: Annotated[int, Field(ge=1)] = 1000
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1_000_000


class ModelSpec(Policy):
    """One model's whole life. See README.md for a worked example."""

    model: Name
    task: Task
    description: str = ""
    owner: str = ""
    data: Data
    label: Label
    recipe: Recipe = Recipe()
    inputs: dict[str, ShortInput]
    features: Features | None = None
    gates: tuple[Gate, ...]
    approval: Approval = Approval()
    rollout: Rollout = Rollout()
    guards: tuple[Guard, ...] = (ErrorRateGuard(kind="error_rate", max=0.02),)
    monitoring: Monitoring = Monitoring()
    retrain: Retrain = Retrain()
    serving: Serving = Serving()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.inputs:
            raise refused("inputs", "a model needs at least one input")
        if not self.gates:
            raise refused("gates", "a model without a gate cannot be judged: declare at least one")
        if not self.guards:
            raise refused("guards", "no alarm configured: a rollout needs at least one guard with a minimum sample")
        fitting = METRICS[self.task]
        for index, gate in enumerate(self.gates):
            if isinstance(gate, MetricBound | NonInferiorityGate) and gate.metric not in fitting:
                message = f"{gate.metric} does not fit a {self.task}; choose from {', '.join(fitting)}"
                raise refused(f"gates.{index}.metric", message)
        if self.label.name in self.inputs:
            message = f"label {self.label.name!r} is among the inputs: the model would be told the answer"
            raise refused(f"inputs.{self.label.name}", message)
        if unknown := sorted(set(self.monitoring.drift.columns) - set(self.inputs)):
            raise refused("monitoring.drift.columns", f"{unknown} are not inputs")
        return self

    @property
    def recipe_module(self) -> str:
        return self.recipe.module or f"include.{self.model}.recipe"
