"""What a model may be asked: its manifest's inputs as a strict, typed check of rows.

Numbers go to the model as float32. A whole number that float32 cannot hold exactly is refused
rather than rounded; so is a number beyond float32's range. ``true`` is not a number and ``5.0`` is
not a whole one. A missing value is ``null``, and only where the input is nullable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from airlock.core.spec import Input
from runtime.refusals import Refused

Row = Sequence[Any]
FLOAT_MAX = float(np.finfo(np.float32).max)
EXACT_INT = 2**24
"""Whole numbers up to this are exact in float32; beyond it only some are."""
_INT64 = 2**63
_Problem = tuple[str, str]


class _Field(NamedTuple):
    name: str
    type: str
    low: float
    high: float
    values: frozenset[str] | None
    required: bool
    declared: Input


class Schema:
    """The check of one set of inputs. ``optional`` ones must be nullable; they need not be sent at all."""

    def __init__(self, required: Mapping[str, Input], optional: Mapping[str, Input] | None = None) -> None:
        self.inputs = {**required, **(optional or {})}
        self._fields = tuple(_field(name, declared, name in required) for name, declared in self.inputs.items())
        self._loose = bool(optional)

    def row(self, given: object, index: int) -> Row:
        """The values of one row in the order of the inputs; ``None`` is missing.

        Raises:
            Refused: 422, naming row, field, what was expected and what was sent.
        """
        if type(given) is not dict:
            raise Refused(422, "not_an_object", f"row {index} must be an object of features by name",
                          row=index, expected="object", got=given)  # fmt: skip
        values: list[Any] = []
        for field in self._fields:
            value: Any = given.get(field.name)
            kind = type(value)
            if field.type == "string":
                fine = kind is str and value != "" and (field.values is None or value in field.values)
            elif field.type == "float":
                fine = (kind is float or kind is int) and field.low <= value <= field.high
            else:
                fine = kind is int and field.low <= value <= field.high
            if not fine:
                value = _second_look(field, given, index)
            values.append(value)
        if self._loose or len(given) != len(values):
            self._refuse_unknown(given, index)
        return values

    def _refuse_unknown(self, given: dict[str, Any], index: int) -> None:
        name = next((name for name in given if name not in self.inputs), None)
        if name is None:
            return
        raise Refused(422, "unknown_feature", f"row {index} has a feature {shown_name(name)!r} that the model does not "
                      "take", row=index, field=shown_name(name), expected=f"only {', '.join(self.inputs)}",
                      got=given[name])  # fmt: skip


def shown_name(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:59]}…"


class Feeds:
    """Turns checked rows into what ONNX Runtime takes: one ``[N, 1]`` tensor for each of a version's inputs.

    ``schema`` is the rows' own, and has every input of the version.
    """

    def __init__(self, inputs: Mapping[str, Input], schema: Schema) -> None:
        places = {name: index for index, name in enumerate(schema.inputs)}
        self._needed = [
            (name, places[name])
            for name, declared in inputs.items()
            if not declared.nullable and schema.inputs[name].nullable
        ]
        self._names = [name for name, declared in inputs.items() if declared.type != "string"]
        self._numbers = [places[name] for name in self._names]
        self._strings = [(name, places[name]) for name, declared in inputs.items() if declared.type == "string"]

    def lacks(self, rows: Sequence[Row]) -> str | None:
        """An input that the version needs and that a row does not carry."""
        return next((name for name, place in self._needed for row in rows if row[place] is None), None)

    def numbers(self, row: Row) -> list[Any]:
        """The numbers of one row, in the order of the version's inputs."""
        return [row[place] for place in self._numbers]

    def __call__(self, rows: Sequence[Row]) -> dict[str, npt.NDArray[Any]]:
        count = len(rows)
        feeds: dict[str, npt.NDArray[Any]] = {}
        if self._numbers:
            # One conversion for all numbers: None becomes NaN, and each slice is an input's own [N, 1].
            matrix = np.array([[row[place] for row in rows] for place in self._numbers], np.float32)
            feeds.update(zip(self._names, matrix.reshape(-1, count, 1), strict=True))
        for name, place in self._strings:
            feeds[name] = np.array([row[place] or "" for row in rows], object).reshape(count, 1)
        return feeds


def list_of(document: Mapping[str, Any], name: str, limit: int) -> list[Any]:
    """The list under ``name``, with at least one and at most ``limit`` members.

    Raises:
        Refused: 422 or 413.
    """
    given = document[name]
    if type(given) is not list:
        raise Refused(422, "wrong_type", f"{name} must be a list", field=name, expected="list of objects", got=given)
    if not given:
        raise Refused(422, "empty_batch", f"{name} is empty; at least one row is needed", field=name,
                      expected="at least one row", got="0 rows")  # fmt: skip
    if len(given) > limit:
        raise Refused(413, "too_many_rows", f"{len(given)} rows; this model takes at most {limit} in one request",
                      field=name, expected=f"at most {limit} rows", got=f"{len(given)} rows")  # fmt: skip
    return given


def _field(name: str, declared: Input, required: bool) -> _Field:
    bound = EXACT_INT if declared.type == "int" else FLOAT_MAX
    return _Field(
        name=name,
        type=declared.type,
        low=max(-bound, declared.min if declared.min is not None else -bound),
        high=min(bound, declared.max if declared.max is not None else bound),
        values=frozenset(declared.values) if declared.values is not None else None,
        required=required,
        declared=declared,
    )


def expected(declared: Input) -> str:
    """An input's rule in words."""
    words = {"float": "number", "int": "whole number", "string": "string"}[declared.type]
    if declared.min is not None and declared.max is not None:
        words += f" from {declared.min:g} to {declared.max:g}"
    elif declared.min is not None:
        words += f" of at least {declared.min:g}"
    elif declared.max is not None:
        words += f" of at most {declared.max:g}"
    if declared.values is not None:
        words = f"one of {', '.join(declared.values)}"
    return f"{words} or null" if declared.nullable else words


def _second_look(field: _Field, given: dict[str, Any], index: int) -> Any:
    """Accept what the quick check could not, or say what is wrong."""
    name, declared = field.name, field.declared
    if name not in given and not field.required:
        return None
    value = given.get(name)
    problem = _missing(name, declared, given) if value is None or value == "" else _problem(declared, value)
    if problem is None:
        return value
    code, message = problem
    raise Refused(
        *(422, code, f"row {index}, {name}: {message}; expected {expected(declared)}"),
        row=index,
        field=name,
        expected=expected(declared),
        got=value,
    )


def _missing(name: str, declared: Input, given: dict[str, Any]) -> _Problem | None:
    if name not in given:
        return "missing_feature", "missing"
    value = given[name]
    if value == "" and declared.type != "string":
        return "wrong_type", "got an empty string"
    if declared.nullable:
        return None
    return "missing_feature", "null" if value is None else "an empty string"


def _problem(declared: Input, value: Any) -> _Problem | None:
    if declared.type == "string":
        if type(value) is not str:
            return "wrong_type", f"got {_kind(value)}"
        return "unknown_category", "an unknown category"
    if type(value) not in (int, float):
        return "wrong_type", f"got {_kind(value)}"
    return _problem_of_number(declared, value)


def _problem_of_number(declared: Input, value: float) -> _Problem | None:
    whole = declared.type == "int"
    if type(value) is float and not math.isfinite(value):
        return "not_finite", f"{value} is banned"
    # JSON numbers beyond 64 bits arrive as floats: say what is wrong with them, not that they are no whole numbers.
    if whole and type(value) is float and abs(value) < _INT64:
        return "wrong_type", "got a number with a fraction"
    if (declared.min is not None and value < declared.min) or (declared.max is not None and value > declared.max):
        return "out_of_bounds", "out of bounds"
    if not whole:
        return "loses_precision", f"would lose precision, as it is beyond float32's range of ±{FLOAT_MAX:.7g}"
    if abs(value) < _INT64 and int(np.float32(value)) == value:
        return None
    return "loses_precision", "would lose precision, as the model takes float32, which does not hold it exactly"


def _kind(value: object) -> str:
    names = {bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
