"""The body of a prediction request, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gateway.refusals import Refused, shown
from gateway.schema import Row, list_of
from gateway.serving import Effect

MAX_KEY = 256
_FIELDS = frozenset({"rows", "entities", "key"})


class Question(NamedTuple):
    """Rows in the order of the model's inputs, and what the log keeps of each."""

    rows: list[Row]
    keys: Sequence[str | None]
    event_times_us: Sequence[int | None]
    key: str | None


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
                          expected="rows or entities, and key", got=value)  # fmt: skip
    if ("rows" in document) == ("entities" in document):
        raise Refused(422, "rows_or_entities", "a request carries either rows or entities",
                      expected="exactly one of rows and entities")  # fmt: skip
    key = document.get("key")
    if key is not None and (type(key) is not str or not 0 < len(key) <= MAX_KEY):
        raise Refused(422, "wrong_type", "key chooses the version and must be a string", field="key",
                      expected=f"string of 1 to {MAX_KEY} characters", got=key)  # fmt: skip
    return key


def read_rows(document: dict[str, Any], effect: Effect) -> Question:
    """A question that carries its features.

    Raises:
        Refused: 422 or 413.
    """
    given = list_of(document, "rows", effect.champion.manifest.serving.max_rows)
    row = effect.schema.row
    nothing = (None,) * len(given)
    return Question([row(values, index) for index, values in enumerate(given)], nothing, nothing, document.get("key"))
