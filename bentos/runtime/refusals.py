"""Why a request gets no prediction, as an HTTP status and a JSON body."""

from __future__ import annotations

from typing import Any

import orjson


class Refused(Exception):
    """A request that is answered with an error. ``row`` counts from 0; ``got`` is shortened for the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        row: int | None = None,
        field: str | None = None,
        expected: str | None = None,
        got: object = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.body = orjson.dumps(
            {
                "error": {
                    "code": code,
                    "message": message,
                    "row": row,
                    "field": field,
                    "expected": expected,
                    "got": shown(got),
                }
            }
        )


def shown(value: object) -> Any:
    """A value as it may stand in an answer: at most 80 characters of it, and never what JSON cannot carry."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode()
    else:
        try:
            text = repr(value)
        except RecursionError:
            text = "lists and objects within one another, too many to show"
    return text if len(text) <= 80 else f"{text[:79]}…"
