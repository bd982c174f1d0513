"""Preprocessing for recipes that converts to ONNX without a changed answer.

scikit-learn computes a derived column in one way and ONNX Runtime in another; a difference in
the last bit sends a row down the other branch of a tree. These transformers therefore use only
operations that are exact in float32 on both sides: comparison, selection, one multiplication
and table look-up. Recipes import this module; the provider itself does not.
"""
# ruff: noqa: TID253 - recipes are fitted where scikit-learn is loaded anyway

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

if TYPE_CHECKING:
    Floats = npt.NDArray[np.float32]


class OutlierCapper(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Clip every column to its own quantiles of the training data. Takes no missing values.

    Args:
        lower: quantile in [0, 1] below which values are raised to it.
        upper: quantile in [0, 1] above which values are lowered to it.
    """

    def __init__(self, lower: float = 0.001, upper: float = 0.999) -> None:
        self.lower = lower
        self.upper = upper

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803, ARG002 - scikit-learn's names
        values = validate_data(self, X, dtype=np.float32)
        self.low_, self.high_ = np.quantile(values, [self.lower, self.upper], axis=0).astype(np.float32)
        return self

    def transform(self, X: Any) -> Floats:  # noqa: N803
        check_is_fitted(self)
        values = validate_data(self, X, dtype=np.float32, reset=False)
        capped: Floats = np.minimum(np.maximum(values, self.low_), self.high_)
        return capped


class Cyclical(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Sine and cosine of whole numbers that come round again, such as a minute of the day.

    A value is rounded down and taken modulo ``period``. One column gives two; takes no missing values.

    Args:
        period: after how many units the value comes round, a whole number of at least 2.
    """

    def __init__(self, period: int = 24) -> None:
        self.period = period

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803, ARG002
        if self.period < 2:
            raise ValueError(f"Cyclical needs a period of at least 2, got {self.period}")
        validate_data(self, X, dtype=np.float32)
        angle = 2 * np.pi * np.arange(self.period) / self.period
        self.table_ = np.column_stack([np.sin(angle), np.cos(angle)]).astype(np.float32)
        return self

    def transform(self, X: Any) -> Floats:  # noqa: N803
        check_is_fitted(self)
        values = validate_data(self, X, dtype=np.float32, reset=False)
        place = np.mod(np.floor(values), np.float32(self.period)).astype(np.int64)
        turned: Floats = self.table_[place].reshape(len(values), self._n_features_out)
        return turned

    @property
    def _n_features_out(self) -> int:
        return 2 * int(self.n_features_in_)


class Interaction(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The product of two columns, as one column."""

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803, ARG002
        values = validate_data(self, X, dtype=np.float32)
        if values.shape[1] != 2:
            raise ValueError(f"Interaction multiplies two columns, got {values.shape[1]}")
        return self

    def transform(self, X: Any) -> Floats:  # noqa: N803
        check_is_fitted(self)
        values = validate_data(self, X, dtype=np.float32, reset=False)
        product: Floats = values[:, :1] * values[:, 1:]
        return product

    @property
    def _n_features_out(self) -> int:
        return 1


def register_converters() -> None:
    """Teach skl2onnx these transformers. May be called again."""
    from skl2onnx import update_registered_converter

    for kind, convert in ((OutlierCapper, _capper), (Cyclical, _cyclical), (Interaction, _interaction)):
        update_registered_converter(kind, f"Airlock{kind.__name__}", _shape, convert)


def _shape(operator: Any) -> None:
    from skl2onnx.common.data_types import FloatTensorType

    estimator = operator.raw_operator
    width = getattr(estimator, "_n_features_out", None) or estimator.n_features_in_
    operator.outputs[0].type = FloatTensorType([None, width])


class _Graph:
    """Adds nodes and constants to a conversion under unique names."""

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        self.scope, self.container = scope, container
        self.output = operator.outputs[0].full_name
        names = [variable.full_name for variable in operator.inputs]
        self.input = names[0] if len(names) == 1 else self.add("Concat", names, axis=1)

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        output = output or self.scope.get_unique_variable_name(kind.lower())
        name = self.scope.get_unique_operator_name(kind)
        self.container.add_node(kind, list(inputs), output, name=name, **attributes)
        return output

    def constant(self, values: npt.NDArray[Any]) -> str:
        from onnx import TensorProto

        name: str = self.scope.get_unique_variable_name("constant")
        kind = TensorProto.INT64 if values.dtype == np.int64 else TensorProto.FLOAT
        self.container.add_initializer(name, kind, list(values.shape), values.ravel())
        return name


def _capper(scope: Any, operator: Any, container: Any) -> None:
    graph = _Graph(scope, operator, container)
    raised = graph.add("Max", [graph.input, graph.constant(operator.raw_operator.low_)])
    graph.add("Min", [raised, graph.constant(operator.raw_operator.high_)], graph.output)


def _cyclical(scope: Any, operator: Any, container: Any) -> None:
    from onnx import TensorProto

    graph, period = _Graph(scope, operator, container), operator.raw_operator.period
    # fmod keeps the sign of the value: adding the period once and taking the remainder again makes it positive.
    # On whole numbers, hence the floor first, that is exact.
    length = graph.constant(np.array([period], np.float32))
    signed = graph.add("Mod", [graph.add("Floor", [graph.input]), length], fmod=1)
    positive = graph.add("Mod", [graph.add("Add", [signed, length]), length], fmod=1)
    place = graph.add("Cast", [positive], to=TensorProto.INT64)
    turned = graph.add("Gather", [graph.constant(operator.raw_operator.table_), place], axis=0)
    shape = graph.constant(np.array([-1, 2 * operator.raw_operator.n_features_in_], np.int64))
    graph.add("Reshape", [turned, shape], graph.output)


def _interaction(scope: Any, operator: Any, container: Any) -> None:
    graph = _Graph(scope, operator, container)
    left, right = (graph.constant(np.array([index], np.int64)) for index in (0, 1))
    factors = [graph.add("Gather", [graph.input, index], axis=1) for index in (left, right)]
    graph.add("Mul", factors, graph.output)
