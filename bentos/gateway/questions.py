"""The body of a prediction request, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from airlock.core.errors import Unavailable
from airlock.core.spec import Input
from gateway.online import OnlineFeatures
from gateway.serving import Effect
from runtime.refusals import Refused, shown
from runtime.schema import Row, Schema, expected, list_of, shown_name

MAX_KEY = 256
_FIELDS = frozenset({"rows", "entities", "key", "attributes"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EARLIEST, _LATEST = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)
"""What nanoseconds in 64 bits can tell, which is how features are stored."""


class Question(NamedTuple):
    """Rows in the order of the model's inputs, and what the log keeps of each.

    ``given`` are the rows or entities as they were sent. ``lost`` is why the features could not be read, if something
    else may answer; their inputs are ``None`` then, and no version may be asked.
    """

    rows: list[Row]
    keys: Sequence[str | None]
    event_times_us: Sequence[int | None]
    given: Sequence[Mapping[str, Any]]
    attributes: Mapping[str, Any]
    lost: Refused | None = None

    def facts(self, effect: Effect) -> list[dict[str, Any]]:
        """What each row may be judged by: its inputs, what was sent in its place, and the request's attributes."""
        names = tuple(effect.schema.inputs)
        return [
            {**dict(zip(names, row, strict=True)), **given, **self.attributes}
            for row, given in zip(self.rows, self.given, strict=True)
        ]

    def segment(self, effect: Effect) -> Mapping[str, Any]:
        """What the whole request may be judged by. Several rows may lie in several segments: theirs do not count."""
        return self.facts(effect)[0] if len(self.rows) == 1 else self.attributes


def routing_key(document: Any) -> str | None:
    """The request's own routing key. Checks everything about the document but its rows.

    Raises:
        Refused: 422.
    """
    if type(document) is not dict:
        raise Refused(422, "not_an_object", "the body must be an object with rows or entities",
                      expected='{"rows": [...]} or {"entities": [...]}', got=document)  # fmt: skip
    for name, value in document.items():
        if name not in _FIELDS:
            raise Refused(422, "unknown_field", f"{shown(name)!r} is not a field of a request", field=shown(name),
                          expected="rows or entities, key and attributes", got=value)  # fmt: skip
    if ("rows" in document) == ("entities" in document):
        raise Refused(422, "rows_or_entities", "a request carries either rows or entities",
                      expected="exactly one of rows and entities")  # fmt: skip
    key = document.get("key")
    if key is not None and (type(key) is not str or not 0 < len(key) <= MAX_KEY):
        raise Refused(422, "wrong_type", "key chooses the version and must be a string", field="key",
                      expected=f"string of 1 to {MAX_KEY} characters", got=key)  # fmt: skip
    if "attributes" in document:
        _check_attributes(document["attributes"])
    return key


def _check_attributes(attributes: object) -> None:
    if attributes is None:
        return
    if type(attributes) is not dict:
        raise Refused(422, "wrong_type", "attributes must be an object of values by name", field="attributes",
                      expected="object", got=attributes)  # fmt: skip
    for name, value in attributes.items():
        fine = type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value))
        if not fine:
            raise Refused(422, "wrong_type", f"attribute {shown_name(name)!r} must be a string, a number or true or "
                          "false", field=f"attributes.{shown_name(name)}", expected="string, finite number or boolean",
                          got=value)  # fmt: skip


def read_rows(document: dict[str, Any], effect: Effect) -> Question:
    """A question that carries its features.

    Raises:
        Refused: 422 or 413.
    """
    given = list_of(document, "rows", effect.champion.manifest.serving.max_rows)
    keys, times = _origins(given, effect)
    row = effect.schema.row
    rows = [row(values, index) for index, values in enumerate(given)]
    return Question(rows, keys, times, given, document.get("attributes") or {})


async def read_entities(document: dict[str, Any], effect: Effect, online: OnlineFeatures) -> Question:
    """A question that carries entities, with their features as of each row's event time, or of now.

    Raises:
        Refused: 422 or 413; 424 when an entity has no value for an input that needs one; 503 when the
            online store does not answer and nothing may answer without it.
    """
    manifest = effect.champion.manifest
    if manifest.features is None:
        raise Refused(422, "no_features", f"{manifest.model} has no entities: send rows", expected="rows")
    given = list_of(document, "entities", manifest.serving.max_rows)
    keys, times = _origins(given, effect)
    schema = _entity_schema(effect, online)
    asked = [schema.row(entity, index) for index, entity in enumerate(given)]
    columns: dict[str, list[Any]] = {
        name: list(values) for name, values in zip(schema.inputs, zip(*asked, strict=True), strict=True)
    }
    attributes, nothing = document.get("attributes") or {}, [None] * len(given)
    try:
        found = await _features(effect, online, columns, times)
    except Refused as lost:
        if not effect.stand_ins.know_without_inputs:
            raise
        inputs = [columns.get(name, nothing) for name in effect.schema.inputs]
        return Question(list(zip(*inputs, strict=True)), keys, times, given, attributes, lost)
    for name, values in found.items():
        columns.setdefault(name, values)
    inputs = [
        _typed(name, declared, columns.get(name, nothing), given, manifest.features.entities)
        for name, declared in effect.schema.inputs.items()
    ]
    return Question(list(zip(*inputs, strict=True)), keys, times, given, attributes)


async def _features(
    effect: Effect, online: OnlineFeatures, columns: dict[str, list[Any]], times: Sequence[int | None]
) -> dict[str, list[Any]]:
    """Feature values of all rows; rows that share a time are read together."""
    features = effect.champion.manifest.features
    keys = features.entities if features is not None else ()
    # A join key that is missing matches nothing, as in training.
    asked = columns | {name: ["" if value is None else value for value in columns[name]] for name in keys}
    groups: dict[int | None, list[int]] = {}
    for index, time in enumerate(times):
        groups.setdefault(time, []).append(index)
    found: dict[str, list[Any]] = {}
    for time, indices in groups.items():
        now = datetime.now(UTC) if time is None else _EPOCH + time * _MICROSECOND
        rows = {name: [values[index] for index in indices] for name, values in asked.items()}
        try:
            part = await online.read(effect.services, rows, now)
        except Unavailable as error:
            raise Refused(503, "features_unavailable", str(error)) from error
        for name, values in part.items():
            column = found.setdefault(name, [None] * len(times))
            for index, value in zip(indices, values, strict=True):
                column[index] = value
    return found


def _entity_schema(effect: Effect, online: OnlineFeatures) -> Schema:
    """What an entity row must carry: join keys, and the values that come with the question."""
    if effect.entities is None:
        manifest = effect.champion.manifest
        features = manifest.features
        assert features is not None  # noqa: S101 - asked for only where there are entities
        keys = {
            name: manifest.inputs.get(name) or Input(type="int" if online.is_integer(name) else "string", nullable=True)
            for name in features.entities
        }
        effect.entities = Schema(keys | features.request)
    return effect.entities


def _typed(
    name: str, declared: Input, values: Sequence[Any], given: Sequence[dict[str, Any]], entities: Sequence[str]
) -> list[Any]:
    """A feature's values as its input takes them: NaN is missing, and missing is allowed or is a 424."""
    typed: list[Any] = []
    for index, value in enumerate(values):
        if value is None or value != value:  # noqa: PLR0124 - NaN is what differs from itself
            if not declared.nullable:
                of = ", ".join(f"{entity} {given[index].get(entity)!r}" for entity in entities)
                raise Refused(424, "feature_missing", f"row {index}: the online store has no {name} for {of}",
                              row=index, field=name, expected=expected(declared))  # fmt: skip
            typed.append(None)
        else:
            typed.append(int(value) if declared.type == "int" else value)
    return typed


def _origins(given: list[Any], effect: Effect) -> tuple[Sequence[str | None], Sequence[int | None]]:
    """Take each row's own key and event time out of it; what is left are features."""
    manifest = effect.champion.manifest
    nothing: Sequence[None] = (None,) * len(given)
    keys: Sequence[str | None] = nothing
    times: Sequence[int | None] = nothing
    if manifest.key is not None and manifest.key not in effect.schema.inputs:
        keys = [_key(row, manifest.key, index) for index, row in enumerate(given)]
    if manifest.event_time is not None and manifest.event_time not in effect.schema.inputs:
        times = [_time(row, manifest.event_time, index) for index, row in enumerate(given)]
    return keys, times


def _key(row: Any, name: str, index: int) -> str | None:
    value = row.pop(name, None) if type(row) is dict else None
    if value is None:
        return None
    if type(value) not in (str, int) or len(str(value)) > MAX_KEY:
        raise Refused(422, "wrong_type", f"row {index}, {name}: a key is a string or a whole number", row=index,
                      field=name, expected=f"string of at most {MAX_KEY} characters", got=value)  # fmt: skip
    return str(value)


def _time(row: Any, name: str, index: int) -> int | None:
    value = row.pop(name, None) if type(row) is dict else None
    if value is None:
        return None
    try:
        time = datetime.fromisoformat(value)
        if time.tzinfo is not None and _EARLIEST <= time < _LATEST:
            return (time.astimezone(UTC) - _EPOCH) // _MICROSECOND
    except (TypeError, ValueError, OverflowError):
        pass
    raise Refused(422, "wrong_type", f"row {index}, {name}: expected a time with its zone from 1678 to 2261", row=index,
                  field=name, expected="ISO 8601 with a zone, such as 2013-04-01T06:00:00Z", got=value)  # fmt: skip
