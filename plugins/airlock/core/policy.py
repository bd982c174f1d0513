"""What every part of a spec is made of: its base class, durations, names, shares, tasks and metrics."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = r"^(\d+(?:\.\d+)?)(ms|[smhd])$"


def _duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    match = re.fullmatch(_DURATION, value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected a duration such as 90s, 15m, 6h or 14d, got {value!r}")
    return timedelta(**{"milliseconds" if match[2] == "ms" else _UNITS[match[2]]: float(match[1])})


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
    """Base of everything that a user declares: frozen, no unknown key, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Unit = Literal["request", "key", "minute"]
"""What makes one observation of live traffic: a request, the first of a routing key, or the mean of a minute."""


class Task(StrEnum):
    CLASSIFICATION = "classification"
    REGRESSION = "regression"


METRICS: dict[Task, tuple[Metric, ...]] = {
    Task.CLASSIFICATION: ("roc_auc", "pr_auc", "log_loss", "brier", "accuracy"),
    Task.REGRESSION: ("rmse", "mae", "r2"),
}
