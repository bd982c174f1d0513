"""Segments: predicates on a request's attributes, without expressions, and versions pinned to them.

A condition names an attribute and says what it must be; a segment holds when all of its conditions do. An
attribute that a request does not carry meets no condition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from airlock.core.policy import Policy

Scalar = str | bool | int | float


class Condition(Policy):
    """One attribute is one of ``values``, or a number from ``min`` to ``max``, both included."""

    attribute: Annotated[str, Field(min_length=1, max_length=64)]
    values: tuple[Scalar, ...] | None = None
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.values is not None) == (self.min is not None or self.max is not None):
            raise ValueError("a condition takes either values, or min, max or both")
        if self.values is not None and not self.values:
            raise ValueError("a condition without values is never met")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def met(self, attributes: Mapping[str, Any]) -> bool:
        """Whether a request with these attributes meets the condition."""
        value = attributes.get(self.attribute)
        if value is None:
            return False
        if self.values is not None:
            # A bool is an int to Python: without this, true would be the number 1.
            return any(
                value == allowed and isinstance(value, bool) is isinstance(allowed, bool) for allowed in self.values
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class Pin(Policy):
    """A feature flag: requests of a segment are answered by one version, whatever the shares say."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,47}$")]
    when: Annotated[tuple[Condition, ...], Field(min_length=1)]
    version: str


def met(conditions: Iterable[Condition], attributes: Mapping[str, Any]) -> bool:
    """Whether every condition is met."""
    return all(condition.met(attributes) for condition in conditions)
