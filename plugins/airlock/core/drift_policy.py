"""How drift is measured: one method, and what its scores mean.

A distance grows with drift: 0 is none. A p-value shrinks with it: it is the chance of columns that differ as much
although nothing changed, so it depends on the number of rows as well, and 0.2 is no evidence of anything. Each method
therefore has a bound of its own, and a spec names it by what it is: ``threshold`` or ``alpha``.

The distances' own thresholds stand for about the same change, that of a normal column that moves by 0.45 standard
deviations: 0.2 by the population stability index (for small changes the square of the move), 0.16 by the
Jensen-Shannon distance (the move over the square root of 8), 0.45 by the Wasserstein distance in standard deviations.

Sources:
    Yurdakul, Naranjo (2020), Statistical properties of the population stability index (0.2 is its usual bound).
    Endres, Schindelin (2003), A new metric for probability distributions (Jensen-Shannon distance and its maximum).
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from airlock.core.policy import Duration, Policy, Positive

Method = Literal["psi", "jensenshannon", "wasserstein", "ks"]

THRESHOLDS = {"psi": 0.2, "jensenshannon": 0.16, "wasserstein": 0.45}
"""Of each distance, where a spec names none."""

ALPHA = 0.01
"""Of the p-values, where a spec names none."""

_FARTHEST = {"jensenshannon": math.sqrt(math.log(2))}
"""The largest distance there is: that of two samples without a common value, by natural logarithms."""

_FOR_STRINGS = {"wasserstein": "jensenshannon", "ks": "chisquare"}
"""Methods that need an order of the values, and what stands in for them on strings."""


class Measure(NamedTuple):
    """How one kind of column is measured, Evidently's name of it, and from which score on it has drifted."""

    method: str
    bound: float
    p_value: bool

    def drifted(self, score: float) -> bool:
        return score <= self.bound if self.p_value else score >= self.bound

    def nearness(self, score: float) -> float:
        """The score against the bound: 1 is on it, more is drift."""
        if self.p_value:
            return self.bound / score if score > 0 else math.inf
        return score / self.bound

    def in_words(self, score: float) -> str:
        """A score, and by how much it lies beyond or within its bound."""
        if self.p_value:
            side = "at most" if self.drifted(score) else "above"
            return f"p {score:.2g}, {side} {self.bound:g}"
        side = "above" if self.drifted(score) else "below"
        return f"{score:.3g}, {abs(score - self.bound):.2g} {side} {self.bound:g}"


class Drift(Policy):
    """How drift is measured: one method and its bound for every column, and how many may drift.

    ``psi``, ``jensenshannon`` and ``wasserstein`` (in standard deviations) are distances: a column drifts from
    ``threshold`` on. ``ks`` is a test: a column drifts if its p-value is ``alpha`` or less. Strings have no order:
    under ``wasserstein`` they are measured by ``jensenshannon`` and ``category_threshold``, under ``ks`` by the
    chi-squared test.

    ``share`` is the share of the watched columns above which the data counts as drifted. ``current`` is the length
    of the window that is held against the champion's training rows.
    """

    method: Method = "psi"
    threshold: Annotated[
        Positive | None,
        Field(description="distance; unset: 0.2 of psi, 0.16 of jensenshannon, 0.45 of wasserstein; none of ks"),
    ] = None
    alpha: Annotated[
        float | None, Field(gt=0, le=0.05, description="p-value, of ks alone; unset: 0.01; smaller is stricter")
    ] = None
    category_threshold: Annotated[
        Positive | None,
        Field(description="distance of strings; unset: the threshold, or jensenshannon's own under wasserstein"),
    ] = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    columns: tuple[str, ...] = Field((), description="the inputs to watch; empty: all of them")
    min_rows: Annotated[int, Field(ge=2)] = 500
    current: Duration = timedelta(days=7)

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.method == "ks":
            if self.threshold is not None or self.category_threshold is not None:
                raise ValueError(
                    "ks gives a p-value, where smaller is drift, and no distance: write alpha, the p-value at which a "
                    f"column has drifted (at most 0.05, such as {ALPHA:g}), in place of threshold; or choose a "
                    "distance: psi, jensenshannon or wasserstein"
                )
            return self
        if self.alpha is not None:
            raise ValueError(
                f"{self.method} is a distance, where larger is drift, and has no p-value: write threshold, such as "
                f"{THRESHOLDS[self.method]:g}, in place of alpha"
            )
        for measure in (self.numbers, self.strings):
            if measure.bound > (farthest := _FARTHEST.get(measure.method, math.inf)):
                raise ValueError(
                    f"a {measure.method} distance is at most {farthest:.3g}: {measure.bound:g} is never reached; "
                    f"write a threshold below it, such as {THRESHOLDS[measure.method]:g}"
                )
        return self

    @property
    def numbers(self) -> Measure:
        """How columns of numbers are measured."""
        if self.method == "ks":
            return Measure("ks", self.alpha or ALPHA, p_value=True)
        return Measure(self.method, self.threshold or THRESHOLDS[self.method], p_value=False)

    @property
    def strings(self) -> Measure:
        """How columns of strings are measured."""
        method = _FOR_STRINGS.get(self.method, self.method)
        if self.method == "ks":
            return Measure(method, self.alpha or ALPHA, p_value=True)
        same = method == self.method
        bound = self.category_threshold or (self.threshold if same else None) or THRESHOLDS[method]
        return Measure(method, bound, p_value=False)
