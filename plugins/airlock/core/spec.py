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

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from airlock.core.policy import Policy
from airlock.core.segment import Condition

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
    maturity: Duration | None = Field(None, description="how long a label is waited for at most; unset: the delay")
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


class GatePolicy(Policy):
    """A policy judged once, before traffic. ``dry_run`` records what it would say and lets the candidate through."""

    mode: Literal["enforce", "dry_run"] = "enforce"


class MetricBound(GatePolicy):
    """A metric that must reach ``min`` or stay within ``max``."""

    metric: Metric
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.min is None) == (self.max is None):
            raise ValueError("a gate on a metric takes exactly one of min and max")
        return self


Confidence = Annotated[float, Field(gt=0.5, lt=1)]
"""Of one bound of an interval; two bounds of 0.95 make a 90 % interval."""


class ThresholdGate(MetricBound):
    """The candidate's metric on the evaluation rows must reach a bound; its interval is reported."""

    kind: Literal["threshold"]


class RelativeGate(GatePolicy):
    """The candidate's metric may be worse than the champion's by at most ``max_loss``, a share of the champion's.

    ``max_loss: -0.02`` asks for an improvement of 2 %.
    """

    kind: Literal["relative"]
    metric: Metric
    max_loss: Annotated[float, Field(gt=-1, lt=1)]


class ComparisonGate(GatePolicy):
    """A comparison with the champion on the same rows, by the bound of a paired interval.

    While there is no champion the reference is the constant prediction of the training data. ``analytic``
    is DeLong for ``roc_auc`` and the normal approximation of paired differences for the others.
    """

    metric: Metric
    margin: Annotated[float, Field(ge=0, description="in the metric's units")]
    confidence: Confidence = 0.95
    method: Literal["analytic", "bootstrap"] = "analytic"


class NonInferiorityGate(ComparisonGate):
    """The candidate may be worse than the champion by less than ``margin``, on the same rows."""

    kind: Literal["non_inferiority"]


class SuperiorityGate(ComparisonGate):
    """The candidate must be better than the champion by more than ``margin``, on the same rows."""

    kind: Literal["superiority"]
    margin: Annotated[float, Field(ge=0, description="in the metric's units")] = 0.0


class SliceGate(MetricBound):
    """The metric must reach a bound in every group of ``column`` that has ``min_rows``.

    A group falls short when that is significant with the groups' false discovery rate held (Benjamini and
    Hochberg 1995), so that many groups do not fail a candidate by chance.
    """

    kind: Literal["slices"]
    column: str
    min_rows: Annotated[int, Field(ge=1)] = 200
    false_discovery_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05


class FairnessGate(GatePolicy):
    """Groups of ``column`` are treated alike.

    ``demographic_parity``: the share answered as positive differs by at most ``max_difference`` between any two
    groups. ``equalised_odds``: the true and the false positive rates do.
    """

    kind: Literal["fairness"]
    criterion: Literal["demographic_parity", "equalised_odds"]
    column: str
    max_difference: Annotated[float, Field(gt=0, lt=1)]
    min_rows: Annotated[int, Field(ge=1)] = 200


class CalibrationGate(GatePolicy):
    """The expected calibration error over ``bins`` of equal count is at most ``max_error``."""

    kind: Literal["calibration"]
    max_error: Annotated[float, Field(gt=0, lt=1)]
    bins: Annotated[int, Field(ge=2, le=100)] = 10


class ParityGate(GatePolicy):
    """ONNX must answer as scikit-learn does: largest difference, and flipped decisions."""

    kind: Literal["onnx_parity"]
    max_difference: Positive = 1e-3
    max_flips: Annotated[int, Field(ge=0)] = 0


class FeatureParityGate(GatePolicy):
    """Feast online must give what the point-in-time join gives, for the same entities at the same time.

    ``max_mismatch`` is the share of the compared values that may differ by more than ``tolerance``, relative to
    the larger of the two.
    """

    kind: Literal["feature_parity"]
    max_mismatch: Share = 0.0
    tolerance: Positive = 1e-6
    rows: Annotated[int, Field(ge=1, description="entity rows to compare, the newest")] = 200


class LatencyGate(GatePolicy):
    """The ONNX model's p99 for one row, in milliseconds."""

    kind: Literal["latency"]
    max_p99_ms: Positive


class SizeGate(GatePolicy):
    """The ONNX file, in MB (10^6 bytes)."""

    kind: Literal["size"]
    max_mb: Positive


class FiniteGate(GatePolicy):
    """Every answer is a finite number."""

    kind: Literal["finite"]


class SchemaGate(GatePolicy):
    """Inputs and output are those of the champion, unless ``allow_changes``."""

    kind: Literal["schema"]
    allow_changes: bool = False


Gate = Annotated[
    ThresholdGate
    | RelativeGate
    | NonInferiorityGate
    | SuperiorityGate
    | SliceGate
    | FairnessGate
    | CalibrationGate
    | ParityGate
    | FeatureParityGate
    | LatencyGate
    | SizeGate
    | FiniteGate
    | SchemaGate,
    Field(discriminator="kind"),
]


class GuardPolicy(Policy):
    """A policy judged all the time. ``min_requests`` is what a pass needs; a breach is told as soon as it is sure."""

    min_requests: Annotated[int, Field(ge=1)] = 50


class ErrorRateGuard(GuardPolicy):
    """The share of the candidate's requests that it failed to answer."""

    kind: Literal["error_rate"]
    max: Annotated[float, Field(gt=0, lt=1)]


class LatencyGuard(GuardPolicy):
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


class FallbackRateGuard(GuardPolicy):
    """The share of the requests meant for the candidate that something else answered in its place."""

    kind: Literal["fallback_rate"]
    max: Annotated[float, Field(gt=0, lt=1)]


class PredictionShiftGuard(GuardPolicy):
    """How far the candidate's answers lie from the champion's on the same requests.

    ``max_mean`` bounds the mean difference, ``max_absolute`` the mean absolute difference, in
    the answer's units (a probability, or the regression's target).
    """

    kind: Literal["prediction_shift"]
    max_mean: Positive | None = None
    max_absolute: Positive | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.max_mean is None and self.max_absolute is None:
            raise ValueError("a prediction_shift guard takes max_mean, max_absolute or both")
        return self


class DisagreementGuard(GuardPolicy):
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


class Rule(Policy):
    """An answer for requests that meet every condition of ``when``: a probability, or the regression's value."""

    when: Annotated[tuple[Condition, ...], Field(min_length=1)]
    answer: float


class Fallback(Policy):
    """What answers when no version can, in this order: a cached answer, the first rule that fits, the default."""

    cache: Duration | None = Field(None, description="how old an answer to the same inputs may be; unset: not kept")
    rules: tuple[Rule, ...] = ()
    default: float | None = Field(None, description="a probability, or the regression's value; unset: 503")


class Serving(Policy):
    """Limits of the served model. ``timeout`` is how long a version may take before the champion answers."""

    fallback: Fallback = Fallback()
    timeout: Duration = timedelta(milliseconds=250)
    max_rows: Annotated[int, Field(ge=1)] = 1000
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1_000_000


_CLASSIFICATION_LOSSES = frozenset({"brier", "log_loss", "zero_one", "roc_auc", "accuracy"})
_REGRESSION_LOSSES = frozenset({"absolute_error", "squared_error", "mae", "rmse"})


class Card(Policy):
    """What a model card says that no measurement can: what the model is for, what it is not for, and its limits."""

    intended: tuple[str, ...] = ()
    not_intended: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


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
    def _consistent(self) -> Self:
        if not self.inputs:
            raise refused("inputs", "a model needs at least one input")
        if not self.gates:
            raise refused("gates", "a model without a gate cannot be judged: declare at least one")
        if not self.guards:
            raise refused("guards", "no alarm configured: a rollout needs at least one guard with a minimum sample")
        fitting = METRICS[self.task]
        for index, gate in enumerate(self.gates):
            if isinstance(gate, MetricBound | ComparisonGate | RelativeGate) and gate.metric not in fitting:
                message = f"{gate.metric} does not fit a {self.task}; choose from {', '.join(fitting)}"
                raise refused(f"gates.{index}.metric", message)
        for index, guard in enumerate(self.guards):
            if reason := self._does_not_fit(guard):
                raise refused(f"guards.{index}", reason)
        if self.rollout.plan == "experiment" and self.experiment is None:
            raise refused("experiment", "a rollout by experiment needs an experiment: its primary outcome and effect")
        if self.label.name in self.inputs:
            message = f"label {self.label.name!r} is among the inputs: the model would be told the answer"
            raise refused(f"inputs.{self.label.name}", message)
        if unknown := sorted(set(self.monitoring.drift.columns) - set(self.inputs)):
            raise refused("monitoring.drift.columns", f"{unknown} are not inputs")
        return self

    def _does_not_fit(self, guard: Guard) -> str | None:
        """Why a guard cannot be judged for this task."""
        classification = self.task is Task.CLASSIFICATION
        if isinstance(guard, DisagreementGuard) and not classification:
            return "disagreement counts decisions, which a regression does not make; use prediction_shift"
        if isinstance(guard, PairedLossGuard | LabelMetricGuard):
            fitting = _CLASSIFICATION_LOSSES if classification else _REGRESSION_LOSSES
            if guard.metric not in fitting:
                return f"{guard.metric} does not fit a {self.task}; choose from {', '.join(sorted(fitting))}"
        return None

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
