"""The gates that a spec may declare; ``core/gates`` judges them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from airlock.core.policy import Metric, Policy, Positive, Share, Task


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

    ``max_loss: -0.02`` asks for an improvement of 2 %. By the estimate on the same rows; its interval is reported.
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
    groups. ``equalised_odds``: the true and the false positive rates do. Passed when the interval of the largest
    difference lies within the bound, failed when it lies beyond it, open between. Groups of fewer than
    ``min_rows`` are told and decide nothing.
    """

    kind: Literal["fairness"]
    criterion: Literal["demographic_parity", "equalised_odds"]
    column: str
    max_difference: Annotated[float, Field(gt=0, lt=1)]
    min_rows: Annotated[int, Field(ge=1)] = 200


class CalibrationGate(GatePolicy):
    """The expected calibration error over ``bins`` of equal count, without what chance adds, is at most ``max_error``.

    Passed when its interval lies within the bound, failed when it lies beyond it, open between.
    """

    kind: Literal["calibration"]
    max_error: Annotated[float, Field(gt=0, lt=1)]
    bins: Annotated[int, Field(ge=2, le=100)] = 10


class ParityGate(GatePolicy):
    """ONNX must answer as scikit-learn does: largest difference, and flipped decisions.

    Always enforced, declared or not: what was judged offline and what answers would be two models.
    """

    kind: Literal["onnx_parity"]
    mode: Literal["enforce"] = "enforce"
    max_difference: Positive = 1e-3
    max_flips: Annotated[int, Field(ge=0)] = 0

    @field_validator("mode", mode="before")
    @classmethod
    def _never_dry(cls, value: object) -> object:
        if value == "dry_run":
            raise ValueError(
                "onnx_parity is always enforced: a model that answers differently once it is exported is never let "
                "through. Remove the mode, and widen max_difference or max_flips if a known difference is harmless"
            )
        return value


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
    """Inputs, and what one asks with and reads the answer by, are those of the champion, unless ``allow_changes``."""

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


def inapplicable(gate: Gate, task: Task, *, has_features: bool) -> str | None:
    """Why a gate could never be judged for a model of this kind, or ``None``."""
    if isinstance(gate, FairnessGate | CalibrationGate) and task is not Task.CLASSIFICATION:
        return f"a {gate.kind} gate is of probabilities and decisions, which a {task} does not give; remove it"
    if isinstance(gate, ParityGate) and task is Task.CLASSIFICATION and gate.max_difference >= 1:
        return (
            f"a max_difference of {gate.max_difference:g} refuses nothing: probabilities lie between 0 and 1; "
            "the default is 0.001"
        )
    if isinstance(gate, FeatureParityGate) and not has_features:
        return "a feature_parity gate reads the online store, which a model without features has not; remove it"
    return None
